"""The variance exploding SDE of NCSN++ and EDM networks."""

import math

import torch
from torch import Tensor

from sde_diffusers.sdes.gaussian import Chain, GaussianSDE, Time, require_positive


class VESDE(GaussianSDE):
    """Variance exploding SDE (eq. 9 and appendix C): alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t.

    Args:
        sigma_min: deviation at t = 0, in the units of the images.
        sigma_max: deviation at t = 1 and of the prior; choose it near the largest pairwise distance of the data.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.
    """

    name = "ve"
    title = "VE SDE"
    prediction_type = "score"
    time_input = "sigma"
    image_range = (0.0, 1.0)
    sampling_eps = 1e-5
    of_the_paper = True

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0):
        sigma_min, sigma_max = require_positive(sigma_min=sigma_min, sigma_max=sigma_max)
        if sigma_min >= sigma_max:
            raise ValueError(f"`sigma_min` must be below `sigma_max`, but they are {sigma_min} and {sigma_max}.")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self._log_ratio = math.log(sigma_max / sigma_min)

    @property
    def prior_sigma(self) -> float:
        return self.sigma_max

    def log_alpha(self, t: Time):
        return torch.zeros_like(t)

    def sigma(self, t: Time):
        return self.sigma_min * (t * self._log_ratio).exp()

    def drift(self, t: Time):
        return torch.zeros_like(t)

    def diffusion(self, t: Time):
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def inverse_half_log_snr(self, half_log_snr: Time):
        return (-half_log_snr - math.log(self.sigma_min)) / self._log_ratio

    def table_index(self, t: Time, n: int):
        """Entries of the SMLD table, which descends: round((1 - t) (n - 1))."""
        return self.table_place(t, n).round()

    def table_place(self, t: Time, n: int):
        return (1 - t) * (n - 1)

    def time_of_index(self, k: Time, n: int):
        return 1 - k / (n - 1)

    def paper_chain(self, times: Tensor):
        """The SMLD chain: sigma_i of the geometric table with N entries, and 0 below the first (appendix F)."""
        if not self.is_paper_grid(times):
            return self.chain(times)
        sigma = self.sigma(torch.linspace(1, 0, len(times), dtype=torch.float64))
        sigma_s = torch.cat([sigma[1:], torch.zeros(1, dtype=torch.float64)])
        b = (sigma**2 - sigma_s**2).sqrt()
        return Chain(torch.ones_like(b), b, b * sigma_s / sigma, torch.ones_like(b))
