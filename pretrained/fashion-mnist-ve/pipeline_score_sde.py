# Generated from the package sde_diffusers: sde_diffusers.ode, sde_diffusers.sdes, sde_diffusers.parameterization, sde_diffusers.likelihood, sde_diffusers.guidance, sde_diffusers.model_card, sde_diffusers.single_file, sde_diffusers.hub, sde_diffusers.images, sde_diffusers.pipelines.pipeline_score_sde.
from PIL import Image
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin, UNet2DModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token, hf_hub_download, snapshot_download
from huggingface_hub import EvalResult, ModelCard, ModelCardData, RepoCard
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, LocalTokenNotFoundError, OfflineModeIsEnabled
from pathlib import Path
from safetensors import safe_open
from torch import Tensor
from typing import NamedTuple
import ast
import contextlib
import functools
import importlib.util
import inspect
import io
import json
import logging
import math
import numpy as np
import os
import re
import sys
import tempfile
import torch
import yaml


# -------------------- sde_diffusers.ode

"""An adaptive solver for ordinary differential equations whose state is a batch of images."""



# Dormand and Prince (1980), 5(4): times, rows and, as the difference of the two orders' weights, the error.
STAGE_TIMES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGE_WEIGHTS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR_WEIGHTS = (-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)


def error_norm(error: Tensor) -> float:
    """Size of an error (N, d + P) that is measured in tolerances: its root mean square over the batch, as in the
    paper's code, or half of the largest one of an image, if that is more.

    So however large the batch, no image's error exceeds twice what it would be allowed alone.
    """
    per_image = error.square().mean(1)
    return max(per_image.mean().sqrt().item(), 0.5 * per_image.max().sqrt().item())


def weighted_sum(weights, tensors) -> Tensor:
    return sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True) if weight)


def dormand_prince(f, t: float, end: float, y: Tensor, rtol: float, atol: float, stretch: float = 1.0):
    """Integrate dy/dt = f(t, y) and yield (t, y) after every accepted step; the last t is `end`.

    The last step may become longer by the factor `stretch`, so that it does not leave a sliver; at 1 all steps are
    scipy's.

    Adaptive Runge-Kutta of order 5 with the step control of Hairer, Norsett and Wanner (Solving Ordinary Differential
    Equations I, section II.4) in the form of scipy's RK45, with which likelihoods are published, but on y's device.
    (torchdiffeq's dopri5 weighs its error by 2/3 and never shrinks a step that it accepts; on rough networks that is a
    hundredth of a bit.)

    Raises:
        RuntimeError: if no step is small enough, as where f is not finite.
    """
    sign = math.copysign(1.0, end - t)
    slope = f(t, y)
    if not slope.isfinite().all():
        raise RuntimeError(f"The network's answer is not finite at the start of the ODE, {t}.")
    step = first_step(f, t, end, y, slope, rtol, atol)
    rejected = False
    while t != end:
        if abs(end - t) <= (1.0 if rejected else stretch) * step:  # what was refused once is not tried again
            step = abs(end - t)
        if not step > 10 * abs(math.nextafter(t, end) - t):
            raise RuntimeError(
                f"The ODE's step size shrank to {step} at {t}: the network's answer is not finite or jumps."
            )
        following = end if step == abs(end - t) else t + sign * step
        slopes = [slope]
        for time, weights in zip(STAGE_TIMES, STAGE_WEIGHTS, strict=True):
            y_stage = y + (following - t) * weighted_sum(weights, slopes)
            slopes.append(f(following if time == 1 else t + time * (following - t), y_stage))
        error = step * weighted_sum(ERROR_WEIGHTS, slopes)
        size = error_norm(error / (atol + rtol * torch.maximum(y.abs(), y_stage.abs())))
        if size < 1:
            t, y, slope = following, y_stage, slopes[-1]
            step *= min(1.0 if rejected else 10.0, 0.9 * size**-0.2 if size else 10.0)
            yield t, y
        else:
            step *= max(0.2, 0.9 * size**-0.2) if math.isfinite(size) else 0.2
        rejected = not size < 1


def first_step(f, t: float, end: float, y: Tensor, slope: Tensor, rtol: float, atol: float) -> float:
    """Size of the first step from the first two derivatives (Hairer et al., section II.4)."""
    tolerance = atol + rtol * y.abs()
    d_0, d_1 = error_norm(y / tolerance), error_norm(slope / tolerance)
    trial = min(1e-6 if min(d_0, d_1) < 1e-5 else 0.01 * d_0 / d_1, abs(end - t))
    signed = math.copysign(trial, end - t)
    d_2 = error_norm((f(t + signed, y + signed * slope) - slope) / tolerance) / trial
    largest = max(d_1, d_2)
    guess = max(1e-6, 1e-3 * trial) if largest <= 1e-15 else (0.01 / largest) ** 0.2
    return min(100 * trial, guess, abs(end - t))


# -------------------- sde_diffusers.sdes

"""Stochastic differential equations whose perturbation kernels are Gaussian.

Every SDE here is linear in x (Song et al., ICLR 2021, arXiv 2011.13456, section 3):

    dx = f(t) x dt + g(t) dw,    t in [0, 1],    x_t | x_0 ~ N(alpha(t) x_0, sigma(t)^2 I),

so two functions of time, alpha and sigma, are the whole SDE, and

    f = d log(alpha) / dt,    g^2 = d(sigma^2)/dt - 2 f sigma^2,    half_log_snr = log(alpha / sigma).

All functions of time take a number or a tensor of any shape, compute in float64 (sigma(1e-5) of a VP SDE would lose
half of its digits in float32), and return a tensor of the same shape in the dtype of the given one (float64 for a
number).
"""




def function_of_time(method):
    """Let a method that maps float64 tensors to float64 tensors accept numbers and tensors of any dtype."""

    @functools.wraps(method)
    def wrapper(self, t, *others):
        dtype = t.dtype if isinstance(t, Tensor) and t.is_floating_point() else torch.float64
        times = [torch.as_tensor(time, dtype=torch.float64) for time in (t, *others)]
        values = method(self, *times)
        return tuple(v.to(dtype) for v in values) if isinstance(values, tuple) else values.to(dtype)

    return wrapper


def require_positive(**values: float) -> None:
    """Raise a `ValueError` that names the argument unless every value is a finite number above 0."""
    for name, value in values.items():
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise ValueError(f"`{name}` must be a finite number above 0, but is {value!r}.")


class Chain(NamedTuple):
    """A Markov chain x_t = a x_s + b z over N descending steps t -> s, which predictors reverse; each (N,) float64."""

    a: Tensor
    """Scale of each step."""
    b: Tensor
    """Standard deviation of each step's noise."""
    posterior_noise: Tensor | None
    """Deviation of x_s given x_t and x_0, for ancestral sampling; None where the chain's kernels are not the SDE's."""
    langevin_scale: Tensor
    """Factor of the Langevin corrector's step size (1 for VE, 1 - beta_i for VP; algorithms 4 and 5)."""


class GaussianSDE(ABC):
    """Base of the SDEs `dx = f(t) x dt + g(t) dw`. A subclass defines `log_alpha`, `sigma`, `drift`, `diffusion` and
    the inverse of `half_log_snr`; the prior, transitions and the grids of discrete steps follow."""

    prior_sigma: float = 1.0
    """Standard deviation of the prior N(0, prior_sigma^2 I) from which sampling starts at t = 1."""
    smallest_time: float = 0.0
    """Earliest time that this SDE describes (above 0 only where it interpolates a table)."""
    sampling_eps: float = 1e-3
    """Time at which sampling ends by default (section C of the paper)."""

    @abstractmethod
    def log_alpha(self, t) -> Tensor:
        """log(alpha(t))."""

    @abstractmethod
    def sigma(self, t) -> Tensor:
        """Standard deviation of the perturbation kernel."""

    @abstractmethod
    def drift(self, t) -> Tensor:
        """f(t), the coefficient of x in the drift f(t) x."""

    @abstractmethod
    def diffusion(self, t) -> Tensor:
        """g(t), the diffusion coefficient."""

    @abstractmethod
    def inverse_half_log_snr(self, half_log_snr) -> Tensor:
        """The time t at which log(alpha(t) / sigma(t)) has the given value."""

    @function_of_time
    def alpha(self, t) -> Tensor:
        """Mean coefficient of the perturbation kernel."""
        return self.log_alpha(t).exp()

    @function_of_time
    def half_log_snr(self, t) -> Tensor:
        """log(alpha(t) / sigma(t)), strictly decreasing in t."""
        return self.log_alpha(t) - self.sigma(t).log()

    @function_of_time
    def transition(self, s, t) -> tuple[Tensor, Tensor]:
        """Exact transition x_t | x_s ~ N(a x_s, b^2 I) for s <= t.

        Returns:
            a = alpha(t) / alpha(s) and b = sqrt(sigma(t)^2 - a^2 sigma(s)^2).
        """
        a = (self.log_alpha(t) - self.log_alpha(s)).exp()
        return a, (self.sigma(t) ** 2 - (a * self.sigma(s)) ** 2).clamp(min=0).sqrt()

    def prior(self, shape, generator=None, device=None, dtype=torch.float32) -> Tensor:
        """Draw from the prior N(0, prior_sigma^2 I)."""
        return torch.randn(shape, generator=generator, device=device, dtype=dtype) * self.prior_sigma

    def prior_logp(self, z: Tensor) -> Tensor:
        """Log-density of the prior in nats, summed over all dimensions but the first: (N, ...) -> (N,)."""
        d = z[0].numel()
        log_normalizer = d / 2 * math.log(2 * math.pi * self.prior_sigma**2)
        return -log_normalizer - z.flatten(1).square().sum(1) / (2 * self.prior_sigma**2)

    @function_of_time
    def table_index(self, t, n) -> Tensor:
        """What a network with a table of n noise levels is conditioned on at time t: entry k is t = (k + 1) / n."""
        return t * n - 1

    @function_of_time
    def time_of_index(self, k, n) -> Tensor:
        """Inverse of `table_index`."""
        return (k + 1) / n

    def chain(self, times: Tensor) -> "Chain":
        """The forward Markov chain through a time grid, from exact transitions.

        Args:
            times: (N,) float64, descending from 1. Entry k is stepped to entry k + 1; the last one to x_0.
        """
        log_alpha, sigma = self.log_alpha(times), self.sigma(times)
        zero = torch.zeros(1, dtype=torch.float64)
        a = (log_alpha - torch.cat([log_alpha[1:], zero])).exp()
        sigma_s = torch.cat([sigma[1:], zero])
        b = (sigma**2 - (a * sigma_s) ** 2).clamp(min=0).sqrt()
        return Chain(a, b, b * sigma_s / sigma, a**2)

    def paper_chain(self, times: Tensor) -> "Chain":
        """As `chain`, on the paper's grid `linspace(1, eps, N)` and with the coefficients that its code uses there.

        Where the paper has none of its own, the exact transitions stand.
        """
        return self.chain(times)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in vars(self).items() if not k.startswith('_'))})"
        )


class VESDE(GaussianSDE):
    """Variance exploding SDE (eq. 9 and appendix C): alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t.

    Args:
        sigma_min: deviation at t = 0, in the units of the images.
        sigma_max: deviation at t = 1 and of the prior; choose it near the largest pairwise distance of the data.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.
    """

    sampling_eps = 1e-5

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0):
        require_positive(sigma_min=sigma_min, sigma_max=sigma_max)
        if sigma_min >= sigma_max:
            raise ValueError(f"`sigma_min` must be below `sigma_max`, but they are {sigma_min} and {sigma_max}.")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self._log_ratio = math.log(sigma_max / sigma_min)

    @property
    def prior_sigma(self) -> float:
        return self.sigma_max

    @function_of_time
    def log_alpha(self, t):
        return torch.zeros_like(t)

    @function_of_time
    def sigma(self, t):
        return self.sigma_min * (t * self._log_ratio).exp()

    @function_of_time
    def drift(self, t):
        return torch.zeros_like(t)

    @function_of_time
    def diffusion(self, t):
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    @function_of_time
    def inverse_half_log_snr(self, half_log_snr):
        return (-half_log_snr - math.log(self.sigma_min)) / self._log_ratio

    @function_of_time
    def table_index(self, t, n):
        """Entries of the SMLD table, which descends: round((1 - t) (n - 1))."""
        return ((1 - t) * (n - 1)).round()

    @function_of_time
    def time_of_index(self, k, n):
        return 1 - k / (n - 1)

    def paper_chain(self, times):
        """The SMLD chain: sigma_i of the geometric table with N entries, and 0 below the first (appendix F)."""
        sigma = self.sigma(torch.linspace(1, 0, len(times), dtype=torch.float64))
        sigma_s = torch.cat([sigma[1:], torch.zeros(1, dtype=torch.float64)])
        b = (sigma**2 - sigma_s**2).sqrt()
        return Chain(torch.ones_like(b), b, b * sigma_s / sigma, torch.ones_like(b))


