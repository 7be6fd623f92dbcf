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

from sde_diffusers.density_gradient import LogDensity
from sde_diffusers.dequantization import (
    CUT_OFF,
    DEQUANTIZATIONS,
    half_bin,
    in_truncated_normals,
    in_uniform_bins,
)
from sde_diffusers.generators import require_generators
from sde_diffusers.guidance import Guidance
from sde_diffusers.images import PixelFormat, image_values
from sde_diffusers.network_fit import require_own_scheduler
from sde_diffusers.parameterization import require_choice
from sde_diffusers.probability_flow import ODE_VARIABLES, ProbabilityFlow
from sde_diffusers.probes import are_drawn, check_probes, drawn_probes
from sde_diffusers.scalars import real_number, whole_number


@dataclass
class LikelihoodOutput(BaseOutput):
    """Negative log-likelihoods in bits per dimension (less is more likely).

    Args:
        bits_per_dim: (N,) float64, mean over passes and probes. High values mark anomalies.
        estimates: (passes, probes, N) float64, what was averaged; one "probe" if the trace is exact. Join batches with
            `torch.cat(..., dim=2)` and ask `standard_errors` for the errors over a data set.
        standard_error: of the batch's mean, in parts; see `standard_errors`.
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
        standard_errors: of the batch's mean, in parts; see `standard_errors`.
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


def standard_errors(estimates: Tensor, exact_trace: bool = False, dequantized: bool = True) -> dict[str, float]:
    """Standard error of the mean of nested draws, split into what causes it (analysis of variance).

    With deviations s_image between images, s_deq between the K passes of an image and s_probe between the P probes of
    a pass, the mean over N images has the variance (s_image^2 + s_deq^2 / K + s_probe^2 / (K P)) / N.

    Args:
        estimates: (K, P, N) as in `LikelihoodOutput`.
        exact_trace: whether there are no probes, so that they cause no error.
        dequantized: whether the passes differ in dequantization noise; else that causes no error.

    Returns:
        "probe", "dequantization", "images": the square roots of the three terms, and "total". What one draw alone
        cannot show is NaN: a part whose P or K is 1 is contained in the next one instead, and one image (N = 1) says
        nothing of "images" and "total".
    """
    passes, probes, n = estimates.shape

    def variance(values: Tensor, dim: int) -> float:
        return values.var(dim).mean().item() if values.shape[dim] > 1 else math.nan

    def beyond(observed: float, *explained: float) -> float:
        left = observed - sum(part for part in explained if not math.isnan(part))
        return 0.0 if left < 0 else left  # NaN stays

    # Variances of the mean over the draws of one image, from the innermost level outwards.
    probe = 0.0 if exact_trace else variance(estimates, 1) / (passes * probes)
    dequantization = beyond(variance(estimates.mean(1), 0) / passes, probe) if dequantized else 0.0
    total = variance(estimates.mean((0, 1)), 0)
    images = beyond(total, probe, dequantization)
    parts = {"probe": probe, "dequantization": dequantization, "images": images, "total": total}
    return {name: math.sqrt(part / n) for name, part in parts.items()}


# ---- bits per dimension --------------------------------------------------------------------------------------------


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
    kind, passes = dequantization_asked(dequantize, passes, levels)
    exact = isinstance(probes, str)
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
    per_unit = math.log((high - low) / (levels or pixels.high - pixels.low))
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
    errors = standard_errors(estimates.detach(), exact, dequantized=bool(kind))
    return LogProbOutput(log_prob, estimates, errors, latents[0], nfe, rtol, atol, gap)


def require_unbounded(scheduler) -> None:
    """Raise a ValueError if the scheduler clips: its samples are then not those of the ODE, whose density is known."""
    require_own_scheduler(scheduler)
    if scheduler.denoised_range.bounded:
        keys = ("clip_denoised", "dynamic_thresholding_ratio", "sample_max_value")
        given = ", ".join(f"`{key}`={scheduler.config[key]!r}" for key in keys if scheduler.config[key] is not None)
        raise ValueError(
            f"The scheduler bounds E[x_0 | x_t] ({given}), and the likelihood of what it draws is not known. That of "
            "the network without bounds is: `pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, "
            "clip_denoised=None, dynamic_thresholding_ratio=None, sample_max_value=None)`."
        )


def likelihood_start(scheduler, eps: float | None = None, dequantize=None, levels: int = 256) -> float:
    """The time at which the images are taken to be: `eps`, or the earliest one that SDE and network know.

    With `eps`=None, 1e-5; for "truncated_normal", where half a bin is `CUT_OFF` deviations of the noise.
    """
    sde, trained = scheduler.sde, scheduler.training_sde
    if eps is not None and not 0 < real_number(eps) < scheduler.start_time:
        raise ValueError(f"`eps` must lie strictly between 0 and {scheduler.start_time}, but is {eps!r}.")
    start = 1e-5 if eps is None else real_number(eps)
    if eps is None and dequantize == "truncated_normal":
        level = half_bin(levels, scheduler.parameterization.image_range) / CUT_OFF
        start = sde.inverse_half_log_snr(-torch.tensor(level, dtype=torch.float64).log()).item()
    cleanest = sde.inverse_half_log_snr(trained.half_log_snr(trained.smallest_time)).item()
    return max(start, sde.smallest_time, cleanest)


# ---- arguments -----------------------------------------------------------------------------------------------------


def read_numbers(pipe, name: str, images, in_units: bool = False) -> Tensor:
    """Images as the pipeline returns them (PIL, arrays, tensors): their numbers, (N, C, H, W)."""
    if not isinstance(images, Tensor):
        images, pictures = image_values(name, images, pipe.unet.config.in_channels)
        if pictures and images.is_floating_point() and not in_units:  # they are in the units of the data
            images = pipe.pixel_format.to_unit(images, torch.float64)
    check_shape(pipe, name, images)
    return images


def numbers_and_levels(pipe, images, levels, in_units: bool) -> tuple[Tensor, int | None]:
    """Images in float64, as numbers of which 0 and 1 are the ends of the data's range, and their number of levels.

    Raises:
        ValueError: on other levels, types or ranges.
    """
    if levels is not None and not whole_number(levels) >= 2:
        raise ValueError(f"`levels` must be an integer of at least 2, but is {levels!r}.")
    pixels, given = pipe.pixel_format, None if levels is None else int(whole_number(levels))
    name = "x" if in_units else "images"
    images = read_numbers(pipe, name, images, in_units)
    if in_units and images.is_floating_point():
        if given is not None:
            raise ValueError(f"`levels` is for integers, but `x` is {images.dtype}: give integers in [0, levels).")
        if not images.isfinite().all():
            raise ValueError("`x` must be finite, but holds NaN or infinite values.")
        if pixels.levels is not None and 0 <= images.min() and images.max() <= 1:
            raise ValueError(
                f"`x` lies in [0, 1], but must be in the data's own units, {pixels.low} to {pixels.high}: give "
                "integers, or floating-point numbers of that range."
            )
        return pixels.to_unit(images.to(pipe._execution_device, torch.float64), torch.float64), None
    foreign = {"torch.uint8", "torch.uint16"} - {f"torch.{pixels.dtype}"}
    if given is None and str(images.dtype) in foreign:
        raise ValueError(
            f"`{name}` are {images.dtype}, but the model's data {pixels.dtype}: convert them to its values, or give "
            "`levels`."
        )
    return checked_images(pipe, name, images, given), pixels.levels if given is None else given


def dequantization_asked(dequantize, passes, levels: int | None) -> tuple[str | None, int]:
    """Which of `DEQUANTIZATIONS`, None for none, and how many passes.

    Raises:
        ValueError: on anything else, and on dequantization of data without levels.
    """
    if passes is not None and not whole_number(passes) >= 1:
        raise ValueError(f"`passes` must be a positive integer, but is {passes!r}.")
    if dequantize is None:
        dequantize = levels is not None
    kind, count = dequantize, 1
    if not isinstance(dequantize, str):
        given = int(dequantize) if isinstance(dequantize, (bool, np.bool_)) else whole_number(dequantize)
        if not given >= 0:
            raise ValueError(
                f"`dequantize` must be a bool, a number of passes, or one of {', '.join(DEQUANTIZATIONS)}, but is "
                f"{dequantize!r}."
            )
        kind, count = "uniform" if given else None, max(1, int(given))
    else:
        require_choice("dequantize", dequantize, DEQUANTIZATIONS)
    if kind and levels is None:
        raise ValueError("`dequantize` is for images with levels, but these are floating point: give `levels`.")
    if passes is not None and (count > 1 or not kind):
        raise ValueError(f"`passes`={passes!r} and `dequantize`={dequantize!r} contradict each other.")
    return kind, count if passes is None else int(whole_number(passes))


def check_shape(pipe, name: str, images) -> None:
    channels = pipe.unet.config.in_channels
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != channels or not images.numel():
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"`{name}` must be a tensor of shape (N, {channels}, H, W), but is {what}.")


def checked_images(pipe, name: str, images, levels: float | None = None) -> Tensor:
    """Images as float64 in [0, 1] on the pipeline's device.

    Integers are values of the model's `pixel_format`, or k of `levels`, which become k / (levels - 1).
    """
    images, pixels = read_numbers(pipe, name, images), pipe.pixel_format
    if images.dtype == torch.bool:  # black and white
        images = images.double()
    if images.is_floating_point():
        low, high = images.min().item(), images.max().item()
        if not (low >= 0 and high <= 1 and math.isfinite(low + high)):
            raise ValueError(f"`{name}` must lie in [0, 1] if floating point, but reaches from {low} to {high}.")
        return images.to(pipe._execution_device, torch.float64)
    if pixels.levels is None and levels is None:
        raise ValueError(f"`{name}` must be floating point in [0, 1], as the model's are, but is {images.dtype}.")
    dtype = str(images.dtype).removeprefix("torch.")
    if levels is None and dtype in ("uint8", "uint16") and dtype != pixels.dtype:
        pixels = PixelFormat.of(dtype)  # of another depth: its own white is white
    bottom, top = (pixels.low, pixels.high) if levels in (None, pixels.levels) else (0, levels - 1)
    values = images.to(torch.int64)
    low, high = values.min().item(), values.max().item()
    if low < bottom or high > top:
        raise ValueError(f"`{name}` must lie in [{bottom}, {top + 1}) if integer, but reaches from {low} to {high}.")
    return (images.to(pipe._execution_device, torch.float64) - bottom) / (top - bottom)


def check_solver(rtol, atol, variable) -> None:
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 < real_number(value) < math.inf:
            raise ValueError(f"`{name}` must be a finite number above 0, but is {value!r}.")
    if variable is not None:
        require_choice("variable", variable, ODE_VARIABLES)
