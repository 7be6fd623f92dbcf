"""The diagonal D of S = r^2 A A' + C, and how far S is from it: what solves systems of S by evaluations of A."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusers.operators.base import Operator
from sde_diffusers.operators.least_squares import ritz_values

DRAWS = 16
SAME = 1e-3
"""Relative difference of two probes of a value up to which there is nothing but the diagonal."""
LEVELS = (1 / 8, 5 / 8, 3 / 8, 7 / 8)
"""Grey levels at which an operator is probed, in units of the range, since a nonlinear one has its slope at each."""
SAFETY = 1.1
"""Of an eigenvalue that was found from below."""


@dataclass
class Diagonal:
    """Of N measurements; of each value (N, ...).

    Args:
        gain: variance of A x for independent pixels of variance 1.
        noise: variance of what is added to it.
        largest: (N, 1, ..., 1) bound of the eigenvalues of D^-1 S, at every r; None if D is all of S, as far as is
            known.
    """

    gain: Tensor
    noise: Tensor
    largest: Tensor | None

    def divided(self, scale: Tensor) -> "Diagonal":
        """The same where each value is in units of its own."""
        return Diagonal(self.gain / scale**2, self.noise / scale**2, self.largest)

    def of_system(self, variance: float) -> Tensor:
        """D for pixels of that variance."""
        return variance * self.gain + self.noise

    def least(self, variance: float) -> Tensor:
        """(N, 1, ..., 1) bound from below of the eigenvalues of D^-1 S, for independent noise."""
        share = torch.where(self.gain > 0, self.noise / self.of_system(variance), 1)
        return share.amin(tuple(range(1, share.ndim)), keepdim=True)


def diagonal_of(
    operator: Operator, covariance: Callable[[Tensor], Tensor], y: Tensor, image_range: tuple[float, float], shape
) -> Diagonal:
    """Of the measurement y, whose noise has this covariance, of images in this range and of this shape."""
    noise, alone = probed(covariance, y)
    if not operator.linear:  # whose slope is another in each step
        gain = row_squares(operator, shape, *image_range).to(y)
        mean = gain.mean(tuple(range(1, gain.ndim)), keepdim=True)
        elsewhere = torch.where(mean > 0, mean, 1)  # of what has no slope at these levels
        return Diagonal(torch.where(gain > 0, gain, elsewhere), noise, None)
    if operator.repeat(2) is operator:  # the same for all images
        y, shape = y[:1], (1, *shape[1:])

    def square(u):
        return operator.measured(operator(operator.adjoint(operator.measured(u))))  # type: ignore[attr-defined]

    gain, diagonal = probed(square, y)
    if diagonal and alone:
        return Diagonal(gain, noise, None)
    if not diagonal:
        gain = row_squares(operator, shape, *image_range).to(y)
    largest = largest_ratio(square, gain)
    if not alone:
        largest = torch.maximum(largest, largest_ratio(covariance, noise))
    return Diagonal(gain, noise, SAFETY * largest)


def probed(system: Callable[[Tensor], Tensor], like: Tensor) -> tuple[Tensor, bool]:
    """The diagonal of a symmetric system on measurements, as random signs show it, and whether it is all of it.

    If it is not, the norms of the rows stand for it, which signs show without cancelling.
    """
    generator = torch.Generator().manual_seed(0)

    def probe():
        u = signs(like.shape, generator).to(like)
        return u * system(u)

    first, second = probe(), probe()
    if ((first - second).abs() <= SAME * (first.abs() + second.abs())).all():  # each value in units of its own
        return first.clamp(min=0), True
    return torch.stack([probe() for _ in range(DRAWS)]).square().mean(0).sqrt(), False


def largest_ratio(system: Callable[[Tensor], Tensor], diagonal: Tensor) -> Tensor:
    """(N, 1, ..., 1) largest eigenvalue of D^-1/2 S D^-1/2, nearly, from below; 1 of what is 0."""
    root = torch.where(diagonal > 0, diagonal.rsqrt(), 0)
    start = torch.randn((1, *root.shape[1:]), generator=torch.Generator().manual_seed(0)).expand(root.shape).to(root)
    values = ritz_values(lambda u: root * system(root * u), start)
    return values[:, -1].clamp(min=1).to(root).view(-1, *[1] * (root.ndim - 1))


def row_squares(operator: Operator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """(N, ...) sums of squares of the rows, the diagonal of A A', as random images show them.

    Of an operator that measures each value for itself they are exact. The images have two grey levels each.
    """
    generator, device = torch.Generator().manual_seed(0), operator.device or "cpu"
    half = (high - low) / 8
    total: Tensor | float = 0.0
    for k in range(DRAWS):
        middle = torch.full(shape, low + LEVELS[k % len(LEVELS)] * (high - low), device=device)
        slopes = (operator(middle + half * signs(shape, generator).to(device)) - operator(middle)) / half
        total = total + slopes**2
    return total / DRAWS


def signs(shape, generator) -> Tensor:
    """Random signs, the same for all N: an image's neighbours in a batch change nothing."""
    return torch.randn((1, *shape[1:]), generator=generator).sign().expand(shape)
