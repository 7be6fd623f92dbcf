"""Latent codes and exact likelihoods by the probability flow ODE (section 4.3 and appendix D of arXiv 2011.13456).

An image's code is where the ODE leads it from the time `eps` to t = 1, and its log-likelihood that of the code under
the prior plus the change of volume on the way (`probability_flow.py`).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from sde_diffusers.generators import require_generators
from sde_diffusers.guidance import Guidance
from sde_diffusers.images import PixelFormat, image_values
from sde_diffusers.network_fit import require_own_scheduler
from sde_diffusers.parameterization import require_choice
from sde_diffusers.probability_flow import ODE_VARIABLES, ProbabilityFlow
from sde_diffusers.scalars import real_number, whole_number

PROBE_DISTRIBUTIONS = ("rademacher", "gaussian")


@dataclass
class ProbabilityFlowOutput(BaseOutput):
    """What the probability flow ODE leads to.

    Args:
        sample: (N, C, H, W) float32 latents or images.
        nfe: number of evaluations of the network.
        rtol, atol: tolerances of the solver.
    """

    sample: Tensor
    nfe: int
    rtol: float
    atol: float


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
    """

    bits_per_dim: Tensor
    estimates: Tensor
    standard_error: dict[str, float]
    latents: Tensor
    nfe: int
    rtol: float
    atol: float


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


# ---- latent codes --------------------------------------------------------------------------------------------------


@torch.no_grad()
def encode_images(pipe, images, class_labels=None, rtol=1e-5, atol=1e-5, variable=None) -> ProbabilityFlowOutput:
    """See `ScoreSdePipeline.encode`."""
    x = checked_images(pipe, "images", images)
    check_solver(rtol, atol, variable)
    flow = ProbabilityFlow(pipe, x.shape, Guidance(pipe, len(x), class_labels), variable)
    x = pipe.scheduler.parameterization.to_model_range(x)
    pipe.scheduler.leave_fit()  # so that `init_noise_sigma` is the deviation of codes, whatever was sampled before
    z, _ = flow.solve(x, pipe.scheduler.sampling_eps, pipe.scheduler.start_time, rtol, atol)
    return ProbabilityFlowOutput(z.float(), flow.nfe, rtol, atol)


@torch.no_grad()
def decode_latents(pipe, latents, class_labels=None, rtol=1e-5, atol=1e-5, variable=None) -> ProbabilityFlowOutput:
    """See `ScoreSdePipeline.decode`."""
    check_shape(pipe, "latents", latents)
    if not (latents.is_floating_point() and latents.isfinite().all()):
        raise ValueError(f"`latents` must be finite floating point numbers, but are {latents.dtype} or not finite.")
    check_solver(rtol, atol, variable)
    flow = ProbabilityFlow(pipe, latents.shape, Guidance(pipe, len(latents), class_labels), variable)
    z = latents.to(pipe._execution_device)
    x, _ = flow.solve(z, pipe.scheduler.start_time, pipe.scheduler.sampling_eps, rtol, atol)
    return ProbabilityFlowOutput(pipe.scheduler.parameterization.to_unit_range(x).float(), flow.nfe, rtol, atol)


def interpolate_images(pipe, a, b, steps, class_labels=None, rtol=1e-5, atol=1e-5, variable=None):
    """See `ScoreSdePipeline.interpolate`."""
    if not whole_number(steps) >= 2:
        raise ValueError(f"`steps` must be an integer of at least 2 (both ends are included), but is {steps!r}.")
    ends = [checked_images(pipe, name, images) for name, images in (("a", a), ("b", b))]
    if ends[0].shape != ends[1].shape:
        raise ValueError(f"`b` must have the shape of `a`, {tuple(ends[0].shape)}, but has {tuple(ends[1].shape)}.")
    labels, steps = Guidance(pipe, len(ends[0]), class_labels).labels, whole_number(steps)
    solver = {"rtol": rtol, "atol": atol, "variable": variable}
    codes = encode_images(pipe, torch.cat(ends), None if labels is None else labels.repeat(2), **solver)
    code_a, code_b = codes.sample.chunk(2)
    path = slerp(code_a, code_b, torch.linspace(0, 1, steps))
    images = decode_latents(pipe, path.flatten(0, 1), None if labels is None else labels.repeat(steps), **solver)
    return ProbabilityFlowOutput(images.sample.unflatten(0, path.shape[:2]), codes.nfe + images.nfe, rtol, atol)


def slerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation of each a[i] and b[i]: (K, N, ...) for K weights in [0, 1].

    Along the great circle sin((1 - w) angle) / sin(angle) a + sin(w angle) / sin(angle) b (Shoemake, 1985), which
    keeps the norm of Gaussian codes; where a and b are parallel or opposite, along the straight line.
    """
    a_flat, b_flat = a.double().flatten(1), b.double().flatten(1)
    angle = torch.nn.functional.cosine_similarity(a_flat, b_flat, dim=1).clamp(-1, 1).acos()[None, :, None]
    w = weights.to(a.device, torch.float64)[:, None, None]
    straight = angle.sin() < 1e-6
    sine = torch.where(straight, 1.0, angle.sin())
    of_a = torch.where(straight, 1 - w, ((1 - w) * angle).sin() / sine)
    of_b = torch.where(straight, w, (w * angle).sin() / sine)
    return (of_a * a_flat + of_b * b_flat).to(a.dtype).unflatten(2, a.shape[1:])


# ---- likelihoods ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def image_bits_per_dim(
    pipe,
    images,
    class_labels=None,
    generator=None,
    dequantize=None,
    probes=1,
    probe_distribution="rademacher",
    levels=None,
    eps=1e-5,
    rtol=1e-5,
    atol=1e-5,
    variable=None,
) -> LikelihoodOutput:
    """See `ScoreSdePipeline.bits_per_dim`."""
    if levels is not None and not whole_number(levels) >= 2:
        raise ValueError(f"`levels` must be an integer of at least 2, but is {levels!r}.")
    pixels, given = pipe.pixel_format, None if levels is None else whole_number(levels)
    levels = pixels.levels if given is None else given
    foreign = {"torch.uint8", "torch.uint16"} - {f"torch.{pixels.dtype}"}
    images = read_numbers(pipe, "images", images)
    if given is None and str(images.dtype) in foreign:
        raise ValueError(
            f"`images` are {images.dtype}, but the model's data {pixels.dtype}: convert them to its values, or give "
            "`levels`."
        )
    unit = checked_images(pipe, "images", images, given)
    dequantize = levels is not None if dequantize is None else dequantize
    passes = int(dequantize) if isinstance(dequantize, (bool, np.bool_)) else whole_number(dequantize)
    if not passes >= 0:
        raise ValueError(f"`dequantize` must be a bool or a number of passes, but is {dequantize!r}.")
    if passes and levels is None:
        raise ValueError("`dequantize` is for images with levels, but the model's are floating point: give `levels`.")
    require_generators(generator, len(unit), "images")
    check_solver(rtol, atol, variable)
    scheduler = pipe.scheduler
    require_unbounded(scheduler)
    start, end = likelihood_start(scheduler, eps), scheduler.start_time
    guidance, exact = Guidance(pipe, len(unit), class_labels), isinstance(probes, str)
    check_probes(probes, probe_distribution, unit.shape)

    if exact:  # no probe's noise hides the solver's error, which adds up over the steps
        rtol, atol = rtol / 10, atol / 10

    low, high = scheduler.parameterization.image_range
    # Bins [0, levels) -> model range: x = low + (high - low) bins / levels. Floating-point data have a density in
    # their own units, in which they span pixels.high - pixels.low.
    log_volume = math.log((high - low) / (pixels.high - pixels.low if levels is None else levels))
    estimates, latents, nfe = [], [], 0
    for _ in range(max(1, int(passes))):
        if passes:
            bins = (unit * (levels - 1)).round()
            x = low + (high - low) * (bins + draw(torch.rand, unit, generator)) / levels
        else:
            x = scheduler.parameterization.to_model_range(unit)
        v = drawn_probes(probes, probe_distribution, unit, generator)
        flow = ProbabilityFlow(pipe, x.shape, guidance, variable, probes=v, sum_probes=exact)
        z, gain = flow.solve(x, start, end, rtol, atol)
        log_density = (prior_logp(scheduler, z)[:, None] + gain) / flow.dimensions
        estimates.append(-(log_density + log_volume).T / math.log(2))
        latents.append(z.float())
        nfe += flow.nfe
    estimates = torch.stack(estimates)
    errors = standard_errors(estimates, exact, dequantized=passes > 0)
    return LikelihoodOutput(estimates.mean((0, 1)), estimates, errors, latents[0], nfe, rtol, atol)


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


def likelihood_start(scheduler, eps: float) -> float:
    """The time at which the images are taken to be: eps, or the earliest one that SDE and network know."""
    if not 0 < real_number(eps) < scheduler.start_time:
        raise ValueError(f"`eps` must lie strictly between 0 and {scheduler.start_time}, but is {eps!r}.")
    sde, trained = scheduler.sde, scheduler.training_sde
    cleanest = sde.inverse_half_log_snr(trained.half_log_snr(trained.smallest_time)).item()
    return max(real_number(eps), sde.smallest_time, cleanest)


def prior_logp(scheduler, z: Tensor) -> Tensor:
    """Log-density in nats of N(0, start_sigma^2), from which sampling starts, by that of the SDE's prior."""
    scale = scheduler.sde.prior_sigma / scheduler.start_sigma
    return scheduler.sde.prior_logp(scale * z) + z[0].numel() * math.log(scale)


