"""How a score network is asked, and what it answers.

Whatever a network was trained to output, with x_t = alpha x_0 + sigma noise its answer is one of five linear
functions of (x_0, noise), and each gives all the others:

    epsilon       noise
    sample        x_0
    score         -noise / sigma                            (= grad log p_t(x_t), eq. 7 of arXiv 2011.13456)
    v_prediction  alpha noise - sigma x_0                   (arXiv 2202.00512; alpha^2 + sigma^2 need not be 1)
    velocity      alpha' x_0 + sigma' noise                 (d x_t / dt on the way from x_0 to the noise; 2210.02747)

and it is conditioned on one of five functions of the SDE time t in [0, 1]:

    sigma         sigma(t)                                  (NCSN++ and EDM networks)
    999t          999 t                                     (DDPM++, continuous)
    1000t         1000 t                                    (flow matching in diffusers)
    t             t                                         (the tutorial)
    index         the entry of a discrete table: (k + 1) / N -> k for VP tables, descending for VE ones

Where alpha = 0, as at the end of a flow, x_t says nothing of x_0, and only "sample", "v_prediction" and "velocity"
still tell what the network thinks of it.
"""

import difflib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusers.scalars import can_be_seen, plain, real_numbers, whole_number
from sde_diffusers.sdes.gaussian import GaussianSDE

PREDICTION_TYPES = ("score", "epsilon", "sample", "v_prediction", "velocity")
TIME_ROUNDING = 1e-6  # by which times in float32 miss the ends of an interval
PURE_NOISE = 2.0**23
"""Noise level sigma / alpha from which on x_t counts as pure noise: float32 holds no digit of x_0 beside it."""
ROUNDED = 2.0**-8  # by which share a noise level may be off that was kept in bfloat16
TIME_INPUTS = ("sigma", "999t", "1000t", "t", "index")
SDE_NAMES = tuple(GaussianSDE.registered)
"""Names of this package's own SDEs; those of other code are in the registry alone."""


def require_choice(name: str, value, choices) -> None:
    """Raise a `ValueError` that names the argument, and the nearest choice, unless `value` is one of `choices`."""
    value = plain(value)
    alike = isinstance(value, (bool, float))  # True and 2.0 are none of 1, 2, though equal to them
    try:
        known = value in choices
    except TypeError:  # lists are in no dictionary
        known = False
    if not known or (alike and not any(value is choice for choice in choices)):
        named = {str(choice): choice for choice in choices}
        near = difflib.get_close_matches(value, named, 1, 0.4) if isinstance(value, str) else []
        advice = f" Did you mean {named[near[0]]!r}?" if near else ""
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, but is {value!r}.{advice}")


