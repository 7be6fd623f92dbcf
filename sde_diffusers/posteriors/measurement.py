"""A measurement y = A x_0 + n, what its noise n is, and how both look in the range of a network's images."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sde_diffusers.operators.base import LinearOperator, Operator, OwnOperator
from sde_diffusers.operators.checks import PRECISION, SMALLEST_SCALE, answer, require_adjoint, require_linear
from sde_diffusers.operators.least_squares import like_images, ritz_values
from sde_diffusers.operators.weighted import Scaled, Weights
from sde_diffusers.posteriors.diagonal import Diagonal, diagonal_of
from sde_diffusers.scalars import real_number, real_numbers

LEAST_KNOWN = 1e-3
"""Deviation of a measured value's noise, in units of how far the value varies, below which it is in units of that."""


@dataclass
class Measurement:
    """y = A x_0 + n for N images, in the units of the network's images (y of a nonlinear A: in its own).

    Args:
        operator: A.
        y: (N, ...) the measured values.
        noise_std: deviation of the noise n of independent values: a number, or a tensor that broadcasts to y.
        half_range: half the width of the network's image range.
        noise_covariance: function w -> C w on measurements, for noise that is not independent; `noise_std` then counts
            for nothing.
        diagonal: how far each value varies; None where an operator solves r^2 A A' + C in closed form, or is nonlinear
            and the noise white.
        drawn_from: what a method leaves for the end of the step.
    """

    operator: Operator
    y: Tensor
    noise_std: float | Tensor
    half_range: float
    noise_covariance: Callable[[Tensor], Tensor] | None = None
    diagonal: Diagonal | None = None
    drawn_from: tuple | None = None

    @property
    def white(self) -> bool:
        """Whether the noise has one deviation for each image, or for all."""
        return self.noise_covariance is None and is_white(self.noise_std)

    def noise(self, w: Tensor) -> Tensor:
        """C w, with the covariance C of the noise of what A measures, for w that is 0 elsewhere."""
        if self.noise_covariance is None:
            return self.noise_std**2 * w
        measured = self.operator.measured  # a missing value's noise is unknown, and tells nothing of the others'
        return measured(self.noise_covariance(measured(w)))

    def near(self, denoised: Tensor) -> tuple[LinearOperator, Tensor]:
        """The operator as it is near the denoised images, and what it leaves of y where that is measured: y - A D."""
        residual = self.y - self.operator(denoised)  # of a linear A, both are 0 where nothing is
        return self.operator.at(denoised), residual if self.operator.linear else self.operator.measured(residual)

    def rehearsed(self) -> "Measurement":
        """The same with an operator that must solve better, and sooner; see `demanding`."""
        return replace(self, operator=demanding(self.operator))


def demanding(operator: OwnOperator) -> OwnOperator:
    """An operator whose iterative solutions must be found in half of its iterations, to a third of its tolerance.

    What succeeds so for one image of noise will succeed for those that come.
    """
    operator = copy.copy(operator)
    operator.iterations, operator.tolerance = operator.iterations // 2, operator.tolerance / 3
    return operator


class InRange(Operator):
    """A nonlinear operator, of images in [0, 1], for those in another range."""

    def __init__(self, operator: Operator, low: float, high: float):
        self.operator, self.low, self.width = operator, low, high - low
        self.image_shape, self.device = operator.image_shape, operator.device
        self.with_settings_of(operator).pointwise = operator.pointwise

    def __call__(self, x):
        images = (x - self.low) / self.width
        y = self.operator(images)
        if y.device.type == "cpu" and not y.isfinite().all() and images.isfinite().all():  # a GPU isn't waited for
            raise ValueError(
                "`operator` measures infinite values or NaN of denoised images, whose values reach from "
                f"{images.min():.3g} to {images.max():.3g}: it must be finite beyond [0, 1], too."
            )
        return y

    def at(self, x):
        return Scaled(self.operator.at((x - self.low) / self.width), 1 / self.width)

    def count(self, image_shape):
        return self.operator.count(image_shape)

    def measured(self, y):
        return self.operator.measured(y)


