"""Missing pixels: y = (1 - m) x, and masks m of several kinds."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sde_diffusers.generators import require_generator
from sde_diffusers.operators.base import LinearOperator
from sde_diffusers.scalars import real_number, whole_number, whole_numbers


class Mask(LinearOperator):
    """Missing pixels: y = x where the mask is False, 0 where it is True.

    Args:
        mask: (H, W), (C, H, W) or (N, C, H, W) booleans, True where a pixel is missing (to be painted, as in the
            inpainting of diffusers); N and C may be 1.

    Raises:
        ValueError: if the mask is no boolean tensor of 2 to 4 dimensions.
    """

    gram = 1.0

    def __init__(self, mask: Tensor):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not 2 <= mask.ndim <= 4:
            what = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"`mask` must be a boolean tensor (H, W), (C, H, W) or (N, C, H, W), but is {what}.")
        self.mask = mask[(None,) * (4 - mask.ndim)]

    @property
    def image_size(self):
        return tuple(self.mask.shape[2:])

    def measurement_shape(self, image_shape: tuple[int, ...]):
        size = zip(self.mask.shape, image_shape, strict=False)
        fits = len(image_shape) == 4 and self.mask.shape[2:] == tuple(image_shape[2:])
        if not fits or not all(m in (1, n) for m, n in size):
            raise ValueError(f"`mask` of shape {tuple(self.mask.shape)} does not fit images {tuple(image_shape)}.")
        return tuple(image_shape)

    def count(self, image_shape: tuple[int, ...]):
        return (~self.mask).expand(-1, image_shape[1], -1, -1).sum((1, 2, 3)).float()

    def __call__(self, x: Tensor):
        self.measurement_shape(tuple(x.shape))
        self.mask = self.mask.to(x.device)  # once
        return torch.where(self.mask, 0, x)

    def adjoint(self, y: Tensor):
        return self(y)

    def attainable(self, y: Tensor):
        return self(y)

    def measured(self, y: Tensor):
        return self(y)

    def repeat(self, samples: int):
        if len(self.mask) == 1:
            return self
        return Mask(self.mask.repeat_interleave(samples, 0)).with_settings_of(self)


class Rows(LinearOperator):
    """Some values of a measurement: y where `kept`, a tensor of booleans that broadcasts to y, and 0 elsewhere."""

    gram = 1.0

    def __init__(self, kept: Tensor):
        self.kept = kept

    def measurement_shape(self, image_shape):
        return tuple(image_shape)

    def __call__(self, x):
        self.kept = self.kept.to(x.device)  # once
        return torch.where(self.kept, x, 0)

    def adjoint(self, y):
        return self(y)

    def attainable(self, y):
        return self(y)

    def measured(self, y):
        return self(y)

    def repeat(self, samples):
        return self if len(self.kept) == 1 else Rows(self.kept.repeat_interleave(samples, 0))


def require_counts(**numbers) -> None:
    """Raise a `ValueError` that names the first of these that is no whole number above 0."""
    for name, value in numbers.items():
        if not whole_number(value) > 0:
            raise ValueError(f"`{name}` must be a whole number above 0, but is {value!r}.")


def box_mask(height: int, width: int, box: tuple[int, int, int, int]) -> Tensor:
    """(H, W) booleans, True in rows top..bottom and columns left..right of box = (top, left, bottom, right).

    Raises:
        ValueError: if the box is empty or leaves the image, or that has no size.
    """
    require_counts(height=height, width=width)
    sides = whole_numbers(box)
    top, left, bottom, right = sides if len(sides) == 4 else [math.nan] * 4
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(
            f"`box` must be (top, left, bottom, right) within {height} x {width} pixels and not empty, but is {box!r}."
        )
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[int(top) : int(bottom), int(left) : int(right)] = True
    return mask


def random_mask(shape: tuple[int, ...], share: float, generator: torch.Generator | None = None) -> Tensor:
    """Booleans of any shape whose last two dimensions are an image's, True for `share` of its pixels, at random.

    Raises:
        ValueError: unless 0 < share < 1, of whose pixels at least one is in the share and one is not, and the shape
            has two dimensions or more; on a seed in the place of a generator.
    """
    sides = whole_numbers(shape)
    if len(sides) < 2 or not all(side > 0 for side in sides):
        raise ValueError(f"`shape` must end with (height, width), whole numbers above 0, but is {shape!r}.")
    if not 0 < real_number(share) < 1:
        raise ValueError(f"`share` must lie between 0 and 1, but is {share!r}.")
    require_generator(generator)
    noise = torch.rand(shape, generator=generator).flatten(-2)
    count = round(share * noise.shape[-1])
    if not 0 < count < noise.shape[-1]:
        raise ValueError(f"`share`={share!r} of {noise.shape[-1]} pixels is {count} of them: nothing, or all.")
    return (noise.argsort(-1).argsort(-1) < count).view(shape)


def stroke_mask(
    height: int, width: int, strokes: int = 4, thickness: int = 3, generator: torch.Generator | None = None
) -> Tensor:
    """(H, W) booleans, True under free-form brush strokes: broken lines of random corners.

    Raises:
        ValueError: unless all numbers are whole and above 0; on a seed in the place of a generator.
    """
    require_counts(height=height, width=width, strokes=strokes, thickness=thickness)
    require_generator(generator)
    picture = Image.new("L", (width, height))
    for _ in range(strokes):
        corners = torch.rand(4, 2, generator=generator) * torch.tensor([width, height])
        ImageDraw.Draw(picture).line([tuple(corner) for corner in corners.tolist()], 255, thickness, "curve")
    return torch.from_numpy(np.array(picture)) > 0
