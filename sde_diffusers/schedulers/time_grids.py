"""Where a sampler's steps lie between the noise and the data."""

import math

import torch
from torch import Tensor

from sde_diffusers.parameterization import PURE_NOISE, require_choice
from sde_diffusers.sdes.gaussian import GaussianSDE

TIME_GRIDS = ("uniform", "quadratic", "log_snr", "karras", "noise_share", "few_steps")
# Noise level sigma / alpha that stands for pure noise where a grid is even in it: EDM's largest (arXiv 2206.00364).
NOISY = 80.0
# All levels here are those of images in [-1, 1].
# Where "few_steps" ends, as a function of the number of steps, and up to which number.
FEW, LAST_LEVEL, MIDDLE = 8, 4.5, 12.0


def time_grid(name: str, n: int, sde: GaussianSDE, start: float, end: float, unit: float = 1.0) -> Tensor:
    """n times from `start` down to `end`, both included but for "few_steps"; (n,) float64.

    "uniform" is linear in t and "quadratic" in sqrt(t); "log_snr" is linear in log(alpha/sigma), and "karras" in
    (sigma/alpha)^(1/7) (eq. 5 of arXiv 2206.00364, with rho = 7). "noise_share" is linear in u^(1/4) with
    u = sigma / (2 alpha + sigma): few steps at high noise, where the estimates hardly change, and many at the levels
    of the data (constants by measurement: benchmarks/few_step_samplers.py).

    "few_steps" is for samplers whose last evaluation steps to x_0 itself. In n <= 8 steps there is not one to waste
    where the network's answer is the state, or the images' mean: it is linear in u^(1/4), too, but reaches down only
    to the noise level s_n = 4.5 / n^3 (or to `end`, if that is more), with u = sigma / (c_n alpha + sigma) and
    c_n = 2 + 12 s_n, the higher the fewer (constants by measurement: docs/few_step_tables.md). In more steps it is
    "noise_share".

    Noise levels count in units of `unit` (`Parameterization.noise_unit`), so that images in [0, 255] are sampled as
    those in [-1, 1] are.

    From pure noise (alpha = 0 at `start`, or nearly) "log_snr" and "karras" go on as if they had begun at
    sigma / alpha = 80 (or ten times the level at `end`, if that is more).

    Raises:
        ValueError: on an unknown name.
    """
    require_choice("time_grid", name, TIME_GRIDS)
    ends = torch.tensor([start, end], dtype=torch.float64)

    def between(values: Tensor) -> Tensor:
        return torch.linspace(values[0].item(), values[1].item(), n, dtype=torch.float64)

    if name == "uniform":
        return between(ends)
    half_log_snr = sde.half_log_snr(ends)
    if name == "quadratic":
        grid = between(ends.sqrt()) ** 2
    elif name in ("noise_share", "few_steps"):
        middle = 2.0 * unit
        if name == "few_steps" and n <= FEW:
            last_level = LAST_LEVEL * unit / n**3
            middle += MIDDLE * last_level
            lowest = max(-math.log(last_level), half_log_snr[0].item() + math.log(4))  # where there is so little noise
            half_log_snr[1] = half_log_snr[1].clamp(max=lowest)
            end = max(end, sde.inverse_half_log_snr(half_log_snr[1]).item())
        share = between(torch.sigmoid(-half_log_snr - math.log(middle)) ** (1 / 4)) ** 4
        grid = sde.inverse_half_log_snr(-torch.logit(share) - math.log(middle))
    else:
        if (-half_log_snr[0]).exp() > PURE_NOISE:
            half_log_snr[0] = min(-math.log(NOISY * unit), half_log_snr[1].item() - math.log(10))
        if name == "log_snr":
            grid = sde.inverse_half_log_snr(between(half_log_snr))
        else:
            grid = sde.inverse_half_log_snr(-7 * between((-half_log_snr / 7).exp()).log())
    grid[-1] = end
    grid[0] = start  # a grid of one time is the start
    return grid
