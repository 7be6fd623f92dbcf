"""Samplers of few steps, fitted to one network.

sampler_fit     `fit_sampler`: time grid and coefficients of a multistep solver, by damped Gauss-Newton steps
fit_error       what a fit errs by: differences of images and of their local features
fitted_network  what it was fitted to, and the warning when that has changed
"""

from sde_diffusers.fitting.sampler_fit import SamplerFit, fit_sampler

__all__ = ["SamplerFit", "fit_sampler"]