def expand_like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A scalar or per-image (N,) coefficient, in x's dtype and shaped to multiply x of shape (N, ...).

    A scalar stays where it is: kernels of a GPU take one from the host as an argument, without waiting for a copy.
    """
    return all_like([coefficient], x)[0]


def require_times(x_0: Tensor, noise: Tensor, t: Tensor) -> None:
    """Raise a `ValueError` unless the noise has the shape of the images, and t is an SDE time for each of them.

    Times on a GPU are taken as they are, which asks nothing of it.
    """
    if noise.shape != x_0.shape:
        raise ValueError(f"`noise` must have the shape {tuple(x_0.shape)} of `x_0`, but has {tuple(noise.shape)}.")
    if not isinstance(t, Tensor):
        raise ValueError(f"`t` must be a tensor of shape ({len(x_0)},), but is {type(t).__name__}.")
    if t.shape != (len(x_0),):
        raise ValueError(f"`t` must have shape ({len(x_0)},), but has {tuple(t.shape)}.")
    if can_be_seen(t) and not ((t >= 0) & (t <= 1)).all():
        raise ValueError(f"`t` must hold times in [0, 1], but goes from {t.min().item():g} to {t.max().item():g}.")


def all_like(coefficients: Sequence[Tensor], x: Tensor) -> Sequence[Tensor]:
    """Several coefficients, each as `expand_like` gives it; those per image go over in one copy."""
    if all(coefficient.ndim == 0 for coefficient in coefficients):
        return [coefficient.to(x.dtype) for coefficient in coefficients]
    together = torch.stack(torch.broadcast_tensors(*coefficients)).to(x.dtype).to(x.device, non_blocking=True)
    return together.reshape(len(coefficients), -1, *[1] * (x.ndim - 1)).unbind()


class Parameterization:
    """The relation between a network's input and output and the SDE with which it was trained.

    Times t are SDE times, scalar or (N,); x, outputs and x_0 have shape (N, C, H, W).

    Args:
        sde: the SDE of the training.
        prediction_type: what the network returns, one of `PREDICTION_TYPES`.
        time_input: what it is conditioned on, one of `TIME_INPUTS`.
        image_range: (low, high), the range of the images that x_0 stands for.
        num_train_timesteps: length of the noise table of a network with time_input "index"; an SDE with a table of
            betas has its own, which 1000, the default, stands for as well.

    Raises:
        ValueError: on an unknown name, an empty range, a table of fewer than 2 levels or of another length than the
            SDE's.
    """

    def __init__(
        self,
        sde: GaussianSDE,
        prediction_type: str,
        time_input: str,
        image_range: Sequence[float],
        num_train_timesteps: int = 1000,
    ):
        require_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        require_choice("time_input", time_input, TIME_INPUTS)
        ends = real_numbers(image_range)
        low, high = ends.tolist() if ends.shape == (2,) else (1, 0)
        if not -math.inf < low < high < math.inf:
            raise ValueError(
                f"`image_range` must be finite numbers (low, high) with low < high, but is {image_range!r}."
            )
        if not whole_number(num_train_timesteps) >= 2:
            raise ValueError(f"`num_train_timesteps` must be an integer above 1, but is {num_train_timesteps!r}.")
        self.sde = sde
        self.prediction_type = prediction_type
        self.time_input = time_input
        self.image_range = (float(low), float(high))
        self.table_length = int(getattr(sde, "num_betas", num_train_timesteps))
        if num_train_timesteps not in (self.table_length, 1000):
            raise ValueError(
                f"`num_train_timesteps` is {num_train_timesteps}, but the table of {sde.name!r} has "
                f"{self.table_length} betas: give `trained_betas` of that length, or leave it out."
            )

    @property
    def noise_unit(self) -> float:
        """The unit of noise levels: half the width of the images' range, 1 for images in [-1, 1], and for narrower
        ones, whose steps have always been laid so."""
        return max(1.0, (self.image_range[1] - self.image_range[0]) / 2)

    # How the network is asked.

    @property
    def smallest_time(self) -> float:
        """Earliest time at which the network can be asked: its SDE's, or that of its table's cleanest entry."""
        if self.time_input != "index":
            return self.sde.smallest_time
        ends = torch.tensor([0.0, self.table_length - 1.0], dtype=torch.float64)
        return max(self.sde.smallest_time, self.sde.time_of_index(ends, self.table_length).min().item())

    def network_time(self, t: Tensor, between: bool = False) -> Tensor:
        """What the network is conditioned on at SDE time t; same shape, float64.

        `between` asks a network with a table of noise levels between its entries, where samplers take the nearest.
        """
        t = torch.as_tensor(t, dtype=torch.float64)
        index = self.sde.table_place if between else self.sde.table_index
        return {
            "sigma": lambda: self.sde.sigma(t),
            "999t": lambda: 999 * t,
            "1000t": lambda: 1000 * t,
            "t": lambda: t,
            "index": lambda: index(t, self.table_length),
        }[self.time_input]()

    def sde_time(self, network_time: Tensor) -> Tensor:
        """Inverse of `network_time`, in float64; NaN for a sigma that the SDE does not reach."""
        c = torch.as_tensor(network_time, dtype=torch.float64)
        return {
            "sigma": lambda: self._time_of_sigma(c),
            "999t": lambda: c / 999,
            "1000t": lambda: c / 1000,
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
        ends = self.sde.sigma(torch.tensor([0.0, 1.0], dtype=torch.float64)).to(sigma.device)
        reached = (sigma >= ends[0] * (1 - ROUNDED)) & (sigma <= ends[1] * (1 + ROUNDED))
        return torch.where(reached, high, math.nan)

    # What it answers.

    def kernel(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t) and sigma(t), shaped to multiply x."""
        t = torch.as_tensor(t, dtype=torch.float64)
        alpha, sigma = all_like([self.sde.alpha(t), self.sde.sigma(t)], x)
        return alpha, sigma

    def _path(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma and their derivatives at t; float64."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return self.sde.alpha(t), self.sde.sigma(t), *self.sde.derivatives(t)

    def factors(self, t: Tensor) -> tuple[Tensor, ...]:
        """What `noise_and_denoised` multiplies by at time t, in float64: alpha and sigma, or, of a velocity, alpha,
        alpha', sigma' and sigma, divided by alpha sigma' - sigma alpha'."""
        if self.prediction_type != "velocity":
            t = torch.as_tensor(t, dtype=torch.float64)
            return self.sde.alpha(t), self.sde.sigma(t)
        alpha, sigma, d_alpha, d_sigma = self._path(t)
        scale = alpha * d_sigma - sigma * d_alpha
        return alpha / scale, d_alpha / scale, d_sigma / scale, sigma / scale

    def noise_and_denoised(
        self, output: Tensor, x: Tensor, t: Tensor, factors: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The network's estimates E[noise | x_t = x] and E[x_0 | x_t = x].

        Args:
            factors: those at time t, if they are known.
        """
        factors = all_like(self.factors(t) if factors is None else factors, x)
        if self.prediction_type == "velocity":
            p, q, r, s = factors
            return p * output - q * x, r * x - s * output
        alpha, sigma = factors
        if self.prediction_type == "sample":
            return (x - alpha * output) / sigma, output
        if self.prediction_type == "v_prediction":
            square = alpha**2 + sigma**2
            return (sigma * x + alpha * output) / square, (alpha * x - sigma * output) / square
        noise = output if self.prediction_type == "epsilon" else -sigma * output
        return noise, (x - sigma * noise) / alpha

    def noise(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's estimate E[noise | x_t = x], (N, C, H, W), by its output there at time t."""
        return self.noise_and_denoised(output, x, t)[0]

    def denoised(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's estimate E[x_0 | x_t = x], (N, C, H, W), by its output there at time t."""
        return self.noise_and_denoised(output, x, t)[1]

    def score(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's estimate of grad log p_t(x), (N, C, H, W), by its output at x and time t."""
        if self.prediction_type == "score":
            return output
        return -self.noise(output, x, t) / self.kernel(x, t)[1]

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should return at x_t = alpha x_0 + sigma noise: the regression target of training."""
        if self.prediction_type in ("epsilon", "sample"):
            return noise if self.prediction_type == "epsilon" else x_0
        if self.prediction_type == "velocity":
            return self.velocity(x_0, noise, t)
        alpha, sigma = self.kernel(x_0, t)
        return -noise / sigma if self.prediction_type == "score" else alpha * noise - sigma * x_0

    def velocity(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """d/dt of the path from x_0 to the noise, alpha' x_0 + sigma' noise."""
        d_alpha, d_sigma = all_like(self.sde.derivatives(torch.as_tensor(t, dtype=torch.float64)), x_0)
        return d_alpha * x_0 + d_sigma * noise

    # What an error of it does, at fixed x_t.

    def noise_error_scale(self, t: Tensor) -> Tensor:
        """|d noise / d output|: how an error of the output becomes one of the noise; float64."""
        t = torch.as_tensor(t, dtype=torch.float64)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return {
            "epsilon": lambda: torch.ones_like(sigma),
            "sample": lambda: alpha / sigma,
            "score": lambda: sigma,
            "v_prediction": lambda: alpha / (alpha**2 + sigma**2),
            "velocity": lambda: alpha / self.velocity_scale(t),
        }[self.prediction_type]()

    def denoised_error_scale(self, t: Tensor) -> Tensor:
        """|d x_0 / d output|, that is, sigma / alpha times the noise's; float64."""
        t = torch.as_tensor(t, dtype=torch.float64)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return {
            "epsilon": lambda: sigma / alpha,
            "sample": lambda: torch.ones_like(sigma),
            "score": lambda: sigma**2 / alpha,
            "v_prediction": lambda: sigma / (alpha**2 + sigma**2),
            "velocity": lambda: sigma / self.velocity_scale(t),
        }[self.prediction_type]()

    def tells_denoised(self, t: Tensor) -> bool:
        """Whether the answer at time t says anything of x_0 beside the noise, as far as float32 goes."""
        if self.prediction_type in ("score", "epsilon"):
            return (-self.sde.half_log_snr(t)).exp().item() < PURE_NOISE
        return self.denoised_error_scale(t).item() < PURE_NOISE

    def velocity_scale(self, t: Tensor) -> Tensor:
        """alpha sigma' - sigma alpha', which turns (noise error) / alpha = -(x_0 error) / sigma into the velocity's
        error; above 0 also where alpha = 0; float64."""
        alpha, sigma, d_alpha, d_sigma = self._path(t)
        return alpha * d_sigma - sigma * d_alpha

    # The range of its images.

    def to_model_range(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> the network's range."""
        low, high = self.image_range
        return low + (high - low) * images

    def to_unit_range(self, x: Tensor) -> Tensor:
        """The network's range -> [0, 1], not clipped."""
        low, high = self.image_range
        return (x - low) / (high - low)
