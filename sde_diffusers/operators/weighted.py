"""Measurements in other units: each value times a number of its own, or all times one."""

from torch import Tensor

from sde_diffusers.operators.base import LinearOperator


class Weights(LinearOperator):
    """y = w x, with weights above 0 that broadcast to x."""

    pointwise = True

    def __init__(self, weights: Tensor):
        self.weights = weights

    def measurement_shape(self, image_shape):
        return tuple(image_shape)

    def __call__(self, x: Tensor):
        return x * self.weights.to(x)

    def adjoint(self, y: Tensor):
        return self(y)


class Scaled(LinearOperator):
    """c A, for a number c that is not 0."""

    def __init__(self, operator: LinearOperator, factor: float):
        self.operator, self.factor = operator, factor
        self.image_shape, self.device = operator.image_shape, operator.device
        self.with_settings_of(operator).pointwise = operator.pointwise

    @property
    def direct(self) -> bool:
        return self.operator.direct

    def measurement_shape(self, image_shape):
        return self.operator.measurement_shape(image_shape)

    def __call__(self, x: Tensor):
        return self.factor * self.operator(x)

    def adjoint(self, y: Tensor):
        return self.factor * self.operator.adjoint(y)

    def measured(self, y: Tensor):
        return self.operator.measured(y)

    def _seen(self, x: Tensor):
        return self.operator._seen(x)

    def pseudo_inverse(self, y: Tensor):
        return self.operator.pseudo_inverse(y) / self.factor

    def solve(self, y: Tensor, a: float | Tensor, b: float | Tensor):
        return self.operator.solve(y, self.factor**2 * a, b)

    def ridge(self, y: Tensor, a: float | Tensor, b: float | Tensor):
        return self.factor * self.operator.ridge(y, self.factor**2 * a, b)
