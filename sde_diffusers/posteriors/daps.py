"""DAPS: at each noise level an image is drawn given the denoised one and y, and noised again (arXiv 2407.01521)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusers.operators.base import Operator
from sde_diffusers.posteriors.base import PosteriorMethod, kept_variance
from sde_diffusers.posteriors.measurement import Measurement, is_white
from sde_diffusers.posteriors.pigdm import ridge_solution
from sde_diffusers.sdes.gaussian import require_positive


@dataclass
class DAPS(PosteriorMethod):
    """Decoupled annealing: x_0 ~ N(D, r^2 I) given y, and then the state alpha x_0 + sigma noise of the next time.

    Each state is so drawn anew from its marginal and forgets the last one, so that errors do not add up from step to
    step. r^2 is `kept_variance`. The draw is exact for a linear A, D + r z moved to y + n by least squares; the paper
    has Langevin steps for it, and for D several steps of the probability flow ODE, where one evaluation stands here.

    Args:
        sigma_data: see `PiGDM`.
    """

    products: ClassVar[int] = 0
    sigma_data: float = 0.5

    def __post_init__(self):
        (self.sigma_data,) = require_positive(sigma_data=self.sigma_data)

    def check(
        self, operator: Operator, noise_std: float | Tensor, noise_covariance: Callable[[Tensor], Tensor] | None = None
    ):
        if not operator.linear or noise_covariance is not None or not is_white(noise_std):
            raise ValueError('`method`="daps" takes linear measurements, with a `noise_std` for each of them.')

    def rehearse(self, measurement: Measurement, x: Tensor):
        ridge_solution(measurement.operator, measurement, 1e3, measurement.y - measurement.operator(x))

    def shift(
        self, measurement: Measurement, denoised: Tensor, covariance: Callable[[Tensor], Tensor], noise_level: float
    ):
        measurement.drawn_from = denoised, kept_variance(noise_level, self.sigma_data * measurement.half_range)
        return torch.zeros_like(denoised)

    def project(self, measurement: Measurement, x: Tensor, alpha: float, sigma: float, draw: Callable[..., Tensor]):
        if measurement.drawn_from is None:  # pure noise so far
            return x
        denoised, variance = measurement.drawn_from
        operator, y = measurement.operator, measurement.y
        x_0 = denoised + variance**0.5 * draw()
        noisy = y + operator.measured(measurement.noise_std * draw(y.shape))
        x_0 = x_0 + variance * ridge_solution(operator, measurement, variance, noisy - operator(x_0))
        return alpha * x_0 + sigma * draw()
