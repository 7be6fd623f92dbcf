"""The variance preserving SDE of DDPM++ networks."""

import math

import torch
from torch import Tensor

from sde_diffusers.sdes.gaussian import Chain, GaussianSDE, Time, require_positive


class VPSDE(GaussianSDE):
    """Variance preserving SDE (eq. 11 and 33): beta(t) = beta_min + t (beta_max - beta_min), f = -beta/2, g^2 = beta.

    Args:
        beta_min, beta_max: beta at t = 0 and t = 1, finite, 0 < beta_min <= beta_max.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max.
    """

    name = "vp"
    title = "VP SDE"
    prior_sigma = 1.0
    of_the_paper = True

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        beta_min, beta_max = require_positive(beta_min=beta_min, beta_max=beta_max)
        if beta_min > beta_max:
            raise ValueError(f"`beta_min` must not exceed `beta_max`, but they are {beta_min} and {beta_max}.")
        self.beta_min, self.beta_max = beta_min, beta_max

    def beta(self, t: Tensor) -> Tensor:
        """beta(t) for a float64 tensor t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Time):
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def sigma(self, t: Time):
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def drift(self, t: Time):
        return -0.5 * self.beta(t)

    def diffusion(self, t: Time):
        return self.beta(t).sqrt()

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """Root of the quadratic log_alpha(t), in the form that does not cancel (beta_min = beta_max included)."""
        q = -log_alpha
        t = 2 * q / (0.5 * self.beta_min + (0.25 * self.beta_min**2 + (self.beta_max - self.beta_min) * q).sqrt())
        return torch.where(q < math.inf, t, math.inf)

    def inverse_half_log_snr(self, half_log_snr: Time):
        # alpha^2 = 1 / (1 + exp(-2 half_log_snr)).
        return self.time_of_log_alpha(0.5 * torch.nn.functional.logsigmoid(2 * half_log_snr))

    def beta_table(self, n: int) -> Tensor:
        """beta_i of the N-step chain, i = N..1 (appendix E), in the order of descending time."""
        return torch.linspace(self.beta_max, self.beta_min, n, dtype=torch.float64) / n

    def paper_chain(self, times: Tensor):
        """The DDPM chain: a = sqrt(1 - beta_i), b = sqrt(beta_i). Its ancestral sampler adds the noise of the forward
        step, sqrt(beta_i), not that of the exact posterior. With so few steps that some beta_i >= 1 there is no such
        chain, and the exact transitions stand."""
        if not self.is_paper_grid(times) or self.beta_max >= len(times):
            return self.chain(times)
        beta = self.beta_table(len(times))
        return Chain((1 - beta).sqrt(), beta.sqrt(), beta.sqrt(), 1 - beta)
