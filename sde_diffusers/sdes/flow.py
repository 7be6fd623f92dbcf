"""The straight path of flow matching and rectified flows, which ends in pure noise."""

import math

from sde_diffusers.sdes.gaussian import GaussianSDE, Time, require_positive


class FlowSDE(GaussianSDE):
    """Straight path from the image to the noise (arXiv 2210.02747, 2209.03003): alpha = 1 - t, sigma = t.

    Its networks predict the velocity, noise - x_0. At t = 1 nothing is left of the image: drift and diffusion are
    infinite there, but kernel, velocity and transitions are not.

    Args:
        shift: above 0; time runs as if the noise level t / (1 - t) were so many times larger, as in diffusers'
            flow-matching schedulers: sigma = shift t / (1 + (shift - 1) t), alpha = 1 - sigma.

    Raises:
        ValueError: unless shift is a finite number above 0.
    """

    name = "flow"
    title = "straight path of flow matching"
    prediction_type = "velocity"
    time_input = "t"
    time_grid = "uniform"
    prior_sigma = 1.0

    def __init__(self, shift: float = 1.0):
        (shift,) = require_positive(shift=shift)
        self.shift = shift

    def alpha(self, t: Time):
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Time):
        return self.shift * t / (1 + (self.shift - 1) * t)

    def derivatives(self, t: Time):
        rate = self.shift / (1 + (self.shift - 1) * t) ** 2
        return -rate, rate

    def inverse_half_log_snr(self, half_log_snr: Time):
        return (-half_log_snr - math.log(self.shift)).sigmoid()
