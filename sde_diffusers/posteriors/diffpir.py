"""DiffPIR: the denoised image is moved to the data by a proximal step, without a derivative of the network.

Zhu et al., Denoising diffusion models for plug-and-play image restoration (arXiv 2305.08995).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sde_diffusers.operators.base import Operator
from sde_diffusers.posteriors.base import PosteriorMethod
from sde_diffusers.posteriors.measurement import Measurement
from sde_diffusers.posteriors.pigdm import require_noise_if_nonlinear, ridge_solution
from sde_diffusers.sdes.gaussian import require_positive


@dataclass
class DiffPIR(PosteriorMethod):
    """argmin over x_0 of ||y - A x_0||^2 in units of the noise, plus `strength` ||x_0 - D||^2 / (noise level)^2.

    The shift of D is r^2 A'(r^2 A A' + C)^-1 (y - A D), r^2 = (noise level)^2 / strength: for exact measurements the
    projection of D. The paper's own sampler puts back a share zeta of fresh noise; here the scheduler does (`eta` of
    the exponential one).

    Args:
        strength: lambda of the paper, above 0.
    """

    products: ClassVar[int] = 0
    strength: float = 1.0

    def __post_init__(self):
        (self.strength,) = require_positive(strength=self.strength)

    def check(
        self, operator: Operator, noise_std: float | Tensor, noise_covariance: Callable[[Tensor], Tensor] | None = None
    ):
        require_noise_if_nonlinear("diffpir", operator, noise_std, noise_covariance)

    def rehearse(self, measurement: Measurement, x: Tensor):
        self.shift(measurement, x, None, 1e3)

    def shift(
        self,
        measurement: Measurement,
        denoised: Tensor,
        covariance: Callable[[Tensor], Tensor] | None,
        noise_level: float,
    ):
        variance = noise_level**2 / self.strength
        operator, residual = measurement.near(denoised)
        return variance * ridge_solution(operator, measurement, variance, residual)
