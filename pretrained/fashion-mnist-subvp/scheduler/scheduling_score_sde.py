# Generated from the package sde_diffusers: sde_diffusers.sdes, sde_diffusers.parameterization, sde_diffusers.schedulers.scheduling_score_sde, sde_diffusers.schedulers.scheduling_exponential, sde_diffusers.schedulers.scheduling_predictor_corrector, sde_diffusers.schedulers.scheduling_probability_flow.
from abc import ABC, abstractmethod
from dataclasses import dataclass
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from typing import NamedTuple
import functools
import math
import numpy as np
import torch


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


# -------------------- sde_diffusers.schedulers.scheduling_score_sde

"""What all samplers share: a configuration names an SDE and how the network is parameterized, and a time grid is
walked from t = 1 to the data.

A sampler overrides two methods: `_plan`, which says at which times the network is evaluated, and `_update`, which
turns one evaluation into the next state. Everything else (grids, counting, conversion of the network's output,
sampling with another SDE than the training's) is here.
"""




TIME_GRIDS = ("uniform", "quadratic", "log_snr", "karras", "noise_share")


def time_grid(name: str, n: int, sde: GaussianSDE, start: float, end: float) -> Tensor:
    """n times from `start` down to `end`, both included; (n,) float64.

    "uniform" is linear in t and "quadratic" in sqrt(t); "log_snr" is linear in log(alpha/sigma), and "karras" in
    (sigma/alpha)^(1/7) (eq. 5 of arXiv 2206.00364, with rho = 7). "noise_share" is linear in u^(1/4) with
    u = sigma / (2 alpha + sigma): few steps at high noise, where the estimates hardly change, and many at the levels
    of the data (constants by measurement: benchmarks/few_step_samplers.py).

    Raises:
        ValueError: on an unknown name.
    """
    require_choice("time_grid", name, TIME_GRIDS)
    ends = torch.tensor([start, end], dtype=torch.float64)

    def between(values: Tensor) -> Tensor:
        return torch.linspace(values[0].item(), values[1].item(), n, dtype=torch.float64)

    if name == "uniform":
        return between(ends)
    if name == "quadratic":
        grid = between(ends.sqrt()) ** 2
    elif name == "log_snr":
        grid = sde.inverse_half_log_snr(between(sde.half_log_snr(ends)))
    elif name == "noise_share":
        share = between(torch.sigmoid(-sde.half_log_snr(ends) - math.log(2)) ** (1 / 4)) ** 4
        grid = sde.inverse_half_log_snr(-torch.logit(share) - math.log(2))
    else:
        grid = sde.inverse_half_log_snr(-7 * between((-sde.half_log_snr(ends) / 7).exp()).log())
    grid[-1] = end
    grid[0] = start  # a grid of one time is the start
    return grid


@dataclass
class ScoreSdeSchedulerOutput(BaseOutput):
    """Output of a scheduler's `step`; tensors of the sample's shape.

    Args:
        prev_sample: the next state, at an earlier (less noisy) time or, in a corrector, at the same one.
        prev_sample_mean: the next state before its noise was added.
        pred_original_sample: the denoised image E[x_0 | x_t].
    """

    prev_sample: Tensor
    prev_sample_mean: Tensor
    pred_original_sample: Tensor


