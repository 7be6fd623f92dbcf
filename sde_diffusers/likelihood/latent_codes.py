"""Latent codes by the probability flow ODE (appendix D.3 and D.4 of arXiv 2011.13456).

An image's code is where the ODE leads it from the time `sampling_eps` to t = 1.
"""

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from sde_diffusers.generators import latents_size
from sde_diffusers.guidance import Guidance
from sde_diffusers.likelihood.probability_flow import ProbabilityFlow
from sde_diffusers.likelihood.questions import check_shape, check_solver, checked_images
from sde_diffusers.scalars import whole_number


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


@torch.no_grad()
def encode_images(pipe, images, class_labels=None, rtol=1e-5, atol=1e-5, variable=None) -> ProbabilityFlowOutput:
    """See `ScoreSdePipeline.encode`."""
    x = checked_images(pipe, "images", images)
    check_solver(rtol, atol, variable)
    flow = ProbabilityFlow(pipe, x.shape, Guidance(pipe, len(x), class_labels), variable)
    x = pipe.scheduler.parameterization.to_model_range(x)
    if pipe.scheduler.step_index == len(pipe.scheduler.times):  # no sampling is under way
        pipe.scheduler.leave_fit()  # so that `init_noise_sigma` is the deviation of codes, whatever was sampled before
    z, _ = flow.solve(x, pipe.scheduler.sampling_eps, pipe.scheduler.start_time, rtol, atol)
    return ProbabilityFlowOutput(z.float(), flow.nfe, rtol, atol)


@torch.no_grad()
def decode_latents(pipe, latents, class_labels=None, rtol=1e-5, atol=1e-5, variable=None) -> ProbabilityFlowOutput:
    """See `ScoreSdePipeline.decode`."""
    check_shape(pipe, "latents", latents)
    latents_size(latents, len(latents), pipe.unet.config.in_channels)
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
