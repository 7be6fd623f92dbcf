"""DPS: a step of prescribed length along the residual's gradient (arXiv 2209.14687)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusers.operators.base import Operator
from sde_diffusers.operators.least_squares import like_images, norm
from sde_diffusers.posteriors.base import PosteriorMethod, kept_variance
from sde_diffusers.posteriors.measurement import Measurement, is_white
from sde_diffusers.sdes.gaussian import require_positive


@dataclass
class DPS(PosteriorMethod):
    """Diffusion posterior sampling: a step of given length along -grad_x ||y - A D(x)||.

    The paper's step, zeta / ||y - A D|| times the gradient of the squared norm, belongs to the chain of 1000 steps
    with which it was tuned. Here the steps are a part of the denoiser, for any number of them and any sampler:
    `step` = 1 is as long as the step of `PiGDM` where the measured values are off by their expected deviation.

    Args:
        step: above 0.
        sigma_data: see `PiGDM`.
    """

    step: float = 1.0
    sigma_data: float = 0.5

    def __post_init__(self):
        self.step, self.sigma_data = require_positive(step=self.step, sigma_data=self.sigma_data)

    def check(
        self, operator: Operator, noise_std: float | Tensor, noise_covariance: Callable[[Tensor], Tensor] | None = None
    ):
        if noise_covariance is not None or not is_white(noise_std):
            raise ValueError(
                '`method`="dps" takes a `noise_std` for each measurement, not for each value, nor a covariance.'
            )

    def weight(self, measurement: Measurement, denoised: Tensor, noise_level: float):
        operator, residual = measurement.near(denoised)
        gradient = operator.adjoint(residual)
        length, gradient_length = (
            torch.where(v > 0, v, 1) for v in (norm(residual).flatten(), norm(gradient).flatten())
        )
        variance = kept_variance(noise_level, self.sigma_data * measurement.half_range)
        noise = measurement.noise(1.0)
        noise = noise.flatten().to(length) if isinstance(noise, Tensor) else noise
        expected = variance * (gradient_length / length) ** 2 + noise
        count = measurement.operator.count(denoised.shape)
        count = count.to(length.device, length.dtype, non_blocking=True)
        return (
            like_images(self.step * variance / noise_level**2 * (count / expected).sqrt() / length, gradient)
            * gradient
        )