class ScoreSdeScheduler(SchedulerMixin, ConfigMixin):
    """Base of the samplers. The configuration keys below are shared by all of them; None stands for a default.

    Args:
        sde: what the network was trained with: "ve", "vp", "sub_vp", "ve_exponential" or "vp_discrete".
        sigma_min, sigma_max: of "ve" (0.01 and 50).
        sigma: of "ve_exponential" (25).
        beta_min, beta_max: of "vp" and "sub_vp" (0.1 and 20).
        trained_betas: the beta table of "vp_discrete" (DDPM's linear one).
        prediction_type: what the network returns: "score" (default of the VE SDEs), "epsilon" (of the VP ones),
            "sample" or "v_prediction".
        time_input: what the network is conditioned on: "sigma" (default of "ve"), "999t" ("vp", "sub_vp"), "t"
            ("ve_exponential") or "index" ("vp_discrete").
        image_range: range of the network's images: (0, 1) (default of the VE SDEs) or (-1, 1) (of the VP ones).
        num_train_timesteps: length of the noise table of a network with time input "index" (1000).
        sampling_sde: another SDE to sample with, by name; it takes its parameters from the keys above.
        sampling_eps: time at which sampling ends (1e-5 for "ve", 1e-3 for the others, at least 1/N for tables).
        time_grid: "uniform", "quadratic", "log_snr", "karras" or "noise_share"; the default is the sampler's.
        final_denoise: whether the last evaluation steps to x_0 without noise (default), so that none is left.

    Attributes (after `set_timesteps`):
        timesteps: (M,) what the network is conditioned on at each of its M evaluations; values repeat.
        times: (M,) float64, the SDE times of these evaluations.
    """

    order = 1
    default_time_grid = "uniform"
    default_num_inference_steps = 1000

    def _setup(self) -> None:
        """Resolve the configuration; each constructor calls it."""
        config = self.config
        if config.trained_betas is not None:
            self.register_to_config(trained_betas=[float(beta) for beta in config.trained_betas])
        keys = ("sigma_min", "sigma_max", "sigma", "beta_min", "beta_max", "trained_betas")
        parameters = {key: config[key] for key in keys}
        require_choice("sde", config.sde, SDE_NAMES)
        defaults = NETWORK_DEFAULTS[config.sde]
        self.training_sde = build_sde(config.sde, **parameters)
        if config.sampling_sde is not None:
            require_choice("sampling_sde", config.sampling_sde, SDE_NAMES)
        # The same object where the names are the same: times then stay exact, and the paper's chains apply.
        same = config.sampling_sde in (None, config.sde)
        self.sde = self.training_sde if same else build_sde(config.sampling_sde, **parameters)
        self.parameterization = Parameterization(
            self.training_sde,
            prediction_type=defaults[0] if config.prediction_type is None else config.prediction_type,
            time_input=defaults[1] if config.time_input is None else config.time_input,
            image_range=defaults[2] if config.image_range is None else config.image_range,
            num_train_timesteps=config.num_train_timesteps,
        )
        self.time_grid = self.default_time_grid if config.time_grid is None else config.time_grid
        require_choice("time_grid", self.time_grid, TIME_GRIDS)
        self.final_denoise = True if config.final_denoise is None else config.final_denoise
        self.start_time, self.sampling_eps = self._interval()
        self.num_inference_steps = None
        self.timesteps = self.times = torch.empty(0)
        self._calls, self._state = 0, None

    def _interval(self) -> tuple[float, float]:
        """The times between which sampling runs: no noisier or cleaner than what the network has seen."""
        eps = self.sde.sampling_eps if self.config.sampling_eps is None else self.config.sampling_eps
        smallest = self.sde.smallest_time
        if not smallest <= eps < 1 or eps <= 0:
            allowed = f"in [{smallest}, 1)" if smallest else "between 0 and 1"
            raise ValueError(f"`sampling_eps` must lie {allowed}, but is {eps}.")
        if self.sde is self.training_sde:
            return 1.0, eps
        ends = torch.tensor([1.0, self.training_sde.smallest_time], dtype=torch.float64)
        noisiest, cleanest = self.sde.inverse_half_log_snr(self.training_sde.half_log_snr(ends)).tolist()
        return min(1.0, noisiest), max(eps, cleanest)

    @classmethod
    def _get_compatibles(cls):
        """All samplers; the inherited method would search only diffusers."""
        return ScoreSdeScheduler.__subclasses__()

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise from which sampling starts."""
        return self.sde.prior_sigma if self.start_time == 1 else self.sde.sigma(self.start_time).item()

    @property
    def betas(self) -> Tensor:
        """(N,) float64, the beta table of "vp_discrete", as in diffusers' schedulers; other SDEs have none."""
        if self.config.sde != "vp_discrete":
            raise AttributeError(f"{type(self).__name__} with `sde`={self.config.sde!r} has no `betas`.")
        betas = self.config.trained_betas
        return linear_beta_table() if betas is None else torch.tensor(betas, dtype=torch.float64)

    @property
    def at_grid_point(self) -> bool:
        """Whether the last `step` ended at a point of the time grid (a corrector's or an inner stage does not)."""
        return self._calls > 0 and bool(self._ends_step[self._calls - 1])

    @property
    def step_index(self) -> int:
        """Number of `step` calls since `set_timesteps`."""
        return self._calls

    # The network, seen from the sampling SDE.

    def training_time(self, t: Tensor) -> Tensor:
        """The time of the training SDE that has the signal-to-noise ratio of time t of the sampling SDE."""
        if self.sde is self.training_sde:
            return t
        return self.training_sde.inverse_half_log_snr(self.sde.half_log_snr(t))

    def input_scale(self, t: Tensor) -> Tensor:
        """Factor that turns x_t of the sampling SDE into the training SDE's (x / alpha is common to both)."""
        if self.sde is self.training_sde:
            return torch.ones_like(t)
        return self.training_sde.alpha(self.training_time(t)) / self.sde.alpha(t)

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is conditioned on at time t of the sampling SDE; float64, t's shape."""
        return self.parameterization.network_time(self.training_time(t))

    def noise_and_denoised(self, model_output: Tensor, sample: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[noise | x_t] and E[x_0 | x_t] for x_t = `sample` at time t (scalar or (N,)) of the sampling SDE.

        `model_output` is the network's answer to `sample * input_scale(t)` at `network_time(t)`.
        """
        s = self.training_time(t)
        x = sample if self.sde is self.training_sde else sample * expand_like(self.input_scale(t), sample)
        return self.parameterization.noise(model_output, x, s), self.parameterization.denoised(model_output, x, s)

    # The diffusers scheduler interface.

    def set_timesteps(self, num_inference_steps: int, device=None) -> None:
        """Lay the time grid and reset the count of calls.

        Args:
            num_inference_steps: number of time steps, at least 1 (not of network evaluations: see `timesteps`).
            device: of `timesteps`.

        Raises:
            ValueError: if `num_inference_steps` is no positive integer.
        """
        if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be a positive integer, but is {num_inference_steps!r}.")
        self.num_inference_steps = num_inference_steps
        self.times, self._ends_step = self._plan(num_inference_steps)
        self.timesteps = self.network_time(self.times).to(device=device, dtype=torch.float32)
        self._calls, self._state = 0, None

    def start_late(self, steps: int) -> Tensor:
        """Leave out all but the last `steps` time steps, as for sampling that starts from a noisy image.

        Returns:
            Scalar float64, the SDE time of the first evaluation that is left, `timesteps[step_index]`.

        Raises:
            ValueError: unless 1 <= steps <= `num_inference_steps`.
        """
        if self.num_inference_steps is None or not 1 <= steps <= self.num_inference_steps:
            raise ValueError(f"`steps` must lie in [1, {self.num_inference_steps}], but is {steps}.")
        starts = [0, *(k + 1 for k, ends_step in enumerate(self._ends_step) if ends_step)]
        self._calls = starts[-1 - steps]
        return self.times[self._calls]

    def scale_model_input(self, sample: Tensor, timestep=None) -> Tensor:
        """The state as the network takes it at the coming evaluation (the same unless `sampling_sde` is set)."""
        if self.sde is self.training_sde:
            return sample
        self._require_steps_left()
        return sample * expand_like(self.input_scale(self.times[self._calls]), sample)

    def step(self, model_output, timestep, sample, generator=None, variance_noise=None, return_dict=True):
        """Advance the state by one network evaluation.

        Args:
            model_output: (N, C, H, W) the network's answer for `scale_model_input(sample)`.
            timestep: the entry of `timesteps`; accepted as in diffusers, but the step is known from the count of
                calls, since entries repeat.
            sample: (N, C, H, W) the state. The arithmetic is in float32 or, if the sample is, in float64. Between
                steps with a 16-bit sample the state is kept in float32, unless the sample was changed in between.
            generator: a `torch.Generator` or a list of N, one for each image.
            variance_noise: (N, C, H, W) standard normal noise to use instead of drawing it.
            return_dict: whether to return a `ScoreSdeSchedulerOutput` and not a tuple.

        Raises:
            ValueError: before `set_timesteps`, after the last step, or if the shapes differ.
        """
        self._require_steps_left()
        if model_output.shape != sample.shape:
            raise ValueError(
                f"`model_output` must have the shape of `sample`, {tuple(sample.shape)}, but has "
                f"{tuple(model_output.shape)}."
            )
        dtype = torch.promote_types(sample.dtype, torch.float32)
        state, k = self._unrounded(sample, dtype), self._calls
        noise, denoised = self.noise_and_denoised(model_output.to(dtype), state, self.times[k])

        def draw() -> Tensor:
            if variance_noise is not None:
                return variance_noise.to(device=state.device, dtype=dtype)
            return randn_tensor(state.shape, generator=generator, device=state.device, dtype=dtype)

        mean, following = self._update(k, state, noise, draw)
        self._calls += 1
        self._state = None if following.dtype == sample.dtype else following
        output = [value.to(sample.dtype) for value in (following, mean, denoised)]
        return ScoreSdeSchedulerOutput(*output) if return_dict else tuple(output)

    def _unrounded(self, sample: Tensor, dtype: torch.dtype) -> Tensor:
        """The state that the last step left, if `sample` is its rounding to fewer bits; else the sample itself."""
        left = self._state
        if left is not None and left.shape == sample.shape and torch.equal(left.to(sample), sample):
            return left
        return sample.to(dtype)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Draw from the perturbation kernel: x_t = alpha(t) x_0 + sigma(t) noise.

        Args:
            original_samples: (N, C, H, W) in `image_range`.
            noise: (N, C, H, W) standard normal.
            timesteps: (N,) or scalar, what the network is conditioned on (as in `self.timesteps`).
        """
        t = self.parameterization.sde_time(torch.as_tensor(timesteps).cpu())
        if self.sde is not self.training_sde:
            t = self.sde.inverse_half_log_snr(self.training_sde.half_log_snr(t))
        alpha, sigma = expand_like(self.sde.alpha(t), noise), expand_like(self.sde.sigma(t), noise)
        return alpha * original_samples + sigma * noise

    def _require_steps_left(self) -> None:
        if self.num_inference_steps is None:
            raise ValueError("`num_inference_steps` is None: call `set_timesteps` before `step`.")
        if self._calls >= len(self.times):
            raise ValueError(f"All {len(self.times)} steps are done: call `set_timesteps` to sample again.")

    # What a sampler defines.

    def _plan(self, n: int) -> tuple[Tensor, list[bool]]:
        """The times of all network evaluations for n steps, and for each whether its update ends at a grid point."""
        raise NotImplementedError

    def _update(self, k: int, x: Tensor, noise: Tensor, draw) -> tuple[Tensor, Tensor]:
        """The next state's mean and the next state after evaluation k, from the state and E[noise | x]."""
        raise NotImplementedError


# -------------------- sde_diffusers.schedulers.scheduling_exponential

"""Exponential-integrator multistep solvers, for few network evaluations.

Every Gaussian SDE has reverse processes with a free amount of noise, eta (0: the probability flow ODE, 1: the
reverse-time SDE). With lambda = log(alpha/sigma) the half-log-SNR and kappa = 1 + eta^2 their linear part is solved
exactly from t down to s in two ways (data: DPM-Solver++, arXiv 2211.01095, with its SDE form at eta = 1; noise: DEIS,
arXiv 2204.13902):

    data    x_s = (sigma_s / sigma_t) e^(-eta^2 h) x_t + alpha_s  int kappa e^(-kappa (lambda_s - lambda)) x_0 dlambda
                  + sigma_s sqrt(1 - e^(-2 eta^2 h)) z,                              h = lambda_s - lambda_t
    noise   x_s = (alpha_s / alpha_t) x_t + alpha_s  int kappa noise d(sigma/alpha)
                  + alpha_s eta sqrt((sigma_t/alpha_t)^2 - (sigma_s/alpha_s)^2) z

What the network estimates, x_0 or the noise, is replaced under the integral by the polynomial through the last k
estimates: order k with one evaluation a step. The polynomials' variable is free (DEIS takes t or sigma/alpha); here
it is the share of the noise, u = sigma / (alpha + sigma), and not lambda: the estimates hardly change at both ends of
the lambda axis, where u saturates, and so a long step in lambda does not extrapolate far.
"""




EXPONENTIAL_FORMS = ("data", "noise")
GAUSS_LEGENDRE = np.polynomial.legendre.leggauss(64)


def lagrange_integrals(nodes, start, end, density, position) -> list[float]:
    """Integrals of density(w) l_j(position(w)) dw from `start` to `end`, l_j the Lagrange polynomials of `nodes`."""
    points, weights = GAUSS_LEGENDRE
    w = (start + end) / 2 + (end - start) / 2 * points
    measure, u = (end - start) / 2 * weights * density(w), position(w)
    return [
        float((measure * math.prod([(u - other) / (node - other) for other in nodes if other != node])).sum())
        for node in nodes
    ]


class ScoreSdeExponentialScheduler(ScoreSdeScheduler):
    """Few-step sampler, one network evaluation a step; the shared arguments are those of `ScoreSdeScheduler`.

    With `final_denoise` (the default) n steps take n evaluations, at n times from 1 to eps, and end at noise level 0:
    the ODE's last step integrates the noise to the end, the SDE's returns E[x_0 | x]. Without, they end at eps.

    Args:
        solver_order: 1, 2 or 3; the first steps, which have fewer estimates behind them, are of lower order. With
            order 1, eta = 0 is DDIM (arXiv 2010.02502) and, with "data", eta = 1 is ancestral sampling.
        eta: amount of noise, at least 0: 0 solves the ODE, 1 the reverse-time SDE.
        algorithm: "data" (as DPM-Solver++) or "noise" (as DEIS and DPM-Solver), what is extrapolated. With eta above 0
            "noise" is unstable in few steps.

    Raises:
        ValueError: on an unknown `algorithm`, an order other than 1, 2, 3 or a negative or infinite `eta`.
    """

    default_time_grid = "noise_share"
    default_num_inference_steps = 20

    @register_to_config
    def __init__(
        self,
        sde: str = "vp",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma: float | None = None,
        beta_min: float | None = None,
        beta_max: float | None = None,
        trained_betas: list[float] | None = None,
        prediction_type: str | None = None,
        time_input: str | None = None,
        image_range: tuple[float, float] | None = None,
        num_train_timesteps: int = 1000,
        sampling_sde: str | None = None,
        sampling_eps: float | None = None,
        time_grid: str | None = None,
        final_denoise: bool | None = None,
        solver_order: int = 3,
        eta: float = 0.0,
        algorithm: str = "data",
    ):
        self._setup()
        require_choice("solver_order", solver_order, (1, 2, 3))
        require_choice("algorithm", algorithm, EXPONENTIAL_FORMS)
        if not 0 <= eta < math.inf:
            raise ValueError(f"`eta` must be a finite number of at least 0, but is {eta!r}.")

    def _plan(self, n):
        points = n if self.final_denoise else n + 1
        times = time_grid(self.time_grid, points, self.sde, self.start_time, self.sampling_eps)
        self._levels = [*zip(self.sde.alpha(times).tolist(), self.sde.sigma(times).tolist(), strict=True)]
        if self.final_denoise:  # the data themselves
            self._levels.append((1.0, 0.0))
        self._estimates = []
        return times[:n], [True] * n

    def _update(self, k, x, noise, draw):
        (alpha, sigma), (following_alpha, following_sigma) = self._levels[k : k + 2]
        denoised = (x - sigma * noise) / alpha
        self._estimates = [*self._estimates, {"data": denoised, "noise": noise}][-self.config.solver_order :]
        if following_sigma == 0 and self.config.eta > 0:  # a rough path: its noise cannot be extrapolated
            return denoised, denoised
        form = "noise" if following_sigma == 0 else self.config.algorithm
        scale, weights, deviation = self._coefficients(k, form)
        mean = scale * x
        for weight, estimate in zip(weights, self._estimates, strict=True):
            mean = mean + weight * estimate[form]
        return (mean, mean + deviation * draw()) if deviation > 0 else (mean, mean)

    def _coefficients(self, k, form):
        """Of the state, the last estimates and new noise in step k: the module's two equations."""
        eta, kappa = self.config.eta, 1 + self.config.eta**2
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self._levels[k : k + 2]
        nodes = [sigma / (alpha + sigma) for alpha, sigma in self._levels[k + 1 - len(self._estimates) : k + 1]]
        if form == "noise":
            start, end = sigma_t / alpha_t, sigma_s / alpha_s
            integrals = lagrange_integrals(nodes, start, end, lambda s: kappa, lambda s: s / (1 + s))
            scale, deviation = alpha_s / alpha_t, alpha_s * eta * math.sqrt(start**2 - end**2)
        else:
            start, end = math.log(alpha_t / sigma_t), math.log(alpha_s / sigma_s)
            integrals = lagrange_integrals(
                nodes, start, end, lambda v: kappa * np.exp(kappa * (v - end)), lambda v: 1 / (1 + np.exp(v))
            )
            scale = sigma_s / sigma_t * math.exp(eta**2 * (start - end))
            deviation = sigma_s * math.sqrt(-math.expm1(2 * eta**2 * (start - end)))
        return scale, [alpha_s * integral for integral in integrals], deviation


# -------------------- sde_diffusers.schedulers.scheduling_predictor_corrector

"""Predictor-corrector sampling (algorithms 1-5 of arXiv 2011.13456).

At each time of the grid the corrector first moves the state along the score at that time (Langevin dynamics), then
the predictor takes one step of the reverse-time SDE

    dx = [f(t) x - g(t)^2 score(x, t)] dt + g(t) dw~.

With x_t = a x_s + b z a step of the forward chain from s up to t, the predictors go from t down to s by

    reverse_diffusion   x_s = (2 - a) x_t + b^2 score + b z                      (algorithms 2, 3; eq. 46)
    ancestral           x_s = (x_t + b^2 score) / a + posterior_noise z          (eq. 4, eq. 47 and arXiv 2006.11239)
    euler_maruyama      x_s = x_t - [f x_t - g^2 score] dt + g sqrt(dt) z
    none                x_s = x_t
"""



PREDICTORS = ("reverse_diffusion", "euler_maruyama", "ancestral", "none")
CORRECTORS = ("langevin", "ald", "none")


class ScoreSdePredictorCorrectorScheduler(ScoreSdeScheduler):
    """Predictor-corrector sampler; the shared arguments are those of `ScoreSdeScheduler`.

    On the default grid ("uniform") the chains and step sizes are those of the paper's code; on other grids the exact
    transitions of the SDE take their place. The last predictor step returns its mean (unless `final_denoise=False`).

    Args:
        predictor: "reverse_diffusion", "euler_maruyama", "ancestral" or "none" (then only the corrector acts). On the
            sub-VP SDE, whose paper chain has no posterior, "ancestral" uses exact transitions.
        corrector: "langevin" (step size from `snr`, the norms of score and noise averaged over the batch), "ald"
            (annealed Langevin dynamics: step size from `snr` and sigma) or "none".
        snr: signal-to-noise ratio of the corrector; it leaves a bias of about snr^2 in the variance.
        corrector_steps: corrector steps at each time.
        per_image_step: take the norms for "langevin" of each image alone. The paper averages them over the batch, so
            that an image depends on its neighbours in the batch; with this it does not.

    Raises:
        ValueError: on unknown names, a negative `snr` or `corrector_steps`, or if nothing is left to do.
    """

    @property
    def default_num_inference_steps(self) -> int:
        """One for each noise level of the training's table, as in the paper."""
        return self.config.num_train_timesteps

    @register_to_config
    def __init__(
        self,
        sde: str = "vp",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma: float | None = None,
        beta_min: float | None = None,
        beta_max: float | None = None,
        trained_betas: list[float] | None = None,
        prediction_type: str | None = None,
        time_input: str | None = None,
        image_range: tuple[float, float] | None = None,
        num_train_timesteps: int = 1000,
        sampling_sde: str | None = None,
        sampling_eps: float | None = None,
        time_grid: str | None = None,
        final_denoise: bool | None = None,
        predictor: str = "reverse_diffusion",
        corrector: str = "langevin",
        snr: float = 0.16,
        corrector_steps: int = 1,
        per_image_step: bool = False,
    ):
        self._setup()
        require_choice("predictor", predictor, PREDICTORS)
        require_choice("corrector", corrector, CORRECTORS)
        if not snr > 0:
            raise ValueError(f"`snr` must be above 0, but is {snr!r}.")
        if not isinstance(corrector_steps, int) or corrector_steps < 0:
            raise ValueError(f"`corrector_steps` must be a non-negative integer, but is {corrector_steps!r}.")
        self.corrections = 0 if corrector == "none" else corrector_steps
        self.predictions = 0 if predictor == "none" else 1
        if self.corrections + self.predictions == 0:
            raise ValueError("`predictor` and `corrector` are both without effect: nothing would be sampled.")

    def _plan(self, n):
        times = time_grid(self.time_grid, n, self.sde, self.start_time, self.sampling_eps)
        chain = self.sde.chain(times)
        self._langevin_scale = chain.langevin_scale
        if self.time_grid == "uniform" and self.start_time == 1:
            paper_chain = self.sde.paper_chain(times)
            self._langevin_scale = paper_chain.langevin_scale
            if not (self.config.predictor == "ancestral" and paper_chain.posterior_noise is None):
                chain = paper_chain
            self._dt = torch.full_like(times, 1 / n)
        else:
            self._dt = times - torch.cat([times[1:], torch.zeros(1, dtype=torch.float64)])
        self._grid, self._chain = times, chain
        calls = self.corrections + self.predictions
        ends_step = ([False] * (calls - 1) + [True]) * n
        return times.repeat_interleave(calls), ends_step

    def _update(self, k, x, noise, draw):
        i, call = divmod(k, self.corrections + self.predictions)
        score = -noise / self.sde.sigma(self._grid[i]).item()
        if call < self.corrections:
            return self._correct(i, x, score, draw)
        mean, deviation = self._predict(i, x, score)
        if i == self.num_inference_steps - 1 and self.final_denoise:
            return mean, mean
        return mean, mean + deviation * draw()

    def _correct(self, i, x, score, draw):
        z = draw()
        scale = 2 * self._langevin_scale[i].item()
        if self.config.corrector == "ald":
            step_size = scale * (self.config.snr * self.sde.sigma(self._grid[i]).item()) ** 2
            return (mean := x + step_size * score), mean + (2 * step_size) ** 0.5 * z
        noise_norm, score_norm = (v.flatten(1).norm(dim=1)[:, None, None, None] for v in (z, score))
        if not self.config.per_image_step:
            noise_norm, score_norm = noise_norm.mean(), score_norm.mean()
        # A score of 0 (one pixel, half precision) says nothing about the scale: the noise level then does.
        ratio = torch.where(score_norm > 0, noise_norm / score_norm, self.sde.sigma(self._grid[i]).item())
        step_size = scale * (self.config.snr * ratio) ** 2
        return (mean := x + step_size * score), mean + (2 * step_size).sqrt() * z

    def _predict(self, i, x, score):
        """Mean and deviation of the state one grid point below."""
        a, b, posterior_noise = self._chain.a[i].item(), self._chain.b[i].item(), self._chain.posterior_noise
        if self.config.predictor == "reverse_diffusion":
            return (2 - a) * x + b**2 * score, b
        if self.config.predictor == "ancestral":
            return (x + b**2 * score) / a, posterior_noise[i].item()
        t, dt = self._grid[i], self._dt[i].item()
        f, g = self.sde.drift(t).item(), self.sde.diffusion(t).item()
        return x - (f * x - g**2 * score) * dt, g * dt**0.5


# -------------------- sde_diffusers.schedulers.scheduling_probability_flow

"""Fixed-step solvers of the probability flow ODE (eq. 13 of arXiv 2011.13456).

In y = x / alpha and the noise level sigma_hat = sigma / alpha the ODE of every Gaussian SDE is the same,

    dy / d sigma_hat = E[noise | x],

so the solvers step in sigma_hat: Euler's method is then DDIM (arXiv 2010.02502, eq. 14), and Heun's is algorithm 1 of
arXiv 2206.00364.

Stochastic sampling (algorithm 2 there) raises the noise level before a step by fresh noise, from sigma_hat to
(1 + gamma) sigma_hat, and then solves the ODE from there; the network is conditioned on the raised time.
"""




ODE_METHODS = ("euler", "heun")


class ScoreSdeProbabilityFlowScheduler(ScoreSdeScheduler):
    """Sampler by Euler's or Heun's method, deterministic unless `s_churn` is set.

    The shared arguments are those of `ScoreSdeScheduler`.

    With `final_denoise` (the default) n steps go through n times from 1 to eps and end at x_0, with n (Euler) or
    2n - 1 (Heun: the last step is Euler's) network evaluations. Without, they end at eps after n or 2n evaluations.

    Args:
        method: "heun" (second order) or "euler" (first order; DDIM).
        s_churn: amount of fresh noise, at least 0: gamma = min(s_churn / n, sqrt(2) - 1) in each of n steps. The
            state after a step is at the raised level, and so are `times` and `timesteps`. The start is not raised:
            the network has seen nothing noisier.
        s_min, s_max: noise levels sigma / alpha between which noise is added (0 and no bound).
        s_noise: factor of the added noise (1; slightly above makes up for details lost in denoising).

    Raises:
        ValueError: on an unknown name or numbers out of range.
    """

    default_time_grid = "karras"
    default_num_inference_steps = 18  # as EDM on CIFAR-10: 35 evaluations with Heun's method

    @register_to_config
    def __init__(
        self,
        sde: str = "vp",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma: float | None = None,
        beta_min: float | None = None,
        beta_max: float | None = None,
        trained_betas: list[float] | None = None,
        prediction_type: str | None = None,
        time_input: str | None = None,
        image_range: tuple[float, float] | None = None,
        num_train_timesteps: int = 1000,
        sampling_sde: str | None = None,
        sampling_eps: float | None = None,
        time_grid: str | None = None,
        final_denoise: bool | None = None,
        method: str = "heun",
        s_churn: float = 0.0,
        s_min: float = 0.0,
        s_max: float | None = None,
        s_noise: float = 1.0,
    ):
        self._setup()
        require_choice("method", method, ODE_METHODS)
        for name, value in {"s_churn": s_churn, "s_min": s_min, "s_noise": s_noise}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must be a finite number of at least 0, but is {value!r}.")
        if s_max is not None and not s_max > s_min:
            raise ValueError(f"`s_max` must be None or above `s_min` = {s_min}, but is {s_max!r}.")
        self.order = 2 if method == "heun" else 1

    def _plan(self, n):
        points = n if self.final_denoise else n + 1
        grid = time_grid(self.time_grid, points, self.sde, self.start_time, self.sampling_eps)
        alpha, noise_level = self.sde.alpha(grid), (-self.sde.half_log_snr(grid)).exp()
        if self.final_denoise:  # the data themselves: alpha = 1, no noise
            alpha = torch.cat([alpha, torch.ones(1, dtype=torch.float64)])
            noise_level = torch.cat([noise_level, torch.zeros(1, dtype=torch.float64)])
        self._alpha, self._noise_level = alpha.tolist(), noise_level.tolist()
        raised = self._raised(grid, n)
        self._raised_alpha = self.sde.alpha(raised).tolist()
        self._raised_level = (-self.sde.half_log_snr(raised)).exp().tolist()
        self._start_of_step = None
        # Each evaluation: (step, stage). The network is never asked at noise level 0.
        self._evaluations = [
            (i, stage) for i in range(n) for stage in range(self.order if self._noise_level[i + 1] > 0 else 1)
        ]
        times = torch.stack([grid[i + 1] if stage else raised[i] for i, stage in self._evaluations])
        ends_step = [k + 1 == len(self._evaluations) or self._evaluations[k + 1][1] == 0 for k in range(len(times))]
        return times, ends_step

    def _raised(self, grid, n):
        """The times at which the n steps begin: those of the grid, or later ones where noise is added."""
        s_max = math.inf if self.config.s_max is None else self.config.s_max
        level = torch.tensor(self._noise_level[:n], dtype=torch.float64)
        within = (level >= self.config.s_min) & (level <= s_max)
        within[0] = False
        gamma = min(self.config.s_churn / n, math.sqrt(2) - 1)
        raised_level = torch.minimum(level * (1 + gamma), level[0])
        return torch.where(within & (gamma > 0), self.sde.inverse_half_log_snr(-raised_level.log()), grid[:n])

    def _update(self, k, x, noise, draw):
        i, stage = self._evaluations[k]
        if stage == 0:
            self._start_of_step = (x, noise)
        else:  # Heun: repeat the step from its start with the mean of the slopes at both ends
            x, first_noise = self._start_of_step
            noise = (first_noise + noise) / 2
        alpha, following_alpha = self._raised_alpha[i], self._alpha[i + 1]
        step = self._noise_level[i + 1] - self._raised_level[i]
        mean = (following_alpha / alpha) * x + (following_alpha * step) * noise
        if not self._ends_step[k] or i + 1 == self.num_inference_steps:
            return mean, mean
        return mean, self._raise(i + 1, mean, draw)

    def _raise(self, i, x, draw):
        """Add noise at grid point i, up to the level at which its step begins."""
        level, raised_level = self._noise_level[i], self._raised_level[i]
        if raised_level <= level:
            return x
        added = self.config.s_noise * math.sqrt(raised_level**2 - level**2)
        return self._raised_alpha[i] * (x / self._alpha[i] + added * draw())
