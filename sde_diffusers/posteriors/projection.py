"""Projection: what A sees of the state is replaced, where a step ends (appendix I.2 of arXiv 2011.13456)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusers.operators.base import Operator
from sde_diffusers.parameterization import expand_like
from sde_diffusers.posteriors.base import PosteriorMethod
from sde_diffusers.posteriors.measurement import Measurement, is_white, per_image


@dataclass
class Projection(PosteriorMethod):
    """The paper's imputation: what A sees of the state is alpha y plus the diffusion's noise (appendix I.2).

    With measurement noise, that noise takes the place of a part of the diffusion's, and once the latter is less
    (sigma < alpha noise_std / length of A's rows) the state is left to itself: the last steps remove it. This needs
    orthogonal rows of one length; other operators take exact measurements only.
    """

    changes_denoiser: ClassVar[bool] = False
    products: ClassVar[int] = 0

    def check(
        self, operator: Operator, noise_std: float | Tensor, noise_covariance: Callable[[Tensor], Tensor] | None = None
    ):
        refused = '`method`="projection" takes '
        if not operator.linear:  # not by its class, of which a saved pipeline's code has another
            raise ValueError(f"{refused}linear measurements only, but `operator` is {type(operator).__name__}.")
        if noise_covariance is not None or not is_white(noise_std):
            raise ValueError(
                f"{refused}a `noise_std` for each measurement, not for each of its values, nor a covariance."
            )
        if getattr(operator, "gram", None) is None and torch.as_tensor(noise_std).max() > 0:
            raise ValueError(
                f"{refused}noisy measurements only of masks, bands, colour and downsampling, not of "
                f"{type(operator).__name__} with `noise_std`={noise_std}."
            )

    def rehearse(self, measurement: Measurement, x: Tensor):
        self.project(measurement, x, 1.0, 1.0, lambda: x.flip(0))

    def project(self, measurement: Measurement, x: Tensor, alpha: float, sigma: float, draw: Callable[..., Tensor]):
        operator = measurement.operator.at(x)  # itself
        gram = getattr(operator, "gram", None)
        length = 1.0 if gram is None else math.sqrt(gram)
        noise = torch.as_tensor(alpha * per_image(measurement.noise_std, x) / length)
        left = noise > sigma  # drawn for all the same: an image of its own generator must not depend on the others
        added = expand_like((sigma**2 - noise**2).clamp(min=0).sqrt(), x)
        # y plus A times white noise, so that also its covariance is that of A x_t
        projected = operator.consistent(x, alpha * measurement.y + operator(added * draw()))
        return torch.where(left.to(x.device, non_blocking=True), x, projected)
