"""Stochastic differential equations whose perturbation kernels are Gaussian: the base of all of them.

They are linear in x (Song et al., ICLR 2021, arXiv 2011.13456, section 3),

    dx = f(t) x dt + g(t) dw,    t in [0, 1],    x_t | x_0 ~ N(alpha(t) x_0, sigma(t)^2 I),

so two functions of time, alpha and sigma, are the whole SDE, and

    f = d log(alpha) / dt,    g^2 = d(sigma^2)/dt - 2 f sigma^2,    half_log_snr = log(alpha / sigma).

A subclass with a `name` and these two functions is all that an SDE needs:

    class TrigonometricSDE(GaussianSDE):
        name = "trigonometric"

        def __init__(self, end: float = 0.99):
            self.end = end

        def alpha(self, t):
            return (math.pi / 2 * self.end * t).cos()

        def sigma(self, t):
            return (math.pi / 2 * self.end * t).sin()

From then on `ScoreSdeExponentialScheduler(sde="trigonometric", sde_parameters={"end": 0.9})` finds it by its name, and
the constructor's arguments are its parameters.

All functions of time take a number or a tensor of any shape, compute in float64 (sigma(1e-5) of a VP SDE would lose
half of its digits in float32), and return a tensor of the same shape in the dtype of the given one (float64 for a
number). Subclasses write them for float64 tensors alone; the base sees to the rest. Numbers, lists and arrays of times
must lie in [0, 1]; tensors are taken as they are, since a look at them could wait for a device.
"""

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sde_diffusers.generators import require_generator
from sde_diffusers.scalars import can_be_seen, real_number

FUNCTIONS_OF_TIME = (
    "log_alpha",
    "alpha",
    "sigma",
    "drift",
    "diffusion",
    "derivatives",
    "half_log_snr",
    "inverse_half_log_snr",
    "transition",
    "table_index",
    "table_place",
    "time_of_index",
)


# How many of their first arguments are times, if not one.
TIMES = {"transition": 2, "inverse_half_log_snr": 0, "time_of_index": 0}

# A number or a tensor, of any dtype and shape; methods get it as a float64 tensor (`function_of_time`).
Time = Any


def function_of_time(method):
    """Let a method that maps float64 tensors to float64 tensors accept numbers and tensors of any dtype."""
    if getattr(method, "takes_any_time", False):
        return method

    count = TIMES.get(method.__name__, 1)

    @functools.wraps(method)
    def wrapper(self, t, *others):
        dtype = t.dtype if isinstance(t, Tensor) and t.is_floating_point() else torch.float64
        times = (t, *others)
        if not all(isinstance(time, Tensor) and time.dtype == torch.float64 for time in times):  # as most calls are
            times = tuple(torch.as_tensor(time, dtype=torch.float64) for time in times)
            for given, time in zip((t, *others)[:count], times, strict=False):
                if not isinstance(given, Tensor) and not ((time >= 0) & (time <= 1)).all():
                    raise ValueError(f"Times of `{method.__name__}` must lie in [0, 1], but here is {given!r}.")

        def given_dtype(value) -> Tensor:
            return value.to(dtype) if isinstance(value, Tensor) else torch.full_like(times[0], value, dtype=dtype)

        values = method(self, *times)
        if isinstance(values, Tensor) and values.dtype == dtype:
            return values
        return tuple(map(given_dtype, values)) if isinstance(values, tuple) else given_dtype(values)

    wrapper.takes_any_time = True  # type: ignore[attr-defined]
    return wrapper


