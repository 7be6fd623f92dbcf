"""Smaller images: means of blocks, and the bicubic filter of PIL."""

import torch
from torch import Tensor

from sde_diffusers.operators.base import LinearOperator
from sde_diffusers.operators.checks import require_images
from sde_diffusers.operators.decomposed import Separable
from sde_diffusers.scalars import whole_number


class Downsampling(LinearOperator):
    """The mean of each factor x factor block: y has shape (N, C, H / factor, W / factor).

    Raises:
        ValueError: if the factor is no integer from 2 to 1024.
    """

    def __init__(self, factor: int):
        self.factor = checked_factor(factor)
        self.gram = 1 / self.factor**2

    def measurement_shape(self, image_shape: tuple[int, ...]):
        return smaller_shape(image_shape, self.factor)

    def __call__(self, x: Tensor):
        require_images(self, x)
        self.measurement_shape(tuple(x.shape))
        rows = x.unflatten(-2, (-1, self.factor)).mean(-2)  # `avg_pool2d` adds up one after another: at 1024, 1 % off
        return rows.unflatten(-1, (-1, self.factor)).mean(-1)

    def adjoint(self, y: Tensor):
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3) * self.gram


class Bicubic(Separable):
    """What PIL makes of an image by its bicubic filter: y has shape (N, C, H / factor, W / factor).

    `image.resize((W // factor, H // factor), Image.Resampling.BICUBIC)` in floating point, that is, without the
    rounding and clipping of 8 bits: a cubic (a = -1/2) stretched by the factor, its weights of sum 1.

    Raises:
        ValueError: if the factor is no integer from 2 to 1024.
    """

    def __init__(self, factor: int):
        self.factor = checked_factor(factor)

    def measurement_shape(self, image_shape: tuple[int, ...]):
        return smaller_shape(image_shape, self.factor)

    def __call__(self, x: Tensor):
        require_images(self, x)
        self.measurement_shape(tuple(x.shape))
        return super().__call__(x)

    def _axis_matrix(self, n):
        centres = (torch.arange(n // self.factor) + 0.5) * self.factor
        weights = cubic((torch.arange(n) + 0.5 - centres[:, None]).double() / self.factor)
        return weights / weights.sum(1, keepdim=True)

    def _axis_size(self, m):
        return m * self.factor


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -1/2, which reaches from -2 to 2."""
    x, a = x.abs(), -0.5
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def checked_factor(factor) -> int:
    """A factor; a `ValueError` unless it is an integer from 2 to 1024."""
    if not 2 <= whole_number(factor) <= 1024:
        raise ValueError(f"`factor` must be an integer from 2 to 1024, but is {factor!r}.")
    return int(whole_number(factor))


def smaller_shape(image_shape: tuple[int, ...], factor: int) -> tuple[int, ...]:
    """(N, C, H / factor, W / factor); a `ValueError` if the factor does not divide the size."""
    n, c, height, width = image_shape
    if height % factor or width % factor:
        raise ValueError(f"`factor` must divide the images' size {height} x {width}, but is {factor}.")
    return n, c, height // factor, width // factor
