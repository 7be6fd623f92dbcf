"""Numbers as people give them: of Python, numpy or torch.

What is no number (text, a boolean, an array with axes) is read as NaN, which no comparison holds for, so that

    if not 0 <= real_number(eta) < math.inf: raise ValueError(...)

refuses it together with what is out of range.
"""

import math
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor


def real_number(value) -> float | int:
    """A scalar of Python, numpy or torch as a number of Python; NaN for anything else."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and not value.shape:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    return int(value) if isinstance(value, Integral) else float(value)


def whole_number(value) -> float | int:
    """As `real_number`, but NaN for what is no integer by its type, too."""
    number = real_number(value)
    return number if isinstance(number, int) else math.nan


def whole_numbers(values) -> list[float | int]:
    """`whole_number` of each of some values; an empty list for what has none."""
    try:
        return [whole_number(value) for value in values]
    except TypeError:
        return []


def real_numbers(values) -> Tensor:
    """A tensor, an array or a sequence of real numbers in float64; a NaN for anything else, such as booleans."""
    try:
        tensor = torch.as_tensor(values if isinstance(values, Tensor) else np.asarray(values))
    except (TypeError, ValueError, RuntimeError):  # texts, None, rows of several lengths
        return torch.tensor(math.nan, dtype=torch.float64)
    unreal = tensor.is_complex() or tensor.dtype == torch.bool
    return torch.tensor(math.nan, dtype=torch.float64) if unreal else tensor.double()


def plain(value):
    """A value of a configuration as JSON has it: tensors and arrays as lists, their scalars as numbers."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    return value


def can_be_seen(values: Tensor) -> bool:
    """Whether one may look at values: not on a GPU, which would be waited for, nor in a graph, a fake or a batch of
    `torch.func`, where there are none."""
    plain_tensor = type(values) is Tensor and values.device.type == "cpu"
    return plain_tensor and not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None


def plain_array(name: str, value):
    """An array of numpy's own class for one of a subclass, such as `np.matrix`; other values as they are.

    Raises:
        ValueError: that names the argument, on a masked array that hides values: they would be read as well.
    """
    if np.ma.is_masked(value):
        raise ValueError(f"`{name}` must hold a value everywhere, but is a masked array that hides some: `filled` it.")
    return np.asarray(value) if isinstance(value, np.ndarray) else value


def plain_config(config) -> dict:
    """What a constructor was given, as `plain` values, to be registered instead."""
    return {key: plain(value) for key, value in config.items() if not key.startswith("_")}


def require_floating(**tensors: Tensor) -> None:
    """Raise a `ValueError` that names the argument unless it is a tensor, and not of integers: none would stay one."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"`{name}` must be a tensor, but is {type(tensor).__name__}.")
        if not tensor.is_floating_point():
            raise ValueError(f"`{name}` must be floating point, but is {str(tensor.dtype).removeprefix('torch.')}.")
