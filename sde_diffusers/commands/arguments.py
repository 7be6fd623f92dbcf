"""What the sub-commands have in common on the command line, and the model that they name."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

MOST = 1_000_000
"""More images, steps or pixels than that are a slip of the hand, and no memory holds them."""


class CommandParser(argparse.ArgumentParser):
    """A parser that explains what an option of several values did where it took arguments that were not for it."""

    def error(self, message):
        for action in self._actions:
            option = action.option_strings[0] if action.option_strings and action.nargs == "+" else None
            if option and message.startswith(("the following arguments are required", f"argument {option}:")):
                message += f"; {option} takes all that follows: it comes last, or is ended by --"
        super().error(message)


def add_command(commands, name: str, meaning: str, examples: str, description: str | None = None, usage=None):
    """A sub-command's parser: one line of meaning in the list of all; description and examples in its own help.

    `usage` is for options of several values, which argparse prints before the arguments that they would take.
    """
    return commands.add_parser(
        name,
        usage=usage and f"%(prog)s [-h] {usage}",
        help=meaning,
        description=description or f"{meaning[0].upper()}{meaning[1:]}.",
        epilog=f"examples:{examples.rstrip()}",
        formatter_class=ExamplesAsTheyAre,
    )


class ExamplesAsTheyAre(argparse.HelpFormatter):
    """Text in lines of its own, as the examples are, stays in them."""

    def _fill_text(self, text, width, indent):
        return text if "\n" in text else super()._fill_text(text, width, indent)


def add_model_arguments(parser) -> None:
    """The model, and how its network is run."""
    parser.add_argument("model", help="folder of a pipeline, or its id on the Hub")
    parser.add_argument("--device", help="where to compute, such as cpu or cuda:1 (default: cuda if there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for programs instead of text")


def named_class(pipe, label: str | None) -> int | str | None:
    """A class by its name or, for what is the name of none, by its number."""
    if label is None or label in (pipe.class_names or ()) or not re.fullmatch(r"-?\d+", label):
        return label
    return int(label)


def integer(least: int, most: int = MOST) -> Callable[[str], int]:
    """Reads an integer of that range."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be an integer from {least} to {most:,}, but is {text!r}")
        return int(text)

    return read


def number(what: str, allowed: Callable[[float], bool]) -> Callable[[str], float]:
    """Reads a finite number that is allowed; `what` says which are."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and allowed(value)):
            raise argparse.ArgumentTypeError(f"must be a finite number {what}, but is {text!r}")
        return value

    return read


positive_integer = integer(1)
positive_number = number("above 0", lambda value: value > 0)
number_from_zero = number("of at least 0", lambda value: value >= 0)


def seed_number(text: str) -> int:
    """The first of several seeds, of which a generator takes 64 bits."""
    if not re.fullmatch(r"\d+", text) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2^63 - 1, but is {text!r}")
    return int(text)


def require_device(device: str) -> None:
    """Raise a ValueError unless this machine has such a device."""
    import torch

    devices = ["cpu"]
    for kind in ("cuda", "mps", "xpu"):
        count = getattr(torch, kind).device_count() if hasattr(torch, kind) else 0
        devices += [kind, *(f"{kind}:{k}" for k in range(count))] if count else []
    if device not in devices:
        raise ValueError(f"--device must be one of what this machine has, {', '.join(devices)}, but is {device!r}.")


def loaded_pipeline(pipeline_class, options):
    """The pipeline that the options name, where they want it; its bar of progress is for terminals only."""
    if Path(options.model).is_file() or not options.model:
        raise ValueError(f"The model must be the folder of a pipeline, or an id on the Hub, but is {options.model!r}.")

    import torch
    from diffusers.utils import logging

    logging.disable_progress_bar()  # of loading, which takes a moment
    pipe = pipeline_class.from_pretrained(options.model)
    pipe.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipe.set_progress_bar_config(disable=None)
    return pipe


def own_generators(seed: int, numbers) -> list:
    """A generator for each image, which is then the same whatever it is drawn together with, and on which device."""
    import torch

    return [torch.Generator().manual_seed(seed + k) for k in numbers]
