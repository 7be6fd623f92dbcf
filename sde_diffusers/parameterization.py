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

import torch
from torch import Tensor

from sde_diffusers.sdes import VESDE, VPSDE, DiscreteVPSDE, ExponentialVESDE, GaussianSDE, SubVPSDE

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
