"""What tells a network that its images have grey levels: pixels of 8 bits are whole multiples of one spacing.

With noise of less than a spacing the best denoiser rounds. Layers that see the brightness alone do not find this
comb of 256 teeth, and a density that is smooth where the data have levels pays for it (`docs/bits_per_dim.md`). So

- the network gets sines and cosines of the brightness whose periods are 1, 2, 4 and 8 spacings (section 5.1 of
  arXiv 2107.00630), each faded by its mean over the noise, exp(-(2 pi s / period)^2 / 2): what is left of it;
- what rounding is worth is added in closed form. Near x, a density that is smooth but for the levels is, with noise of
  scale s, the product of a smooth one and of the comb sum_k N(x; k, s^2). Scores of factors add up, and so does what
  s^2 times them moves x by: for the comb E[k | x] - x, the mean over its teeth less x;
- many pixels are just black. The network says for each how likely that is, as the logarithm of odds but for what the
  pixel itself says, -(x - black)^2 / (2 s^2); black then has that share of E[x_0 | x].
"""

import math

import torch
from torch import Tensor

LEVEL_PERIODS = (1, 2, 4, 8)
TEETH = 6
"""Teeth on each side of the nearest one; at a noise of one spacing, where the comb fades to 1e-8, the others weigh
less than that."""


LOWEST_AT_FIRST = -5.0
"""Those odds in a new network."""


def level_features(x: Tensor, sigma: Tensor, levels: int) -> Tensor:
    """(N, C, H, W) images in [-1, 1] plus noise of scale sigma (N, 1, 1, 1) -> (N, 2 * 4 * C, H, W)."""
    spacing = 2 / (levels - 1)
    features = []
    for period in LEVEL_PERIODS:
        frequency = 2 * math.pi / (period * spacing)
        left = torch.exp(-((frequency * sigma) ** 2) / 2)
        phase = frequency * (x + 1)
        features += [left * phase.sin(), left * phase.cos()]
    return torch.cat(features, dim=1)


def towards_levels(x: Tensor, sigma: Tensor, levels: int) -> Tensor:
    """E[x_0 | x_0 + sigma noise = x] - x for x_0 on an endless comb of the levels' spacing, all teeth alike."""
    spacing = 2 / (levels - 1)
    place = (x + 1) / spacing
    away = place - place.detach().round()  # from the nearest tooth, in spacings
    teeth = torch.arange(-TEETH, TEETH + 1, device=x.device, dtype=x.dtype)
    s = (sigma / spacing)[..., None]
    weights = (-0.5 * ((away[..., None] - teeth) / s) ** 2).softmax(-1)
    shift = spacing * ((weights * teeth).sum(-1) - away)
    return torch.where(sigma < spacing, shift, 0.0)


def with_levels(denoised: Tensor, x: Tensor, sigma: Tensor, levels: int, lowest: Tensor) -> Tensor:
    """A smooth density's E[x_0 | x] and the odds of the lowest level -> E[x_0 | x] of what has levels."""
    denoised = denoised + towards_levels(x, sigma, levels)
    share = (lowest - ((x + 1) / sigma).square() / 2).sigmoid()
    return denoised + share * (-1 - denoised)