class VPSDE(GaussianSDE):
    """Variance preserving SDE (eq. 11 and 33): beta(t) = beta_min + t (beta_max - beta_min), f = -beta/2, g^2 = beta.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        require_positive(beta_min=beta_min, beta_max=beta_max)
        if beta_min > beta_max:
            raise ValueError(f"`beta_min` must not exceed `beta_max`, but they are {beta_min} and {beta_max}.")
        self.beta_min, self.beta_max = beta_min, beta_max

    def beta(self, t: Tensor) -> Tensor:
        """beta(t) for a float64 tensor t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    @function_of_time
    def log_alpha(self, t):
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    @function_of_time
    def sigma(self, t):
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    @function_of_time
    def drift(self, t):
        return -0.5 * self.beta(t)

    @function_of_time
    def diffusion(self, t):
        return self.beta(t).sqrt()

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """Root of the quadratic log_alpha(t), in the form that does not cancel (beta_min = beta_max included)."""
        q = -log_alpha
        return 2 * q / (0.5 * self.beta_min + (0.25 * self.beta_min**2 + (self.beta_max - self.beta_min) * q).sqrt())

    @function_of_time
    def inverse_half_log_snr(self, half_log_snr):
        # alpha^2 = 1 / (1 + exp(-2 half_log_snr)).
        return self.time_of_log_alpha(-0.5 * torch.nn.functional.softplus(-2 * half_log_snr, threshold=1e9))

    def beta_table(self, n: int) -> Tensor:
        """beta_i of the N-step chain, i = N..1 (appendix E), in the order of descending time."""
        return torch.linspace(self.beta_max, self.beta_min, n, dtype=torch.float64) / n

    def paper_chain(self, times):
        """The DDPM chain: a = sqrt(1 - beta_i), b = sqrt(beta_i). Its ancestral sampler adds the noise of the forward
        step, sqrt(beta_i), not that of the exact posterior. With so few steps that some beta_i >= 1 there is no such
        chain, and the exact transitions stand."""
        if self.beta_max >= len(times):
            return self.chain(times)
        beta = self.beta_table(len(times))
        return Chain((1 - beta).sqrt(), beta.sqrt(), beta.sqrt(), 1 - beta)


class SubVPSDE(VPSDE):
    """Sub-VP SDE (eq. 12 and 29): alpha as in VP, sigma = 1 - alpha^2, g^2 = beta (1 - alpha^4)."""

    @function_of_time
    def sigma(self, t):
        return -torch.expm1(2 * self.log_alpha(t))

    @function_of_time
    def diffusion(self, t):
        return (self.beta(t) * -torch.expm1(4 * self.log_alpha(t))).sqrt()

    @function_of_time
    def inverse_half_log_snr(self, half_log_snr):
        # 1 / alpha - alpha = sigma / alpha, that is, -2 sinh(log alpha) = exp(-half_log_snr).
        return self.time_of_log_alpha(-torch.asinh(0.5 * torch.exp(-half_log_snr)))

    def paper_chain(self, times):
        """The Euler-Maruyama chain with dt = 1 / N, whose kernels approximate the SDE's (for few steps see VPSDE)."""
        n = len(times)
        if self.beta_max >= n:
            return self.chain(times)
        return Chain(1 + self.drift(times) / n, self.diffusion(times) / math.sqrt(n), None, 1 - self.beta_table(n))


class ExponentialVESDE(GaussianSDE):
    """The tutorial's SDE dx = sigma^t dw: alpha = 1, sigma(t)^2 = (sigma^(2t) - 1) / (2 log sigma).

    Raises:
        ValueError: unless sigma > 1.
    """

    def __init__(self, sigma: float = 25.0):
        require_positive(sigma=sigma)
        if sigma <= 1:
            raise ValueError(f"`sigma` must be above 1, but is {sigma}.")
        self._base = sigma
        self._log_base = math.log(sigma)

    @property
    def prior_sigma(self) -> float:
        return math.sqrt(math.expm1(2 * self._log_base) / (2 * self._log_base))

    @function_of_time
    def log_alpha(self, t):
        return torch.zeros_like(t)

    @function_of_time
    def sigma(self, t):
        return (torch.expm1(2 * self._log_base * t) / (2 * self._log_base)).sqrt()

    @function_of_time
    def drift(self, t):
        return torch.zeros_like(t)

    @function_of_time
    def diffusion(self, t):
        return (self._log_base * t).exp()

    @function_of_time
    def inverse_half_log_snr(self, half_log_snr):
        return torch.log1p(2 * self._log_base * torch.exp(-2 * half_log_snr)) / (2 * self._log_base)

    def __repr__(self) -> str:
        return f"ExponentialVESDE(sigma={self._base})"


class DiscreteVPSDE(GaussianSDE):
    """The VP SDE that passes through a DDPM beta table: log(alpha) is piecewise linear through t_k = (k + 1) / N.

    So f = -beta/2 and g^2 = beta with beta constant on each interval, and the chain's kernels are met exactly.

    Args:
        betas: (N,) the table beta_0..beta_{N-1}, as in a DDPM scheduler's `betas`.

    Raises:
        ValueError: unless every beta lies in (0, 1) (a table with terminal SNR 0 has a last beta of 1).
    """

    def __init__(self, betas):
        betas = torch.as_tensor(betas, dtype=torch.float64).flatten()
        bad = [] if betas.numel() == 0 else betas[~((betas > 0) & (betas < 1))].tolist()
        if betas.numel() == 0 or bad:
            raise ValueError(f"`betas` must hold numbers strictly between 0 and 1, but holds {bad or 'nothing'}.")
        n = len(betas)
        self.num_betas = n
        self.smallest_time = 1 / n
        self.sampling_eps = max(1e-3, 1 / n)
        self._log_alphas = torch.cat([torch.zeros(1, dtype=torch.float64), 0.5 * torch.log1p(-betas).cumsum(0)])

    def _interval(self, t: Tensor) -> Tensor:
        return (t * self.num_betas).ceil().long().clamp(1, self.num_betas)

    @function_of_time
    def log_alpha(self, t):
        k = self._interval(t)
        lower, upper = self._log_alphas.to(t.device)[k - 1], self._log_alphas.to(t.device)[k]
        return lower + (upper - lower) * (t * self.num_betas - (k - 1))

    @function_of_time
    def sigma(self, t):
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    @function_of_time
    def drift(self, t):
        return (self._log_alphas.diff() * self.num_betas).to(t.device)[self._interval(t) - 1]

    @function_of_time
    def diffusion(self, t):
        return (-2 * self.drift(t)).sqrt()

    @function_of_time
    def inverse_half_log_snr(self, half_log_snr):
        log_alpha = -0.5 * torch.nn.functional.softplus(-2 * half_log_snr, threshold=1e9)
        table = self._log_alphas.to(log_alpha.device)
        k = torch.searchsorted(-table, -log_alpha.contiguous()).clamp(1, self.num_betas)
        return (k - 1 + (log_alpha - table[k - 1]) / (table[k] - table[k - 1])) / self.num_betas

    def paper_chain(self, times):
        """Through the whole table the chain is DDPM's, whose ancestral sampler adds sqrt(beta_i), as in `VPSDE`;
        through fewer times the exact transitions stand, with the noise of the exact posterior."""
        chain = self.chain(times)
        whole = len(times) == self.num_betas and math.isclose(times[-1].item(), self.smallest_time)
        return chain._replace(posterior_noise=chain.b) if whole else chain


# -------------------- sde_diffusers.parameterization

"""How a score network is asked, and what it answers.

Whatever a network was trained to output, with x_t = alpha x_0 + sigma noise its answer is one of four linear
functions of (x_0, noise), and each gives all the others:

    epsilon       noise
    sample        x_0
    score         -noise / sigma                            (= grad log p_t(x_t), eq. 7 of arXiv 2011.13456)
    v_prediction  alpha noise - sigma x_0                   (arXiv 2202.00512; alpha^2 + sigma^2 need not be 1)

and it is conditioned on one of four functions of the SDE time t in [0, 1]:

    sigma         sigma(t)                                  (NCSN++ and EDM networks)
    999t          999 t                                     (DDPM++, continuous)
    t             t                                         (the tutorial)
    index         the entry of a discrete table: (k + 1) / N -> k for VP tables, descending for VE ones
"""



PREDICTION_TYPES = ("score", "epsilon", "sample", "v_prediction")
TIME_INPUTS = ("sigma", "999t", "t", "index")
SDE_NAMES = ("ve", "vp", "sub_vp", "ve_exponential", "vp_discrete")

# What the networks of the paper, of its tutorial and of DDPM take and return: prediction type, time, image range.
NETWORK_DEFAULTS = {
    "ve": ("score", "sigma", (0.0, 1.0)),
    "vp": ("epsilon", "999t", (-1.0, 1.0)),
    "sub_vp": ("epsilon", "999t", (-1.0, 1.0)),
    "ve_exponential": ("score", "t", (0.0, 1.0)),
    "vp_discrete": ("epsilon", "index", (-1.0, 1.0)),
}


def require_choice(name: str, value, choices) -> None:
    """Raise a `ValueError` that names the argument unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, but is {value!r}.")


def build_sde(name: str, sigma_min, sigma_max, sigma, beta_min, beta_max, trained_betas) -> GaussianSDE:
    """The SDE that a configuration names; None stands for the defaults of the SDE's class.

    Raises:
        ValueError: on an unknown name, parameters out of range, or a missing `trained_betas`.
    """
    require_choice("sde", name, SDE_NAMES)
    if name == "vp_discrete":
        return DiscreteVPSDE(linear_beta_table() if trained_betas is None else trained_betas)
    cls, parameters = {
        "ve": (VESDE, {"sigma_min": sigma_min, "sigma_max": sigma_max}),
        "vp": (VPSDE, {"beta_min": beta_min, "beta_max": beta_max}),
        "sub_vp": (SubVPSDE, {"beta_min": beta_min, "beta_max": beta_max}),
        "ve_exponential": (ExponentialVESDE, {"sigma": sigma}),
    }[name]
    return cls(**{key: value for key, value in parameters.items() if value is not None})


def linear_beta_table(n: int = 1000) -> Tensor:
    """The beta table of DDPM (arXiv 2006.11239, section 4): linear from 1e-4 to 0.02."""
    return torch.linspace(1e-4, 0.02, n, dtype=torch.float64)


def expand_like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A scalar or per-image (N,) coefficient, in x's dtype and shaped to multiply x of shape (N, ...)."""
    coefficient = coefficient.to(device=x.device, dtype=x.dtype)
    return coefficient.reshape(-1, *[1] * (x.ndim - 1)) if coefficient.ndim else coefficient


