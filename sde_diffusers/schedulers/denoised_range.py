"""Estimates E[x_0 | x_t] that leave the range of the images, brought back into it.

A network whose answer at high noise is a little off gives, divided by a small alpha, an x_0 that is far off: the noise
of a cosine table's end magnifies errors 20,000 times. Networks of such tables were made to be sampled with bounds on
x_0: clipped, or by dynamic thresholding (section 2.3 of arXiv 2205.11487), where each image is divided by a high
quantile s of its own magnitudes if that is above 1. The noise changes with it, as x_t stays,

    x_t = alpha x_0 + sigma noise.
"""

import math

import torch
from torch import Tensor

from sde_diffusers.parameterization import expand_like
from sde_diffusers.scalars import real_number


class DenoisedRange:
    """The bounds on x_0, in units of half the image range about its middle.

    Args:
        image_range: (low, high).
        clip: None or False for none, True for the range itself, or how many times as wide x_0 may be.
        ratio: None, or the share of an image's values that dynamic thresholding leaves as they are, in (0, 1]; it then
            takes the place of clipping.
        largest: of s, at least 1; None = 1, which clips.

    Raises:
        ValueError: on values out of range, or `largest` without `ratio`.
    """

    def __init__(self, image_range, clip, ratio, largest):
        low, high = image_range
        self.middle, self.half = (low + high) / 2, (high - low) / 2
        width = float(clip) if isinstance(clip, bool) else 0.0 if clip is None else real_number(clip)
        if not (0 < width < math.inf or clip in (None, False)):
            raise ValueError(f"`clip_denoised` must be None, a bool or a finite number above 0, but is {clip!r}.")
        if ratio is not None and not 0 < real_number(ratio) <= 1:
            raise ValueError(f"`dynamic_thresholding_ratio` must be None or in (0, 1], but is {ratio!r}.")
        if largest is not None and not 1 <= real_number(largest) < math.inf:
            raise ValueError(f"`sample_max_value` must be None or a finite number of at least 1, but is {largest!r}.")
        if largest is not None and ratio is None:
            raise ValueError(f"`sample_max_value`={largest!r} needs a `dynamic_thresholding_ratio`, which is None.")
        self.width, self.ratio, self.largest = width, ratio, 1.0 if largest is None else largest

    @property
    def bounded(self) -> bool:
        """Whether there are any bounds."""
        return self.width > 0 or self.ratio is not None

    def __call__(self, denoised: Tensor) -> Tensor:
        """Estimates (N, ...) within their bounds."""
        if self.ratio is None:
            reach = self.width * self.half
            return denoised.clamp(self.middle - reach, self.middle + reach)
        centred = (denoised - self.middle) / self.half
        s = torch.quantile(centred.abs().flatten(1), self.ratio, dim=1).clamp(1, self.largest)
        s = expand_like(s, centred)
        return self.middle + self.half * centred.clamp(-s, s) / s
