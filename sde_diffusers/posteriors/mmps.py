"""MMPS: the covariance of x_0 given x_t as the network has it (arXiv 2405.13712)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusers.operators.base import LinearOperator
from sde_diffusers.operators.least_squares import chebyshev, least_residual, norm
from sde_diffusers.posteriors.base import PosteriorMethod, kept_variance
from sde_diffusers.posteriors.measurement import Measurement
from sde_diffusers.scalars import real_number, whole_number

PIXEL_STD = 0.5
"""Deviation of a pixel of images that are scaled to [-1, 1], as far as preconditioning goes."""
MOST_SPREAD = 400
"""Of eigenvalues that the inner steps tell apart; below, they count as alike."""
LEAST_TOLERANCE, MOST_TOLERANCE = 1e-6, 1e-2
"""Share of the residual that is as good as none, of many steps and of few."""
RESIDUAL_ROUNDING = 10
"""Rounding errors of a measured value, in units of the dtype's: operators sum over many pixels."""


@dataclass
class MMPS(PosteriorMethod):
    """Moment-matching posterior sampling: (A V A' + C) w = y - A D by steps of least residual.

    The covariance V is that of the network, which is not exactly symmetric and positive: few conjugate gradient steps
    may go astray, those of least residual don't. The shift V A' w is a sum of the products V A' d of the steps'
    directions d, and takes no other.

    What the system is for independent pixels of variance r^2, r^2 A A' + C, preconditions the steps: solved by the
    operator where it does so in closed form and the noise is white, and else, nearly, by a polynomial of it, which
    takes A alone and no network. So few steps need not find what differs by orders of magnitude only because A, or C,
    has it so: small singular values beside little noise, values known well beside others that are not.

    Args:
        steps: at least 1; each takes a vector-Jacobian product, and keeps it until the last. An image takes fewer
            where its residual, as (r^2 A A' + C)^-1 measures it, has fallen to 10^(1 - steps) of what it was, but at
            most 10^-2 and at least 10^-6: where little noise is left.
        damping: at least 0; of it, `damping` (noise level)^2 A A' is added to the system, for networks whose V has
            directions that they wrongly take for certain. 0 is exact for Gaussian images.
        inner_steps: at least 1; the polynomial's degree is less by one.

    Raises:
        ValueError: on numbers out of range.
    """

    steps: int = 3
    damping: float = 0.0
    inner_steps: int = 20

    def __post_init__(self):
        if not whole_number(self.steps) >= 1:
            raise ValueError(f"`steps` must be a positive integer, but is {self.steps!r}.")
        if not whole_number(self.inner_steps) >= 1:
            raise ValueError(f"`inner_steps` must be a positive integer, but is {self.inner_steps!r}.")
        if not 0 <= real_number(self.damping) < math.inf:
            raise ValueError(f"`damping` must be a finite number of at least 0, but is {self.damping!r}.")
        self.steps, self.inner_steps = int(whole_number(self.steps)), int(whole_number(self.inner_steps))
        self.damping = real_number(self.damping)

    @property
    def products(self) -> int:  # type: ignore[override]
        return self.steps

    def preconditioner(
        self, measurement: Measurement, operator: LinearOperator, noise_level: float
    ) -> Callable[[Tensor], Tensor] | None:
        """w -> (r^2 A A' + C)^-1 w, up to a factor; None where that is a multiple of w."""
        variance = kept_variance(noise_level, PIXEL_STD * measurement.half_range)
        if (diagonal := measurement.diagonal) is None:
            if not (measurement.white and operator.direct) or operator.gram is not None:
                return None
            noise = measurement.noise(1.0)
            return lambda w: operator.solve(w, variance, noise)
        total = diagonal.of_system(variance)

        def divide(w):
            return torch.where(total > 0, w / total, 0)

        if diagonal.largest is None:
            return divide

        def system(w):
            return variance * operator(operator.adjoint(w)) + measurement.noise(w)

        low = torch.maximum(diagonal.least(variance), diagonal.largest / MOST_SPREAD)
        return lambda w: chebyshev(system, w, self.inner_steps, low, diagonal.largest, divide)

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
        tolerance = min(max(10.0 ** (1 - self.steps), LEAST_TOLERANCE), MOST_TOLERANCE)
        return least_residual(system, residual, self.steps, tolerance, rounding, precondition)