class Parameterization:
    """The relation between a network's input and output and the SDE with which it was trained.

    Times t are SDE times, scalar or (N,); x, outputs and x_0 have shape (N, C, H, W).

    Args:
        sde: the SDE of the training.
        prediction_type: what the network returns, one of `PREDICTION_TYPES`.
        time_input: what it is conditioned on, one of `TIME_INPUTS`.
        image_range: (low, high), the range of the images that x_0 stands for.
        num_train_timesteps: length of the sigma table of a VE network with time_input "index".

    Raises:
        ValueError: on an unknown name, an empty range or a table of fewer than 2 levels.
    """

    def __init__(self, sde, prediction_type, time_input, image_range, num_train_timesteps=1000):
        require_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        require_choice("time_input", time_input, TIME_INPUTS)
        if len(image_range) != 2 or not image_range[0] < image_range[1]:
            raise ValueError(f"`image_range` must be (low, high) with low < high, but is {image_range!r}.")
        if not isinstance(num_train_timesteps, int) or num_train_timesteps < 2:
            raise ValueError(f"`num_train_timesteps` must be an integer above 1, but is {num_train_timesteps!r}.")
        self.sde = sde
        self.prediction_type = prediction_type
        self.time_input = time_input
        self.image_range = tuple(float(bound) for bound in image_range)
        self.table_length = getattr(sde, "num_betas", num_train_timesteps)

    # How the network is asked.

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is conditioned on at SDE time t; same shape, float64."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return {
            "sigma": lambda: self.sde.sigma(t),
            "999t": lambda: 999 * t,
            "t": lambda: t,
            "index": lambda: self.sde.table_index(t, self.table_length),
        }[self.time_input]()

    def sde_time(self, network_time: Tensor) -> Tensor:
        """Inverse of `network_time`, in float64."""
        c = torch.as_tensor(network_time, dtype=torch.float64)
        return {
            "sigma": lambda: self._time_of_sigma(c),
            "999t": lambda: c / 999,
            "t": lambda: c,
            "index": lambda: self.sde.time_of_index(c, self.table_length),
        }[self.time_input]()

    def _time_of_sigma(self, sigma: Tensor) -> Tensor:
        """Bisection on sigma(t), which every SDE has increasing on [0, 1]; to float64's resolution."""
        low, high = torch.zeros_like(sigma), torch.ones_like(sigma)
        for _ in range(60):
            middle = (low + high) / 2
            above = self.sde.sigma(middle) > sigma
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return high

    # What it answers.

    def kernel(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t) and sigma(t), shaped to multiply x."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return expand_like(self.sde.alpha(t), x), expand_like(self.sde.sigma(t), x)

    def noise(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's estimate E[noise | x_t = x]."""
        alpha, sigma = self.kernel(x, t)
        if self.prediction_type == "epsilon":
            return output
        if self.prediction_type == "score":
            return -sigma * output
        if self.prediction_type == "sample":
            return (x - alpha * output) / sigma
        return (sigma * x + alpha * output) / (alpha**2 + sigma**2)

    def denoised(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's estimate E[x_0 | x_t = x]."""
        alpha, sigma = self.kernel(x, t)
        if self.prediction_type == "sample":
            return output
        if self.prediction_type == "v_prediction":
            return (alpha * x - sigma * output) / (alpha**2 + sigma**2)
        return (x - sigma * self.noise(output, x, t)) / alpha

    def score(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's estimate of grad log p_t(x)."""
        if self.prediction_type == "score":
            return output
        return -self.noise(output, x, t) / self.kernel(x, t)[1]

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should return at x_t = alpha x_0 + sigma noise: the regression target of training."""
        alpha, sigma = self.kernel(x_0, t)
        return {
            "epsilon": lambda: noise,
            "sample": lambda: x_0,
            "score": lambda: -noise / sigma,
            "v_prediction": lambda: alpha * noise - sigma * x_0,
        }[self.prediction_type]()

    def noise_error_scale(self, t: Tensor) -> Tensor:
        """|d noise / d output| at fixed x_t: how an error of the output becomes one of the noise; float64."""
        t = torch.as_tensor(t, dtype=torch.float64)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return {
            "epsilon": lambda: torch.ones_like(sigma),
            "sample": lambda: alpha / sigma,
            "score": lambda: sigma,
            "v_prediction": lambda: alpha / (alpha**2 + sigma**2),
        }[self.prediction_type]()

    # The range of its images.

    def to_model_range(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> the network's range."""
        low, high = self.image_range
        return low + (high - low) * images

    def to_unit_range(self, x: Tensor) -> Tensor:
        """The network's range -> [0, 1], not clipped."""
        low, high = self.image_range
        return (x - low) / (high - low)


# -------------------- sde_diffusers.likelihood

"""Latent codes and exact likelihoods by the probability flow ODE (section 4.3 and appendix D of arXiv 2011.13456).

The ODE has the marginals of the SDE dx = f(t) x dt + g(t) dw and is, with the score -E[noise | x] / sigma (eq. 13),

    dx / dt = f x + g^2 / (2 sigma) E[noise | x],

so it maps images to latent codes and back, and by the change of variables (eq. 39, D.2)

    log p_eps(x_eps) = log prior(x_1) + integral over t of (f d + g^2 / (2 sigma) tr(d E[noise | x] / dx)).

The trace is estimated without bias as the mean of v^T (d E[noise | x] / dx) v over probes v with E[v v^T] = 1
(Hutchinson and Skilling; eq. 40): one evaluation of the network, and one vector-Jacobian product for each probe.

The solver steps in t, as the paper's code does, or in the noise level u = asinh(sigma / (c alpha)), linear in
sigma / alpha where the noise is below the images' scale c and logarithmic above, with the state in units of the
marginal deviation of data of scale c:

    y = x / sqrt((c alpha)^2 + sigma^2),    dy / du = E[noise | x] - tanh(u) y,    for every SDE.

If the data were N(0, c^2) both terms would cancel, and with them the two parts of the log-likelihood, f d and the
trace: what is left is smooth and of the size of 1 from one end to the other. Measured (docs/likelihood.md), denoisers
need fewer evaluations so; networks that are rough in t itself gain little. f and g of a DDPM table jump in t, and not
its ODE in u.
"""




ODE_VARIABLES = ("t", "noise_level")
PROBE_DISTRIBUTIONS = ("rademacher", "gaussian")


@dataclass
class ProbabilityFlowOutput(BaseOutput):
    """What the probability flow ODE leads to.

    Args:
        sample: (N, C, H, W) float32 latents or images.
        nfe: number of evaluations of the network.
        rtol, atol: tolerances of the solver.
    """

    sample: Tensor
    nfe: int
    rtol: float
    atol: float


@dataclass
class LikelihoodOutput(BaseOutput):
    """Negative log-likelihoods in bits per dimension (less is more likely).

    Args:
        bits_per_dim: (N,) float64, mean over passes and probes. High values mark anomalies.
        estimates: (passes, probes, N) float64, what was averaged; one "probe" if the trace is exact. Join batches with
            `torch.cat(..., dim=2)` and ask `standard_errors` for the errors over a data set.
        standard_error: of the batch's mean, in parts; see `standard_errors`.
        latents: (N, C, H, W) float32, the codes at t = 1 (of the first pass).
        nfe: number of evaluations of the network that each image took, all passes together.
        rtol, atol: tolerances of the solver, as used.
    """

    bits_per_dim: Tensor
    estimates: Tensor
    standard_error: dict[str, float]
    latents: Tensor
    nfe: int
    rtol: float
    atol: float


def standard_errors(estimates: Tensor, exact_trace: bool = False) -> dict[str, float]:
    """Standard error of the mean of nested draws, split into what causes it (analysis of variance).

    With deviations s_image between images, s_deq between the K passes of an image and s_probe between the P probes of
    a pass, the mean over N images has the variance (s_image^2 + s_deq^2 / K + s_probe^2 / (K P)) / N.

    Args:
        estimates: (K, P, N) as in `LikelihoodOutput`.
        exact_trace: whether there are no probes, so that they cause no error.

    Returns:
        "probe", "dequantization", "images": the square roots of the three terms, and "total". A part that one draw
        alone cannot show (P = 1, K = 1 or N = 1) is NaN and, but for the last, contained in the next part.
    """
    passes, probes, n = estimates.shape

    def variance(values: Tensor, dim: int) -> float:
        return values.var(dim).mean().item() if values.shape[dim] > 1 else math.nan

    def beyond(observed: float, explained: float) -> float:
        return max(0.0, observed - explained) if not math.isnan(explained) else observed

    # Variances of the mean over the draws of one image, from the innermost level outwards.
    probe = 0.0 if exact_trace else variance(estimates, 1) / (passes * probes)
    dequantization = beyond(variance(estimates.mean(1), 0) / passes, probe)
    total = variance(estimates.mean((0, 1)), 0)
    draws = sum(part for part in (probe, dequantization) if not math.isnan(part))
    parts = {"probe": probe, "dequantization": dequantization, "images": beyond(total, draws), "total": total}
    return {name: math.sqrt(part / n) for name, part in parts.items()}


# ---- the ODE -------------------------------------------------------------------------------------------------------


class ProbabilityFlow:
    """The right-hand side dy / du for images y and, with probes, the integrand of the log-likelihood.

    In either variable x = a y and dy / du = f y + b E[noise | x] with functions a, f and b of u.

    Args:
        pipe: a `ScoreSdePipeline`.
        shape: (N, C, H, W) of the images.
        class_labels: (N,) or None.
        variable: "t", "noise_level" or None for that which suits the network.
        probes: (P, N, C, H, W), or None if no likelihood is asked for.
        sum_probes: add the probes' contributions up (unit vectors: the full trace) instead of keeping each.
    """

    def __init__(self, pipe, shape, class_labels, variable, probes=None, sum_probes=False):
        self.pipe, self.shape, self.labels = pipe, shape, class_labels
        p = pipe.scheduler.parameterization
        denoiser_or_table = p.prediction_type == "sample" or p.time_input == "index"
        self.variable = variable or ("noise_level" if denoiser_or_table else "t")
        self.probes, self.sum_probes = probes, sum_probes
        self.sde, self.dimensions = pipe.scheduler.sde, math.prod(shape[1:])
        low, high = p.image_range
        self.data_scale = (high - low) / 4  # about the deviation of images
        self.nfe = 0

    def variable_of_time(self, t: float) -> float:
        return t if self.variable == "t" else math.asinh(math.exp(-self.sde.half_log_snr(t).item()) / self.data_scale)

    def coefficients(self, u: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """t, a, f and b at u; scalars in float64."""
        u = torch.tensor(u, dtype=torch.float64)
        if self.variable == "t":
            return u, torch.ones_like(u), self.sde.drift(u), self.sde.diffusion(u) ** 2 / (2 * self.sde.sigma(u))
        t = self.sde.inverse_half_log_snr(-(self.data_scale * u.sinh()).log()).clamp(*self.interval)
        return t, self.sde.alpha(t) * self.data_scale * u.cosh(), -u.tanh(), torch.ones_like(u)

    def __call__(self, u: float, state: Tensor) -> Tensor:
        """(N, d + P) float64: dy / du and, for each probe, the integrand; `state` is (N, d + P)."""
        self.nfe += 1
        t, a, f, b = (value.to(state.device) for value in self.coefficients(u))
        y = state[:, : self.dimensions].reshape(self.shape)
        noise, traces = self.noise_and_traces(a * y, t.cpu())
        return torch.cat([(f * y + b * noise).flatten(1), f * self.dimensions + b * a * traces], dim=1)

    def noise_and_traces(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[noise | x] and the (N, P) products v^T (d E[noise | x] / dx) v, from one evaluation of the network."""
        scheduler = self.pipe.scheduler
        dtype = torch.promote_types(self.pipe.unet.dtype, torch.float32)
        with torch.set_grad_enabled(self.probes is not None):
            x = x.detach().requires_grad_(self.probes is not None)
            network_time = scheduler.network_time(t).to(x.device, dtype)
            scaled = (x * scheduler.input_scale(t).item()).to(dtype)
            output = self.pipe._network(scaled, network_time, self.labels, 1.0)
            noise, _ = scheduler.noise_and_denoised(output.to(x.dtype), x, t)
        if self.probes is None:
            return noise, noise.new_zeros(len(noise), 0)
        last = len(self.probes) - 1
        products = [
            (torch.autograd.grad(noise, x, v, retain_graph=k < last)[0] * v).flatten(1).sum(1)
            for k, v in enumerate(self.probes)
        ]
        traces = torch.stack(products, dim=1)
        return noise.detach(), traces.sum(1, keepdim=True) if self.sum_probes else traces

    def solve(self, x: Tensor, start: float, end: float, rtol: float, atol: float) -> tuple[Tensor, Tensor]:
        """Follow the ODE from x at time `start` to time `end`.

        Returns:
            (N, C, H, W) the images at `end`, and (N, P) log p_start(x_start) - log p_end(x_end) in nats; float64.
        """
        columns = 0 if self.probes is None else 1 if self.sum_probes else len(self.probes)
        self.interval = (min(start, end), max(start, end))
        u_start, u_end = self.variable_of_time(start), self.variable_of_time(end)
        a_start, a_end = (self.coefficients(u)[1].item() for u in (u_start, u_end))
        state = torch.cat([x.double().flatten(1) / a_start, x.new_zeros(len(x), columns, dtype=torch.float64)], dim=1)
        with frozen(self.pipe.unet), self.pipe.progress_bar(total=100) as bar:
            stretch = 1.0 if self.variable == "t" else 1.3
            for u, following in dormand_prince(self, u_start, u_end, state, rtol, atol, stretch):
                bar.update(int(100 * (u - u_start) / (u_end - u_start)) - bar.n)
                state = following
        self.pipe.maybe_free_model_hooks()
        y, integral = state.split([self.dimensions, columns], dim=1)
        return a_end * y.reshape(self.shape), integral + self.dimensions * math.log(a_end / a_start)


@contextmanager
def frozen(network: torch.nn.Module):
    """Switch the parameters' gradients off meanwhile: what only they need is then not stored."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


# ---- latent codes --------------------------------------------------------------------------------------------------


@torch.no_grad()
def encode_images(pipe, images, class_labels=None, rtol=1e-5, atol=1e-5, variable=None) -> ProbabilityFlowOutput:
    """See `ScoreSdePipeline.encode`."""
    x = checked_images(pipe, "images", images)
    check_solver(rtol, atol, variable)
    flow = ProbabilityFlow(pipe, x.shape, pipe._labels(class_labels, len(x)), variable)
    x = pipe.scheduler.parameterization.to_model_range(x)
    z, _ = flow.solve(x, pipe.scheduler.sampling_eps, pipe.scheduler.start_time, rtol, atol)
    return ProbabilityFlowOutput(z.float(), flow.nfe, rtol, atol)


@torch.no_grad()
def decode_latents(pipe, latents, class_labels=None, rtol=1e-5, atol=1e-5, variable=None) -> ProbabilityFlowOutput:
    """See `ScoreSdePipeline.decode`."""
    check_shape(pipe, "latents", latents)
    if not (latents.is_floating_point() and latents.isfinite().all()):
        raise ValueError(f"`latents` must be finite floating point numbers, but are {latents.dtype} or not finite.")
    check_solver(rtol, atol, variable)
    flow = ProbabilityFlow(pipe, latents.shape, pipe._labels(class_labels, len(latents)), variable)
    z = latents.to(pipe._execution_device)
    x, _ = flow.solve(z, pipe.scheduler.start_time, pipe.scheduler.sampling_eps, rtol, atol)
    return ProbabilityFlowOutput(pipe.scheduler.parameterization.to_unit_range(x).float(), flow.nfe, rtol, atol)


def interpolate_images(pipe, a, b, steps, class_labels=None, rtol=1e-5, atol=1e-5, variable=None):
    """See `ScoreSdePipeline.interpolate`."""
    if not isinstance(steps, int) or steps < 2:
        raise ValueError(f"`steps` must be an integer of at least 2 (both ends are included), but is {steps!r}.")
    ends = [checked_images(pipe, name, images) for name, images in (("a", a), ("b", b))]
    if ends[0].shape != ends[1].shape:
        raise ValueError(f"`b` must have the shape of `a`, {tuple(ends[0].shape)}, but has {tuple(ends[1].shape)}.")
    labels = pipe._labels(class_labels, len(ends[0]))
    solver = {"rtol": rtol, "atol": atol, "variable": variable}
    codes = encode_images(pipe, torch.cat(ends), None if labels is None else labels.repeat(2), **solver)
    path = slerp(*codes.sample.chunk(2), torch.linspace(0, 1, steps))
    images = decode_latents(pipe, path.flatten(0, 1), None if labels is None else labels.repeat(steps), **solver)
    return ProbabilityFlowOutput(images.sample.unflatten(0, path.shape[:2]), codes.nfe + images.nfe, rtol, atol)


def slerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation of each a[i] and b[i]: (K, N, ...) for K weights in [0, 1].

    Along the great circle sin((1 - w) angle) / sin(angle) a + sin(w angle) / sin(angle) b (Shoemake, 1985), which
    keeps the norm of Gaussian codes; where a and b are parallel or opposite, along the straight line.
    """
    a_flat, b_flat = a.double().flatten(1), b.double().flatten(1)
    angle = torch.nn.functional.cosine_similarity(a_flat, b_flat, dim=1).clamp(-1, 1).acos()[None, :, None]
    w = weights.to(a.device, torch.float64)[:, None, None]
    straight = angle.sin() < 1e-6
    sine = torch.where(straight, 1.0, angle.sin())
    of_a = torch.where(straight, 1 - w, ((1 - w) * angle).sin() / sine)
    of_b = torch.where(straight, w, (w * angle).sin() / sine)
    return (of_a * a_flat + of_b * b_flat).to(a.dtype).unflatten(2, a.shape[1:])


# ---- likelihoods ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def image_bits_per_dim(
    pipe,
    images,
    class_labels=None,
    generator=None,
    dequantize=True,
    probes=1,
    probe_distribution="rademacher",
    levels=256,
    eps=1e-5,
    rtol=1e-5,
    atol=1e-5,
    variable=None,
) -> LikelihoodOutput:
    """See `ScoreSdePipeline.bits_per_dim`."""
    if not isinstance(levels, int) or levels < 2:
        raise ValueError(f"`levels` must be an integer of at least 2, but is {levels!r}.")
    unit = checked_images(pipe, "images", images, levels)
    if not isinstance(dequantize, int) or dequantize < 0:
        raise ValueError(f"`dequantize` must be a bool or a number of passes, but is {dequantize!r}.")
    if isinstance(generator, list) and len(generator) != len(unit):
        raise ValueError(f"`generator` is a list of {len(generator)}, but there are {len(unit)} images.")
    check_solver(rtol, atol, variable)
    scheduler = pipe.scheduler
    start, end = likelihood_start(scheduler, eps), scheduler.start_time
    labels, exact = pipe._labels(class_labels, len(unit)), isinstance(probes, str)
    check_probes(probes, probe_distribution, unit.shape)

    if exact:  # no probe's noise hides the solver's error, which adds up over the steps
        rtol, atol = rtol / 10, atol / 10

    low, high = scheduler.parameterization.image_range
    # Bins [0, levels) -> model range: x = low + (high - low) bins / levels.
    log_volume = math.log((high - low) / levels)
    estimates, latents, nfe = [], [], 0
    for _ in range(max(1, int(dequantize))):
        if dequantize:
            bins = (unit * (levels - 1)).round()
            x = low + (high - low) * (bins + draw(torch.rand, unit, generator)) / levels
        else:
            x = scheduler.parameterization.to_model_range(unit)
        v = drawn_probes(probes, probe_distribution, unit, generator)
        flow = ProbabilityFlow(pipe, x.shape, labels, variable, probes=v, sum_probes=exact)
        z, gain = flow.solve(x, start, end, rtol, atol)
        log_density = (prior_logp(scheduler, z)[:, None] + gain) / flow.dimensions
        estimates.append(-(log_density + log_volume).T / math.log(2))
        latents.append(z.float())
        nfe += flow.nfe
    estimates = torch.stack(estimates)
    errors = standard_errors(estimates, exact)
    return LikelihoodOutput(estimates.mean((0, 1)), estimates, errors, latents[0], nfe, rtol, atol)


def likelihood_start(scheduler, eps: float) -> float:
    """The time at which the images are taken to be: eps, or the earliest one that SDE and network know."""
    if not (isinstance(eps, (int, float)) and 0 < eps < scheduler.start_time):
        raise ValueError(f"`eps` must lie strictly between 0 and {scheduler.start_time}, but is {eps!r}.")
    sde, trained = scheduler.sde, scheduler.training_sde
    cleanest = sde.inverse_half_log_snr(trained.half_log_snr(trained.smallest_time)).item()
    return max(eps, sde.smallest_time, cleanest)


def prior_logp(scheduler, z: Tensor) -> Tensor:
    """Log-density in nats of N(0, init_noise_sigma^2), from which sampling starts, by that of the SDE's prior."""
    scale = scheduler.sde.prior_sigma / scheduler.init_noise_sigma
    return scheduler.sde.prior_logp(scale * z) + z[0].numel() * math.log(scale)


def draw(distribution, like: Tensor, generator) -> Tensor:
    """`distribution(shape, generator=...)` in float64 and `like`'s shape; with a list, each image from its own."""
    if isinstance(generator, list):
        return torch.cat([draw(distribution, one, g) for one, g in zip(like.split(1), generator, strict=True)])
    device = like.device if generator is None else generator.device
    return distribution(like.shape, generator=generator, device=device, dtype=torch.float64).to(like.device)


def rademacher(shape, **kwargs) -> Tensor:
    """Independent signs."""
    return 2 * torch.randint(2, shape, **kwargs) - 1


def drawn_probes(probes, distribution: str, like: Tensor, generator) -> Tensor:
    """The probes (P, N, C, H, W) in float64; all unit vectors for "exact"."""
    if isinstance(probes, str):
        d = like[0].numel()
        return torch.eye(d, dtype=torch.float64, device=like.device).view(d, 1, *like.shape[1:]).expand(d, *like.shape)
    if isinstance(probes, Tensor):
        return probes.to(like.device, torch.float64).view(-1, *like.shape)
    source = rademacher if distribution == "rademacher" else torch.randn
    return torch.stack([draw(source, like, generator) for _ in range(probes)])


# ---- arguments -----------------------------------------------------------------------------------------------------


def check_shape(pipe, name: str, images) -> None:
    channels = pipe.unet.config.in_channels
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != channels or not images.numel():
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"`{name}` must be a tensor of shape (N, {channels}, H, W), but is {what}.")


def checked_images(pipe, name: str, images, levels: int = 256) -> Tensor:
    """Images as float64 in [0, 1] on the pipeline's device: integers k become k / (levels - 1)."""
    check_shape(pipe, name, images)
    low, high = images.min().item(), images.max().item()
    if images.is_floating_point():
        if not (low >= 0 and high <= 1 and math.isfinite(low + high)):
            raise ValueError(f"`{name}` must lie in [0, 1] if floating point, but reaches from {low} to {high}.")
        return images.to(pipe._execution_device, torch.float64)
    if low < 0 or high >= levels:
        raise ValueError(f"`{name}` must lie in [0, {levels}) if integer, but reaches from {low} to {high}.")
    return images.to(pipe._execution_device, torch.float64) / (levels - 1)


def check_solver(rtol, atol, variable) -> None:
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise ValueError(f"`{name}` must be a finite number above 0, but is {value!r}.")
    if variable is not None:
        require_choice("variable", variable, ODE_VARIABLES)


def check_probes(probes, distribution, shape) -> None:
    require_choice("probe_distribution", distribution, PROBE_DISTRIBUTIONS)
    if isinstance(probes, Tensor):
        good = probes.ndim in (4, 5) and probes.shape[-4:] == shape and probes.numel() > 0
        got = f"a tensor of shape {tuple(probes.shape)}"
    elif isinstance(probes, str):
        good, got = probes == "exact", repr(probes)
    else:
        good, got = isinstance(probes, int) and not isinstance(probes, bool) and probes >= 1, repr(probes)
    if not good:
        size = ", ".join(map(str, shape))
        raise ValueError(
            f'`probes` must be a positive integer, "exact" or a tensor of shape ({size}) or (P, {size}), not {got}.'
        )


# -------------------- sde_diffusers.guidance

"""Guidance: what a class y adds to the score of noisy images.

By Bayes' rule grad log p_t(x | y) = grad log p_t(x) + grad log p_t(y | x). The last term comes from

    a noise-conditional classifier p_t(y | x)     (section 5 and appendix I.1 of arXiv 2011.13456), or
    the network, asked with the class and without, as a difference: classifier-free (arXiv 2207.12598).

More than once that term draws images that are more typical of their class and less diverse; for the classifier-free
one this pays only at intermediate noise levels sigma / alpha, the guidance interval (arXiv 2404.07724).

In y = x / alpha the classifier's images are x_0 plus noise of scale sigma / alpha, whatever the SDE, so that one
classifier serves all of them. Both kinds of guidance change the network's answer, so every sampler can use them.
"""





def check_scale(name: str, value) -> None:
    """Raise a `ValueError` that names the argument unless `value` is a finite number of at least 0."""
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be a finite number of at least 0, but is {value!r}.")


def check_interval(interval) -> None:
    """Raise a `ValueError` unless `guidance_interval` is None or (low, high) with 0 <= low < high."""
    if interval is None:
        return
    pair = isinstance(interval, (tuple, list)) and len(interval) == 2
    if not pair or not all(isinstance(v, (int, float)) for v in interval) or not 0 <= interval[0] < interval[1]:
        raise ValueError(
            f"`guidance_interval` must be None or noise levels (low, high) with 0 <= low < high, but is {interval!r}."
        )


def checked_labels(class_labels, batch_size: int, classes: int) -> Tensor:
    """`class_labels`, one or N of them, as a (N,) tensor; a `ValueError` unless they are integers in [-1, classes)."""
    labels = torch.as_tensor(class_labels)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"`class_labels` must be integers, but are {class_labels!r}.")
    labels = labels.long()
    if labels.ndim > 1 or (labels.ndim == 1 and len(labels) != batch_size):
        raise ValueError(
            f"`class_labels` must be one class or {batch_size} of them, but have shape {tuple(labels.shape)}."
        )
    if ((labels < -1) | (labels >= classes)).any():
        raise ValueError(f"`class_labels` must lie in [0, {classes}) or be -1 (none), but are {labels.tolist()}.")
    return labels.expand(batch_size)


def classifier_labels(pipe, class_labels, batch_size: int, classifier_scale) -> Tensor | None:
    """Class labels for the pipeline's classifier, as a (N,) tensor; None if it is not asked.

    Raises:
        ValueError: if there is no classifier, or it doesn't fit the network or the labels.
    """
    check_scale("classifier_scale", classifier_scale)
    if classifier_scale == 0:
        return None
    needs = f"`classifier_scale`={classifier_scale} needs"
    if pipe.classifier is None:
        raise ValueError(f"{needs} a `classifier`, but the pipeline has none.")
    if class_labels is None:
        raise ValueError(f"{needs} `class_labels`, but they are None.")
    config, classes = pipe.classifier.config, pipe.unet.config.num_class_embeds
    size = config.sample_size
    shape = (config.in_channels, *((size, size) if isinstance(size, int) else size))
    if shape != pipe._image_shape:
        raise ValueError(f"`classifier` is for images {shape}, but the network's are {pipe._image_shape}.")
    if classes and classes != config.num_classes:
        raise ValueError(f"`classifier` knows {config.num_classes} classes, but the network {classes}.")
    labels = checked_labels(class_labels, batch_size, config.num_classes)
    if (labels == -1).any():
        raise ValueError(f"{needs} a class for each image, but `class_labels` hold -1 (none).")
    return labels


def scale_at(noise_level: float, scale: float, interval) -> float:
    """The scale of classifier-free guidance at a noise level sigma / alpha: outside the interval there is none."""
    return scale if interval is None or interval[0] <= noise_level <= interval[1] else 1.0


def network_evaluations(scale: float) -> int:
    """How often classifier-free guidance asks the network: with the class (1), without (0), or both."""
    return 1 if scale in (0, 1) else 2


def coming_noise_level(scheduler) -> float:
    """sigma / alpha of the state at the scheduler's coming `step`."""
    return (-scheduler.sde.half_log_snr(scheduler.times[scheduler.step_index])).exp().item()


def class_gradient(classifier, images: Tensor, noise_level: float, labels: Tensor) -> Tensor:
    """grad log p(labels | images) with respect to noisy images.

    Args:
        classifier: function of (images, noise levels (N,)) that gives logits (N, classes).
        images: (N, C, H, W) images in [0, 1] plus white noise of deviation `noise_level`.
        labels: (N,) classes.
    """
    with torch.enable_grad(), frozen(classifier):
        images = images.detach().requires_grad_()
        logits = classifier(images, images.new_full((len(images),), noise_level))
        log_p = logits.to(images.dtype).log_softmax(1).gather(1, labels[:, None].to(images.device))
        return torch.autograd.grad(log_p.sum(), images)[0]


def classifier_guided(output: Tensor, classifier, labels: Tensor, scale: float, scheduler, x: Tensor) -> Tensor:
    """The network's answer for the scheduler's coming `step`, changed so that the score becomes

        grad log p_t(x) + scale grad log p_t(y | x).

    Args:
        output: (N, C, H, W) the network's answer.
        classifier, labels: see `class_gradient`.
        scale: v of the docstring's second term; at least 0.
        x: (N, C, H, W) the state x_t.
    """
    t, level = scheduler.times[scheduler.step_index], coming_noise_level(scheduler)
    parameterization = scheduler.parameterization
    low, high = parameterization.image_range
    images = parameterization.to_unit_range(x / scheduler.sde.alpha(t).item())
    gradient = class_gradient(classifier, images, level / (high - low), labels) / (high - low)  # by x / alpha
    # noise = -sigma score and x_0 = (x - sigma noise) / alpha; the answer is linear in both.
    noise = -scale * level * gradient
    return output.to(x.dtype) + parameterization.target(-level * noise, noise, scheduler.training_time(t))


# -------------------- sde_diffusers.model_card

"""The card of a model's repository (README.md): metadata by which the Hub finds it, what it is, how to use it.

A card says only what the repository's files and its author say.
"""



TASK = "unconditional-image-generation"
CARD_TAGS = ("score-sde", "image-generation")
SAMPLES_FILE = "samples.png"
GENERATED = "<!-- Generated. Without this line the text stays as it is when the model is pushed again. -->"
TRAINING_SDES = {
    "ve": "VE SDE",
    "vp": "VP SDE",
    "sub_vp": "sub-VP SDE",
    "ve_exponential": "SDE dx = sigma^t dw",
    "vp_discrete": "VP SDE of a DDPM's table",
}
WEIGHTS = re.compile(r"diffusion_pytorch_model(?:\.(?P<variant>.+?))?(?:-\d+-of-\d+)?\.safetensors")
WEIGHTS_INDEX = re.compile(r"diffusion_pytorch_model\.safetensors\.index(?:\.(?P<variant>.+))?\.json")


def model_card(
    folder: str | Path,
    repo_id: str,
    license: str | None = None,
    datasets: list[str] | None = None,
    tags: list[str] | None = None,
    metrics: dict[str, float] | None = None,
    description: str | None = None,
    samples: bool = False,
    earlier: ModelCard | None = None,
) -> ModelCard:
    """The card of a saved pipeline.

    Args:
        folder: of the pipeline.
        repo_id: name that the card tells its readers to load.
        license: identifier of the Hub, such as "apache-2.0".
        datasets: ids of the data sets that the model was trained on.
        tags: in addition to `CARD_TAGS`.
        metrics: {name: value} measured on the first of `datasets`, for the card's model index.
        description: a paragraph of Markdown: how it was trained, what its classes are, its limits.
        samples: whether the repository has the picture `SAMPLES_FILE`.
        earlier: a card that exists already. Unless it was generated its text is kept, and so is all its metadata for
            which no new value is given.

    Raises:
        ValueError: on a metric that is no finite number, or without a data set that it was measured on; on one string
            in the place of several.
    """
    for name, value in {"datasets": datasets, "tags": tags}.items():
        if isinstance(value, str):
            raise ValueError(f"`{name}` must be a list of strings, but is {value!r}.")
    given = {"license": license, "datasets": datasets}
    given = {key: value for key, value in given.items() if value}
    if metrics:
        given["eval_results"] = evaluation_results(metrics, datasets)
    card = earlier
    if card is None or GENERATED in card.text:
        text = card_text(Path(folder), repo_id, description, samples)
        data = (
            ModelCardData(library_name="diffusers", pipeline_tag=TASK, tags=list(CARD_TAGS))
            if card is None
            else card.data
        )
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
    if tags:
        given["tags"] = list(dict.fromkeys([*(card.data.tags or CARD_TAGS), *tags]))
    for key, value in given.items():
        setattr(card.data, key, value)
    if card.data.eval_results and not card.data.model_name:
        card.data.model_name = repo_id.split("/")[-1]
    return card


def read_card(path: str | Path, kind: type[RepoCard] = ModelCard) -> RepoCard:
    """The card in a file.

    Raises:
        ValueError: if its metadata cannot be read.
    """
    try:
        return kind.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"The metadata of {path} cannot be read: {error}") from error


def preferred_card(own: ModelCard | None, remote: ModelCard | None) -> ModelCard | None:
    """A folder's card, or the Hub's where there is none; in a generated one, a text written by hand on the Hub."""
    if own is None or remote is None:
        return own or remote
    if GENERATED in own.text:
        if GENERATED not in remote.text:
            own.text = remote.text
        for key, value in vars(remote.data).items():
            if getattr(own.data, key, None) is None:
                setattr(own.data, key, value)
    return own


def evaluation_results(metrics: dict[str, float], datasets: list[str] | None) -> list[EvalResult]:
    """Metrics as the Hub's model index wants them."""
    if not datasets:
        raise ValueError(f"`metrics` {sorted(metrics)} need `datasets`: the first is what they were measured on.")
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"`metrics` must be finite numbers, but {name} is {value!r}.")
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=datasets[0],
            dataset_name=datasets[0].split("/")[-1],
            metric_type=re.sub(r"\W+", "_", name.lower()),
            metric_name=name,
            metric_value=value,
        )
        for name, value in metrics.items()
    ]


