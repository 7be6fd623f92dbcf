"""Some samples of an image's Fourier transform, as magnetic resonance measures them."""

import torch
from torch import Tensor

from sde_diffusers.operators.base import LinearOperator
from sde_diffusers.operators.checks import require_images


def transformable(x: Tensor) -> Tensor:
    """x, in float32 if it has half precision, which not every device transforms."""
    return x if x.dtype == torch.float64 else x.float()


def unitary_transform(x: Tensor) -> Tensor:
    """F x of the last two axes, complex."""
    return torch.fft.fft2(transformable(x), norm="ortho")


def real_image(z: Tensor) -> Tensor:
    """The real part of F* z."""
    return torch.fft.ifft2(z, norm="ortho").real


class MaskedFourier(LinearOperator):
    """y = M F x, F unitary: of each channel's transform, the real parts and then the imaginary ones, (N, 2 C, H, W).

    The imaginary part of a frequency that is its own mirror image, such as 0, is 0 of any image and counts as missing.
    An image is real, so that the samples at k and -k tell the same: A'A = F* h F with h(k) = (m(k) + m(-k)) / 2, from
    which the rest follows, f(A A') = A f(A'A) A+ on the range of A.

    Args:
        sampled: (H, W), (C, H, W) or (N, C, H, W) booleans, True where the transform is measured; N and C may be 1.
            Frequency 0 stands at [0, 0], as `torch.fft.fft2` has it: use `torch.fft.ifftshift` on a centred mask.

    Raises:
        ValueError: if `sampled` is no boolean tensor of 2 to 4 dimensions, or samples nothing of an image.
    """

    direct = True

    def __init__(self, sampled: Tensor):
        if not isinstance(sampled, Tensor) or sampled.dtype != torch.bool or not 2 <= sampled.ndim <= 4:
            what = f"{sampled.dtype} {tuple(sampled.shape)}" if isinstance(sampled, Tensor) else type(sampled).__name__
            raise ValueError(f"`sampled` must be a boolean tensor (H, W), (C, H, W) or (N, C, H, W), but is {what}.")
        self.sampled = sampled[(None,) * (4 - sampled.ndim)]
        if not self.sampled.flatten(1).any(1).all():
            raise ValueError("`sampled` is True nowhere for an image: nothing is measured of it.")
        rows, columns = ((-torch.arange(n)) % n == torch.arange(n) for n in self.sampled.shape[2:])
        self.imaginary = self.sampled & ~(rows[:, None] & columns).to(self.sampled.device)
        mirrored = self.sampled.flip(2, 3).roll((1, 1), (2, 3))
        self.share = (self.sampled.double() + mirrored.double()) / 2

    @property
    def image_size(self):
        return tuple(self.sampled.shape[2:])

    def measurement_shape(self, image_shape: tuple[int, ...]):
        n, c, *size = image_shape
        if (
            self.sampled.shape[2:] != tuple(size)
            or self.sampled.shape[0] not in (1, n)
            or self.sampled.shape[1] not in (1, c)
        ):
            raise ValueError(
                f"`sampled` of shape {tuple(self.sampled.shape)} does not fit images {tuple(image_shape)}."
            )
        return n, 2 * c, *size

    def count(self, image_shape: tuple[int, ...]):
        return self._parts(image_shape[1]).sum((1, 2, 3)).float()

    def __call__(self, x: Tensor):
        require_images(self, x)
        self.measurement_shape(tuple(x.shape))
        z = unitary_transform(x)
        return self.measured(torch.cat([z.real, z.imag], 1).to(x.dtype))

    def adjoint(self, y: Tensor):
        parts = self.measured(transformable(y)).chunk(2, 1)
        return real_image(torch.complex(*parts)).to(y.dtype)

    def measured(self, y: Tensor):
        self.sampled, self.imaginary = self.sampled.to(y.device), self.imaginary.to(y.device)  # once
        return torch.where(self._parts(y.shape[1] // 2), y, 0)

    def _parts(self, channels: int) -> Tensor:
        """(N, 2 C, H, W) booleans: what is measured."""
        return torch.cat([part.expand(-1, channels, -1, -1) for part in (self.sampled, self.imaginary)], 1)

    def _filter(self, x, response):
        """The image x with A'A in a function of it, F* response(h) F."""
        z = unitary_transform(x)
        h = self.constant("share", z, lambda: self.share.to(z.real.dtype))
        return real_image(z * response(h)).to(x.dtype)

    def pseudo_inverse(self, y: Tensor):
        return self._filter(self.adjoint(y), lambda h: torch.where(h == 0, 0, 1 / h))

    def solve(self, y: Tensor, a: float | Tensor, b: float | Tensor):
        return self(self._filter(self.adjoint(y), lambda h: torch.where(h == 0, 0, 1 / (h * (a * h + b)))))

    def ridge(self, y: Tensor, a: float | Tensor, b: float | Tensor):
        return self.adjoint(self.solve(y, a, b))

    def repeat(self, samples: int):
        if len(self.sampled) == 1:
            return self
        return MaskedFourier(self.sampled.repeat_interleave(samples, 0)).with_settings_of(self)
