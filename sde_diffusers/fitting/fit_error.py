"""How far a sampler's images are from those that they should be, as the fit of a sampler counts it.

Least squares of pixels blur what few steps cannot foresee, and leave a haze of noise on what should be flat, and both
are seen at once. So what is compared at each scale are, beside the pixels and the coarse image, the logarithms of
local deviations: a flat patch with a trace of noise in it errs as much as a texture that lost half of its contrast.
Images are those of the same latents, clipped as they are shown. What a few steps miss in one image they may give to
another, but the mean of the differences over all of them, a bias, makes the set of images another one; so it counts
BIAS^2 = 12 times as much (by measurement: of samplers whose levels were moved a little, those were nearer to the real
images, in the features of two classifiers, that had the lesser of such sums):

    error^2 = mean (f - f*)^2 + BIAS^2 mean_i (mean_n (f - f*)_ni)^2 + PIXELS^2 mean (x - x*)^2,

    f = (log sqrt(local mean of band_s^2 + TRACE^2) for the scales s; COARSE x at the coarsest scale)

Images are in units of their deviation. Those of less than 4 pixels have no scales: what is left is the square error.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES, SMALLEST = 3, 4
TRACE, COARSE, PIXELS, BIAS = 0.03, 1.4, 0.7, 3.5


def local_features(images: Tensor) -> Tensor:
    """(N, C, H, W) images in units of their deviation -> (N, features)."""
    features, level = [], images
    for _ in range(SCALES):
        if min(level.shape[-2:]) < SMALLEST:
            break
        coarser = F.avg_pool2d(level, 2, ceil_mode=True, count_include_pad=False)
        band = level - F.interpolate(coarser, size=level.shape[-2:], mode="bilinear", align_corners=False)
        window = SMALLEST if min(level.shape[-2:]) >= 2 * SMALLEST else SMALLEST // 2
        features.append(0.5 * (F.avg_pool2d(band.square(), window) + TRACE**2).log().flatten(1))
        level = coarser
    return torch.cat([*features, COARSE * level.flatten(1)], 1)


class FitError:
    """Residuals of images beside given ones, whose norm is the error above.

    Args:
        images: (N, C, H, W), those that there should be.
        deviation: the unit of images.
        bounds: what all images are clipped to, if to anything.
    """

    def __init__(self, images: Tensor, deviation: float, bounds: tuple[float, float] = (-math.inf, math.inf)):
        self.images, self.deviation, self.bounds = images.clamp(*bounds), deviation, bounds
        self.features = local_features(self.images / deviation)

    def __call__(self, images: Tensor) -> Tensor:
        """(R,) float64 on the processor."""
        images = images.clamp(*self.bounds)
        difference = local_features(images / self.deviation) - self.features
        pixels = PIXELS / self.deviation * (images - self.images).flatten()
        parts = (difference.flatten(), BIAS * difference.mean(0), pixels)
        return torch.cat([part / math.sqrt(part.numel()) for part in parts]).double().cpu()
