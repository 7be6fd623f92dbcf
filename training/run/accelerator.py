"""Accelerate's `Accelerator`: this process's connection to the others, its device and its precision."""

import logging
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from run.precision import mixed_precision


def make_accelerator(precision: str, timeout: timedelta) -> Accelerator:
    """Connect this process to the others of its launch; from now on only the main one prints warnings.

    Args:
        precision: one of `PRECISIONS`.
        timeout: until a process that does not answer counts as lost.

    Raises:
        ConfigError: a precision that the device does not have.
    """
    accelerator = Accelerator(
        mixed_precision=mixed_precision(precision),
        cpu=not torch.accelerator.is_available(),  # unasked, it would not connect the processes of torchrun
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
    )
    image_messages, seen = logging.getLogger("images"), set()
    image_messages.filters.clear()  # of earlier ones in this process, which had said other things
    image_messages.addFilter(lambda record: not (record.getMessage() in seen or seen.add(record.getMessage())))
    logging.basicConfig(level=logging.WARNING if accelerator.is_main_process else logging.ERROR)
    return accelerator