def in_model_range(operator, y, noise_std, noise_covariance, image_range, shape) -> Measurement:
    """The measurement of images in a network's range, low + (high - low) x; see `in_units_of_noise`.

    Args:
        operator, y, noise_std, noise_covariance: as for a `Measurement`, of images (N, C, H, W) in [0, 1].
        shape: of these images.
    """
    low, high = image_range
    width, half = high - low, (high - low) / 2
    if not operator.linear:
        operator = InRange(operator, low, high)
        return in_units_of_noise(Measurement(operator, y, noise_std, half, noise_covariance), image_range, shape)
    offset = operator(torch.full(shape, low, device=y.device, dtype=y.dtype))
    covariance = None if noise_covariance is None else lambda w: width**2 * noise_covariance(w)
    measurement = Measurement(operator, offset + width * y, width * noise_std, half, covariance)
    return in_units_of_noise(measurement, image_range, shape)


def in_units_of_noise(measurement: Measurement, image_range, shape) -> Measurement:
    """A measurement whose noise differs from value to value, each value divided by its deviation s: A / s, y / s.

    The posterior is the same; what does not solve for it exactly then counts values by how well they are known,
    whatever their units. The least s is `LEAST_KNOWN` times what the value varies by, for exact values, too.
    """
    operator, y = measurement.operator, measurement.y
    if measurement.white and (not operator.linear or operator.direct):  # type: ignore[attr-defined]
        return measurement
    diagonal = diagonal_of(operator, measurement.noise, y, image_range, shape)
    if measurement.white or measurement.noise_covariance is not None:
        return replace(measurement, diagonal=diagonal)
    low, high = image_range
    std = measurement.noise_std.expand_as(y)  # type: ignore[union-attr]
    spread = (high - low) * (diagonal.gain / 6).sqrt()  # root mean square of differences of uniform pixels' values
    scale = torch.maximum(std, LEAST_KNOWN * spread)
    scale = torch.where(scale > 0, scale, 1)  # nothing is measured there
    scaled = Weights(1 / scale) @ operator
    scaled.image_shape, scaled.device = operator.image_shape, operator.device
    noise_std = 1.0 if (std == scale).all() else std / scale
    return replace(measurement, operator=scaled, y=y / scale, noise_std=noise_std, diagonal=diagonal.divided(scale))


def is_white(noise_std) -> bool:
    """Whether a deviation is one number for each image, or for all."""
    return not isinstance(noise_std, Tensor) or noise_std.ndim == 0 or noise_std.numel() == len(noise_std)


def read_noise_std(noise_std, y: Tensor, seen: Tensor | None = None) -> float | Tensor:
    """The deviation of a measurement's noise, as a number or a float32 tensor with as many dimensions as y, checked.

    Args:
        noise_std: a number; one for each image, (N,) as a list, array or tensor; or any tensor of two or more
            dimensions that broadcasts to y.
        y: (N, ...).
        seen: (N, ...) booleans, where something is measured; what `noise_std` says elsewhere does not matter.

    Raises:
        ValueError: on another shape, or values out of range.
    """
    largest = 1 / SMALLEST_SCALE
    allowed = (
        f"a number from 0 to {largest:g}, {len(y)} of them (one for each measurement), or a tensor of two or more "
        f"dimensions that broadcasts to the measurement's {tuple(y.shape)}"
    )
    if isinstance(noise_std, (list, tuple, np.ndarray)):
        given, noise_std = noise_std, real_numbers(noise_std)
        if noise_std.isnan().any():
            raise ValueError(f"`noise_std` must be {allowed}, but is {given!r}.")
    if isinstance(noise_std, Tensor):
        what = f"has shape {tuple(noise_std.shape)}"
        if noise_std.ndim == 1:
            fits, noise_std = len(noise_std) == len(y), noise_std.reshape(-1, *[1] * (y.ndim - 1))
        else:
            sizes = zip(reversed(noise_std.shape), reversed(y.shape), strict=False)
            fits = noise_std.ndim <= y.ndim and all(a in (1, b) for a, b in sizes)
        if not fits or noise_std.is_complex() or noise_std.dtype == torch.bool:
            raise ValueError(f"`noise_std` must be {allowed}, but {what} of {noise_std.dtype}.")
        noise_std = noise_std[(None,) * (y.ndim - noise_std.ndim)]
        if seen is not None and not is_white(noise_std):
            noise_std = of_the_seen(noise_std.to(seen.device).expand(y.shape), seen)
        if not ((noise_std >= 0) & (noise_std <= largest)).all():
            raise ValueError(
                f"`noise_std` must be {allowed}, but reaches from {noise_std.min()} to {noise_std.max()}."
            )
        first = noise_std.flatten(1)[:, 0].reshape(-1, *[1] * (y.ndim - 1))
        if (noise_std == first).all():  # one for each image
            noise_std = first
        if noise_std.numel() == 1 or not noise_std.any():
            return noise_std.flatten()[0].item()
        return noise_std.to(y.device, torch.float32)
    if not 0 <= real_number(noise_std) <= largest:
        raise ValueError(f"`noise_std` must be {allowed}, but is {noise_std!r}.")
    return float(real_number(noise_std))