def card_text(folder: Path, repo_id: str, description: str | None, samples: bool) -> str:
    """The card below its metadata, from the configurations in a saved pipeline's folder."""

    def read(path):
        return json.loads((folder / path).read_text(encoding="utf-8")) if (folder / path).is_file() else {}

    pipeline = read("model_index.json")["_class_name"]
    pipeline = pipeline[-1] if isinstance(pipeline, list) else pipeline
    network, scheduler = read("unet/config.json"), read("scheduler/scheduler_config.json")
    size, channels, classes = (network.get(key) for key in ("sample_size", "in_channels", "num_class_embeds"))
    height, width = [size] * 2 if isinstance(size, int) else size
    images = f"{height} x {width} images with {channels} channel{'s'[: channels != 1]}"
    sde = TRAINING_SDES.get(scheduler.get("sde"), scheduler.get("sde"))
    variant, parameters = weights_in(folder / "unet")
    arguments = f'"{repo_id}"' + (f', variant="{variant}"' if variant else "")
    use = [f"from sde_diffusers import {pipeline}\n", f"pipe = {pipeline}.from_pretrained({arguments})"]
    if pipeline == "ScoreSdePipeline":
        call = f"class_labels=0)  # classes: 0 to {classes - 1}" if classes else ")"
        use += [f"output = pipe(batch_size=4{', ' if classes else ''}{call}", 'output.images[0].save("sample.png")']
    without = "from diffusers import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained("
    paragraphs = [
        GENERATED,
        f"# {repo_id.split('/')[-1]}",
        f"A {'class-conditional ' if classes else ''}score-based generative model "
        f"([arXiv 2011.13456](https://arxiv.org/abs/2011.13456)) of {images}: `{network.get('_class_name')}` with "
        f"{parameters:,} parameters, trained with the {sde}, saved with the sampler `{scheduler.get('_class_name')}`.",
        description and description.strip(),
        samples and f"![Samples]({SAMPLES_FILE})",
        "## Use",
        "With the package `sde-diffusers` installed, no code of this repository is run:",
        "\n".join(["```python", *use, "```"]),
        "Without it, the repository's own code is; read it first, and name the `revision` that you have read:",
        f"```python\n{without}{arguments}, trust_remote_code=True)\n```",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def weights_in(folder: Path) -> tuple[str | None, int]:
    """Variant that a folder's weights must be loaded with (None: none), and their number."""
    files = {path: match["variant"] for path in sorted(folder.iterdir()) if (match := WEIGHTS.fullmatch(path.name))}
    variant = None if None in files.values() or not files else min(files.values())
    parameters = 0
    for path, name in files.items():
        if name == variant:
            with safe_open(path, framework="pt") as tensors:
                parameters += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())
    return variant, parameters


