"""Projections of an image along parallel lines, as tomography measures them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusers.operators.base import LinearOperator
from sde_diffusers.operators.checks import require_images
from sde_diffusers.scalars import real_numbers, whole_number


class Radon(LinearOperator):
    """Sums along lines: y has shape (N, angles, bins) for images of one channel.

    Each pixel's value is shared by the two bins nearest to its centre's place x cos(angle) + y sin(angle) on the
    detector, in proportion, so that each projection sums to the image. Bins are one pixel wide, as many as the
    diagonal needs; x grows to the right and y upwards, from the image's centre. At 0 degrees the columns are summed
    (for an even width, halves of two neighbours share a bin), at 90 degrees the rows.

    Args:
        angles: in degrees; or the number of angles, from 0 in equal steps over 180 degrees.

    Raises:
        ValueError: unless there are angles, all of them finite numbers.
    """

    def __init__(self, angles: int | Sequence[float] | Tensor):
        count = whole_number(angles)
        self.angles = (torch.arange(count) * (180.0 / count)).double() if count > 0 else real_numbers(angles)
        if self.angles.ndim != 1 or not len(self.angles) or not self.angles.isfinite().all():
            raise ValueError(f"`angles` must be finite numbers of degrees, or their number, but are {angles!r}.")

    @staticmethod
    def _bins(height, width) -> int:
        return 2 * max(math.ceil(math.hypot(height - 1, width - 1) / 2), 1) + 1

    def measurement_shape(self, image_shape: tuple[int, ...]):
        if image_shape[1] != 1:
            raise ValueError(f"`Radon` measures images of one channel, but they have {image_shape[1]}.")
        return image_shape[0], len(self.angles), self._bins(*image_shape[2:])

    def _places(self, size, like):
        """Of each angle and pixel (angles, H W): the lower of its two bins, counted over all angles, and its share."""
        height, width = size
        bins = self._bins(height, width)

        def places():
            rows, columns = torch.arange(height).double(), torch.arange(width).double()
            across = (columns - (width - 1) / 2).expand(height, -1).flatten()
            up = ((height - 1) / 2 - rows)[:, None].expand(-1, width).flatten()
            radians = torch.deg2rad(self.angles)[:, None]
            return across * radians.cos() + up * radians.sin() + (bins - 1) / 2

        def lower():
            return places().floor().clamp(0, bins - 2)

        index = self.constant(
            ("index", size), like, lambda: lower().long() + bins * torch.arange(len(self.angles))[:, None]
        )
        return index, self.constant(("share", size), like, lambda: (lower() + 1 - places()).to(like.dtype))

    def __call__(self, x: Tensor):
        require_images(self, x)
        index, share = self._places(tuple(x.shape[2:]), x)
        pixels = x.flatten(1)[:, None, :]
        shape = self.measurement_shape(tuple(x.shape))
        y = x.new_zeros(len(x), shape[1] * shape[2])
        y = y.index_add(1, index.flatten(), (pixels * share).flatten(1))
        return y.index_add(1, index.flatten() + 1, (pixels * (1 - share)).flatten(1)).view(shape)

    def adjoint(self, y: Tensor):
        image_shape = self.shape_of_images(y)
        index, share = self._places(image_shape[1:], y)
        lines = y.flatten(1)
        return (lines[:, index] * share + lines[:, index + 1] * (1 - share)).sum(1).view(len(y), *image_shape)
