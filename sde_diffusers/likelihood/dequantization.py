"""Real numbers for integers: noise within a bin, which makes a density a bound on a probability.

If the model's probability of an integer is that of its bin, P(k) = integral of p over the bin, then for any density
q on the bin (Theis et al., arXiv 1511.01844)

    log P(k) >= E_q[log p(y) - log q(y)],

and the importance-weighted bound of K draws, E log (1 / K) sum p(y_i) / q(y_i) (Burda et al., arXiv 1509.00519), lies
between this and log P(k). Two densities are offered:

- "uniform", whose bins [k, k + 1) / levels tile the data's range as in the paper's code, and y is taken for an image
  at the time eps;
- "truncated_normal" (Zheng et al., arXiv 2305.03935, section 4.1): y = x_k + sigma / alpha z with z a standard normal
  cut off at the bin's borders. Bins of width 1 / (levels - 1) surround the values x_k that the network was trained on,
  and alpha y is then distributed as in training at the time eps: nothing is asked that was not learned.
"""

import math

import torch
from torch import Tensor

from sde_diffusers.likelihood.probes import draw

DEQUANTIZATIONS = ("uniform", "truncated_normal")
CUT_OFF = 3.0
"""Where "truncated_normal" cuts off by default, in deviations: the time eps is where a bin's half is as wide.

Networks that know no noise so small, as of sigma_min=0.002 with 8 bits in [-1, 1], are asked at their least, which is
valid but less tight."""


def in_uniform_bins(unit: Tensor, levels: int, image_range: tuple[float, float], generator) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) in [0, 1] -> y in the model's range, and log q(y) (N,) in nats."""
    low, high = image_range
    bins = (unit * (levels - 1)).round()
    y = low + (high - low) * (bins + draw(torch.rand, unit, generator)) / levels
    log_q = unit[0].numel() * math.log(levels / (high - low))
    return y, unit.new_full((len(unit),), log_q)


def half_bin(levels: int, image_range: tuple[float, float]) -> float:
    """Half of the distance between two neighbouring values, in the model's range."""
    return (image_range[1] - image_range[0]) / (levels - 1) / 2


def in_truncated_normals(
    unit: Tensor, levels: int, image_range: tuple[float, float], noise_level: float, generator
) -> tuple[Tensor, Tensor]:
    """The same for "truncated_normal"; `noise_level` is sigma / alpha at the time eps."""
    low, high = image_range
    cut = torch.tensor(half_bin(levels, image_range) / noise_level, dtype=torch.float64)
    inside = torch.special.erf(cut / math.sqrt(2)).item()  # probability of a normal within the bin
    share = (1 - inside) / 2 + inside * draw(torch.rand, unit, generator)
    z = torch.special.ndtri(share).clamp(-cut.item(), cut.item())
    centres = low + (high - low) * (unit * (levels - 1)).round() / (levels - 1)
    log_normalizer = math.log(noise_level * math.sqrt(2 * math.pi) * inside)
    return centres + noise_level * z, (-z.square() / 2 - log_normalizer).flatten(1).sum(1)
