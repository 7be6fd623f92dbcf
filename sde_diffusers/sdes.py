"""Stochastic differential equations whose perturbation kernels are Gaussian.

Every SDE here is linear in x (Song et al., ICLR 2021, arXiv 2011.13456, section 3):

    dx = f(t) x dt + g(t) dw,    t in [0, 1],    x_t | x_0 ~ N(alpha(t) x_0, sigma(t)^2 I),

so two functions of time, alpha and sigma, are the whole SDE, and

    f = d log(alpha) / dt,    g^2 = d(sigma^2)/dt - 2 f sigma^2,    half_log_snr = log(alpha / sigma).

All functions of time take a number or a tensor of any shape, compute in float64 (sigma(1e-5) of a VP SDE would lose
half of its digits in float32), and return a tensor of the same shape in the dtype of the given one (float64 for a
number).
"""

import functools
import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor


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
