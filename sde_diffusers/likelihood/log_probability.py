"""Log-probabilities of data in their own units, and of classes given data (Bayes' rule)."""

import inspect
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusers.guidance import classes_of
from sde_diffusers.likelihood.log_likelihood import LogProbOutput, log_probabilities
from sde_diffusers.scalars import plain, real_number


def image_log_prob(pipe, x, **options) -> LogProbOutput:
    """See `ScoreSdePipeline.log_prob`."""
    gradient = isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()
    if gradient and pipe.unet.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"`x` asks for a gradient, which takes a network of float32 or float64, but it is {pipe.unet.dtype}: "
            "`pipe.to(torch.float32)`, or `x.detach()`."
        )
    return log_probabilities(pipe, x, in_units=True, **options)


def image_class_log_prob(pipe, x, class_priors=None, generator=None, **options) -> Tensor:
    """See `ScoreSdePipeline.class_log_prob`."""
    classes = classes_of(pipe.unet) or 0
    if not classes:
        raise ValueError("`class_log_prob` needs a network that is conditional on classes, and this one is not.")
    if "class_labels" in options:
        raise ValueError("`class_labels` are what `class_log_prob` asks about: leave them out.")
    known = inspect.signature(log_probabilities).parameters.keys() - {"pipe", "images", "in_units"}
    if unknown := options.keys() - known:
        raise TypeError(
            f"`class_log_prob` has no {', '.join(sorted(unknown))}, but the options of `log_prob`: "
            f"{', '.join(sorted(known - {'class_labels', 'generator'}))}."
        )
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
    listed = plain(priors)
    numbers = [real_number(prior) for prior in listed] if isinstance(listed, (list, tuple)) else []
    if len(numbers) != classes or not all(number > 0 for number in numbers) or not abs(sum(numbers) - 1) <= 1e-6:
        raise ValueError(f"`class_priors` must be {classes} positive probabilities that sum to 1, but are {priors!r}.")
    return torch.tensor(numbers, dtype=torch.float64).log()


def copies(generator):
    """Generators in the state of the given ones, which stay as they are; of the default one, if None.

    What is none of these is handed on, to be refused.
    """
    if isinstance(generator, list):
        return [copies(one) for one in generator]
    if generator is not None and not isinstance(generator, torch.Generator):
        return generator
    state = torch.random.default_generator if generator is None else generator
    return torch.Generator(state.device).set_state(state.get_state())
