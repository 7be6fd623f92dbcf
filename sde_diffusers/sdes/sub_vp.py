"""The sub-VP SDE, with less noise on the way than VP and better likelihoods in the paper."""

import math

import torch
from torch import Tensor

from sde_diffusers.sdes.gaussian import Chain, Time
from sde_diffusers.sdes.vp import VPSDE


class SubVPSDE(VPSDE):
    """Sub-VP SDE (eq. 12 and 29): alpha as in VP, sigma = 1 - alpha^2, g^2 = beta (1 - alpha^4).

    Args:
        beta_min, beta_max: as in `VPSDE`.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max.
    """

    name = "sub_vp"
    title = "sub-VP SDE"
    of_the_paper = True

    def sigma(self, t: Time):
        return -torch.expm1(2 * self.log_alpha(t))

    def diffusion(self, t: Time):
        return (self.beta(t) * -torch.expm1(4 * self.log_alpha(t))).sqrt()

    def inverse_half_log_snr(self, half_log_snr: Time):
        # 1 / alpha - alpha = sigma / alpha, that is, -2 sinh(log alpha) = exp(-half_log_snr). Before that overflows,
        # alpha is nothing beside 1 / alpha.
        h = half_log_snr
        return self.time_of_log_alpha(torch.where(h < -300, h, -torch.asinh(0.5 * torch.exp(-h.clamp(min=-300)))))

    def paper_chain(self, times: Tensor):
        """The Euler-Maruyama chain with dt = 1 / N, whose kernels approximate the SDE's (for few steps see VPSDE)."""
        n = len(times)
        if not self.is_paper_grid(times) or self.beta_max >= n:
            return self.chain(times)
        return Chain(1 + self.drift(times) / n, self.diffusion(times) / math.sqrt(n), None, 1 - self.beta_table(n))
