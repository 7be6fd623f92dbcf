"""Sources of noise, as arguments."""

import torch

SEED_HINT = "For a seed: torch.Generator().manual_seed(5)."


def require_generator(generator) -> None:
    """Raise a ValueError unless `generator` is None or a `torch.Generator`, where a list has no place."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"`generator` must be None or a torch.Generator, but is {generator!r}. {SEED_HINT}")


def require_generators(generator, count: int, what: str) -> None:
    """Raise a ValueError unless `generator` is None, a `torch.Generator` or a list of as many as there are.

    Args:
        count: number of images to draw noise for.
        what: what is counted, for the message.
    """
    if isinstance(generator, list) and all(isinstance(entry, torch.Generator) for entry in generator):
        if len(generator) != count:
            raise ValueError(f"`generator` is a list of {len(generator)}, but there are {count} {what}.")
    elif generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"`generator` must be None, a torch.Generator or a list of {count} of them (one for each of the {what}), "
            f"but is {generator!r}. {SEED_HINT}"
        )