# -------------------- sde_diffusers.single_file

"""Saved pipelines carry their own code: one self-contained module for the pipeline and for each of its components.

diffusers loads such modules with `trust_remote_code=True`, but only one file for each component. So the package's
modules are joined: every `from sde_diffusers.x import Name` (the only form of import between them) is replaced by the
source of x, recursively.
"""


PACKAGE = "sde_diffusers"
REMOTE_PACKAGE = "diffusers_modules"


def source_of(cls: type) -> str:
    """One self-contained module that defines `cls`.

    For a class that came from a saved folder (a dynamic module) this is that folder's file, verbatim. A scheduler's
    module defines all samplers that are compatible with it, so that they can be swapped without the package.

    Raises:
        ValueError: if `cls` belongs neither to this package nor to a dynamic module.
    """
    root = cls.__module__.split(".")[0]
    if root == REMOTE_PACKAGE:
        return Path(inspect.getsourcefile(sys.modules[cls.__module__])).read_text(encoding="utf-8")
    if root != PACKAGE:
        raise ValueError(f"`cls` must be a class of {PACKAGE}, but {cls.__qualname__} is of {root}.")
    modules = {cls.__module__}
    if hasattr(cls, "_get_compatibles"):
        modules |= {other.__module__ for other in cls._get_compatibles() if other.__module__.split(".")[0] == PACKAGE}
    externals, bodies = {}, {}
    for module in sorted(modules):  # the same file, whichever sampler is in use
        collect(module, externals, bodies)
    header = f"# Generated from the package {PACKAGE}: {', '.join(bodies)}.\n"
    return header + "\n".join(sorted(externals)) + "\n" + "".join(bodies.values())


