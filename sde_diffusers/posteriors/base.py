"""What the posterior methods share: how a method changes the denoiser, or the state, of a score network's sampling.

A changed denoiser is a shift of D = E[x_0 | x_t], and every sampler and SDE can use it; `sde_diffusers/posteriors` has
the equations.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_diffusers.operators.base import Operator
from sde_diffusers.parameterization import PURE_NOISE, expand_like
from sde_diffusers.posteriors.measurement import Measurement


class PosteriorMethod:
    """Base of the methods.

    A method that changes the denoiser defines `weight` or `shift`; one that acts on the state where a step ends
    defines `project`.
    """

    changes_denoiser: ClassVar[bool] = True
    products: ClassVar[int] = 1
    """Vector-Jacobian products of the network in each evaluation, at most."""

    def check(
        self, operator: Operator, noise_std: float | Tensor, noise_covariance: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Raise a `ValueError` if the method can't treat such a measurement."""

    def weight(self, measurement: Measurement, denoised: Tensor, noise_level: float) -> Tensor:
        """A'w of the shift V A' w of the denoised images, (N, C, H, W); see `shift`."""
        raise NotImplementedError

    def shift(
        self, measurement: Measurement, denoised: Tensor, covariance: Callable[[Tensor], Tensor], noise_level: float
    ) -> Tensor:
        """E[x_0 | x_t, y] - D.

        Args:
            measurement: of N images.
            denoised: (N, C, H, W) D.
            covariance: function u -> V u on images; None for methods that take no `products`.
            noise_level: sigma / alpha.
        """
        return covariance(self.weight(measurement, denoised, noise_level))

    def project(
        self, measurement: Measurement, x: Tensor, alpha: float, sigma: float, draw: Callable[..., Tensor]
    ) -> Tensor:
        """The state at a grid point with the kernel's alpha and sigma; `draw()` gives white noise of its shape."""
        return x

    def rehearse(self, measurement: Measurement, x: Tensor) -> None:
        """Raise a `ValueError` if what the method will solve can't be solved for images like x (noise)."""


def kept_variance(noise_level: float, sigma_data: float) -> float:
    """Variance of x_0 given x_t for independent Gaussian pixels of deviation `sigma_data`."""
    return noise_level**2 * sigma_data**2 / (noise_level**2 + sigma_data**2)


def posterior_output(
    answer: Callable[[Tensor], Tensor], scheduler: Any, method: PosteriorMethod, measurement: Measurement, x: Tensor
) -> Tensor:
    """The network's answer for the scheduler's coming `step`, changed so that it denoises to E[x_0 | x_t, y].

    Args:
        answer: function of the state that gives the network's answer for that step, guided or not; a `Guidance`.
        x: (N, C, H, W) the state x_t.
    """
    t = scheduler.times[scheduler.step_index]
    alpha, sigma = scheduler.sde.alpha(t).item(), scheduler.sde.sigma(t).item()
    # Pure noise tells nothing of how x_0 varies, that is, of V; what is missed is of the order of alpha.
    if not method.changes_denoiser or sigma > alpha * PURE_NOISE:
        return answer(x)
    with torch.set_grad_enabled(method.products > 0):
        x = x.detach().requires_grad_(method.products > 0)
        output = answer(x).to(x.dtype)
        _, denoised = scheduler.noise_and_denoised(output, x, t)

    def covariance(u: Tensor) -> Tensor:
        size = u.abs().max().clamp(min=torch.finfo(u.dtype).tiny)  # V is linear; half precision has no large numbers
        return sigma**2 / alpha * size * torch.autograd.grad(denoised, x, u / size, retain_graph=True)[0]

    denoised_ = denoised.detach()
    bounded = denoised_
    if scheduler.denoised_range.bounded and not method.products:
        bounded = scheduler.denoised_range(denoised_)  # V is the derivative of what is not bounded
    shift = bounded - denoised_ + method.shift(measurement, bounded, covariance, sigma / alpha)
    # The answer is linear in (x_0, noise); with x_t fixed, a shift of x_0 is one of the noise the other way.
    s = scheduler.training_time(t)
    noise_shift = -expand_like((scheduler.training_sde.half_log_snr(s)).exp(), shift) * shift
    return output.detach() + scheduler.parameterization.target(shift, noise_shift, s)