def of_the_seen(values: Tensor, seen: Tensor) -> Tensor:
    """Values of measurements (N, ...), with that of an image's first seen one in place of those that are not."""
    first = seen.flatten(1).byte().argmax(1, keepdim=True)
    fill = torch.where(seen.flatten(1).any(1, keepdim=True), values.flatten(1).gather(1, first), 0)
    return torch.where(seen, values, fill.reshape(-1, *[1] * (values.ndim - 1)))


def require_covariance(covariance, y: Tensor) -> None:
    """Raise a `ValueError` unless a function is a covariance on measurements like y: linear, symmetric, positive."""
    if not callable(covariance):
        raise ValueError(f"`noise_covariance` must be a function w -> C w, but is {type(covariance).__name__}.")
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(y.shape, generator=generator).to(y) for _ in range(2))
    fails = f"`noise_covariance` does not take measurements {tuple(y.shape)}"
    image = answer(covariance, u, "noise_covariance", fails)
    if not isinstance(image, Tensor) or image.shape != y.shape or image.dtype != y.dtype:
        what = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(
            f"`noise_covariance` must return {y.dtype} {tuple(y.shape)} as it is given, but gives {what}."
        )
    require_linear(covariance, u, v, image, "noise_covariance")
    require_adjoint(SelfAdjoint(covariance), u, v, "noise_covariance")
    values = ritz_values(covariance, u)
    least, largest = values.min().item(), values.abs().max().item()
    if least < -PRECISION * largest:
        raise ValueError(
            f"`noise_covariance` must be positive, but has an eigenvalue of at most {least:.3g}, beside {largest:.3g}."
        )


class SelfAdjoint(LinearOperator):
    """A function that should be its own adjoint."""

    def __init__(self, f):
        self.f = f

    def __call__(self, x):
        return self.f(x)

    def adjoint(self, y):
        return self.f(y)


def poisson_noise_std(y: Tensor, photons: float) -> Tensor:
    """Deviation of a measurement's counting noise, for each value: that of a Gaussian in place of Poisson's law.

    With `photons` counts expected for the value 1, counts are photons * y, and their variance is their expectation.
    The approximation takes the counts themselves for that, at least one of them: variance max(y, 1 / photons) /
    photons. It is good from some ten counts on; below, Poisson's law is skew, and few counts say little of their mean.

    Args:
        y: a measurement, at least 0, in units of images in [0, 1]; NaN where a value is missing, and so in what comes.
        photons: above 0.

    Returns:
        The deviations, of y's shape; float32 for y of half precision, which has no numbers for those of dark pixels.

    Raises:
        ValueError: on other numbers.
    """
    if not 0 < real_number(photons) < math.inf:
        raise ValueError(f"`photons` must be a finite number above 0, but is {photons!r}.")
    if not isinstance(y, Tensor) or not y.is_floating_point() or not (((y >= 0) & (y < math.inf)) | y.isnan()).all():
        raise ValueError("`y` must be a floating point tensor of counts / photons, finite and at least 0, or NaN.")
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    return (y.clamp(min=1 / photons) / photons).sqrt()


def per_value(factor, y: Tensor):
    """A number, or a tensor that broadcasts to y, with y's dtype."""
    return factor.to(y) if isinstance(factor, Tensor) else factor


def per_image(factor, x: Tensor):
    """A number, or one for each image in any shape, as a factor of x."""
    return like_images(factor.to(x), x) if isinstance(factor, Tensor) else factor
