"""Linear measurements y = A x of images, with what inverse problems need of them.

    mask         y = (1 - m) x                   pixels where m = 1 are missing
    grayscale    y = sum_c w_c x_c               a mean of the channels
    downsampling y = mean of each k x k block
    blur         y = kernel * x

Each operator has its adjoint A', <A x, y> = <x, A' y>, its pseudo-inverse A+, with A A+ A = A, and solves systems with
a A A' + b. The first three have orthogonal rows of one length, A A' = c on the range of A, so that A+ = A' / c; up to
that length, they are the first rows of an orthonormal matrix (the decoupling of appendix I.2 in arXiv 2011.13456). A
blur has singular values of its own.

A pipeline takes measurements in units of images in [0, 1].
"""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import avg_pool2d

from sde_diffusers.scalars import real_number, whole_number
from sde_diffusers.sdes.gaussian import require_positive


class LinearOperator:
    """Base of the measurements; images are (N, C, H, W), and each is measured for itself.

    Attributes:
        gram: c if A A' = c on the range of A, and then `pseudo_inverse` and `solve` follow; None otherwise.
    """

    gram: float | None = None

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of A x for images of shape (N, C, H, W).

        Raises:
            ValueError: if the operator does not fit such images.
        """
        raise NotImplementedError

    def count(self, image_shape: tuple[int, ...]) -> Tensor:
        """Number of measured values of each image, (N or 1, 1, 1, 1) float."""
        return torch.full((1, 1, 1, 1), float(math.prod(self.measurement_shape(image_shape)[1:])))

    def __call__(self, x: Tensor) -> Tensor:
        """A x, in x's dtype."""
        raise NotImplementedError

    def adjoint(self, y: Tensor) -> Tensor:
        """A' y."""
        raise NotImplementedError

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A+ y, the least of the images that fit y best."""
        return self.adjoint(y) / self.gram

    def solve(self, y: Tensor, a, b) -> Tensor:
        """(a A A' + b)^-1 y for y in the range of A; a > 0 and b >= 0 are numbers or (N, 1, 1, 1)."""
        return y / (a * self.gram + b)

    def attainable(self, y: Tensor) -> Tensor:
        """A A+ y, the part of y that an image can give; all of it if every y is a measurement of some image."""
        return y

    def consistent(self, x: Tensor, y: Tensor) -> Tensor:
        """The image nearest to x that measures y: A+ y + (1 - A+ A) x. Observed pixels are exactly those of y."""
        return self.pseudo_inverse(y) + (x - self.pseudo_inverse(self(x)))

    def repeat(self, samples: int) -> "LinearOperator":
        """The operator for a batch in which each image is repeated so many times; itself unless it varies."""
        return self


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

    def measurement_shape(self, image_shape):
        size = zip(self.mask.shape, image_shape, strict=True)
        if self.mask.shape[2:] != tuple(image_shape[2:]) or not all(m in (1, n) for m, n in size):
            raise ValueError(f"`mask` of shape {tuple(self.mask.shape)} does not fit images {tuple(image_shape)}.")
        return tuple(image_shape)

    def count(self, image_shape):
        return (~self.mask).expand(-1, image_shape[1], -1, -1).sum((1, 2, 3), keepdim=True).float()

    def __call__(self, x):
        return torch.where(self.mask.to(x.device), 0, x)

    def adjoint(self, y):
        return self(y)

    def attainable(self, y):
        return self(y)

    def repeat(self, samples):
        return self if len(self.mask) == 1 else Mask(self.mask.repeat_interleave(samples, 0))


class Grayscale(LinearOperator):
    """A weighted mean of the channels: y = sum_c w_c x_c, of shape (N, 1, H, W).

    Args:
        weights: of the channels. The default is the mean of three, as in the paper; photographs made grey by PIL or a
            camera are (0.299, 0.587, 0.114).

    Raises:
        ValueError: unless there are at least two weights, positive and of sum 1.
    """

    def __init__(self, weights=(1 / 3, 1 / 3, 1 / 3)):
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        good = self.weights.ndim == 1 and len(self.weights) > 1 and (self.weights > 0).all()
        if not good or abs(self.weights.sum().item() - 1) > 1e-3:
            raise ValueError(f"`weights` must be two or more positive numbers of sum 1, but are {weights!r}.")
        self.gram = self.weights.square().sum().item()

    def measurement_shape(self, image_shape):
        if image_shape[1] != len(self.weights):
            raise ValueError(f"`weights` are {len(self.weights)}, but the images have {image_shape[1]} channels.")
        return (image_shape[0], 1, *image_shape[2:])

    def _column(self, x):
        return self.weights.to(x.device, x.dtype)[:, None, None]

    def __call__(self, x):
        return (x * self._column(x)).sum(1, keepdim=True)

    def adjoint(self, y):
        return y * self._column(y)


class Downsampling(LinearOperator):
    """The mean of each factor x factor block: y has shape (N, C, H / factor, W / factor).

    Raises:
        ValueError: if the factor is no integer above 1.
    """

    def __init__(self, factor: int):
        if not whole_number(factor) >= 2:
            raise ValueError(f"`factor` must be an integer above 1, but is {factor!r}.")
        self.factor = whole_number(factor)
        self.gram = 1 / self.factor**2

    def measurement_shape(self, image_shape):
        n, c, height, width = image_shape
        if height % self.factor or width % self.factor:
            raise ValueError(f"`factor` must divide the images' size {height} x {width}, but is {self.factor}.")
        return n, c, height // self.factor, width // self.factor

    def __call__(self, x):
        return avg_pool2d(x, self.factor)

    def adjoint(self, y):
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3) * self.gram


