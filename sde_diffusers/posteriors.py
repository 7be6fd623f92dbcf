"""Posterior sampling: what a measurement y = A x_0 + noise_std n changes in the sampling of a score network.

By Bayes' rule the posterior's score is grad log p_t(x) + grad log p_t(y | x), and its denoiser

    E[x_0 | x_t, y] = D + (sigma^2 / alpha) grad_x log p_t(y | x),          D = E[x_0 | x_t].

With the Gaussian p_t(y | x) = N(y; A D, A V A' + noise_std^2), V = Cov[x_0 | x_t] = (sigma^2 / alpha) dD / dx
(Tweedie's formula of second order), whose covariance counts as constant, this is

    E[x_0 | x_t, y] = D + V A' w,       w = (A V A' + noise_std^2)^-1 (y - A D),

and the methods differ in how they weight the residual y - A D. Products with V are vector-Jacobian products of the
network (V is symmetric).

    MMPS    w by conjugate gradients, with V as the network has it (arXiv 2405.13712); exact for Gaussian images
    Pi-GDM  V = r^2 in the weight, r^2 the variance that x_0 would keep if pixels were independent (Song et al.,
            Pseudoinverse-guided diffusion models for inverse problems, ICLR 2023)
    DPS     a weight of prescribed length along the residual (arXiv 2209.14687)

They change the denoiser, so every sampler and every SDE can use them. Projection (appendix I.2 of arXiv 2011.13456)
leaves the score and, wherever a step ends, replaces what A sees of the state by a noisy version of the measurement.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusers.operators import LinearOperator
from sde_diffusers.parameterization import PURE_NOISE, expand_like
from sde_diffusers.scalars import real_number, whole_number
from sde_diffusers.sdes.gaussian import require_positive


@dataclass
class Measurement:
    """y = A x_0 + noise_std n, in the units of the network's images.

    Args:
        operator: A.
        y: the measured values of N images.
        noise_std: deviation of the measurement's white noise, at least 0.
        half_range: half the width of the network's image range.
    """

    operator: LinearOperator
    y: Tensor
    noise_std: float
    half_range: float


class PosteriorMethod:
    """Base of the methods.

    A method that changes the denoiser defines `weight`; one that acts on the state where a step ends defines
    `project`.
    """

    changes_denoiser: ClassVar[bool] = True
    products: ClassVar[int] = 1
    """Vector-Jacobian products of the network in each evaluation, at most."""

    def check(self, operator: LinearOperator, noise_std: float) -> None:
        """Raise a `ValueError` if the method can't treat such a measurement."""

    def weight(self, measurement: Measurement, denoised: Tensor, covariance, noise_level: float) -> Tensor:
        """w of the shift V A' w of the denoised images.

        Args:
            measurement: of N images.
            denoised: (N, C, H, W) D.
            covariance: function u -> V u on images.
            noise_level: sigma / alpha.
        """
        raise NotImplementedError

    def project(self, measurement: Measurement, x: Tensor, alpha: float, sigma: float, draw) -> Tensor:
        """The state at a grid point with the kernel's alpha and sigma; `draw()` gives white noise of its shape."""
        return x


