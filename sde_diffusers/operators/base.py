"""Base of the measurements y = A x of images: what inverse problems ask of A, all of it answered from A alone.

A linear operator has an adjoint A', <A x, y> = <x, A' y>, by default the vector-Jacobian product of A; a
pseudo-inverse A+, with A A+ A = A, by default by least squares (CGLS); and it solves systems with a A A' + b, by
default by conjugate gradients. Operators whose structure gives these in closed form override them.

A nonlinear operator is asked for the linear one that it is like near an image: `at(x)`, its Jacobian J, with
A(x + u) = A(x) + J u + ...
"""

import copy
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

from sde_diffusers.operators.checks import check_operator, checked_image_shape, require_reached
from sde_diffusers.operators.derivative import vector_jacobian
from sde_diffusers.operators.least_squares import krylov_solution, least_squares

OwnOperator = TypeVar("OwnOperator", bound="Operator")


class Operator:
    """A measurement of images (N, C, H, W), each for itself; a subclass defines `__call__`.

    Attributes:
        linear: whether it is a `LinearOperator`.
        image_shape: (C, H, W) of the images, or None if it takes several; see `for_images`.
        device: on which A works, where that isn't known from its argument; None is torch's default.
        pointwise: whether each value of A x is a function of the same value of x.
        tolerance: at which an iterative solution has been reached: ||A'(y - A x)|| / ||A'y|| for `pseudo_inverse` (and
            the like for `ridge`), the relative residual for `solve`.
        iterations: in which it must be reached.
    """

    linear = False
    pointwise = False
    image_shape: tuple[int, ...] | None = None
    device: torch.device | str | None = None
    tolerance: float = 1e-4
    iterations: int = 2000

    def __call__(self, x: Tensor) -> Tensor:
        """A x, (N, ...), in x's dtype and on its device."""
        raise NotImplementedError

    def at(self, x: Tensor) -> "LinearOperator":
        """The Jacobian at images x (N, C, H, W), an operator for as many images."""
        return Jacobian(self, x)

    @property
    def image_size(self) -> tuple[int, ...] | None:
        """(H, W) of the images, if it takes only one size."""
        return None if self.image_shape is None else tuple(self.image_shape[1:])

    def for_images(self: OwnOperator, shape: tuple[int, ...], device: torch.device | str | None = None) -> OwnOperator:
        """This operator for images of shape (N, C, H, W) on a device.

        Raises:
            ValueError: if it measures images of another shape.
        """
        if self.image_shape is not None and tuple(self.image_shape) != tuple(shape[1:]):
            raise ValueError(f"`operator` measures images {tuple(self.image_shape)}, not {tuple(shape[1:])}.")
        operator = copy.copy(self)
        operator.image_shape, operator.device = tuple(shape[1:]), device
        return operator

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (N, ...) of A x for images of shape (N, C, H, W); by default that of A 0.

        Raises:
            ValueError: if the operator does not fit such images.
        """
        with torch.no_grad():
            y = self(torch.zeros(image_shape, device=self.device))
        if not isinstance(y, Tensor):
            raise ValueError(f"a measurement must be a tensor, but is {type(y).__name__}.")
        return tuple(y.shape)

    def count(self, image_shape: tuple[int, ...]) -> Tensor:
        """Number of measured values of each image, (N,) or (1,) float; see `measured`."""
        operator = self.for_images(image_shape, self.device)
        ones = torch.ones(operator.measurement_shape(image_shape), device=self.device)
        return operator.measured(ones).flatten(1).sum(1)

    def shape_of_images(self, y: Tensor) -> tuple[int, ...]:
        """(C, H, W) of the images that y is a measurement of.

        Raises:
            ValueError: if `image_shape` is not known.
        """
        if self.image_shape is None:
            raise ValueError(
                f"{type(self).__name__} has an adjoint for images of a known shape: use `for_images((N, C, H, W))`, "
                "or set `image_shape`."
            )
        return tuple(self.image_shape)

    def measured(self, y: Tensor) -> Tensor:
        """y, with 0 where A measures nothing of any image (missing pixels)."""
        return y

    def _seen(self, x: Tensor) -> Tensor:
        """Values (N, ...), 0 where A measures nothing of any image and hardly elsewhere, for random x."""
        noise = torch.rand(self.measurement_shape(tuple(x.shape)), generator=torch.Generator().manual_seed(0))
        return self.measured(noise.to(x))

    def _where_seen(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """y, with 0 where nothing is seen of random images of a shape."""

        def seen():
            generator = torch.Generator().manual_seed(0)
            x = (torch.randn(shape, generator=generator).to(y) for _ in range(2))
            return (self._seen(next(x)) != 0) | (self._seen(next(x)) != 0)

        return torch.where(self.constant(("seen", self.image_shape, y.shape), y, seen), y, 0)

    def constant(self, name: Hashable, like: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """The tensor `make()` on the device of `like`, for whose dtype it is made once: a GPU waits for each copy."""
        self.require_floating(like)
        known = self.__dict__.setdefault("_constants", {})
        key = (name, like.device, like.dtype)
        if key not in known:
            with torch.inference_mode(False):  # whose tensors no gradient could pass later
                known[key] = make().to(like.device)
        return known[key]

    def require_floating(self, x: Tensor) -> None:
        """Raise a `ValueError` for integers, whose sums overflow, and whose dtype has no weights below 1."""
        if not (x.is_floating_point() or x.is_complex()):
            raise ValueError(f"{type(self).__name__} takes floating point images in [0, 1], but they are {x.dtype}.")

    def with_settings_of(self: OwnOperator, *others: "Operator") -> OwnOperator:
        """Itself, with `tolerance` and `iterations` of the first of others that does not have the default."""
        for name in ("tolerance", "iterations"):
            values = [getattr(other, name) for other in others]
            default = getattr(Operator, name)
            setattr(self, name, next((value for value in values if value != default), default))
        return self

    def repeat(self, samples: int) -> "Operator":
        """The operator for a batch in which each image is repeated so many times; itself unless it varies."""
        return self

    def __matmul__(self, inner: "Operator") -> "Operator":
        """The composition x -> A(B(x)) of two operators, A @ B."""
        if isinstance(inner, type) or not hasattr(inner, "for_images"):  # its class may be loaded twice
            raise TypeError(f"A @ B is of two operators, but B is {type(inner).__name__}.")
        return (LinearComposition if self.linear and inner.linear else Composition)(self, inner)

    @staticmethod
    def from_function(
        f: Callable[[Tensor], Tensor], shape: tuple[int, int, int], device: torch.device | str | None = None
    ) -> "Operator":
        """The nonlinear operator of a function that torch can differentiate twice.

        Args:
            f: of images (N, C, H, W) in [0, 1], for any N.
            shape: (C, H, W).
            device: on which f takes them; None is torch's default.

        Raises:
            ValueError: if f does not measure each image for itself, in real numbers, or has no derivative.
        """
        operator = FunctionOperator(f, shape, device)
        check_operator(operator, (2, *checked_image_shape(shape)), "f")
        return operator


class LinearOperator(Operator):
    """Base of the linear measurements. A subclass needs `__call__` alone; `image_shape` comes with the first use.

    Attributes:
        gram: c if A A' = c on the range of A, and then `pseudo_inverse` and `solve` follow; None otherwise.
    """

    linear = True
    gram: float | None = None

    @property
    def direct(self) -> bool:
        """Whether `solve` is in closed form."""
        return self.gram is not None

    def at(self, x: Tensor):
        """Itself: a linear operator is its own Jacobian."""
        return self

    def adjoint(self, y: Tensor) -> Tensor:
        """A' y; by default the vector-Jacobian product of A.

        Raises:
            ValueError: if `image_shape` is not known, or torch can't differentiate A.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(len(y), *self.shape_of_images(y), dtype=y.dtype, device=y.device, requires_grad=True)
            return vector_jacobian(self(x), x, y.clone())

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A+ y, the least of the images that fit y best.

        Raises:
            ValueError: if least squares do not reach `tolerance` in so many `iterations`.
        """
        return self.adjoint(y) / self.gram if self.gram is not None else self._fitted(y)

    def _fitted(self, y, beside=None):
        x, steps = self._least_squares(y, beside=beside)
        # Once more for what was left over, where small singular values have most of it, as far as rounding permits.
        return x + least_squares(self, self.adjoint, y - self(x), 4 * steps, self.tolerance)[0]

    def ridge(self, y: Tensor, a: float | Tensor, b: float | Tensor) -> Tensor:
        """A'(a A A' + b)^-1 y, for a > 0 and b >= 0, numbers or (N, 1, ..., 1): ridge regression, A+ y / a for b = 0.

        Raises:
            ValueError: as `pseudo_inverse`.
        """
        if self.gram is not None:
            return self.adjoint(self.solve(y, a, b))
        a, b = (v.reshape(-1, 1, 1, 1) if isinstance(v, Tensor) and v.ndim else v for v in (a, b))
        return self._least_squares(y, b / a)[0] / a

    def _least_squares(self, y, damping=0.0, beside=None):
        x, error, steps = least_squares(self, self.adjoint, y, self.iterations, self.tolerance, damping, beside)
        require_reached(self, "pseudo-inverse", "||A'(y - A x)|| / ||A'y||", error)
        return x, steps

    def solve(self, y: Tensor, a: float | Tensor, b: float | Tensor) -> Tensor:
        """(a A A' + b)^-1 y for y in the range of A; a > 0 and b >= 0 are numbers or (N, 1, ..., 1).

        Raises:
            ValueError: if conjugate gradients do not reach `tolerance` in so many `iterations`.
        """
        if self.gram is not None:
            return y / (a * self.gram + b)

        def system(w):
            return a * self(self.adjoint(w)) + b * w, w

        w, error = krylov_solution(system, y, self.iterations, self.tolerance)
        require_reached(self, "solution of (a A A' + b) w = y", "||y - (a A A' + b) w|| / ||y||", error)
        return w

    def measured(self, y: Tensor) -> Tensor:
        """y, with 0 where A measures nothing of any image, that is, 0 of random ones."""
        return self._where_seen(y, tuple(self.adjoint(y).shape))

    def _seen(self, x: Tensor) -> Tensor:
        """A x, without rounding errors where it is 0 of any image."""
        return self(x)

    def attainable(self, y: Tensor) -> Tensor:
        """A A+ y, the part of y that an image can give."""
        return y if self.gram is not None else self(self.pseudo_inverse(y))

    def consistent(self, x: Tensor, y: Tensor) -> Tensor:
        """The image nearest to x that measures y: A+ y + (1 - A+ A) x. Observed pixels are exactly those of y."""
        if self.gram is not None:
            return self.pseudo_inverse(y) + (x - self.pseudo_inverse(self(x)))
        left = y - self(x)
        # By iteration, to the tolerance beside y: an image that measures y already leaves rounding errors alone.
        return x + (self.pseudo_inverse(left) if self.has_own("pseudo_inverse") else self._fitted(left, y))

    def has_own(self, method: str) -> bool:
        """Whether a method is the subclass's, or this operator's, own one."""
        return method in self.__dict__ or getattr(type(self), method) is not getattr(LinearOperator, method)

    @staticmethod
    def from_function(  # type: ignore[override]
        f: Callable[[Tensor], Tensor],
        shape: tuple[int, int, int],
        adjoint: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str | None = None,
    ) -> "LinearOperator":
        """The operator of a linear function.

        Args:
            f: of images (N, C, H, W), for any N, to measurements (N, ...), in their dtype.
            shape: (C, H, W).
            adjoint: function of measurements; None = the vector-Jacobian product of f, which torch then must be able
                to differentiate.
            device: on which f takes images; None is torch's default.

        Raises:
            ValueError: if f is not linear, does not measure each image for itself or in real numbers, or if
                <A x, y> is not <x, A' y>.
        """
        operator = LinearFunctionOperator(f, shape, device)
        if adjoint is not None:
            operator.adjoint = adjoint  # type: ignore[assignment, method-assign]
        check_operator(operator, (2, *checked_image_shape(shape)), "f")
        return operator


class FunctionOperator(Operator):
    """See `Operator.from_function`."""

    def __init__(self, f, shape: tuple[int, int, int], device=None):
        self.f, self.image_shape, self.device = f, checked_image_shape(shape), device

    def __call__(self, x):
        return self.f(x)


class LinearFunctionOperator(FunctionOperator, LinearOperator):
    """See `LinearOperator.from_function`."""


class Jacobian(LinearOperator):
    """J = dA / dx at images x.

    Both products are of one graph: J'v is a vector-Jacobian product of A, and J u one of v -> J'v, which is linear.
    """

    def __init__(self, operator: Operator, x: Tensor):
        self.image_shape, self.device = tuple(x.shape[1:]), x.device
        self.with_settings_of(operator).pointwise = operator.pointwise  # J is diagonal
        with torch.inference_mode(False), torch.enable_grad():
            self._x = x.detach().clone().requires_grad_()
            self._y = operator(self._x)
            self._v = torch.zeros_like(self._y, requires_grad=True)
            self._back = vector_jacobian(self._y, self._x, self._v, create_graph=True)

    def __call__(self, u):
        if not self._back.requires_grad:  # A is constant about x
            return torch.zeros_like(self._y)
        return torch.autograd.grad(self._back, self._v, u, retain_graph=True)[0]

    def adjoint(self, v):
        return torch.autograd.grad(self._y, self._x, v, retain_graph=True)[0]

    def ridge(self, y, a, b):
        if not self.pointwise:
            return super().ridge(y, a, b)
        slope = self.adjoint(torch.ones_like(y))
        total = a * slope**2 + b
        return torch.where(total > 0, slope * y / total, 0)

    def measurement_shape(self, image_shape):
        return (image_shape[0], *self._y.shape[1:])


class Composition(Operator):
    """x -> A(B(x)) for operators A (outer) and B (inner)."""

    def __init__(self, outer: Operator, inner: Operator):
        self.outer, self.inner = outer, inner
        self.with_settings_of(outer, inner).pointwise = outer.pointwise and inner.pointwise

    @property
    def image_size(self):
        return self.inner.image_size

    def for_images(self, shape, device=None):
        operator = super().for_images(shape, device)
        operator.inner = self.inner.for_images(shape, device)
        operator.outer = self.outer.for_images(operator.inner.measurement_shape(shape), device)
        return operator

    def measurement_shape(self, image_shape):
        return self.outer.measurement_shape(self.inner.measurement_shape(image_shape))

    def measured(self, y):
        if self.outer.pointwise:
            return self.inner.measured(y)
        return self._where_seen(y, (len(y), *self.shape_of_images(y)))

    def _seen(self, x):
        seen = self.inner._seen(x)
        return seen if self.outer.pointwise else self.outer._seen(seen)

    def __call__(self, x):
        return self.outer(self.inner(x))

    def at(self, x):
        return (self.outer.at(self.inner(x)) @ self.inner.at(x)).with_settings_of(self)

    def repeat(self, samples):
        outer, inner = self.outer.repeat(samples), self.inner.repeat(samples)
        if outer is self.outer and inner is self.inner:
            return self
        operator = copy.copy(self)
        operator.outer, operator.inner = outer, inner
        return operator


class LinearComposition(Composition, LinearOperator):
    """A @ B for linear A and B."""

    outer: LinearOperator
    inner: LinearOperator
    measured = LinearOperator.measured  # what A sees of B may be what B misses

    def at(self, x):
        return self

    def adjoint(self, y):
        return self.inner.adjoint(self.outer.adjoint(y))
