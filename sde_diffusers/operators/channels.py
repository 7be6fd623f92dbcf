"""Measurements of each pixel's channels: a weighted mean of them, or some of them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sde_diffusers.operators.base import LinearOperator
from sde_diffusers.operators.checks import require_images
from sde_diffusers.scalars import real_numbers, whole_numbers


class Grayscale(LinearOperator):
    """A weighted mean of the channels: y = sum_c w_c x_c, of shape (N, 1, H, W).

    Args:
        weights: of the channels. The default is the mean of three, as in the paper; photographs made grey by PIL or a
            camera are (0.299, 0.587, 0.114).

    Raises:
        ValueError: unless there are at least two weights, positive and of sum 1.
    """

    def __init__(self, weights: Sequence[float] | Tensor = (1 / 3, 1 / 3, 1 / 3)):
        self.weights = real_numbers(weights)
        good = self.weights.ndim == 1 and len(self.weights) > 1 and (self.weights > 0).all()
        if not good or abs(self.weights.sum().item() - 1) > 1e-3:
            raise ValueError(f"`weights` must be two or more positive numbers of sum 1, but are {weights!r}.")
        self.gram = self.weights.square().sum().item()

    def measurement_shape(self, image_shape: tuple[int, ...]):
        if image_shape[1] != len(self.weights):
            raise ValueError(
                f"`weights` are of {len(self.weights)} channels, but the model's images have {image_shape[1]}."
            )
        return (image_shape[0], 1, *image_shape[2:])

    def _column(self, x):
        return self.constant("weights", x, lambda: self.weights.to(x.dtype)[:, None, None])

    def __call__(self, x: Tensor):
        require_images(self, x)
        self.measurement_shape(tuple(x.shape))
        return (x * self._column(x)).sum(1, keepdim=True)

    def adjoint(self, y: Tensor):
        return y * self._column(y)


class Bands(LinearOperator):
    """Some channels of many, in the given order: y has shape (N, len(bands), H, W).

    Args:
        bands: their numbers, from 0.

    Raises:
        ValueError: unless they are different whole numbers, at least one.
    """

    gram = 1.0

    def __init__(self, bands: Iterable[int]):
        numbers = whole_numbers(bands)
        self.bands = [int(number) for number in numbers if number >= 0]
        if not numbers or len(set(self.bands)) < len(numbers):
            raise ValueError(f"`bands` must be different whole numbers of at least 0, but are {bands!r}.")

    def measurement_shape(self, image_shape: tuple[int, ...]):
        if max(self.bands) >= image_shape[1]:
            raise ValueError(f"`bands` are {self.bands}, but the images have {image_shape[1]} channels.")
        return (image_shape[0], len(self.bands), *image_shape[2:])

    def __call__(self, x: Tensor):
        require_images(self, x)
        self.measurement_shape(tuple(x.shape))
        return x.index_select(1, self._index(x))

    def adjoint(self, y: Tensor):
        x = y.new_zeros(len(y), self.shape_of_images(y)[0], *y.shape[2:])
        return x.index_copy(1, self._index(y), y)

    def _index(self, like):
        return self.constant("bands", like, lambda: torch.tensor(self.bands))
