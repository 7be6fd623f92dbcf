"""Measurements that are not linear: a curve, a limit, steps, magnitudes, a codec.

Where an operator has no derivative, it has that of the identity here (a straight-through estimate): the linear
operator that it is like, on a scale that is large beside its steps. What it rounds away is noise: say its deviation.
"""

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sde_diffusers.operators.base import Operator
from sde_diffusers.operators.checks import require_images
from sde_diffusers.operators.fourier import unitary_transform
from sde_diffusers.scalars import real_number, whole_number
from sde_diffusers.sdes.gaussian import require_positive


class ShapeKeeping(Operator):
    """Base of the operators whose measurements have the shape of the images."""

    def measurement_shape(self, image_shape: tuple[int, ...]):
        return tuple(image_shape)


class Pointwise(ShapeKeeping):
    """Base of those that measure each value for itself."""

    pointwise = True


class Gamma(Pointwise):
    """y = x^gamma, continued below x = 1e-4 by its tangent.

    Raises:
        ValueError: if gamma is no finite number above 0.
    """

    LEAST = 1e-4

    def __init__(self, gamma: float):
        (self.gamma,) = require_positive(gamma=gamma)

    def __call__(self, x: Tensor):
        self.require_floating(x)
        tangent = self.LEAST**self.gamma * (1 + self.gamma * (x / self.LEAST - 1))
        return torch.where(x > self.LEAST, x.clamp(min=self.LEAST) ** self.gamma, tangent)


class Saturation(Pointwise):
    """y = gain x, clipped to [low, high]: too long an exposure, say. Its derivative is the gain everywhere.

    With a derivative of 0 where an image is clipped, one that lies beyond the limits, where the measurement is within,
    would never be called back.

    Raises:
        ValueError: if the gain is no finite number above 0, or low is not below high.
    """

    def __init__(self, gain: float = 1.0, low: float = 0.0, high: float = 1.0):
        (gain,) = require_positive(gain=gain)
        if not real_number(low) < real_number(high):
            raise ValueError(f"`low` must be a number less than `high`, but they are {low!r} and {high!r}.")
        self.gain, self.low, self.high = gain, real_number(low), real_number(high)

    def __call__(self, x: Tensor):
        self.require_floating(x)
        linear = self.gain * x
        return linear + (linear.clamp(self.low, self.high) - linear).detach()


class Quantization(Pointwise):
    """y = x rounded to `levels` equidistant values from 0 to 1; its derivative is that of the identity.

    Attributes:
        rounding_std: deviation of the rounding error, 1 / ((levels - 1) sqrt(12)).

    Raises:
        ValueError: if `levels` is no integer above 1.
    """

    def __init__(self, levels: int):
        if not whole_number(levels) >= 2:
            raise ValueError(f"`levels` must be an integer above 1, but is {levels!r}.")
        self.steps = whole_number(levels) - 1
        self.rounding_std = 1 / (self.steps * math.sqrt(12))

    def __call__(self, x: Tensor):
        self.require_floating(x)
        rounded = (self.steps * x.detach().clamp(0, 1)).round() / self.steps
        return x + (rounded - x.detach())


class FourierMagnitude(ShapeKeeping):
    """y = |F x|, of each channel, F unitary: the phase is lost, as in diffraction.

    An image, its mirror image and its translates (as periodic images) measure the same: the posterior has many modes.
    """

    SMALLEST = 1e-6  # where the magnitude is 0 it has no derivative

    def __call__(self, x: Tensor):
        require_images(self, x)
        z = unitary_transform(x)
        return (z.real**2 + z.imag**2 + self.SMALLEST**2).sqrt().to(x.dtype)


class JPEG(ShapeKeeping):
    """y = x after compression by PIL's JPEG, of images of one or three channels; the identity's derivative.

    Args:
        quality: 1 to 95.

    Raises:
        ValueError: on another quality.
    """

    def __init__(self, quality: int):
        if not 1 <= whole_number(quality) <= 95:
            raise ValueError(f"`quality` must be an integer in [1, 95], but is {quality!r}.")
        self.quality = whole_number(quality)

    def measurement_shape(self, image_shape: tuple[int, ...]):
        if image_shape[1] not in (1, 3):
            raise ValueError(f"`JPEG` compresses images of 1 or 3 channels, but they have {image_shape[1]}.")
        return tuple(image_shape)

    def _compressed(self, image: Tensor) -> Tensor:
        values = (255 * image.clamp(0, 1)).round().byte().cpu().permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(file, "JPEG", quality=self.quality)
        decoded = np.array(Image.open(file))
        decoded = decoded[None] if decoded.ndim == 2 else decoded.transpose(2, 0, 1)
        return torch.from_numpy(decoded).to(image) / 255

    def __call__(self, x: Tensor):
        require_images(self, x)
        given = x.detach()
        return x + (torch.stack([self._compressed(image) for image in given]) - given)
