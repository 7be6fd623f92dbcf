"""Exact likelihoods by the probability flow ODE (section 4.3 and appendix D.2 of arXiv 2011.13456).

An image's log-likelihood is that of its code, where the ODE leads it from the time `eps` to t = 1, under the prior,
plus the change of volume on the way (`probability_flow.py`).
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from sde_diffusers.generators import require_generators
from sde_diffusers.guidance import Guidance
from sde_diffusers.likelihood.density_gradient import LogDensity
from sde_diffusers.likelihood.dequantization import in_truncated_normals, in_uniform_bins
from sde_diffusers.likelihood.probability_flow import ProbabilityFlow
from sde_diffusers.likelihood.probes import are_drawn, check_probes, drawn_probes
from sde_diffusers.likelihood.questions import (
    check_solver,
    dequantization_asked,
    likelihood_start,
    numbers_and_levels,
    require_unbounded,
)


@dataclass
class LikelihoodOutput(BaseOutput):
    """Negative log-likelihoods in bits per dimension (less is more likely).

    Args:
        bits_per_dim: (N,) float64, mean over passes and probes. That an image is unusual it does not show:
            docs/how_to/densities.md.
        estimates: (passes, probes, N) float64, what was averaged; one "probe" if the trace is exact. Join batches with
            `torch.cat(..., dim=2)` and ask `standard_errors` for the errors over a data set.
        standard_error: of the batch's mean, in parts; see `standard_errors`. Of the passes' mean, not of their
            importance-weighted bound.
        latents: (N, C, H, W) float32, the codes at t = 1 (of the first pass).
        nfe: number of evaluations of the network that each image took, all passes together.
        rtol, atol: tolerances of the solver, as used.
        importance_gap: (N,) by how many bits/dim the importance-weighted bound is tighter than the mean of its passes;
            None if it was not asked for.
    """

    bits_per_dim: Tensor
    estimates: Tensor
    standard_error: dict[str, float]
    latents: Tensor
    nfe: int
    rtol: float
    atol: float
    importance_gap: Tensor | None = None


@dataclass
class LogProbOutput(BaseOutput):
    """Log-densities, or bounds on the log-probabilities of integers, in nats (more is more likely).

    Args:
        log_prob: (N,) float64, mean over passes and probes.
        estimates: (passes, probes, N) float64, what was averaged; one "probe" if the trace is exact.
        standard_errors: of the batch's mean, in parts; see `standard_errors`. Of the passes' mean, not of their
            importance-weighted bound.
        latents: (N, C, H, W) float32, the codes at t = 1 (of the first pass).
        nfe: number of evaluations of the network that each image took, all passes together.
        rtol, atol: tolerances of the solver, as used.
        importance_gap: (N,) by how many nats the importance-weighted bound is tighter than the mean of its passes;
            None if it was not asked for.
    """

    log_prob: Tensor
    estimates: Tensor
    standard_errors: dict[str, float]
    latents: Tensor
    nfe: int
    rtol: float
    atol: float
    importance_gap: Tensor | None = None


def standard_errors(
    estimates: Tensor, exact_trace: bool = False, dequantized: bool = True, shared_probes: bool = False
) -> dict[str, float]:
    """Standard error of the mean of nested draws, split into what causes it (analysis of variance).

    With deviations s_image between images, s_deq between the K passes of an image and s_probe between the P probes of
    a pass, the mean over N images has the variance (s_image^2 + s_deq^2 / K + s_probe^2 / (K P)) / N.

    Probes that are given, and so the same in all passes, are not averaged by these: their term is s_probe^2 / P.

    Args:
        estimates: (K, P, N) as in `LikelihoodOutput`.
        exact_trace: whether there are no probes, so that they cause no error.
        dequantized: whether the passes differ in dequantization noise; else that causes no error.
        shared_probes: whether all passes have the same probes.

    Returns:
        "probe", "dequantization", "images": the square roots of the three terms, and "total". What one draw alone
        cannot show is NaN: a part whose P or K is 1 is contained in the next one instead, and one image (N = 1) says
        nothing of "images" and "total".
    """
    if estimates.ndim != 3:
        raise ValueError(f"`estimates` must have the shape (K, P, N), but has {tuple(estimates.shape)}.")
    passes, probes, n = estimates.shape

    def variance(values: Tensor, dim: int) -> float:
        return values.var(dim).mean().item() if values.shape[dim] > 1 else math.nan

    def beyond(observed: float, *explained: float) -> float:
        left = observed - sum(part for part in explained if not math.isnan(part))
        return 0.0 if left < 0 else left  # NaN stays

    # Variances of the mean over the draws of one image, from the innermost level outwards.
    probe = 0.0 if exact_trace else variance(estimates, 1) / (passes * probes)
    if shared_probes:
        probe = variance(estimates.mean(0, keepdim=True), 1) / probes
    between_passes = variance(estimates.mean(1), 0) / passes
    dequantization = beyond(between_passes, 0.0 if shared_probes else probe) if dequantized else 0.0
    total = variance(estimates.mean((0, 1)), 0)
    images = beyond(total, probe, dequantization)
    parts = {"probe": probe, "dequantization": dequantization, "images": images, "total": total}
    return {name: math.sqrt(part / n) for name, part in parts.items()}


def image_bits_per_dim(pipe, images, **options) -> LikelihoodOutput:
    """See `ScoreSdePipeline.bits_per_dim`."""
    nats = log_probabilities(pipe, images, **options)
    bits = 1 / (nats.latents[0].numel() * math.log(2))
    errors = {part: bits * error for part, error in nats.standard_errors.items()}
    gap = None if nats.importance_gap is None else bits * nats.importance_gap
    estimates = -bits * nats.estimates
    return LikelihoodOutput(
        -bits * nats.log_prob, estimates, errors, nats.latents, nats.nfe, nats.rtol, nats.atol, gap
    )


def log_probabilities(
    pipe,
    images,
    class_labels=None,
    generator=None,
    dequantize=None,
    passes=None,
    importance_weighted=False,
    probes=1,
    probe_distribution="rademacher",
    levels=None,
    eps=None,
    rtol=1e-5,
    atol=1e-5,
    variable=None,
    in_units=False,
) -> LogProbOutput:
    """Log-densities of images, or bounds on the log-probabilities of their bins.

    Args:
        in_units: whether floating-point images are in the units of the data, and not in [0, 1].
        Others: see `ScoreSdePipeline.bits_per_dim`.
    """
    pixels, scheduler = pipe.pixel_format, pipe.scheduler
    unit, levels = numbers_and_levels(pipe, images, levels, in_units)
    unit = unit if torch.is_grad_enabled() else unit.detach()
    kind, passes = dequantization_asked(dequantize, passes, levels)
    if kind and unit.requires_grad:
        raise ValueError(
            f'`dequantize`="{kind}" rounds images to levels first, and no gradient passes that: take '
            "`dequantize`=False for that of the density, or detach the images."
        )
    exact = isinstance(probes, str)
    if not isinstance(importance_weighted, (bool, np.bool_)):
        raise ValueError(f"`importance_weighted` must be True or False, but is {importance_weighted!r}.")
    if importance_weighted and not (kind and exact):
        raise ValueError(
            '`importance_weighted` needs `dequantize` and `probes`="exact": the exponential of an estimated trace is '
            "too large on average, and the result would be no bound."
        )
    require_generators(generator, len(unit), "images")
    check_solver(rtol, atol, variable)
    require_unbounded(scheduler)
    image_range = low, high = scheduler.parameterization.image_range
    start, end = likelihood_start(scheduler, eps, kind, levels), scheduler.start_time
    guidance = Guidance(pipe, len(unit), class_labels)
    check_probes(probes, probe_distribution, unit.shape)

    if exact:  # no probe's noise hides the solver's error, which adds up over the steps
        rtol, atol = rtol / 10, atol / 10

    d = unit[0].numel()
    # The data's own units, or levels, span as much as the model's range: they are what a density is per.
    span = pixels.high - pixels.low if levels is None else levels - 1 if in_units else levels
    per_unit = math.log((high - low) / span)
    estimates, latents, nfe = [], [], 0
    for _ in range(passes):
        if kind == "uniform":
            x, log_q = in_uniform_bins(unit, levels, image_range, generator)
        elif kind == "truncated_normal":
            alpha = scheduler.sde.alpha(start).item()
            noise_level = scheduler.sde.sigma(start).item() / alpha
            y, log_q = in_truncated_normals(unit, levels, image_range, noise_level, generator)
            x, log_q = alpha * y, log_q - d * math.log(alpha)
        else:
            x, log_q = scheduler.parameterization.to_model_range(unit), unit.new_full((len(unit),), -d * per_unit)
        draw_probes = partial(drawn_probes, probes, probe_distribution, unit.detach(), generator)
        renewed = draw_probes if are_drawn(probes) and not x.requires_grad else None
        flow = ProbabilityFlow(pipe, x.shape, guidance, variable, draw_probes(), exact, renewed)
        log_p, z = LogDensity.apply(x, flow, start, end, rtol, atol)
        estimates.append((log_p - log_q[:, None]).T)
        latents.append(z.float())
        nfe += flow.nfe
    estimates = torch.stack(estimates)
    log_prob, gap = estimates.mean((0, 1)), None
    if importance_weighted:
        gap = estimates[:, 0].logsumexp(0) - math.log(passes) - log_prob
        log_prob = log_prob + gap
    shared = not exact and not are_drawn(probes)
    errors = standard_errors(estimates.detach(), exact, dequantized=bool(kind), shared_probes=shared)
    return LogProbOutput(log_prob, estimates, errors, latents[0], nfe, rtol, atol, gap)