class Blur(LinearOperator):
    """Base of the blurs A = F* diag(values) F, where F is unitary.

    Values below `NEGLIGIBLE` times the largest one are set to 0, and A with them: the measurement says nothing of
    such details, and to invert them would only amplify rounding errors.
    """

    NEGLIGIBLE = 1e-3

    def measurement_shape(self, image_shape):
        self._values(*image_shape[2:])
        return tuple(image_shape)

    def _values(self, height: int, width: int) -> Tensor:
        """The (H, W) diagonal for images of this size, in double precision."""
        raise NotImplementedError

    def _transform(self, x: Tensor) -> Tensor:
        """F x."""
        raise NotImplementedError

    def _inverse_transform(self, z: Tensor) -> Tensor:
        """F* z, real."""
        raise NotImplementedError

    def _filter(self, x, response):
        values = self._values(*x.shape[2:])
        values = torch.where(values.abs() < self.NEGLIGIBLE * values.abs().max(), 0, values)
        z = self._transform(x)
        return self._inverse_transform(z * response(values.to(z.device)).to(z.dtype))

    def __call__(self, x):
        return self._filter(x, lambda s: s)

    def adjoint(self, y):
        return self._filter(y, lambda s: s.conj())

    def pseudo_inverse(self, y):
        return self._filter(y, lambda s: torch.where(s == 0, 0, 1 / s))

    def attainable(self, y):
        return self._filter(y, lambda s: (s != 0).to(s.dtype))

    def solve(self, y, a, b):
        a, b = (v.double() if isinstance(v, Tensor) else v for v in (a, b))
        return self._filter(y, lambda s: torch.where(s == 0, 0, 1 / (a * s.abs() ** 2 + b)))


