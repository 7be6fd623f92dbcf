"""The continuous form of the cosine schedule, which loses signal more evenly than VP."""

import math

import torch

from sde_diffusers.sdes.gaussian import GaussianSDE, Time, require_positive


class CosineVPSDE(GaussianSDE):
    """Cosine VP SDE (arXiv 2102.09672, eq. 17): alpha = cos(a(t)) / cos(a(0)), a(t) = (pi / 2) (t + s) / (1 + s).

    So beta = (pi / (1 + s)) tan(a), f = -beta / 2 and g^2 = beta. As the schedule's table caps its betas, beta grows
    up to `largest_beta` only and then stays: alpha(1) is small and not 0.

    Args:
        s: offset that keeps the noise of the first steps from being too small, above 0.
        largest_beta: bound of beta(t); 999 is the table's 0.999 in each of a thousand steps.

    Raises:
        ValueError: unless s and largest_beta are above 0 and beta(0) is below largest_beta.
    """

    name = "cosine_vp"
    title = "VP SDE with the cosine schedule"
    time_grid = "log_snr"  # small steps from 20,000 down: a large one would magnify the network's error
    prior_sigma = 1.0

    def __init__(self, s: float = 0.008, largest_beta: float = 999.0):
        s, largest_beta = require_positive(s=s, largest_beta=largest_beta)
        self.s, self.largest_beta = s, largest_beta
        self._first, self._last = self._angle(0.0), math.atan(largest_beta * (1 + s) / math.pi)
        self._bend = self._time_of_angle(self._last)  # from here on beta is constant
        if self._bend <= 0:
            raise ValueError(f"`largest_beta` is {largest_beta}, but beta(0) is more with `s` = {s}.")

    def _angle(self, t):
        return math.pi / 2 * (t + self.s) / (1 + self.s)

    def _time_of_angle(self, angle):
        return angle * (1 + self.s) * 2 / math.pi - self.s

    def log_alpha(self, t: Time):
        bent = t.clamp(max=self._bend)
        return (self._angle(bent).cos() / math.cos(self._first)).log() - 0.5 * self.largest_beta * (t - bent)

    def sigma(self, t: Time):
        bent = t.clamp(max=self._bend)
        # 1 - alpha^2 up to the bend, without cancellation, and what the constant beta adds
        turned = math.pi / 2 * bent / (1 + self.s)
        variance = turned.sin() * (turned + 2 * self._first).sin() / math.cos(self._first) ** 2
        return (variance - (1 - variance) * (-self.largest_beta * (t - bent)).expm1()).sqrt()

    def drift(self, t: Time):
        return -0.5 * math.pi / (1 + self.s) * self._angle(t.clamp(max=self._bend)).tan()

    def diffusion(self, t: Time):
        return (-2 * self.drift(t)).sqrt()

    def inverse_half_log_snr(self, half_log_snr: Time):
        alpha, variance = (2 * half_log_snr).sigmoid().sqrt(), (-2 * half_log_snr).sigmoid()
        sine, cosine = math.sin(self._first), math.cos(self._first)
        root = (variance + (sine * alpha) ** 2).sqrt()  # the sine of a(t), times cos(a(0)), as alpha is its cosine
        turned = (variance * cosine / (root + sine * alpha)).atan2(cosine**2 * alpha + sine * root)  # a(t) - a(0)
        bent = (turned * 2 * (1 + self.s) / math.pi).clamp(max=self._bend)
        beyond = self.log_alpha(bent) - 0.5 * torch.nn.functional.logsigmoid(2 * half_log_snr)
        return bent + (turned > self._last - self._first) * 2 * beyond / self.largest_beta