def collect(module: str, externals: dict[str, None], bodies: dict[str, str]) -> None:
    """Add the imports from outside and the body of a module to the given dictionaries, what it needs first."""
    if module in bodies:
        return
    path = importlib.util.find_spec(module).origin
    source = Path(path).read_text(encoding="utf-8")
    lines = source.splitlines()
    needed = []
    for node in ast.parse(source).body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == PACKAGE:
            needed.append(node.module)
        else:
            externals[ast.unparse(node)] = None
        lines[node.lineno - 1 : node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
    for other in needed:
        collect(other, externals, bodies)
    body = "\n".join(line for line in lines if line is not None).strip()
    bodies[module] = f"\n\n# {'-' * 20} {module}\n\n{body}\n"


def module_name(cls: type) -> str:
    """Name of the file that holds a class in a saved folder, without ".py"; all schedulers share one."""
    name = cls.__module__.split(".")[-1]
    return "scheduling_score_sde" if name.startswith("scheduling_") else name


def is_ours(cls: type) -> bool:
    """Whether a class needs its code saved with it: it is this package's or came with a saved folder."""
    return cls.__module__.split(".")[0] in (PACKAGE, REMOTE_PACKAGE)


def save_modules(pipeline, folder) -> None:
    """Complete a folder written by `DiffusionPipeline.save_pretrained`: modules, and their names in the index."""
    folder = Path(folder)
    index_path = folder / "model_index.json"
    index = json.loads(index_path.read_text(encoding="utf-8"))
    index.pop("_name_or_path", None)  # a path of this machine
    if is_ours(type(pipeline)):  # a user's subclass is saved as diffusers saves it
        write(folder / f"{module_name(type(pipeline))}.py", source_of(type(pipeline)))
        index["_class_name"] = [module_name(type(pipeline)), type(pipeline).__name__]
    for name, component in pipeline.components.items():
        cls = type(getattr(component, "_orig_mod", component))  # a compiled network is wrapped
        if is_ours(cls):
            write(folder / name / f"{module_name(cls)}.py", source_of(cls))
            index[name] = [module_name(cls), cls.__name__]
    write(index_path, json.dumps(index, indent=2) + "\n")


def write(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


# -------------------- sde_diffusers.hub

"""Pipelines at home on the Hub: saving, pushing and pulling complete repositories.

A repository holds the weights as safetensors, the configurations, the code that loads them where this package is not
installed (`single_file.py`), a card (`model_card.py`) and, if there is one, a grid of samples. A push is one commit:
it is there as a whole or not at all.
"""




PATIENCE = 10.0  # seconds that the Hub has for a first answer
LARGEST_PUSH = 20 * 10**9  # bytes
PICKLES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")
hub_log = logging.getLogger(__name__)

Contents = dict[str, Path | bytes]  # of a repository: path -> file of this machine, or content


class HubPipelineMixin:
    """Saving and loading of pipelines with repositories that carry their own code; before `DiffusionPipeline`."""

    def save_pretrained(
        self,
        save_directory,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ):
        """Save weights, configurations and the code that loads them where this package is not installed.

        The arguments are those of `DiffusionPipeline.save_pretrained`; with `push_to_hub=True` also those of
        `push_to_hub`, `repo_id` being the folder's name by default.
        """
        options = {} if push_to_hub else kwargs
        for name, component in self.components.items():
            if component is not None and self.config[name][0] is None:  # an optional one that was assigned later
                self.register_modules(**{name: component})
        super().save_pretrained(save_directory, safe_serialization, variant, max_shard_size, **options)
        save_modules(self, save_directory)
        forget_origins(save_directory)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", Path(save_directory).resolve().name)
            push_model(save_directory, repo_id, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs,
    ) -> CommitInfo | dict[str, int]:
        """Send the pipeline to the Hub as a complete repository.

        Args:
            repo_id: "owner/name", or "name" for one of your own; it is created if there is none.
            safe_serialization: only True: pickles can hold any code.
            variant: part of the weights' file names, such as "fp16".
            max_shard_size: weights above this size are split, such as "5GB".
            commit_message, private, token, create_pr, and others by name: see `push_model`.

        Returns:
            The commit, a string that is its address; with `dry_run=True` {path: bytes}.

        Raises:
            see `push_model`.
        """
        if not safe_serialization:
            raise ValueError("`safe_serialization` must be True: a repository's weights are safetensors.")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
            return push_model(
                folder,
                repo_id,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                private=private,
                token=token,
                create_pr=create_pr,
                **kwargs,
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a pipeline from a folder or from the Hub; the arguments are those of `DiffusionPipeline`.

        No code of the repository is executed: its classes are looked up in this package.

        Raises:
            OSError: if there is no such folder or repository, or neither the Hub nor a copy of it can be reached.
        """
        if cls._package() is not None and not Path(pretrained_model_name_or_path).is_dir():
            keys = ("cache_dir", "force_download", "local_files_only", "token", "revision")
            options = {key: kwargs.pop(key) for key in keys if key in kwargs}
            pretrained_model_name_or_path = pull_model(
                str(pretrained_model_name_or_path), variant=kwargs.get("variant"), **options
            )
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        for name in pipeline.components.keys() - kwargs.keys():
            warn_of_missing_keys(pretrained_model_name_or_path, name, getattr(pipeline, name))
        return pipeline

    @classmethod
    def load_config(cls, *args, **kwargs):
        """As in diffusers, but with the classes of a saved folder's own modules mapped to this package's."""
        config = super().load_config(*args, **kwargs)
        package = cls._package()
        if package is not None and isinstance(config, dict):
            if isinstance(config.get("_class_name"), (list, tuple)):
                config["_class_name"] = config["_class_name"][1]
            for name, value in config.items():
                if isinstance(value, (list, tuple)) and len(value) == 2 and hasattr(package, str(value[1])):
                    config[name] = [package.__name__, value[1]]
        return config

    @classmethod
    def _package(cls):
        """The installed package, or None where this class comes from a saved folder."""
        name = HubPipelineMixin.__module__.split(".")[0]
        return sys.modules[name] if name != REMOTE_PACKAGE else None


def warn_of_missing_keys(folder: str | Path, name: str, component) -> None:
    """Say which keys a loaded component's configuration lacks: files of an older version, or damaged ones."""
    config = getattr(component, "config", {})
    missing = sorted(config.get("_use_default_values", []))
    if missing:
        defaults = ", ".join(f"{key}={config[key]!r}" for key in missing)
        hub_log.warning("The configuration of %s in %s lacks keys; defaults are used: %s.", name, folder, defaults)


def forget_origins(folder: str | Path) -> None:
    """Take out of a saved pipeline where its networks were loaded from: a path of this machine."""
    for path in Path(folder).glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            write(path, json.dumps(config, indent=2) + "\n")


# What a push sends.


def folder_contents(folder: str | Path) -> Contents:
    """The files of a folder, less hidden ones and Python's caches.

    Raises:
        ValueError: if there is no such folder, or it holds pickles, which run any code when they are loaded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a folder, but {folder} is not.")
    contents = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            contents["/".join(parts)] = path
    pickles = [name for name in contents if name.endswith(PICKLES)]
    if pickles:
        raise ValueError(f"`folder` {folder} holds pickles, which are not pushed: {', '.join(pickles)}.")
    return contents


def missing_from(contents: Contents) -> list[str]:
    """What a saved pipeline lacks to be a complete repository, in words."""
    if "model_index.json" not in contents:
        return ["model_index.json"]
    index = json.loads(contents["model_index.json"].read_text(encoding="utf-8"))
    missing = []
    if not isinstance(index.get("_class_name"), list):
        missing.append("the pipeline's code")
    elif f"{index['_class_name'][0]}.py" not in contents:
        missing.append(f"{index['_class_name'][0]}.py")
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or value[0] is None:
            continue
        files = [path.split("/", 1)[1] for path in contents if path.startswith(f"{name}/")]
        if value[0] not in ("diffusers", "transformers") and f"{value[0]}.py" not in files:
            missing.append(f"{name}/{value[0]}.py")
        if "config.json" in files and not any(file.endswith(".safetensors") for file in files):
            missing.append(f"{name}/*.safetensors")
        if not any(file.endswith("config.json") for file in files):
            missing.append(f"{name}/*config.json")
    for path, source in contents.items():
        if ".safetensors.index." in path:
            shards = json.loads(source.read_text(encoding="utf-8"))["weight_map"].values()
            expected = dict.fromkeys(f"{path.rpartition('/')[0]}/{shard}" for shard in shards)
            missing += [shard for shard in expected if shard not in contents]
    return missing


def content_sizes(contents: Contents) -> dict[str, int]:
    """Bytes of each file."""
    return {
        name: len(source) if isinstance(source, bytes) else source.stat().st_size for name, source in contents.items()
    }


def check_size(contents: Contents, max_bytes: int) -> None:
    """Raise a ValueError if a push would send more than `max_bytes`."""
    sizes = content_sizes(contents)
    if sum(sizes.values()) > max_bytes:
        largest = max(sizes, key=sizes.get)
        raise ValueError(
            f"{len(sizes)} files of {sum(sizes.values()) / 1e9:.3g} GB would be sent (the largest: {largest}), "
            f"but `max_bytes` allows {max_bytes / 1e9:.3g} GB."
        )


def picture_bytes(picture: str | Path | Image.Image) -> bytes:
    """A picture as a PNG file."""
    if not isinstance(picture, Image.Image):
        picture = Image.open(picture)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


# Push and pull.


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    max_bytes: int = LARGEST_PUSH,
    dry_run: bool = False,
    samples: str | Path | Image.Image | None = None,
    license: str | None = None,
    datasets: list[str] | None = None,
    tags: list[str] | None = None,
    metrics: dict[str, float] | None = None,
    description: str | None = None,
) -> CommitInfo | dict[str, int]:
    """Send a saved pipeline's folder to the Hub, with a card, in one commit.

    A README.md in the folder, or else one on the Hub, keeps its text if it was written by hand; weights that the new
    ones replace under other names are deleted from the repository. The folder itself is left alone.

    Args:
        folder: of the pipeline, as `save_pretrained` writes it.
        repo_id: "owner/name", or "name" for one of your own; it is created if there is none.
        commit_message: of the commit.
        private: whether a repository that is created is private; None = as your account has it.
        token: of an account that may write; None = that of `hf auth login` or HF_TOKEN.
        create_pr: whether to open a pull request instead of committing.
        revision: the branch to commit to, created if there is none; None = main.
        max_bytes: refuse to send more.
        dry_run: say what would be sent, and send nothing; the Hub is not asked.
        samples: a grid of samples, or its file, to be shown on the card; None = the folder's samples.png, if any.
        license, datasets, tags, metrics, description: see `model_card`.

    Returns:
        The commit, a string that is its address; with `dry_run` {path: bytes}.

    Raises:
        ValueError: on arguments out of range or an incomplete folder, before anything is sent.
        ConnectionError: if the Hub cannot be reached.
        OSError: if it refuses, as huggingface_hub says it (`HfHubHTTPError`, `LocalTokenNotFoundError`).
        RuntimeError: if a file cannot be uploaded.
    """
    contents = folder_contents(folder)
    missing = missing_from(contents)
    if missing:
        raise ValueError(
            f"`folder` {folder} is no complete pipeline: {', '.join(missing)} missing. Save it with "
            "`ScoreSdePipeline.save_pretrained`."
        )
    if samples is not None:
        contents[SAMPLES_FILE] = picture_bytes(samples)
    check_size(contents, max_bytes)
    own_card = read_card(contents["README.md"]) if "README.md" in contents else None

    def card(name, earlier):
        samples = SAMPLES_FILE in contents
        return str(model_card(folder, name, license, datasets, tags, metrics, description, samples, earlier)).encode()

    contents["README.md"] = card(repo_id, own_card)
    if dry_run:
        return content_sizes(contents)
    require_write_access(token)
    require_hub(repo_id, "model", token)
    with clear_transport_errors(f"Pushing to {repo_id}"):
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        contents["README.md"] = card(repo_id, preferred_card(own_card, card_on_hub(repo_id, revision, token)))
        stale = replaced_files(api.list_repo_files(repo_id, revision=revision), contents)
        return commit_contents(api, repo_id, "model", contents, stale, commit_message, revision, create_pr)


def commit_contents(api, repo_id, repo_type, contents, stale, message, revision, create_pr) -> CommitInfo:
    """One commit that writes `contents` and deletes the paths `stale`."""
    operations = [CommitOperationAdd(name, source) for name, source in contents.items()]
    operations += [CommitOperationDelete(name) for name in stale]
    message = message or f"Upload {len(contents)} files"
    return api.create_commit(
        repo_id, operations, commit_message=message, repo_type=repo_type, revision=revision, create_pr=create_pr
    )


def replaced_files(remote: list[str], contents: Contents) -> list[str]:
    """Weights of a repository that would be loaded instead of new ones: the same variant in other shards."""

    def weights(path):
        folder, _, name = path.rpartition("/")
        match = WEIGHTS.fullmatch(name) or WEIGHTS_INDEX.fullmatch(name)
        return match and (folder, match["variant"])

    new = {weights(path) for path in contents} - {None}
    return [path for path in remote if path not in contents and weights(path) in new]


def card_on_hub(repo_id: str, revision: str | None, token: str | None) -> ModelCard | None:
    """The card that a repository has; never an older one of the cache, which would undo what was written since."""
    try:
        path = hf_hub_download(repo_id, "README.md", revision=revision, token=token, force_download=True)
    except LocalEntryNotFoundError:  # the Hub does not answer
        raise
    except EntryNotFoundError:
        return None
    except ValueError as error:  # so the client says that a forced download failed
        raise OSError(f"The card of {repo_id} cannot be read: {error.__cause__ or error}") from error
    return read_card(path)


def pull_model(
    repo_id: str,
    variant: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> str:
    """Download configurations and weights, but no code, into the cache of huggingface_hub.

    With `variant`, weights of all variants are downloaded: a component may have none of this one.

    Returns:
        The folder. Where the Hub cannot be reached within seconds, it is that of an earlier download.

    Raises:
        OSError: if there is no such repository, or the Hub cannot be reached and there is no earlier download.
    """
    unreachable = None
    try:
        if not local_files_only:
            require_hub(repo_id, "model", token)
    except ConnectionError as error:
        if force_download:
            raise
        unreachable = error
    except HFValidationError as error:
        raise OSError(f"{repo_id} is neither a folder nor the id of a repository.") from error
    if unreachable is not None:
        hub_log.warning("%s Looking for %s in the cache.", unreachable, repo_id)
    try:
        with clear_transport_errors(f"Downloading {repo_id}"):
            return snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only or unreachable is not None,
                allow_patterns=["*.json", "*.safetensors"],
                ignore_patterns=None if variant else ["*diffusion_pytorch_model.*.safetensors"],
            )
    except LocalEntryNotFoundError as error:
        if unreachable is None:
            raise
        raise OSError(f"{unreachable} The cache holds no complete copy of {repo_id}.") from error
    except HFValidationError as error:
        raise OSError(f"{repo_id} is neither a folder nor the id of a repository.") from error


def require_write_access(token: str | None) -> None:
    """Raise a LocalTokenNotFoundError if there is no token at all."""
    if not (token or get_token()):
        raise LocalTokenNotFoundError("Pushing needs a token of the Hub: run `hf auth login`, or set HF_TOKEN.")


def require_hub(repo_id: str, repo_type: str, token: str | bool | None) -> None:
    """Raise a ConnectionError if the Hub gives no answer of any kind within `PATIENCE` seconds.

    The client's own requests retry for long, and have no limit of time.
    """
    api = HfApi(token=token)
    try:
        api.repo_info(repo_id, repo_type=repo_type, timeout=PATIENCE)
    except HfHubHTTPError:
        return  # an answer, if only that there is no such repository
    except (OfflineModeIsEnabled, LocalTokenNotFoundError, HFValidationError):
        raise
    except Exception as error:  # of the HTTP library, which is another one from release to release
        raise ConnectionError(
            f"The Hub ({api.endpoint}) cannot be reached: {error or type(error).__name__}."
        ) from error


@contextlib.contextmanager
def clear_transport_errors(action: str):
    """Say what was being done where a connection breaks; all other errors pass."""
    try:
        yield
    except (OSError, RuntimeError, ValueError):
        raise
    except Exception as error:  # see `require_hub`
        raise ConnectionError(f"{action} failed: {error or type(error).__name__}.") from error


# -------------------- sde_diffusers.images

"""Images and masks as people have them (PIL, numpy, tensors), read into tensors."""



def read_images(name: str, value, channels: int | None = None) -> Tensor:
    """Images as a float32 tensor (N, C, H, W) in [0, 1].

    Args:
        name: of the argument, for messages.
        value: a PIL image or a list of them (turned into grey or RGB as `channels` says), an array (H, W),
            (H, W, C) or (N, H, W, C), or a tensor (C, H, W) or (N, C, H, W); numbers are uint8, or floating point in
            [0, 1].
        channels: the number of channels C that the result must have.

    Raises:
        ValueError: on another type, shape or range.
    """
    if isinstance(value, Image.Image):
        value = [value]
    if isinstance(value, (list, tuple)) and value and all(isinstance(image, Image.Image) for image in value):
        if channels in (1, 3):
            value = [image.convert("L" if channels == 1 else "RGB") for image in value]
        if len({(image.size, image.mode) for image in value}) > 1:
            raise ValueError(f"`{name}` must be images of one size and mode, but they differ.")
        value = np.stack([np.asarray(image) for image in value])
        value = value[..., None] if value.ndim == 3 else value
    if isinstance(value, np.ndarray):
        value = value[..., None] if value.ndim == 2 else value
        value = torch.from_numpy(np.ascontiguousarray(np.moveaxis(value, -1, -3)))
    if not isinstance(value, Tensor):
        raise ValueError(f"`{name}` must be a PIL image, a list of them, an array or a tensor, but is {type(value)}.")
    images = value[None] if value.ndim == 3 else value
    if images.ndim != 4 or not images.numel() or (channels is not None and images.shape[1] != channels):
        expected = f"{'C' if channels is None else channels} channels"
        raise ValueError(f"`{name}` must hold images with {expected}, but has shape {tuple(value.shape)}.")
    if images.dtype == torch.uint8:
        return images.float() / 255
    low, high = images.min().item(), images.max().item()
    if not images.is_floating_point() or not (low >= 0 and high <= 1):
        raise ValueError(
            f"`{name}` must be uint8, or floating point in [0, 1], but is {images.dtype} from {low} to {high}."
        )
    return images.float()


def read_mask(name: str, value, size: tuple[int, int]) -> Tensor:
    """A mask as a boolean tensor (N or 1, 1 or C, H, W), True (white) where pixels are to be painted.

    Args:
        name: of the argument, for messages.
        value: a PIL image painted by hand (or a list): 1-bit, grey or colour, white where pixels are to be painted; or
            a drawing layer whose opacity (RGBA, LA) is the mask. Soft edges count from one half. Or an array (H, W),
            (H, W, 1) or (N, H, W, 1), or a tensor (H, W), (C, H, W) or (N, C, H, W), which must be binary: booleans,
            0 and 1, or uint8 0 and 255.
        size: (H, W) of the images.

    Raises:
        ValueError: on another type, shape or size, or values in between.
    """
    if isinstance(value, Image.Image):
        value = [value]
    if isinstance(value, (list, tuple)) and value and all(isinstance(image, Image.Image) for image in value):
        sizes = {image.size for image in value}
        if sizes != {(size[1], size[0])}:
            raise ValueError(f"`{name}` must be {size[1]} x {size[0]} pixels as the image, but is {sizes}.")
        mask = torch.from_numpy(np.stack([painted_pixels(image) for image in value]))[:, None]
    else:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value if value.ndim == 2 else np.moveaxis(value, -1, -3)))
        if not isinstance(value, Tensor):
            raise ValueError(f"`{name}` must be a PIL image, an array or a tensor, but is {type(value)}.")
        if value.dtype == torch.uint8 and value.max() > 1:
            binary, mask = ((value == 0) | (value == 255)).all(), value > 0
        else:
            binary, mask = ((value == 0) | (value == 1)).all(), value == 1
        if not binary:
            raise ValueError(
                f"`{name}` must be binary (0 and 1, booleans, or uint8 0 and 255), but has values in between, "
                f"from {value.min().item()} to {value.max().item()}."
            )
    while mask.ndim < 4:
        mask = mask[None]
    if mask.ndim != 4 or mask.shape[2:] != size:
        raise ValueError(f"`{name}` must have the image's size {size}, but has shape {tuple(mask.shape)}.")
    if not mask.any():
        raise ValueError(f"`{name}` marks no pixel to be painted (white, or 1).")
    return mask


def painted_pixels(image: Image.Image) -> np.ndarray:
    """(H, W) booleans: opaque pixels of a layer that is transparent somewhere, else white ones."""
    if image.mode in ("RGBA", "LA"):
        opacity = np.asarray(image.getchannel("A"))
        if (opacity < 128).any():
            return opacity >= 128
        image = image.convert("RGB")
    return np.asarray(image.convert("L")) >= 128


# -------------------- sde_diffusers.pipelines.pipeline_score_sde

"""Unconditional and class-conditional generation with a score network, and the score itself.

The pipeline knows neither which SDE it samples nor which sampler does it: the scheduler says at which times the
network is evaluated, and turns each answer into the next state.
"""




OUTPUT_TYPES = ("pil", "np", "pt", "latent")
LATENT_NAMES = ["latents"]


@dataclass
class ScoreSdePipelineOutput(BaseOutput):
    """Output of `ScoreSdePipeline`.

    Args:
        images: a list of N PIL images, an array (N, H, W, C) or a tensor (N, C, H, W); numbers lie in [0, 1], except
            for the output type "latent".
        nfe: number of evaluations of the network that each image took (where classifier-free guidance acts, it is
            evaluated twice; a classifier's evaluations are not counted).
    """

    images: list[Image.Image] | np.ndarray | Tensor
    nfe: int


class ScoreSdePipeline(HubPipelineMixin, DiffusionPipeline):
    """Sampling from a score-based generative model (arXiv 2011.13456) with any of this package's schedulers.

    Args:
        unet: a `UNet2DModel` (`NCSNppUNet2DModel` or diffusers' own), asked and answering as the scheduler's
            configuration says.
        scheduler: a scheduler of this package. Swap samplers with
            `pipe.scheduler = ScoreSdeProbabilityFlowScheduler.from_config(pipe.scheduler.config)`.
        classifier: optional, a `NoiseConditionalClassifier`, whose gradient guides with `classifier_scale` above 0.

    Raises:
        ValueError: if the scheduler is not of this package (see `sde_diffusers.convert` for diffusers' ones).
    """

    model_cpu_offload_seq = "unet->classifier"
    _optional_components = ["classifier"]
    _callback_tensor_inputs = LATENT_NAMES

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin, classifier: ModelMixin | None = None):
        super().__init__()
        if not hasattr(scheduler, "parameterization"):
            raise ValueError(
                f"`scheduler` must be one of sde_diffusers (ScoreSde...Scheduler), but is {type(scheduler).__name__}."
            )
        self.register_modules(unet=unet, scheduler=scheduler, classifier=classifier)

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """A pipeline of this class that shares the components of another one; see `DiffusionPipeline.from_pipe`."""
        # diffusers' own takes only networks of exactly the class that the constructor is annotated with
        return super().from_pipe(pipeline, **{**pipeline.components, **kwargs})

    # Sampling.

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        class_labels=None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end=None,
        callback_on_step_end_tensor_inputs: list[str] = LATENT_NAMES,
        image=None,
        strength: float = 0.5,
        guidance_interval: tuple[float, float] | None = None,
        classifier_scale: float = 0.0,
    ) -> ScoreSdePipelineOutput | tuple:
        """Draw images, from noise or (`image`) starting with given ones.

        Args:
            batch_size: number of images N.
            num_inference_steps: number of time steps (not of network evaluations); the default is the scheduler's.
            class_labels: a class, or N of them (list or tensor), in [0, num_class_embeds); None = no class.
            guidance_scale: w of classifier-free guidance (arXiv 2207.12598), at least 0: the network's answer is
                (1 - w) unconditional + w conditional. 1 is the conditional network itself, 0 the unconditional one.
            generator: source of all noise, or a list of N, so that each image has its own seed.
            latents: (N, C, H, W) standard normal noise to start from instead of drawing it.
            output_type: "pil", "np", "pt", or "latent" for the last state as it is, in the scheduler's image range.
            return_dict: whether to return a `ScoreSdePipelineOutput` and not the tuple (images, nfe).
            callback_on_step_end: called as `callback(pipe, k, timestep, {"latents": x})` after every evaluation of
                the network (there are `pipe.num_timesteps`); a dictionary that it returns may replace "latents".
            callback_on_step_end_tensor_inputs: names for the callback's dictionary; only "latents" exists.
            image: one image, of which `batch_size` versions are drawn, or N of them: PIL, arrays (H, W, C) or tensors
                (C, H, W), uint8 or in [0, 1]. Noise is added and then removed (SDEdit, arXiv 2108.01073).
            strength: the share of the time steps that are done, in (0, 1], as in diffusers' image-to-image: with more
                of them, the image that comes out has less to do with `image`.
            guidance_interval: (low, high), noise levels sigma / alpha, in the units of the network's images, between
                which `guidance_scale` holds; elsewhere it is 1 (arXiv 2404.07724). None = everywhere.
            classifier_scale: v of classifier guidance, at least 0: v times the gradient of the pipeline's
                classifier's log p_t(y | x_t) is added to the score (appendix I.1 of arXiv 2011.13456). With an
                unconditional network 1 draws from p(x | y); a conditional one is asked without the class by
                `guidance_scale=0`.

        Raises:
            ValueError: on arguments out of range, before anything is drawn.
        """
        if image is not None:
            image = self._start_image(image, strength)
            batch_size = len(image) if batch_size == 1 else batch_size
        shape = self._check(batch_size, guidance_scale, generator, latents, output_type)
        check_interval(guidance_interval)
        if image is not None and len(image) not in (1, batch_size):
            raise ValueError(f"`image` must be one or `batch_size` = {batch_size} of them, but holds {len(image)}.")
        targets = classifier_labels(self, class_labels, batch_size, classifier_scale)
        if targets is not None and guidance_scale == 1 and not self.unet.config.num_class_embeds:
            class_labels = None  # they are the classifier's alone
        labels = self._guided_labels(class_labels, batch_size, guidance_scale)
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in LATENT_NAMES]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may hold {LATENT_NAMES} only, but holds {unknown}."
            )
        device = self._execution_device
        steps = self.scheduler.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        self.scheduler.set_timesteps(steps, device=device)

        # The state stays in float32, whatever the network computes in.
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        latents = latents.to(device, torch.float32)
        if image is None:
            x = latents * self.scheduler.init_noise_sigma
        else:
            t = self.scheduler.start_late(math.ceil(strength * steps))
            x = self.scheduler.sde.alpha(t) * image.to(device) + self.scheduler.sde.sigma(t) * latents
        timesteps = self.scheduler.timesteps[self.scheduler.step_index :]
        self._guidance_scale, self._num_timesteps = guidance_scale, len(timesteps)  # a callback may change the scale
        nfe = 0
        for k, t in enumerate(self.progress_bar(timesteps)):
            scale = scale_at(coming_noise_level(self.scheduler), self.guidance_scale, guidance_interval)
            output = self._network(self.scheduler.scale_model_input(x, t), t, labels, scale)
            nfe += network_evaluations(scale)
            if targets is not None:
                output = classifier_guided(output, self.classifier, targets, classifier_scale, self.scheduler, x)
            x = self.scheduler.step(output, t, x, generator=generator).prev_sample
            if callback_on_step_end is not None:
                values = {name: x for name in callback_on_step_end_tensor_inputs}
                x = (callback_on_step_end(self, k, t, values) or {}).get("latents", x)
        images = self._images(x, output_type)
        self.maybe_free_model_hooks()
        return ScoreSdePipelineOutput(images, nfe) if return_dict else (images, nfe)

    @property
    def guidance_scale(self) -> float:
        """w of the sampling that is under way, or was last."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Number of times at which that sampling evaluates the network."""
        return self._num_timesteps

    # The central objects.

    def score(self, x: Tensor, t, class_labels=None) -> Tensor:
        """The score grad log p_t(x) of the noisy images' density.

        Args:
            x: (N, C, H, W) noisy images at time t of the sampling SDE, in the scheduler's image range. Gradients
                flow back to x if it requires them.
            t: SDE time in (0, 1], a number or (N,).
            class_labels: as in `__call__`.

        Returns:
            (N, C, H, W), in x's dtype, at least float32.
        """
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        noise, _ = self._noise_and_denoised(x, t, class_labels)
        return -noise / expand_like(self.scheduler.sde.sigma(t), noise)

    def denoise(self, x: Tensor, t, class_labels=None) -> Tensor:
        """The denoised images E[x_0 | x_t = x] (Tweedie's formula), in the scheduler's image range; see `score`."""
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        return self._noise_and_denoised(x, t, class_labels)[1]

    def _noise_and_denoised(self, x, t, class_labels):
        earliest, latest = self.scheduler.sde.smallest_time, self.scheduler.start_time
        if t.ndim > 1 or (t.ndim == 1 and len(t) != len(x)) or not ((t > 0) & (t >= earliest) & (t <= latest)).all():
            interval = f"[{earliest}" if earliest else "(0"
            raise ValueError(f"`t` must be a time in {interval}, {latest}] or {len(x)} of them, but is {t.tolist()}.")
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            network_time = self.scheduler.network_time(t).to(x.device, torch.float32)
            scaled = x * expand_like(self.scheduler.input_scale(t), x)
            output = self._network(scaled, network_time, self._labels(class_labels, len(x)), 1.0)
            return self.scheduler.noise_and_denoised(output.to(x.dtype), x, t)

    def _network(self, x, network_time, labels, guidance_scale):
        """The network's answer, guided if `guidance_scale` is not 1."""
        if not getattr(self.unet, "accepts_float32_input", False):
            x = x.to(self.unet.dtype)
        if labels is not None:
            labels = labels.to(x.device)
        if guidance_scale == 1:
            return self.unet(x, network_time, class_labels=labels).sample
        none = torch.full_like(labels, -1)
        if guidance_scale == 0:
            return self.unet(x, network_time, class_labels=none).sample
        both = torch.cat([none, labels])
        without, given = self.unet(torch.cat([x, x]), network_time, class_labels=both).sample.chunk(2)
        return without + guidance_scale * (given - without)

    # Latent codes and likelihoods.

    def encode(
        self, images: Tensor, class_labels=None, rtol=1e-5, atol=1e-5, variable=None, return_dict=False
    ) -> Tensor | ProbabilityFlowOutput:
        """Latent codes of images: the probability flow ODE from `scheduler.sampling_eps` to t = 1.

        Args:
            images: (N, C, H, W) uint8, or floating point in [0, 1].
            class_labels: as in `__call__`.
            rtol, atol: tolerances of the adaptive solver, relative to and in the units of its state: the network's
                images, or, in "noise_level", these divided by the deviation of images at that time.
            variable: what the solver steps in: "t", exactly as the paper's code, or "noise_level", a function of
                sigma / alpha in which fewer evaluations are as accurate. None takes the latter for denoisers
                (prediction type "sample") and tables (time input "index"), and else, for the paper's networks, "t".
            return_dict: whether to return a `ProbabilityFlowOutput`, which also reports evaluations and tolerances.

        Returns:
            (N, C, H, W) float32 codes. For likely images they resemble draws from the prior, whose standard deviation
            is `scheduler.init_noise_sigma`; divided by it they can be given to `__call__` as `latents`.

        Raises:
            ValueError: on arguments of a wrong shape or out of range.
            RuntimeError: if the network's answers are not finite.
        """
        output = encode_images(self, images, class_labels, rtol, atol, variable)
        return output if return_dict else output.sample

    def decode(
        self, latents: Tensor, class_labels=None, rtol=1e-5, atol=1e-5, variable=None, return_dict=False
    ) -> Tensor | ProbabilityFlowOutput:
        """Inverse of `encode`: (N, C, H, W) latent codes to float32 images in the range [0, 1], but not clipped.

        There is no final denoising. Other arguments and errors are those of `encode`.
        """
        output = decode_latents(self, latents, class_labels, rtol, atol, variable)
        return output if return_dict else output.sample

    def interpolate(
        self,
        a: Tensor,
        b: Tensor,
        steps: int,
        class_labels=None,
        rtol=1e-5,
        atol=1e-5,
        variable=None,
        return_dict=False,
    ) -> Tensor | ProbabilityFlowOutput:
        """Ways from images a[i] to b[i], spherical in the space of latent codes.

        Args:
            a, b: (N, C, H, W) as in `encode`.
            steps: number of images K >= 2 on each way, both ends included.

        Returns:
            (K, N, C, H, W) float32 images in the range [0, 1], not clipped. Other arguments and errors are those of
            `encode`; the labels hold for both ends and the way between them.
        """
        output = interpolate_images(self, a, b, steps, class_labels, rtol, atol, variable)
        return output if return_dict else output.sample

    def bits_per_dim(
        self,
        images: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        dequantize: bool | int = True,
        probes: int | str | Tensor = 1,
        eps: float = 1e-5,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        class_labels=None,
        probe_distribution: str = "rademacher",
        levels: int = 256,
        variable: str | None = None,
    ) -> LikelihoodOutput:
        """Negative log-likelihood of images in bits per dimension, by the probability flow ODE (section D.2).

        Args:
            images: (N, C, H, W) integers in [0, levels) (uint8 by default), or floating point in [0, 1].
            generator: source of dequantization noise and probes, or a list of N, so that each image has its own.
            dequantize: number of passes (True: one) with uniform noise u in (round((levels - 1) image) + u) / levels,
                whose average bounds the discrete likelihood. False: the density at the given values, which must then
                have been dequantized for the result to be comparable.
            probes: number of random probes of the trace estimator, given ones (N, C, H, W) or (P, N, C, H, W), or
                "exact" for the full trace, with as many vector-Jacobian products as an image has dimensions.
            eps: time that stands for the images, in (0, 1); raised to the earliest one that the SDE and the network
                know where they start later (DDPM tables, another SDE than the training's).
            rtol, atol, variable: see `encode`. The tolerances hold for the log-likelihood in nats as well; with
                `probes="exact"` a tenth of them is used.
            class_labels: as in `__call__`; the likelihood is then that given the class.
            probe_distribution: "rademacher" (of less variance) or "gaussian".
            levels: number of values of a pixel, 2^(bit depth).

        Returns:
            `LikelihoodOutput`, in the first place `.bits_per_dim` (N,).

        Raises:
            ValueError: on arguments of a wrong shape or out of range.
            RuntimeError: if the network's answers are not finite.
        """
        return image_bits_per_dim(
            self,
            images,
            class_labels=class_labels,
            generator=generator,
            dequantize=dequantize,
            probes=probes,
            probe_distribution=probe_distribution,
            levels=levels,
            eps=eps,
            rtol=rtol,
            atol=atol,
            variable=variable,
        )

    # Arguments and results.

    def _check(self, batch_size, guidance_scale, generator, latents, output_type) -> tuple[int, ...]:
        """Refuse what cannot be sampled; the shape of the images otherwise."""
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer, but is {batch_size!r}.")
        check_scale("guidance_scale", guidance_scale)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, but is {output_type!r}.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"`generator` is a list of {len(generator)}, but `batch_size` is {batch_size}.")
        shape = (batch_size, *self._image_shape)
        if latents is not None and (latents.ndim != 4 or latents.shape[:2] != shape[:2]):  # any size of image will do
            raise ValueError(f"`latents` must have shape {shape}, but have {tuple(latents.shape)}.")
        return shape

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the network was made for."""
        size = self.unet.config.sample_size
        return (self.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))

    def _start_image(self, image, strength) -> Tensor:
        """(N, C, H, W) given images in the network's range, checked."""
        if not isinstance(strength, (int, float)) or not 0 < strength <= 1:
            raise ValueError(f"`strength` must lie in (0, 1], but is {strength!r}.")
        image = read_images("image", image, self._image_shape[0])
        if image.shape[1:] != self._image_shape:
            raise ValueError(f"`image` must have shape {self._image_shape}, but has {tuple(image.shape[1:])}.")
        return self.scheduler.parameterization.to_model_range(image)

    @property
    def _knows_no_class(self) -> bool:
        """Whether the network takes the label -1 for "no class"; diffusers' own would look up entry -1."""
        return not type(self.unet).__module__.startswith("diffusers.")

    def _labels(self, class_labels, batch_size) -> Tensor | None:
        """Class labels as a (N,) tensor, checked."""
        if class_labels is None:
            return None
        classes = self.unet.config.num_class_embeds
        if not classes:
            raise ValueError(f"`class_labels` is {class_labels!r}, but the network is not conditional on classes.")
        labels = checked_labels(class_labels, batch_size, classes)
        if (labels == -1).any() and not self._knows_no_class:
            raise ValueError(f"`class_labels` holds -1, but {type(self.unet).__name__} has no label for no class.")
        return labels

    def _guided_labels(self, class_labels, batch_size, guidance_scale) -> Tensor | None:
        """Class labels as `_labels` gives them, if they and the network allow for guidance of this scale."""
        labels = self._labels(class_labels, batch_size)
        if guidance_scale != 1 and labels is None:
            raise ValueError(f"`guidance_scale`={guidance_scale} needs `class_labels`, but they are None.")
        if guidance_scale != 1 and not self._knows_no_class:
            raise ValueError(
                f"`guidance_scale`={guidance_scale} needs a network that can be asked without a class, "
                f"but {type(self.unet).__name__} can't."
            )
        return labels

    def _images(self, x: Tensor, output_type: str):
        """The network's range -> images of the given type."""
        if output_type == "latent":
            return x
        return self._of_type(self.scheduler.parameterization.to_unit_range(x).clamp(0, 1), output_type)

    def _of_type(self, images: Tensor, output_type: str):
        """Images in [0, 1] as PIL, numpy or tensor."""
        if output_type == "pt":
            return images
        images = images.cpu().permute(0, 2, 3, 1).numpy()
        return images if output_type == "np" else self.numpy_to_pil(images)
