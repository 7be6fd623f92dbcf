"""Whether a measurement is in the units in which it should be: those of images in [0, 1]."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from sde_diffusers.operators.base import Operator
from sde_diffusers.operators.least_squares import inner, norm

FAR_FROM_IMAGES = 5.0
"""Times what white images, and images of noise, measure, beyond which a measurement is hardly one of images."""


def warn_of_units(
    operator: Operator,
    y: Tensor,
    noise_std: float | Tensor,
    noise_covariance: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Warn if a linear measurement is far more than images in [0, 1], and its noise, make it.

    Values of 0 to 255 are, unless the images are very dark; those of another range such as [-1, 1] are not noticed.

    Args:
        operator: A, for as many images.
        y: (N, ...), 0 where nothing is measured.
        noise_std, noise_covariance: as for a `Measurement`.
    """
    if not operator.linear:
        return
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(len(y), *operator.shape_of_images(y), generator=generator).to(y)
    usual = torch.maximum(*(norm(operator(x)) for x in (torch.ones_like(noise), noise)))
    if noise_covariance is None:
        spread = norm(torch.as_tensor(noise_std).to(y).expand_as(y))
    else:
        signs = torch.randint(2, y.shape, generator=generator).to(y) * 2 - 1
        spread = inner(signs, noise_covariance(signs)).clamp(min=0).sqrt()
    share = (norm(y) / (usual + spread)).nan_to_num().amax().item()
    if share > FAR_FROM_IMAGES:
        warnings.warn(
            f"`measurement` is {share:.3g} times what white images, or images of noise, measure by "
            f"{type(operator).__name__}: it must be in units of images in [0, 1].",
            stacklevel=2,
        )
