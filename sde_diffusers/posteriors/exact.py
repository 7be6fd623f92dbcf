"""The part of a measurement that has no noise: images must reproduce it, whatever a method made of it.

And what no image can give, which is noise alone: it is left out where A says which it is.
"""

import copy
from typing import cast

import torch
from torch import Tensor

from sde_diffusers.operators.base import LinearOperator, Operator
from sde_diffusers.operators.least_squares import norm
from sde_diffusers.operators.masks import Rows
from sde_diffusers.posteriors.measurement import demanding, is_white

CONTRADICTION = 1e-3
"""Share of what no image can give in exact values, from which on it is no error of their solution."""


class ExactPart:
    """The values of a linear measurement whose noise is 0: all, those of some images, some of an image, or none.

    Args:
        operator: A, of images (N, C, H, W).
        noise_std: a number, or a tensor with as many dimensions as the measurement.
        noise_covariance: a function, or None; with one, no value counts as exact.
    """

    def __init__(self, operator: Operator, noise_std, noise_covariance=None):
        exact = torch.as_tensor(noise_std) == 0
        self.exact = exact if operator.linear and noise_covariance is None else torch.zeros_like(exact)
        self.whole_images = is_white(noise_std)
        self.white = operator.linear and noise_covariance is None and self.whole_images
        self.all = self.operator = cast(LinearOperator, operator)  # asked for no more than A where it is none
        if not self.whole_images:
            self.operator = cast(LinearOperator, Rows(self.exact) @ operator)

    def attained(self, y: Tensor) -> Tensor:
        """y without values at missing pixels, and without what no image can give, where it is exact.

        Where noise is white, that part of y is noise alone, through which conjugate gradients would have to find small
        singular values: it is left out, too, where the operator says which it is.
        """
        y = self.all.measured(y)
        if self.white and self.all.direct:
            return self.all.attainable(y)
        if not self.exact.any():
            return y
        exact = self.exact.to(y.device)
        known = torch.where(exact, y, 0)
        if self.whole_images:
            possible = self.all.attainable(known)
        else:  # solved for by iteration: the values are kept, unless they contradict each other
            possible = demanding(self.operator).attainable(known)
            far = norm(possible - known) > CONTRADICTION * norm(known)
            possible = torch.where(far, possible, known)
        return torch.where(exact, possible, y)

    def imposed(self, images: Tensor, y: Tensor) -> Tensor:
        """The nearest images that reproduce the exact values of y."""
        if not self.exact.any():
            return images
        exact = self.exact.to(y.device)
        consistent = self.operator.consistent(images, torch.where(exact, y, 0))
        if not self.whole_images or exact.all():
            return consistent
        return torch.where(exact.reshape(-1, 1, 1, 1), consistent, images)

    def rehearse(self, y: Tensor, x: Tensor) -> None:
        """Raise a `ValueError` if the exact values can't be imposed on images like x (noise)."""
        trial = copy.copy(self)
        trial.operator = demanding(self.operator)
        trial.imposed(x, y)
