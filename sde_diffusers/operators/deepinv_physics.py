"""Measurements of the library deepinv (https://deepinv.org) as operators."""

from typing import Any

import torch

from sde_diffusers.operators.base import LinearOperator, Operator


def from_deepinv(physics: Any, shape: tuple[int, int, int], device: torch.device | str | None = None) -> Operator:
    """The operator of a deepinv `Physics`: its `A`, and its `A_adjoint` if it is a `LinearPhysics`.

    Its noise model is left out: say `noise_std` where the operator is used.

    Args:
        physics: of real images.
        shape: (C, H, W) of the images.
        device: of the physics; None is torch's default.

    Raises:
        ValueError: if it measures nothing, and as `LinearOperator.from_function`; in deepinv some adjoints are
            approximate.
    """
    if not callable(getattr(physics, "A", None)):
        raise ValueError(f"`physics` must be a `Physics` of deepinv, whose `A` measures, but is {physics!r}.")
    if not hasattr(physics, "A_adjoint"):
        return Operator.from_function(physics.A, shape, device)
    return LinearOperator.from_function(physics.A, shape, physics.A_adjoint, device)
