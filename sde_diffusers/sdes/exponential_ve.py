"""The SDE of the paper's tutorial (yang-song.net/blog/2021/score)."""

import math

import torch

from sde_diffusers.sdes.gaussian import GaussianSDE, Time, require_positive

LARGEST_BASE = 1e150  # its square is finite


class ExponentialVESDE(GaussianSDE):
    """The tutorial's SDE dx = sigma^t dw: alpha = 1, sigma(t)^2 = (sigma^(2t) - 1) / (2 log sigma).

    Args:
        sigma: the base, above 1 and at most 1e150.

    Raises:
        ValueError: on another sigma.
    """

    name = "ve_exponential"
    title = "SDE dx = sigma^t dw"
    prediction_type = "score"
    time_input = "t"
    image_range = (0.0, 1.0)
    of_the_paper = True

    def __init__(self, sigma: float = 25.0):
        (sigma,) = require_positive(sigma=sigma)
        if not 1 < sigma <= LARGEST_BASE:
            raise ValueError(f"`sigma` must be above 1 (and at most {LARGEST_BASE:g}), but is {sigma}.")
        self._base = sigma
        self._log_base = math.log(sigma)

    @property
    def prior_sigma(self) -> float:
        return math.sqrt(math.expm1(2 * self._log_base) / (2 * self._log_base))

    def log_alpha(self, t: Time):
        return torch.zeros_like(t)

    def sigma(self, t: Time):
        return (torch.expm1(2 * self._log_base * t) / (2 * self._log_base)).sqrt()

    def drift(self, t: Time):
        return torch.zeros_like(t)

    def diffusion(self, t: Time):
        return (self._log_base * t).exp()

    def inverse_half_log_snr(self, half_log_snr: Time):
        return torch.log1p(2 * self._log_base * torch.exp(-2 * half_log_snr)) / (2 * self._log_base)

    def __repr__(self) -> str:
        return f"ExponentialVESDE(sigma={self._base})"
