"""Operators whose singular values and vectors are known: A = U S V*, with everything else in closed form.

    A' = V S* U*        A+ = V S^-1 U*        (a A A' + b)^-1 = U (a |S|^2 + b)^-1 U* on the range of A

Singular values below `NEGLIGIBLE` times the largest one are set to 0, and A with them: the measurement says nothing of
such details, and to invert them would only amplify rounding errors.
"""

import torch
from torch import Tensor

from sde_diffusers.operators.base import LinearOperator
from sde_diffusers.operators.checks import require_images


class Decomposed(LinearOperator):
    """Base of operators with a singular value decomposition, which the subclass defines for each size of images."""

    NEGLIGIBLE = 1e-3
    UNSEEN = 1e-4
    direct = True

    def _values(self, height: int, width: int) -> Tensor:
        """The diagonal of S, in double precision, for images of this size; it broadcasts to V* x."""
        raise NotImplementedError

    def _image_size(self, y: Tensor) -> tuple[int, int]:
        """(H, W) of the images that y are measurements of."""
        return tuple(y.shape[2:])

    def _analyse(self, x: Tensor) -> Tensor:
        """V* x."""
        raise NotImplementedError

    def _synthesise(self, z: Tensor, size: tuple[int, int]) -> Tensor:
        """V z, real, for images of that size."""
        raise NotImplementedError

    def _analyse_measurement(self, y: Tensor, size: tuple[int, int]) -> Tensor:
        """U* y."""
        return self._analyse(y)

    def _measurement(self, z: Tensor, size: tuple[int, int]) -> Tensor:
        """U z, real."""
        return self._synthesise(z, size)

    def _response(self, size, z: Tensor, response) -> Tensor:
        """The function `response` of the singular values, times z."""
        kept = self.constant(size, z, lambda: self._kept_values(size))
        return z * response(kept).to(z.dtype)

    def _kept_values(self, size) -> Tensor:
        values = self._values(*size)
        return torch.where(values.abs() < self.NEGLIGIBLE * values.abs().max(), 0, values)

    def __call__(self, x: Tensor):
        require_images(self, x)
        size = tuple(x.shape[2:])
        return self._measurement(self._response(size, self._analyse(x), lambda s: s), size).to(x.dtype)

    def _seen(self, x: Tensor):
        """A x, without what is so little beside a channel's largest value that `NEGLIGIBLE` ones may have left it."""
        y = self(x)
        return torch.where(y.abs() > self.UNSEEN * y.abs().amax((2, 3), keepdim=True), y, 0)

    def adjoint(self, y: Tensor):
        size = self._image_size(y)
        z = self._analyse_measurement(y, size)
        return self._synthesise(self._response(size, z, lambda s: s.conj()), size).to(y.dtype)

    def pseudo_inverse(self, y: Tensor):
        size = self._image_size(y)
        z = self._analyse_measurement(y, size)
        return self._synthesise(self._response(size, z, lambda s: torch.where(s == 0, 0, 1 / s)), size).to(y.dtype)

    def attainable(self, y: Tensor):
        return self._of_measurement(y, lambda s: (s != 0).to(s.dtype))

    def solve(self, y: Tensor, a: float | Tensor, b: float | Tensor):
        a, b = (v.double() if isinstance(v, Tensor) else v for v in (a, b))
        return self._of_measurement(y, lambda s: torch.where(s == 0, 0, 1 / (a * s.abs() ** 2 + b)))

    def ridge(self, y: Tensor, a: float | Tensor, b: float | Tensor):
        return self.adjoint(self.solve(y, a, b))

    def _of_measurement(self, y, response):
        size = self._image_size(y)
        z = self._analyse_measurement(y, size)
        return self._measurement(self._response(size, z, response), size).to(y.dtype)


class Dense(Decomposed):
    """An operator that does the same to each channel of images of one `image_size`, with so few pixels that its matrix
    can be decomposed as it is."""

    image_shape: tuple[int, ...]

    def _matrix(self) -> Tensor:
        """(m, H W) float64, what the operator does to images of one channel."""
        raise NotImplementedError

    def _part(self, k: int, like: Tensor) -> Tensor:
        """U (m, r), the singular values (r,) or V' (r, H W)."""

        def part():
            if "_parts" not in self.__dict__:
                self._parts = torch.linalg.svd(self._matrix(), full_matrices=False)
            return self._parts[k].to(like.dtype)

        return self.constant(("part", k), like, part)

    def _values(self, height, width):
        return self._part(1, torch.empty(0, dtype=torch.float64))

    def _image_size(self, y):
        return tuple(self.image_shape[1:])

    def _analyse(self, x):  # (N, C, 1, r)
        return x.flatten(2)[:, :, None] @ self._part(2, x).T

    def _synthesise(self, z, size):
        return (z @ self._part(2, z)).unflatten(3, size).squeeze(2)

    def _analyse_measurement(self, y, size):
        return y.flatten(2)[:, :, None] @ self._part(0, y)

    def _measurement(self, z, size):
        measured = self.measurement_shape((1, 1, *size))[2:]
        return (z @ self._part(0, z).T).unflatten(3, measured).squeeze(2)


class Separable(Decomposed):
    """y = R x C', a matrix for the rows and one for the columns of each image; R = U S V' by `_axis_matrix`."""

    def _axis_matrix(self, n: int) -> Tensor:
        """(m, n) float64, what the operator does along an axis of n pixels."""
        raise NotImplementedError

    def _axis_size(self, m: int) -> int:
        """Number n of pixels along an axis of which m values are measured."""
        raise NotImplementedError

    def measurement_shape(self, image_shape: tuple[int, ...]):
        return (*image_shape[:2], *(len(self._decomposed_axis(n)[1]) for n in image_shape[2:]))

    def _image_size(self, y):
        return tuple(self._axis_size(m) for m in y.shape[2:])

    def _decomposed_axis(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Singular values (r,), U (m, r) and V (n, r) along an axis of n pixels, in double precision."""
        known = self.__dict__.setdefault("_known_axes", {})
        if n not in known:
            with torch.inference_mode(False):
                u, s, v = torch.linalg.svd(self._axis_matrix(n), full_matrices=False)
            known[n] = s, u, v.T
        return known[n]

    def _axis(self, n: int, part: int, like: Tensor) -> Tensor:
        return self.constant(("axis", n, part), like, lambda: self._decomposed_axis(n)[part].to(like.dtype))

    def _values(self, height, width):
        return self._decomposed_axis(height)[0][:, None] * self._decomposed_axis(width)[0]

    def _between(self, x, size, part, back):
        rows, columns = (self._axis(n, part, x) for n in size)
        return rows @ x @ columns.T if back else rows.T @ x @ columns

    def _analyse(self, x):
        return self._between(x, tuple(x.shape[2:]), 2, False)

    def _synthesise(self, z, size):
        return self._between(z, size, 2, True)

    def _analyse_measurement(self, y, size):
        return self._between(y, size, 1, False)

    def _measurement(self, z, size):
        return self._between(z, size, 1, True)
