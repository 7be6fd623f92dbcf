"""Measurements in other units: each value times a number of its own, or all times one."""

import torch
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

    def pseudo_inverse(self, y: Tensor):
        return self.operator.pseudo_inverse(y) / self.factor

    def solve(self, y: Tensor, a: float | Tensor, b: float | Tensor):
        return self.operator.solve(y, self.factor**2 * a, b)

    def ridge(self, y: Tensor, a: float | Tensor, b: float | Tensor):
        return self.factor * self.operator.ridge(y, self.factor**2 * a, b)


def spread_of_values(operator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """(N, ...) how far each measured value varies: root mean square of differences of random images in [low, high].

    Of all N the images are the same, so that an image's neighbours in a batch change nothing.
    """
    generator = torch.Generator().manual_seed(0)

    def measured():
        image = low + (high - low) * torch.rand((1, *shape[1:]), generator=generator)
        return operator(image.expand(shape).to(operator.device or "cpu"))

    return torch.stack([measured() - measured() for _ in range(4)]).square().mean(0).sqrt()


def row_squares(operator, shape: tuple[int, ...], low: float, high: float, draws: int = 16) -> Tensor:
    """(N, ...) sums of squares of the rows, the diagonal of A A', as random images of two grey levels show them.

    Of an operator that measures each value for itself they are exact. The images are the same for all N.
    """
    generator, device = torch.Generator().manual_seed(0), operator.device or "cpu"
    middle, half = (low + high) / 2, (high - low) / 4

    def rates():
        signs = torch.randn((1, *shape[1:]), generator=generator).sign().expand(shape).to(device)
        return (operator(middle + half * signs) - operator(middle - half * signs)) / (2 * half)

    return torch.stack([rates() for _ in range(draws)]).square().mean(0)


def gains_of_values(operator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """(N, ...) variance of each measured value for pixels of variance 1 that are neither independent nor all alike.

    That is the geometric mean of sum_j a_j^2 and (sum_j a_j)^2 for a row a; the former, where it is more.
    """
    device = operator.device or "cpu"
    black, white = (operator(torch.full(shape, float(value), device=device)) for value in (low, high))
    independent, alike = row_squares(operator, shape, low, high), ((white - black) / (high - low)) ** 2
    return (independent * torch.maximum(independent, alike)).sqrt()
