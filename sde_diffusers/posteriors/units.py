"""Whether a measurement is in the units in which it should be: those of images in [0, 1]."""

import warnings

import torch
from torch import Tensor

from sde_diffusers.operators.base import Operator
from sde_diffusers.operators.least_squares import norm

FAR_FROM_IMAGES = 5.0
"""Times what white images, and images of noise, measure, beyond which a measurement is hardly one of images."""


def warn_of_units(operator: Operator, y: Tensor) -> None:
    """Warn if y (N, ...), without values where nothing is measured, is far more than images in [0, 1] measure.

    Values of 0 to 255 are, those of another range such as [-1, 1] are not noticed.
    """
    shape = (len(y), *operator.shape_of_images(y))
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(y)
    usual = torch.maximum(*(norm(operator.measured(operator(x))) for x in (torch.ones_like(noise), noise)))
    share = (norm(y) / usual).amax().item() if usual.any() else 0.0
    if share > FAR_FROM_IMAGES:
        warnings.warn(
            f"`measurement` is {share:.3g} times what white images, or images of noise, measure by "
            f"{type(operator).__name__}: it must be in units of images in [0, 1].",
            stacklevel=2,
        )