@dataclass
class Projection(PosteriorMethod):
    """The paper's imputation: what A sees of the state is alpha y plus the diffusion's noise (appendix I.2).

    With measurement noise, that noise takes the place of a part of the diffusion's, and once the latter is less
    (sigma < alpha noise_std / length of A's rows) the state is left to itself: the last steps remove it. This needs
    orthogonal rows of one length; other operators take exact measurements only.
    """

    changes_denoiser: ClassVar[bool] = False
    products: ClassVar[int] = 0

    def check(self, operator, noise_std):
        if noise_std > 0 and operator.gram is None:
            raise ValueError(
                f'`method`="projection" takes noisy measurements only of masks, colour and downsampling, not of '
                f"{type(operator).__name__} with `noise_std`={noise_std}."
            )

    def project(self, measurement, x, alpha, sigma, draw):
        operator = measurement.operator
        noise = 0.0 if measurement.noise_std == 0 else alpha * measurement.noise_std / math.sqrt(operator.gram)
        if noise > sigma:
            return x
        added = math.sqrt(sigma**2 - noise**2)
        # y plus A times white noise, so that also its covariance is that of A x_t
        return operator.consistent(x, alpha * measurement.y + operator(added * draw()))


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

    def weight(self, measurement, denoised, covariance, noise_level):
        variance = kept_variance(noise_level, self.sigma_data * measurement.half_range)
        residual = measurement.y - measurement.operator(denoised)
        solved = measurement.operator.solve(residual, variance, measurement.noise_std**2)
        return variance / noise_level**2 * solved


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

    def weight(self, measurement, denoised, covariance, noise_level):
        operator = measurement.operator
        residual = measurement.y - operator(denoised)
        norm, gradient_norm = (
            v.square().sum((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
            for v in (residual, operator.adjoint(residual))
        )
        variance = kept_variance(noise_level, self.sigma_data * measurement.half_range)
        expected = variance * (gradient_norm / norm) ** 2 + measurement.noise_std**2
        count = operator.count(denoised.shape).to(norm)
        return self.step * variance / noise_level**2 * (count / expected).sqrt() * residual / norm


@dataclass
class MMPS(PosteriorMethod):
    """Moment-matching posterior sampling: (A V A' + noise_std^2) w = y - A D by conjugate gradients.

    The covariance V is that of the network. `damping` (noise level)^2 A A' is added to the system, since a network's V
    is not exactly symmetric and positive, and has directions that it takes for certain.

    Args:
        steps: conjugate gradient steps, at least 1; each takes a vector-Jacobian product.
        damping: at least 0; 0 is exact for Gaussian images.

    Raises:
        ValueError: on numbers out of range.
    """

    steps: int = 3
    damping: float = 0.1

    def __post_init__(self):
        if not whole_number(self.steps) >= 1:
            raise ValueError(f"`steps` must be a positive integer, but is {self.steps!r}.")
        if not 0 <= real_number(self.damping) < math.inf:
            raise ValueError(f"`damping` must be a finite number of at least 0, but is {self.damping!r}.")
        self.steps, self.damping = whole_number(self.steps), real_number(self.damping)

    @property
    def products(self) -> int:
        return self.steps + 1

    def weight(self, measurement, denoised, covariance, noise_level):
        operator = measurement.operator
        damping = self.damping * noise_level**2

        def system(w):
            image = operator.adjoint(w)
            return operator(covariance(image) + damping * image) + measurement.noise_std**2 * w

        return conjugate_gradients(system, measurement.y - operator(denoised), self.steps)


POSTERIOR_METHODS = {"projection": Projection, "dps": DPS, "pigdm": PiGDM, "mmps": MMPS}


def kept_variance(noise_level: float, sigma_data: float) -> float:
    """Variance of x_0 given x_t for independent Gaussian pixels of deviation `sigma_data`."""
    return noise_level**2 * sigma_data**2 / (noise_level**2 + sigma_data**2)


def conjugate_gradients(system, b: Tensor, steps: int, tolerance: float = 1e-6) -> Tensor:
    """Solve system(w) = b for each image of b (N, ...) from w = 0, for a symmetric, positive system.

    An image whose residual has fallen to `tolerance` of its b, or along whose direction the system is not positive
    (then it has left what can be solved), keeps its w.
    """
    dims = tuple(range(1, b.ndim))
    w, residual, direction = torch.zeros_like(b), b, b
    square = start = b.square().sum(dims, keepdim=True)
    going = start > 0
    for _ in range(steps):
        if not going.any():
            break
        image = system(direction)
        curvature = (direction * image).sum(dims, keepdim=True)
        going = going & (curvature > 0)
        length = torch.where(going, square / curvature, 0)
        w, residual = w + length * direction, residual - length * image
        previous, square = square, residual.square().sum(dims, keepdim=True)
        going = going & (square > tolerance**2 * start)
        direction = residual + torch.where(going, square / previous, 0) * direction
    return w


def posterior_output(answer, scheduler, method: PosteriorMethod, measurement: Measurement, x: Tensor) -> Tensor:
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
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        output = answer(x).to(x.dtype)
        _, denoised = scheduler.noise_and_denoised(output, x, t)

    def covariance(u: Tensor) -> Tensor:
        return sigma**2 / alpha * torch.autograd.grad(denoised, x, u, retain_graph=True)[0]

    weight = method.weight(measurement, denoised.detach(), covariance, sigma / alpha)
    shift = covariance(measurement.operator.adjoint(weight))
    # The answer is linear in (x_0, noise); with x_t fixed, a shift of x_0 is one of the noise the other way.
    s = scheduler.training_time(t)
    noise_shift = -expand_like((scheduler.training_sde.half_log_snr(s)).exp(), shift) * shift
    return output.detach() + scheduler.parameterization.target(shift, noise_shift, s)
