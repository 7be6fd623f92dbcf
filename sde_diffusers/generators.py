"""Sources of noise, as arguments."""

import torch
from torch import Tensor

from sde_diffusers.scalars import whole_number

SEED_HINT = "For a seed: torch.Generator().manual_seed(5)."

LATENT_NAMES = ["latents"]  # what a callback is given, and may replace


def require_generator(generator) -> None:
    """Raise a ValueError unless `generator` is None or a `torch.Generator`, where a list has no place."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"`generator` must be None or a torch.Generator, but is {generator!r}. {SEED_HINT}")


def require_draws(n: int, generator) -> None:
    """Raise a ValueError unless n values can be drawn from the generator."""
    if not whole_number(n) >= 0:
        raise ValueError(f"`n` must be a whole number of at least 0, but is {n!r}.")
    require_generator(generator)


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


def latents_size(latents, count: int, channels: int, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """(H, W) of given noise; a ValueError unless it is finite, (count, channels, H, W), and of `size` where given."""
    if not isinstance(latents, Tensor):
        raise ValueError(f"`latents` must be a tensor, but are a {type(latents).__name__}.")
    if not latents.is_floating_point() or not (latents.is_meta or latents.isfinite().all()):
        raise ValueError(f"`latents` must be finite floating point numbers, but are {latents.dtype} or not finite.")
    found = tuple(latents.shape)
    if len(found) != 4 or found[:2] != (count, channels) or (size is not None and found[2:] != tuple(size)):
        expected = ", ".join(map(str, (count, channels, *(("H", "W") if size is None else size))))
        raise ValueError(f"`latents` must have shape ({expected}), but have {found}.")
    if 0 in found:
        raise ValueError(f"`latents` must hold numbers, but have shape {found}.")
    return found[2:]


def require_state_alone(inputs) -> None:
    """Raise a `ValueError` unless a callback is to be given nothing but the state."""
    if not isinstance(inputs, (list, tuple)) or not all(name in LATENT_NAMES for name in inputs):
        what = f"a list of {LATENT_NAMES} only, but is {inputs!r}"
        raise ValueError(f"`callback_on_step_end_tensor_inputs` may be {what}.")


def replaced(x: Tensor, returned) -> Tensor:
    """The state x, or the one that a callback has returned for it.

    Raises:
        ValueError: on anything else than None or {"latents": a floating point tensor of the shape of x}.
    """
    if returned is None:
        return x
    if not isinstance(returned, dict) or not set(returned) <= set(LATENT_NAMES):
        what = sorted(map(str, returned)) if isinstance(returned, dict) else type(returned).__name__
        raise ValueError(f"`callback_on_step_end` must return None or a dictionary of 'latents', but returned {what}.")
    new = returned.get("latents", x)
    if not isinstance(new, Tensor) or not new.is_floating_point() or new.shape != x.shape:
        found = f"{new.dtype} {tuple(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
        raise ValueError(f"`latents` that a callback returns must be a tensor {tuple(x.shape)}, but are {found}.")
    return new.to(x)
