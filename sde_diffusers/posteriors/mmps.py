"""MMPS: the covariance of x_0 given x_t as the network has it (arXiv 2405.13712)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusers.operators.base import LinearOperator
from sde_diffusers.operators.least_squares import least_residual, norm
from sde_diffusers.posteriors.base import PosteriorMethod, kept_variance
from sde_diffusers.posteriors.measurement import Measurement
from sde_diffusers.scalars import real_number, whole_number

PIXEL_STD = 0.5
"""Deviation of a pixel of images that are scaled to [-1, 1], as far as preconditioning goes."""
RESIDUAL_ROUNDING = 10
"""Rounding errors of a measured value, in units of the dtype's: operators sum over many pixels."""


@dataclass
class MMPS(PosteriorMethod):
    """Moment-matching posterior sampling: (A V A' + C) w = y - A D by steps of least residual.

    The covariance V is that of the network, which is not exactly symmetric and positive: few conjugate gradient steps
    may go astray, those of least residual don't. The shift V A' w is a sum of the products V A' d of the steps'
    directions d, and takes no other.

    What the system is for independent pixels of variance r^2, r^2 A A' + C, preconditions the steps where it can be
    solved at once: by an operator that solves such systems itself, for white noise, or by its diagonal, where the
    noise differs from value to value. So few steps need not find what differs by orders of magnitude only because A,
    or C, has it so: small singular values beside little noise.

    Args:
        steps: at least 1; each takes a vector-Jacobian product, and keeps it until the last.
        damping: at least 0; of it, `damping` (noise level)^2 A A' is added to the system, for networks whose V has
            directions that they wrongly take for certain. 0 is exact for Gaussian images.

    Raises:
        ValueError: on numbers out of range.
    """

    steps: int = 3
    damping: float = 0.0

    def __post_init__(self):
        if not whole_number(self.steps) >= 1:
            raise ValueError(f"`steps` must be a positive integer, but is {self.steps!r}.")
        if not 0 <= real_number(self.damping) < math.inf:
            raise ValueError(f"`damping` must be a finite number of at least 0, but is {self.damping!r}.")

    @property
    def products(self) -> int:  # type: ignore[override]
        return int(whole_number(self.steps))

    def preconditioner(
        self, measurement: Measurement, operator: LinearOperator, noise_level: float
    ) -> Callable[[Tensor], Tensor] | None:
        """w -> (r^2 A A' + C)^-1 w or its like; None where all that is known is a multiple of w."""
        variance = kept_variance(noise_level, PIXEL_STD * measurement.half_range)
        if measurement.white and operator.direct and operator.gram is None:
            noise = measurement.noise(1.0)
            return lambda w: variance * operator.solve(w, variance, noise)
        if measurement.gains is None:
            return None
        diagonal = variance * measurement.gains + measurement.noise(torch.ones_like(measurement.gains))
        return lambda w: torch.where(diagonal > 0, w / diagonal, 0)

    def shift(
        self, measurement: Measurement, denoised: Tensor, covariance: Callable[[Tensor], Tensor], noise_level: float
    ):
        operator, residual = measurement.near(denoised)
        damping = self.damping * noise_level**2

        def system(w):
            image = operator.adjoint(w)
            product = covariance(image)
            return operator(product + damping * image) + measurement.noise(w), product

        # the residual is a difference of measurements, and no better known than these
        rounding = RESIDUAL_ROUNDING * torch.finfo(residual.dtype).eps * norm(measurement.y)
        precondition = self.preconditioner(measurement, operator, noise_level)
        return least_residual(system, residual, self.steps, rounding=rounding, precondition=precondition)