class GaussianBlur(Blur):
    """Blur by a Gaussian of deviation `std` pixels, cut at 4 deviations; images go on beyond their edges as mirrored.

    Each axis has a symmetric matrix, F are their eigenvectors.

    Raises:
        ValueError: if `std` is no finite number above 0.
    """

    def __init__(self, std: float):
        (std,) = require_positive(std=std)
        self.std = std
        self._axes = {}

    def _axis(self, n: int) -> tuple[Tensor, Tensor]:
        """Eigenvalues (n,) and eigenvectors (n, n) of the blur along an axis of n pixels."""
        if n not in self._axes:
            offsets = torch.arange(-math.ceil(4 * self.std), math.ceil(4 * self.std) + 1)
            kernel = (-0.5 * (offsets / self.std).double() ** 2).exp()
            index = (torch.arange(n)[:, None] + offsets) % (2 * n)
            index = torch.where(index < n, index, 2 * n - 1 - index)
            matrix = torch.zeros(n, n, dtype=torch.float64)
            matrix.scatter_add_(1, index, (kernel / kernel.sum()).expand(n, -1))
            self._axes[n] = torch.linalg.eigh(matrix)
        return self._axes[n]

    def _bases(self, x):
        return (self._axis(n)[1].to(x.device, x.dtype) for n in x.shape[2:])

    def _values(self, height, width):
        return self._axis(height)[0][:, None] * self._axis(width)[0]

    def _transform(self, x):
        rows, columns = self._bases(x)
        return rows.T @ x @ columns

    def _inverse_transform(self, z):
        rows, columns = self._bases(z)
        return rows @ z @ columns.T


class Convolution(Blur):
    """Convolution with any kernel; images go on beyond their edges periodically, so F is the Fourier transform.

    Args:
        kernel: (h, w) array or tensor, of sum 1 if the brightness is to be kept; its centre is at (h // 2, w // 2).

    Raises:
        ValueError: if the kernel is not two-dimensional, not finite or zero.
    """

    def __init__(self, kernel):
        self.kernel = torch.as_tensor(kernel, dtype=torch.float64)
        if self.kernel.ndim != 2 or not self.kernel.isfinite().all() or not self.kernel.any():
            raise ValueError(f"`kernel` must be a finite (h, w) array that is not 0, but is {kernel!r}.")

    def _values(self, height, width):
        h, w = self.kernel.shape
        if h > height or w > width:
            raise ValueError(f"`kernel` must not be larger than the images, {height} x {width}, but is {h} x {w}.")
        padded = torch.zeros(height, width, dtype=torch.float64)
        padded[:h, :w] = self.kernel
        return torch.fft.fft2(padded.roll((-(h // 2), -(w // 2)), (0, 1)))

    def _transform(self, x):
        return torch.fft.fft2(x, norm="ortho")

    def _inverse_transform(self, z):
        return torch.fft.ifft2(z, norm="ortho").real


# ---- masks ---------------------------------------------------------------------------------------------------------


def box_mask(height: int, width: int, box: tuple[int, int, int, int]) -> Tensor:
    """(H, W) booleans, True in rows top..bottom and columns left..right of box = (top, left, bottom, right).

    Raises:
        ValueError: if the box is empty or leaves the image.
    """
    top, left, bottom, right = box
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(f"`box` must lie within {height} x {width} pixels and not be empty, but is {box}.")
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def random_mask(shape: tuple[int, ...], share: float, generator=None) -> Tensor:
    """Booleans of any shape whose last two dimensions are an image's, True for `share` of its pixels, at random.

    Raises:
        ValueError: unless 0 < share < 1.
    """
    if not 0 < real_number(share) < 1:
        raise ValueError(f"`share` must lie between 0 and 1, but is {share!r}.")
    noise = torch.rand(shape, generator=generator).flatten(-2)
    return (noise.argsort(-1).argsort(-1) < round(share * noise.shape[-1])).view(shape)


def stroke_mask(height: int, width: int, strokes: int = 4, thickness: int = 3, generator=None) -> Tensor:
    """(H, W) booleans, True under free-form brush strokes: broken lines of random corners."""
    picture = Image.new("L", (width, height))
    for _ in range(strokes):
        corners = torch.rand(4, 2, generator=generator) * torch.tensor([width, height])
        ImageDraw.Draw(picture).line([tuple(corner) for corner in corners.tolist()], 255, thickness, "curve")
    return torch.from_numpy(np.array(picture)) > 0
