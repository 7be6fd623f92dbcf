"""The arguments of guidance: scales, an interval of noise levels, class labels."""

import math

import numpy as np
import torch
from torch import Tensor

from sde_diffusers.scalars import real_number


def checked_scale(name: str, value) -> float:
    """A finite number of at least 0, of Python, numpy or torch, as a float; else a `ValueError` names the argument."""
    if not 0 <= real_number(value) < math.inf:
        raise ValueError(f"`{name}` must be a finite number of at least 0, but is {value!r}.")
    return float(real_number(value))


def checked_interval(interval) -> tuple[float, float] | None:
    """`guidance_interval`; a `ValueError` unless it is None or (low, high) with 0 <= low < high."""
    if interval is None:
        return None
    pair = isinstance(interval, (tuple, list, np.ndarray, Tensor)) and np.shape(interval) == (2,)
    low, high = map(real_number, interval if pair else (1, 0))
    if not 0 <= low < high:
        raise ValueError(
            f"`guidance_interval` must be None or noise levels (low, high) with 0 <= low < high, but is {interval!r}."
        )
    return float(low), float(high)


def checked_labels(class_labels, batch_size: int, classes: int) -> Tensor:
    """`class_labels`, one or N of them, as a (N,) tensor; a `ValueError` unless they are integers in [-1, classes)."""
    each = class_labels if isinstance(class_labels, (list, tuple)) else []
    if any(isinstance(label, (bool, np.bool_)) for label in each):  # which would be taken for 0 and 1
        raise ValueError(f"`class_labels` must be integers, but are {class_labels!r}.")
    try:
        labels = torch.as_tensor(class_labels)
    except (TypeError, ValueError, RuntimeError):
        allowed = f"integers, or names, of {classes} classes"
        raise ValueError(f"`class_labels` must be {allowed}, but are {class_labels!r}.") from None
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"`class_labels` must be integers, but are {class_labels!r}.")
    if labels.ndim > 1 or (labels.ndim == 1 and len(labels) != batch_size):
        raise ValueError(
            f"`class_labels` must be one class or {batch_size} of them, but have shape {tuple(labels.shape)}."
        )
    labels = labels.long()  # torch does not compare unsigned ones with -1
    if ((labels < -1) | (labels >= classes)).any():
        raise ValueError(f"`class_labels` must lie in [0, {classes}) or be -1 (none), but are {labels.tolist()}.")
    return labels.expand(batch_size)
