"""Measurements y = A x of images, with what inverse problems need of them.

    Mask            y = (1 - m) x                   pixels where m = 1 are missing
    Grayscale       y = sum_c w_c x_c               a mean of the channels
    Bands           y = some channels
    Downsampling    y = mean of each k x k block
    Bicubic         y = what PIL's bicubic filter makes of x
    GaussianBlur    y = kernel * x
    Convolution     y = kernel * x                  any kernel, and any of six boundaries
    MaskedFourier   y = some samples of x's Fourier transform
    Radon           y = sums of x along lines
    A @ B           y = A(B(x))

and any other by `LinearOperator.from_function(f, shape)`, by a subclass of `LinearOperator` that defines `__call__`,
or by `from_deepinv(physics, shape)`. Images are (N, C, H, W), and measurements (N, ...) of any number of dimensions.

Each operator has its adjoint A', <A x, y> = <x, A' y>, its pseudo-inverse A+, with A A+ A = A, and solves systems with
a A A' + b. Masks, bands, means of channels and of blocks have orthogonal rows of one length, A A' = c on the range of
A, so that A+ = A' / c; up to that length, they are the first rows of an orthonormal matrix (the decoupling of appendix
I.2 in arXiv 2011.13456). Separable and periodic operators have singular values in closed form, Fourier samples nearly
so; all others find these solutions by iterations with a stated tolerance.

Nonlinear ones, `Gamma`, `Saturation`, `Quantization`, `FourierMagnitude`, `JPEG` and
`Operator.from_function(f, shape)`, are taken for their Jacobians near the image in question.

A pipeline takes measurements in units of images in [0, 1].
"""

from sde_diffusers.operators.base import LinearOperator, Operator
from sde_diffusers.operators.blur import BOUNDARIES, Convolution, GaussianBlur
from sde_diffusers.operators.channels import Bands, Grayscale
from sde_diffusers.operators.deepinv_physics import from_deepinv
from sde_diffusers.operators.fourier import MaskedFourier
from sde_diffusers.operators.masks import Mask, box_mask, random_mask, stroke_mask
from sde_diffusers.operators.nonlinear import JPEG, FourierMagnitude, Gamma, Quantization, Saturation
from sde_diffusers.operators.radon import Radon
from sde_diffusers.operators.resampling import Bicubic, Downsampling

__all__ = [
    "BOUNDARIES",
    "Bands",
    "Bicubic",
    "Convolution",
    "Downsampling",
    "FourierMagnitude",
    "Gamma",
    "GaussianBlur",
    "Grayscale",
    "JPEG",
    "LinearOperator",
    "Mask",
    "MaskedFourier",
    "Operator",
    "Quantization",
    "Radon",
    "Saturation",
    "box_mask",
    "from_deepinv",
    "random_mask",
    "stroke_mask",
]
