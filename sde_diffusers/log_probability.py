"""Log-probabilities of data in their own units, and of classes given data (Bayes' rule)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from sde_diffusers.likelihood import log_probabilities, standard_errors


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


def image_log_prob(pipe, x, **options) -> LogProbOutput:
    """See `ScoreSdePipeline.log_prob`."""
    if isinstance(x, Tensor) and x.requires_grad and pipe.unet.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"`x` asks for a gradient, which takes a network of float32 or float64, but it is {pipe.unet.dtype}: "
            "`pipe.to(torch.float32)`, or `x.detach()`."
        )
    nats = log_probabilities(pipe, x, in_units=True, **options)
    errors = standard_errors(nats.estimates.detach(), nats.exact_trace, nats.dequantized)
    return LogProbOutput(
        nats.log_prob, nats.estimates, errors, nats.latents, nats.nfe, nats.rtol, nats.atol, nats.importance_gap
    )


def image_class_log_prob(pipe, x, class_priors=None, generator=None, **options) -> Tensor:
    """See `ScoreSdePipeline.class_log_prob`."""
    classes = pipe.unet.config.num_class_embeds or 0
    if not classes:
        raise ValueError("`class_log_prob` needs a network that is conditional on classes, and this one is not.")
    log_priors = log_class_priors(class_priors, classes)
    columns = []
    for label in range(classes):  # the same noise for each, so that it cancels in their differences
        output = image_log_prob(pipe, x, class_labels=label, generator=copies(generator), **options)
        columns.append(output.log_prob)
    joint = torch.stack(columns, dim=1)
    return (joint + log_priors.to(joint.device)).log_softmax(1)


def log_class_priors(priors: Sequence[float] | Tensor | None, classes: int) -> Tensor:
    """(C,) float64; a ValueError unless they are positive and sum to 1."""
    if priors is None:
        return torch.full((classes,), -math.log(classes), dtype=torch.float64)
    given = torch.as_tensor(priors, dtype=torch.float64)
    if given.shape != (classes,) or not (given > 0).all() or abs(given.sum().item() - 1) > 1e-6:
        raise ValueError(
            f"`class_priors` must be {classes} positive probabilities that sum to 1, but are {given.tolist()}."
        )
    return given.log()


def copies(generator):
    """Generators in the state of the given ones, which stay as they are; of the default one, if None."""
    if isinstance(generator, list):
        return [copies(one) for one in generator]
    state = torch.random.default_generator if generator is None else generator
    return torch.Generator(state.device).set_state(state.get_state())