def draw(distribution, like: Tensor, generator) -> Tensor:
    """`distribution(shape, generator=...)` in float64 and `like`'s shape; with a list, each image from its own."""
    if isinstance(generator, list):
        return torch.cat([draw(distribution, one, g) for one, g in zip(like.split(1), generator, strict=True)])
    device = like.device if generator is None else generator.device
    return distribution(like.shape, generator=generator, device=device, dtype=torch.float64).to(like.device)


def rademacher(shape, **kwargs) -> Tensor:
    """Independent signs."""
    return 2 * torch.randint(2, shape, **kwargs) - 1


def drawn_probes(probes, distribution: str, like: Tensor, generator) -> Tensor:
    """The probes (P, N, C, H, W) in float64; all unit vectors for "exact"."""
    if isinstance(probes, str):
        d = like[0].numel()
        return torch.eye(d, dtype=torch.float64, device=like.device).view(d, 1, *like.shape[1:]).expand(d, *like.shape)
    if isinstance(probes, Tensor) and probes.ndim:
        return probes.to(like.device, torch.float64).view(-1, *like.shape)
    source = rademacher if distribution == "rademacher" else torch.randn
    return torch.stack([draw(source, like, generator) for _ in range(int(probes))])


# ---- arguments -----------------------------------------------------------------------------------------------------


def read_numbers(pipe, name: str, images) -> Tensor:
    """Images as the pipeline returns them (PIL, arrays, tensors): their numbers, (N, C, H, W)."""
    if not isinstance(images, Tensor):
        images, pictures = image_values(name, images, pipe.unet.config.in_channels)
        if pictures and images.is_floating_point():  # in the units of the data
            images = pipe.pixel_format.to_unit(images, torch.float64)
    check_shape(pipe, name, images)
    return images


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


def check_probes(probes, distribution, shape) -> None:
    require_choice("probe_distribution", distribution, PROBE_DISTRIBUTIONS)
    if isinstance(probes, Tensor) and probes.ndim:
        good = probes.ndim in (4, 5) and probes.shape[-4:] == shape and probes.numel() > 0
        got = f"a tensor of shape {tuple(probes.shape)}"
    elif isinstance(probes, str):
        good, got = probes == "exact", repr(probes)
    else:
        good, got = whole_number(probes) >= 1, repr(probes)
    if not good:
        size = ", ".join(map(str, shape))
        raise ValueError(
            f'`probes` must be a positive integer, "exact" or a tensor of shape ({size}) or (P, {size}), not {got}.'
        )
