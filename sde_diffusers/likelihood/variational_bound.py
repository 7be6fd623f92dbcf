"""The variational bound on the probability of integers, of the reverse-time SDE (Kingma et al., arXiv 2107.00630).

The SDE's samples have another density than the ODE's, unless the network is exact, and it is not known. It is bounded:
with s = sigma / alpha, l = -log s, and pixels that have levels x_k,

    -log P(x) <= KL(q(x_1 | x), prior) + integral of E|noise error|^2 dl + E[-log P(x | x_eps)],

with the normal of the deviation `start_sigma`, from which sampling starts, for prior, and P(x | x_eps) proportional to
exp(-(x_eps / alpha - x_k)^2 / (2 s^2)) in each pixel (their eq. 11, 15 and 18). An exact denoiser makes the bound an
equation, image by image (I-MMSE: Guo et al., arXiv cs/0412108), if the prior is what the SDE ends with. It takes no
derivatives of the network, and where the network errs the error counts to second order. l is drawn in strata, once in
each.
"""

import math
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from sde_diffusers.generators import require_generators
from sde_diffusers.guidance import Guidance
from sde_diffusers.likelihood.log_likelihood import standard_errors
from sde_diffusers.likelihood.probes import draw
from sde_diffusers.likelihood.questions import likelihood_start, numbers_and_levels, require_unbounded
from sde_diffusers.parameterization import PURE_NOISE, expand_like
from sde_diffusers.scalars import whole_number

DECODED_DEVIATIONS = 9.0
"""How far away, in deviations of the noise, a level is no candidate any more: e^-40."""
DENSE = 300.0
"""Levels to a deviation of the noise above which their sum is taken as the integral: wrong by some 1e-6 nats at the
ends of the range (1 / 24 of the slopes there), and by nothing between them."""


@dataclass
class VariationalBoundOutput(BaseOutput):
    """Upper bounds on negative log-probabilities in bits per dimension.

    Args:
        bits_per_dim: (N,) float64, mean over the passes.
        prior, diffusion, reconstruction: (N,) its three terms, in the order of the equation.
        estimates: (passes, 1, N), what was averaged; see `standard_errors`.
        standard_error: of the batch's mean, in parts: "dequantization" is here all that is drawn.
        nfe: number of evaluations of the network that each image took.
    """

    bits_per_dim: Tensor
    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    estimates: Tensor
    standard_error: dict[str, float]
    nfe: int


def image_variational_bound(
    pipe, images, class_labels=None, generator=None, draws=32, passes=1, levels=None, eps=None
) -> VariationalBoundOutput:
    """See `ScoreSdePipeline.variational_bound`."""
    for name, value in (("draws", draws), ("passes", passes)):
        if not whole_number(value) >= 1:
            raise ValueError(f"`{name}` must be a positive integer, but is {value!r}.")
    unit, levels = numbers_and_levels(pipe, images, levels, in_units=False)
    if levels is None:
        raise ValueError("The variational bound is for images with levels, but these are floating point.")
    require_generators(generator, len(unit), "images")
    scheduler = pipe.scheduler
    require_unbounded(scheduler)
    sde, (low, high) = scheduler.sde, scheduler.parameterization.image_range
    ends = [likelihood_start(scheduler, eps, "truncated_normal", levels), scheduler.start_time]
    cleanest, noisiest = sde.half_log_snr(torch.tensor(ends, dtype=torch.float64)).tolist()
    noisiest = max(noisiest, -math.log(PURE_NOISE))
    guidance, d = Guidance(pipe, len(unit), class_labels), unit[0].numel()
    values = (unit * (levels - 1)).round()
    x_0 = low + (high - low) * values / (levels - 1)

    end = torch.tensor(scheduler.start_time, dtype=torch.float64)
    # In deviations of the prior.
    alpha, sigma = (f(end).item() / scheduler.start_sigma for f in (sde.alpha, sde.sigma))
    prior = (alpha**2 * x_0.square().flatten(1).sum(1) + d * (sigma**2 - 1 - math.log(sigma**2))) / 2
    diffusion, reconstruction = [], []
    with guidance.frozen(), torch.no_grad():
        for _ in range(int(passes)):
            total = torch.zeros_like(prior)
            for k in range(int(draws)):
                u = (k + draw(torch.rand, unit[:, :1, :1, :1], generator).flatten()) / draws
                half_log_snr = cleanest - (cleanest - noisiest) * u
                error = _noise_error(scheduler, guidance, x_0, half_log_snr, generator)
                total += error * (cleanest - noisiest) / draws
            diffusion.append(total)
            s = math.exp(-cleanest) * (levels - 1) / (high - low)  # in spacings
            reconstruction.append(_decoding_nats(values, s, levels, draw(torch.randn, unit, generator)))
    pipe.maybe_free_model_hooks()
    bits = 1 / (d * math.log(2))
    terms = [bits * prior, *(bits * torch.stack(term).mean(0) for term in (diffusion, reconstruction))]
    estimates = bits * (prior + torch.stack(diffusion) + torch.stack(reconstruction))[:, None]
    errors = standard_errors(estimates, exact_trace=True)
    return VariationalBoundOutput(estimates.mean((0, 1)), *terms, estimates, errors, guidance.nfe)


def _noise_error(scheduler, guidance, x_0: Tensor, half_log_snr: Tensor, generator) -> Tensor:
    """(N,) squared errors of the noise at one drawn level for each image."""
    t = scheduler.sde.inverse_half_log_snr(half_log_snr.cpu())
    alpha, sigma = (expand_like(f(t), x_0) for f in (scheduler.sde.alpha, scheduler.sde.sigma))
    noise = draw(torch.randn, x_0, generator)
    x = alpha * x_0 + sigma * noise
    dtype = torch.promote_types(guidance.network.dtype, torch.float32)
    network_time = scheduler.network_time(t, between=True).to(dtype).to(x.device)
    output = guidance.mixed(x.to(dtype), t, network_time)
    return (scheduler.noise_and_denoised(output.to(x.dtype), x, t)[0] - noise).square().flatten(1).sum(1)


def _decoding_nats(values: Tensor, s: float, levels: int, noise: Tensor) -> Tensor:
    """(N,) -log P(values | values + s noise), of integers in [0, levels)."""
    if s > DENSE:
        above, below = (torch.special.ndtr((end - values) / s - noise) for end in (levels - 0.5, -0.5))
        log_sum = (above - below).log() + math.log(s * math.sqrt(2 * math.pi))
    else:
        reach = min(math.ceil(DECODED_DEVIATIONS * s) + 1, levels - 1)
        log_sum = torch.full_like(values, -math.inf)
        for step in range(-reach, reach + 1):
            exists = (values + step >= 0) & (values + step < levels)
            log_weight = -0.5 * (noise - step / s).square()
            log_sum = torch.where(exists, torch.logaddexp(log_sum, log_weight), log_sum)
    return (log_sum + 0.5 * noise.square()).flatten(1).sum(1)
