"""Pi-GDM: the covariance of x_0 given x_t counts as a multiple of the identity in the weight of the residual.

Song et al., Pseudoinverse-guided diffusion models for inverse problems, ICLR 2023.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusers.operators.base import Operator
from sde_diffusers.operators.checks import require_reached
from sde_diffusers.operators.least_squares import krylov_solution
from sde_diffusers.posteriors.base import PosteriorMethod, kept_variance
from sde_diffusers.posteriors.measurement import Measurement, is_white
from sde_diffusers.sdes.gaussian import require_positive


@dataclass
class PiGDM(PosteriorMethod):
    """Pseudoinverse-guided diffusion: w = (r^2 / level^2) (r^2 A A' + noise_std^2)^-1 (y - A D).

    r^2 is `kept_variance` and level = sigma / alpha; the first factor is the paper's adaptive weight r^2 of the
    likelihood's gradient, without which correlated images overshoot at high noise. An exact measurement thus shifts D
    by (dD / dx)' A+ (y - A D), up to alpha.

    Args:
        sigma_data: deviation of a pixel of images that are scaled to [-1, 1].
    """

    sigma_data: float = 0.5

    def __post_init__(self):
        (self.sigma_data,) = require_positive(sigma_data=self.sigma_data)

    def check(
        self, operator: Operator, noise_std: float | Tensor, noise_covariance: Callable[[Tensor], Tensor] | None = None
    ):
        require_noise_if_nonlinear("pigdm", operator, noise_std, noise_covariance)

    def rehearse(self, measurement: Measurement, x: Tensor):
        self.weight(measurement, x, 1e3)  # the noise counts least where the variance is highest

    def weight(self, measurement: Measurement, denoised: Tensor, noise_level: float):
        variance = kept_variance(noise_level, self.sigma_data * measurement.half_range)
        operator, residual = measurement.near(denoised)
        return variance / noise_level**2 * ridge_solution(operator, measurement, variance, residual)


def ridge_solution(operator, measurement, variance: float, residual):
    """A'(variance A A' + C)^-1 residual for any covariance C of the noise."""
    if measurement.noise_covariance is None and is_white(measurement.noise_std):
        return operator.ridge(residual, variance, measurement.noise(1.0))

    def system(w):
        return variance * operator(operator.adjoint(w)) + measurement.noise(w), w

    w, error = krylov_solution(system, residual, operator.iterations, operator.tolerance)
    require_reached(operator, "weight", "||residual - (r^2 A A' + C) w|| / ||residual||", error)
    return operator.adjoint(w)


def require_noise_if_nonlinear(name: str, operator, noise_std, noise_covariance) -> None:
    """Raise a `ValueError` for exact measurements that are not linear: Jacobians may have any singular values."""
    if not operator.linear and noise_covariance is None and torch.as_tensor(noise_std).min() == 0:
        raise ValueError(f'`method`="{name}" takes nonlinear measurements only with a `noise_std` above 0.')