def time_derivative(function, t: Tensor) -> Tensor:
    """d function / dt at each entry of t, by automatic differentiation; also where gradients are switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        t = t.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad((function(t) + 0 * t).sum(), t)  # 0 t, for functions that are constant
    return slope


def require_positive(**values: float) -> list[float]:
    """The values, numbers of Python, numpy or torch, as Python's own; a `ValueError` that names the argument unless
    every one is a finite number above 0."""
    for name, value in values.items():
        if not 0 < real_number(value) < math.inf:
            raise ValueError(f"`{name}` must be a finite number above 0, but is {value!r}.")
    return [real_number(value) for value in values.values()]


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
    """Base of the SDEs `dx = f(t) x dt + g(t) dw`.

    A subclass defines `alpha` (or `log_alpha`) and `sigma`, both differentiable by torch, with sigma / alpha
    increasing. What follows from them can be defined as well, where a closed form is more exact or faster: `drift`,
    `diffusion`, `inverse_half_log_snr`. A subclass with a `name` is known by it to schedulers and configurations; one
    of the same name that is defined later takes its place.
    """

    registered: ClassVar[dict[str, type["GaussianSDE"]]] = {}
    """The SDEs by their names."""

    name: ClassVar[str]
    """What configurations call the SDE."""
    title: ClassVar[str | None] = None
    """What models' cards call it; None = its name."""
    prediction_type: ClassVar[str] = "epsilon"
    """What its networks return, unless a configuration says otherwise; see `Parameterization`."""
    time_input: ClassVar[str] = "999t"
    """What its networks are conditioned on, unless a configuration says otherwise."""
    image_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    """Range of the images x_0, unless a configuration says otherwise."""

    smallest_time: float = 0.0
    """Earliest time that this SDE describes (above 0 only where it interpolates a table)."""
    sampling_eps: float = 1e-3
    """Time at which sampling ends by default (section C of the paper)."""
    time_grid: ClassVar[str | None] = None
    """Grid on which fixed-step solvers of the ODE do well; None = their own."""
    smooth: ClassVar[bool] = True
    """Whether drift and diffusion are continuous, so that an ODE can be solved in t."""
    of_the_paper: ClassVar[bool] = False
    """Whether the paper's code, or its tutorial, samples with this SDE, in steps of its own; see `paper_chain`."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for function in FUNCTIONS_OF_TIME:
            if inspect.isfunction(vars(cls).get(function)):
                setattr(cls, function, function_of_time(vars(cls)[function]))
        if "name" not in vars(cls):
            return
        if cls.alpha is GaussianSDE.alpha and cls.log_alpha is GaussianSDE.log_alpha:
            raise TypeError(f"{cls.__name__} must define `alpha` or `log_alpha`, a function of time.")
        taken, package = GaussianSDE.registered.get(cls.name), __name__.split(".")[0]
        if taken is not None and taken.__module__.split(".")[0] == package != cls.__module__.split(".")[0]:
            raise ValueError(f"`name` of {cls.__name__} is {cls.name!r}, which is {taken.__name__}'s: choose another.")
        GaussianSDE.registered[cls.name] = cls

    # The two functions that a subclass defines.

    @function_of_time
    def alpha(self, t: Time) -> Tensor:
        """Mean coefficient of the perturbation kernel."""
        return self.log_alpha(t).exp()

    @function_of_time
    def log_alpha(self, t: Time) -> Tensor:
        """log(alpha(t)); -inf at the end of an SDE that leaves nothing of x_0."""
        return self.alpha(t).log()

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """Standard deviation of the perturbation kernel."""

    # What follows from them.

    @property
    def prior_sigma(self) -> float:
        """Standard deviation of the prior N(0, prior_sigma^2 I) from which sampling starts at t = 1."""
        return self.sigma(1.0).item()

    @function_of_time
    def derivatives(self, t: Time) -> tuple[Tensor, Tensor]:
        """d alpha / dt and d sigma / dt, which are finite also where alpha is 0 and the drift infinite."""
        return time_derivative(self.alpha, t), time_derivative(self.sigma, t)

    @function_of_time
    def drift(self, t: Time) -> Tensor:
        """f(t), the coefficient of x in the drift f(t) x; -inf where alpha is 0."""
        if type(self).log_alpha is GaussianSDE.log_alpha:  # which has no derivative where alpha is 0
            return time_derivative(self.alpha, t) / self.alpha(t)
        return time_derivative(self.log_alpha, t)

    @function_of_time
    def diffusion(self, t: Time) -> Tensor:
        """g(t), the diffusion coefficient."""
        sigma = self.sigma(t)
        return (2 * sigma * (time_derivative(self.sigma, t) - self.drift(t) * sigma)).clamp(min=0).sqrt()

    @function_of_time
    def half_log_snr(self, t: Time) -> Tensor:
        """log(alpha(t) / sigma(t)), strictly decreasing in t."""
        return self.log_alpha(t) - self.sigma(t).log()

    @function_of_time
    def inverse_half_log_snr(self, half_log_snr: Time) -> Tensor:
        """The time t at which log(alpha(t) / sigma(t)) has the given value.

        By bisection the nearest such time in [0, 1]; closed forms, which most subclasses have, go beyond.
        """
        low, high = torch.zeros_like(half_log_snr), torch.ones_like(half_log_snr)
        for _ in range(80):
            middle = (low + high) / 2
            later = self.half_log_snr(middle) > half_log_snr
            low, high = torch.where(later, middle, low), torch.where(later, high, middle)
        return high

    @function_of_time
    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Exact transition x_t | x_s ~ N(a x_s, b^2 I) for s <= t.

        Returns:
            a = alpha(t) / alpha(s) and b = sqrt(sigma(t)^2 - a^2 sigma(s)^2).

        Raises:
            ValueError: if s is later than t (of times on a GPU nothing is asked).
        """
        if can_be_seen(s) and can_be_seen(t) and (s > t).any():
            raise ValueError(f"`s` must not be later than `t`, but they are {s.tolist()} and {t.tolist()}.")
        a = torch.where(s == t, 1.0, (self.log_alpha(t) - self.log_alpha(s)).exp())
        return a, (self.sigma(t) ** 2 - (a * self.sigma(s)) ** 2).clamp(min=0).sqrt()

    def prior(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw from the prior N(0, prior_sigma^2 I). Raises a ValueError on a seed in the place of a generator."""
        require_generator(generator)
        return torch.randn(shape, generator=generator, device=device, dtype=dtype) * self.prior_sigma

    def prior_logp(self, z: Tensor) -> Tensor:
        """Log-density of the prior in nats, summed over all dimensions but the first: (N, ...) -> (N,).

        Raises:
            ValueError: unless z is a tensor of one or more dimensions.
        """
        if not isinstance(z, Tensor) or not z.ndim:
            raise ValueError(f"`z` must be a tensor (N, ...), but is {z!r}.")
        d, z = z.shape[1:].numel(), z.to(torch.promote_types(z.dtype, torch.float32))
        log_normalizer = d / 2 * math.log(2 * math.pi * self.prior_sigma**2)
        return -log_normalizer - z.reshape(len(z), -1).square().sum(1) / (2 * self.prior_sigma**2)

    # Networks with a table of noise levels.

    @function_of_time
    def table_index(self, t: Time, n: int) -> Tensor:
        """What a network with a table of n noise levels is conditioned on at time t: entry k is t = (k + 1) / n."""
        return t * n - 1

    @function_of_time
    def table_place(self, t: Time, n: int) -> Tensor:
        """The same between the entries, where `table_index` is the nearest one: smooth in t, as an ODE needs it."""
        return self.table_index(t, n)

    @function_of_time
    def time_of_index(self, k: Time, n: int) -> Tensor:
        """Inverse of `table_index`."""
        return (k + 1) / n

    # Chains of discrete steps.

    def chain(self, times: Tensor) -> Chain:
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

    def paper_chain(self, times: Tensor) -> Chain:
        """As `chain`, but on the paper's grid with the coefficients that its code uses there.

        On other grids, and where the paper has none of its own, the exact transitions stand.
        """
        return self.chain(times)

    def is_paper_grid(self, times: Tensor) -> bool:
        """Whether the paper's steps fit these (N,) times: linspace(1, eps, N) with eps at most `sampling_eps`.

        Its last step goes to noise level 0 by way of t = 0, while the network is asked at eps.
        """
        grid = torch.linspace(1, times[-1].item(), len(times), dtype=torch.float64)
        ends_early = times[-1] <= self.sampling_eps * (1 + 1e-9)
        own = "of_the_paper" in vars(type(self))  # a class that derives from one of the paper's has other coefficients
        return own and self.of_the_paper and bool(ends_early) and torch.allclose(times, grid, rtol=0, atol=1e-9)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in vars(self).items() if not k.startswith('_'))})"
        )
