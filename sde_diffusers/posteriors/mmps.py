"""MMPS: the covariance of x_0 given x_t as the network has it (arXiv 2405.13712)."""

import math
from dataclasses import dataclass
from functools import partial

import torch

from sde_diffusers.operators.least_squares import inner, krylov_solution
from sde_diffusers.posteriors.base import PosteriorMethod, kept_variance
from sde_diffusers.posteriors.measurement import is_white
from sde_diffusers.scalars import real_number, whole_number
from sde_diffusers.sdes.gaussian import require_positive

RESIDUAL_ROUNDING = 10
"""Rounding errors of a measured value, in units of the dtype's: operators sum over many pixels."""


@dataclass
class MMPS(PosteriorMethod):
    """Moment-matching posterior sampling: (A V A' + C) w = y - A D by conjugate gradients.

    The covariance V is that of the network. `damping` (noise level)^2 A A' is added to the system, since a network's V
    is not exactly symmetric and positive, and has directions that it takes for certain. The shift V A' w is a sum of
    the products V A' d of the steps' directions d, and takes no other. Where the operator solves systems with A A'
    itself, and the noise is independent and of one deviation, (r^2 A A' + C)^-1 with r^2 of `kept_variance`
    preconditions the steps: they need not find small singular values of A.

    Args:
        steps: conjugate gradient steps, at least 1; each takes a vector-Jacobian product.
        damping: at least 0; 0 is exact for Gaussian images.
        sigma_data: deviation of a pixel of images that are scaled to [-1, 1], for the preconditioner.

    Raises:
        ValueError: on numbers out of range.
    """

    steps: int = 3
    damping: float = 0.1
    sigma_data: float = 0.5

    def __post_init__(self):
        if not whole_number(self.steps) >= 1:
            raise ValueError(f"`steps` must be a positive integer, but is {self.steps!r}.")
        if not 0 <= real_number(self.damping) < math.inf:
            raise ValueError(f"`damping` must be a finite number of at least 0, but is {self.damping!r}.")
        require_positive(sigma_data=self.sigma_data)

    @property
    def products(self) -> int:  # type: ignore[override]
        return int(whole_number(self.steps))

    def shift(self, measurement, denoised, covariance, noise_level):
        operator, residual = measurement.near(denoised)
        damping = self.damping * noise_level**2

        def system(w):
            image = operator.adjoint(w)
            product = covariance(image)
            return operator(product + damping * image) + measurement.noise(w), product

        # the residual is a difference of measurements, and no better known than these
        rounding = RESIDUAL_ROUNDING * torch.finfo(residual.dtype).eps * inner(measurement.y, measurement.y).sqrt()
        precondition = None
        if operator.direct and measurement.noise_covariance is None and is_white(measurement.noise_std):
            variance = kept_variance(noise_level, self.sigma_data * measurement.half_range)
            precondition = partial(operator.solve, a=variance, b=measurement.noise(1.0))
        return krylov_solution(system, residual, self.steps, rounding=rounding, precondition=precondition)[0]
