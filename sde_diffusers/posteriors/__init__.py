"""Posterior sampling: what a measurement y = A x_0 + n changes in the sampling of a score network.

By Bayes' rule the posterior's score is grad log p_t(x) + grad log p_t(y | x), and its denoiser

    E[x_0 | x_t, y] = D + (sigma^2 / alpha) grad_x log p_t(y | x),          D = E[x_0 | x_t].

With the Gaussian p_t(y | x) = N(y; A D, A V A' + C), V = Cov[x_0 | x_t] = (sigma^2 / alpha) dD / dx (Tweedie's formula
of second order), whose covariance counts as constant, this is

    E[x_0 | x_t, y] = D + V A' w,       w = (A V A' + C)^-1 (y - A D),

and the methods differ in how they weight the residual y - A D. C is the covariance of the noise, noise_std^2 for white
noise. Products with V are vector-Jacobian products of the network (V is symmetric). A nonlinear A is taken for its
Jacobian at D, in place of A except in the residual.

    MMPS    w by steps of least residual, with V as the network has it (arXiv 2405.13712); exact for Gaussian images
    Pi-GDM  V = r^2 in the weight, r^2 the variance that x_0 would keep if pixels were independent (Song et al.,
            Pseudoinverse-guided diffusion models for inverse problems, ICLR 2023)
    DPS     a weight of prescribed length along the residual (arXiv 2209.14687)
    TMPD    A V A' = its row sums, on the diagonal (arXiv 2310.06721)
    DiffPIR V = r^2 in the weight and outside, so that no derivative of the network is needed (arXiv 2305.08995)

They change the denoiser, so every sampler and every SDE can use them. Projection (appendix I.2 of arXiv 2011.13456)
leaves the score and, wherever a step ends, replaces what A sees of the state by a noisy version of the measurement.
DAPS (arXiv 2407.01521) draws the state anew there, from an image that was drawn given D and y.
"""

from sde_diffusers.operators.least_squares import conjugate_gradients
from sde_diffusers.posteriors.base import PosteriorMethod, kept_variance, posterior_output
from sde_diffusers.posteriors.daps import DAPS
from sde_diffusers.posteriors.diffpir import DiffPIR
from sde_diffusers.posteriors.dps import DPS
from sde_diffusers.posteriors.measurement import Measurement, poisson_noise_std
from sde_diffusers.posteriors.methods import POSTERIOR_METHODS
from sde_diffusers.posteriors.mmps import MMPS
from sde_diffusers.posteriors.pigdm import PiGDM
from sde_diffusers.posteriors.projection import Projection
from sde_diffusers.posteriors.tmpd import TMPD

__all__ = [
    "DAPS",
    "DPS",
    "DiffPIR",
    "MMPS",
    "Measurement",
    "POSTERIOR_METHODS",
    "PiGDM",
    "PosteriorMethod",
    "Projection",
    "TMPD",
    "conjugate_gradients",
    "kept_variance",
    "poisson_noise_std",
    "posterior_output",
]
