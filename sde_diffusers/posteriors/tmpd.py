"""TMPD: the covariance of what is measured counts as diagonal (arXiv 2310.06721)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusers.operators.base import Operator
from sde_diffusers.posteriors.base import PosteriorMethod
from sde_diffusers.posteriors.diagonal import row_squares
from sde_diffusers.posteriors.measurement import Measurement, per_value
from sde_diffusers.sdes.gaussian import require_positive

LEAST_ROW_SUM = 0.1
"""Of A A', in units of the diagonal, which it exceeds where A has no negative values."""


@dataclass
class TMPD(PosteriorMethod):
    """Tweedie moment projected diffusion: w = (diag(A V A' 1) + noise_std^2)^-1 (y - A D).

    The row sums of A V A' stand for that matrix: they are its action on a constant. A network's V may make them
    negative; they count as at least `floor` (noise level)^2 times those of A A'. These have to be positive: where rows
    have values of both signs, as samples of a Fourier transform have, they cancel, and the operator is refused.

    Args:
        floor: above 0.
    """

    products: ClassVar[int] = 2
    floor: float = 1e-3

    def __post_init__(self):
        (self.floor,) = require_positive(floor=self.floor)

    def check(
        self, operator: Operator, noise_std: float | Tensor, noise_covariance: Callable[[Tensor], Tensor] | None = None
    ):
        if noise_covariance is not None:
            raise ValueError('`method`="tmpd" takes a `noise_std`, not a covariance.')

    def rehearse(self, measurement: Measurement, x: Tensor):
        operator = measurement.operator.at(x)
        rows = operator(operator.adjoint(torch.ones_like(measurement.y)))
        squares = row_squares(operator, tuple(x.shape), 0.0, 1.0)
        cancel = (rows < LEAST_ROW_SUM * squares) & (squares > 1e-6 * squares.max())
        if cancel.any():
            raise ValueError(
                "`method`=\"tmpd\" takes the row sums of A V A' for variances, but those of A A' cancel for "
                f"{cancel.float().mean():.0%} of the values that `operator` {type(measurement.operator).__name__} "
                'measures: use `method`="mmps".'
            )

    def shift(
        self, measurement: Measurement, denoised: Tensor, covariance: Callable[[Tensor], Tensor], noise_level: float
    ):
        operator, residual = measurement.near(denoised)
        seen = operator.adjoint(torch.ones_like(residual))
        rows = operator(seen).abs()
        largest = rows.flatten(1).amax(1).reshape(-1, *[1] * (rows.ndim - 1))
        least = self.floor * noise_level**2 * torch.maximum(rows, 0.01 * largest)
        variance = torch.maximum(operator(covariance(seen)), least) + per_value(measurement.noise_std**2, residual)
        weight = torch.where(variance > 0, residual / variance, 0)  # nothing is measured where it is 0
        return covariance(operator.adjoint(weight))
