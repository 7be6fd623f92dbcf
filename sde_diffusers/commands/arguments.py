"""What the sub-commands have in common on the command line, and the model that they name."""

import argparse
import re
from pathlib import Path


def add_command(commands, name: str, meaning: str, examples: str, description: str | None = None):
    """A sub-command's parser: one line of meaning in the list of all; description and examples in its own help."""
    return commands.add_parser(
        name,
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


def class_label(text: str) -> int | str:
    """A class by its number or its name."""
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def positive_integer(text: str) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, but is {text!r}")
    return int(text)


def seed_number(text: str) -> int:
    """The first of several seeds, of which a generator takes 64 bits."""
    if not re.fullmatch(r"\d+", text) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2^63 - 1, but is {text!r}")
    return int(text)


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
