"""Blurs: a Gaussian's or any kernel's, and what an image is taken for beyond its edges.

    reflect     c b | a b c | b a        mirrored about the last pixel
    symmetric   b a | a b c | c b        mirrored about the edge
    replicate   a a | a b c | c c        the last pixel goes on
    zero        0 0 | a b c | 0 0
    circular    b c | a b c | a b        periodic
    valid       nothing: only pixels are measured of which all neighbours are known

The words are those of `torch.nn.functional.pad`, and "symmetric" that of `numpy.pad`. In a photograph what lies beyond
the frame takes part in the blur: "valid" is true of every pixel that it measures, the others are guesses, of which
"reflect" and "replicate" are the better ones.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sde_diffusers.operators.base import LinearOperator
from sde_diffusers.operators.checks import require_images
from sde_diffusers.operators.decomposed import Decomposed, Dense, Separable
from sde_diffusers.operators.fourier import real_image, unitary_transform
from sde_diffusers.parameterization import require_choice
from sde_diffusers.scalars import real_numbers
from sde_diffusers.sdes.gaussian import require_positive

FEW_PIXELS = 32 * 32
"""Up to so many the matrix of a convolution is decomposed as it is, which takes half a second."""
WIDEST = 1000  # deviation of a Gaussian, in pixels: what is wider leaves one colour
BOUNDARIES = ("reflect", "symmetric", "replicate", "zero", "circular", "valid")


def beyond_edges(n: int, before: int, after: int, boundary: str) -> Tensor:
    """(before + n + after,) the pixels that stand along an axis of n pixels and beyond its ends; n stands for a zero.

    With "valid" nothing stands beyond: (n,).
    """
    if boundary == "valid":
        return torch.arange(n)
    index = torch.arange(-before, n + after)
    if boundary == "circular":
        return index % n
    if boundary == "replicate":
        return index.clamp(0, n - 1)
    if boundary == "zero":
        return torch.where((index < 0) | (index >= n), n, index)
    period = 2 * n if boundary == "symmetric" else max(2 * n - 2, 1)
    index = index % period
    return torch.where(index < n, index, period - index - (1 if boundary == "symmetric" else 0))


class GaussianBlur(Separable):
    """Blur by a Gaussian of deviation `std` pixels, cut at 4 deviations.

    Of the details that it leaves less than a thousandth of, A x holds nothing: see `decomposed`. So it is a true blur
    to some 2e-4, less than the rounding of 8 bits, and more than that of 16.

    Args:
        boundary: what is beyond the edges, one of `BOUNDARIES`; the default keeps constant images and their energy.

    Raises:
        ValueError: unless 0 < `std` <= 1000, if there is no such boundary, or nothing is left to measure.
    """

    def __init__(self, std: float, boundary: str = "symmetric"):
        (std,) = require_positive(std=std)
        if std > WIDEST:
            raise ValueError(f"`std` must be at most {WIDEST} pixels, but is {std!r}.")
        require_choice("boundary", boundary, BOUNDARIES)
        self.std, self.boundary = std, boundary
        self.reach = math.ceil(4 * std)

    def _axis_matrix(self, n):
        offsets = torch.arange(-self.reach, self.reach + 1)
        kernel = (-0.5 * (offsets / self.std).double() ** 2).exp()
        index = beyond_edges(n, self.reach, self.reach, self.boundary)
        m = len(index) - 2 * self.reach
        if m < 1:
            raise ValueError(f"`std`={self.std} with `boundary`='valid' leaves nothing to measure of {n} pixels.")
        windows = index[torch.arange(m)[:, None] + torch.arange(len(kernel))]
        matrix = torch.zeros(m, n + 1, dtype=torch.float64)  # the last column takes what falls on zeros
        matrix.scatter_add_(1, windows, (kernel / kernel.sum()).expand(m, -1))
        return matrix[:, :n]

    def _axis_size(self, m):
        return m + 2 * self.reach if self.boundary == "valid" else m

    def blurred_from(self, size: tuple[int, ...]) -> tuple[int, int]:
        """(H, W) of the images whose blur has that size."""
        return tuple(self._axis_size(m) for m in size)


class Convolution(LinearOperator):
    """Convolution with any kernel: y(i) = sum_j kernel(j) x(i - j), j counted from the kernel's centre.

    Args:
        kernel: (h, w) array or tensor, of sum 1 if the brightness is to be kept; its centre is at (h // 2, w // 2).
        boundary: what is beyond the edges, one of `BOUNDARIES`. With "valid", y has shape (N, C, H - h + 1,
            W - w + 1). "circular" has everything in closed form, by the Fourier transform, and the others for images
            of at most 32 x 32 pixels (`for_images`), by a singular value decomposition; then A x lacks the details of
            which the kernel leaves less than a thousandth, as `GaussianBlur` does.

    Raises:
        ValueError: if the kernel is not two-dimensional, not finite, complex or zero, or there is no such boundary.
    """

    def __new__(cls, kernel=None, boundary: str = "reflect"):
        return super().__new__(CircularConvolution if (cls, boundary) == (Convolution, "circular") else cls)

    def __init__(self, kernel: Tensor | np.ndarray | Sequence[Sequence[float]], boundary: str = "reflect"):
        self.kernel = real_numbers(kernel)
        if self.kernel.ndim != 2 or not self.kernel.isfinite().all() or not self.kernel.any():
            raise ValueError(f"`kernel` must be a finite and real (h, w) array that is not 0, but is {kernel!r}.")
        require_choice("boundary", boundary, BOUNDARIES)
        self.boundary = boundary

    def measurement_shape(self, image_shape: tuple[int, ...]):
        *batch, height, width = image_shape
        h, w = self.kernel.shape
        if h > height or w > width:
            raise ValueError(f"`kernel` must not be larger than the images, {height} x {width}, but is {h} x {w}.")
        return (*batch, height - h + 1, width - w + 1) if self.boundary == "valid" else tuple(image_shape)

    def blurred_from(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(H, W) of the images whose blur has that size."""
        more = (side - 1 if self.boundary == "valid" else 0 for side in self.kernel.shape)
        return tuple(m + n for m, n in zip(size, more, strict=True))

    def shape_of_images(self, y: Tensor):
        return (y.shape[1], *self.blurred_from(y.shape[2:]))

    def for_images(self, shape: tuple[int, ...], device: torch.device | str | None = None):
        operator = super().for_images(shape, device)
        if type(self) is not Convolution or math.prod(shape[2:]) > FEW_PIXELS:
            return operator
        small = SmallConvolution(self.kernel, self.boundary).with_settings_of(self)
        small.image_shape, small.device = tuple(shape[1:]), device
        return small

    def _index(self, size: tuple[int, ...], axis: int) -> Tensor:
        """Of an axis, the pixels at which the kernel's windows look."""
        side = self.kernel.shape[axis]
        return beyond_edges(size[axis], side - 1 - side // 2, side // 2, self.boundary)

    def __call__(self, x: Tensor):
        require_images(self, x)
        self.measurement_shape(tuple(x.shape))
        size = tuple(x.shape[2:])
        rows, columns = (self.constant((size, k), x, partial(self._index, size, k)) for k in (0, 1))
        wide = F.pad(x, (0, 1, 0, 1))[..., rows, :][..., columns] if self.boundary != "valid" else x
        kernel = self.constant("kernel", x, lambda: self.kernel.flip(0, 1).to(x.dtype))
        return F.conv2d(wide, kernel.expand(x.shape[1], 1, -1, -1), groups=x.shape[1])


class CircularConvolution(Decomposed, Convolution):
    """The convolution of periodic images: A = F* diag(values) F with the Fourier transform F."""

    def _values(self, height, width):
        h, w = self.kernel.shape
        padded = torch.zeros(height, width, dtype=torch.float64)
        padded[:h, :w] = self.kernel
        return torch.fft.fft2(padded.roll((-(h // 2), -(w // 2)), (0, 1)))

    def _analyse(self, x):
        return unitary_transform(x)

    def _synthesise(self, z, size):
        return real_image(z)


class SmallConvolution(Dense, Convolution):
    """The convolution of images of `FEW_PIXELS`."""

    def _matrix(self):
        h, w = self.image_shape[1:]
        pixels = torch.eye(h * w, dtype=torch.float64).view(h * w, 1, h, w)
        return Convolution.__call__(self, pixels).flatten(1).T
