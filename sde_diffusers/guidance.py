"""Guidance: what a class y adds to the score of noisy images.

By Bayes' rule grad log p_t(x | y) = grad log p_t(x) + grad log p_t(y | x). The last term comes from

    a noise-conditional classifier p_t(y | x)     (section 5 and appendix I.1 of arXiv 2011.13456), or
    the network, asked with the class and without, as a difference: classifier-free (arXiv 2207.12598).

More than once that term draws images that are more typical of their class and less diverse; for the classifier-free
one this pays only at intermediate noise levels sigma / alpha, the guidance interval (arXiv 2404.07724).

In y = x / alpha the classifier's images are x_0 plus noise of scale sigma / alpha, whatever the SDE, so that one
classifier serves all of them. Both kinds of guidance change the network's answer, so every sampler can use them.
"""

import math

import torch
from torch import Tensor

from sde_diffusers.class_names import numbered_classes
from sde_diffusers.likelihood import frozen


def check_scale(name: str, value) -> None:
    """Raise a `ValueError` that names the argument unless `value` is a finite number of at least 0."""
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be a finite number of at least 0, but is {value!r}.")


def check_interval(interval) -> None:
    """Raise a `ValueError` unless `guidance_interval` is None or (low, high) with 0 <= low < high."""
    if interval is None:
        return
    pair = isinstance(interval, (tuple, list)) and len(interval) == 2
    if not pair or not all(isinstance(v, (int, float)) for v in interval) or not 0 <= interval[0] < interval[1]:
        raise ValueError(
            f"`guidance_interval` must be None or noise levels (low, high) with 0 <= low < high, but is {interval!r}."
        )


def checked_labels(class_labels, batch_size: int, classes: int) -> Tensor:
    """`class_labels`, one or N of them, as a (N,) tensor; a `ValueError` unless they are integers in [-1, classes)."""
    labels = torch.as_tensor(class_labels)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"`class_labels` must be integers, but are {class_labels!r}.")
    labels = labels.long()
    if labels.ndim > 1 or (labels.ndim == 1 and len(labels) != batch_size):
        raise ValueError(
            f"`class_labels` must be one class or {batch_size} of them, but have shape {tuple(labels.shape)}."
        )
    if ((labels < -1) | (labels >= classes)).any():
        raise ValueError(f"`class_labels` must lie in [0, {classes}) or be -1 (none), but are {labels.tolist()}.")
    return labels.expand(batch_size)


def classifier_labels(pipe, class_labels, batch_size: int, classifier_scale) -> Tensor | None:
    """Class labels for the pipeline's classifier, as a (N,) tensor; None if it is not asked.

    Raises:
        ValueError: if there is no classifier, or it doesn't fit the network or the labels.
    """
    check_scale("classifier_scale", classifier_scale)
    if classifier_scale == 0:
        return None
    needs = f"`classifier_scale`={classifier_scale} needs"
    if pipe.classifier is None:
        raise ValueError(f"{needs} a `classifier`, but the pipeline has none.")
    if class_labels is None:
        raise ValueError(f"{needs} `class_labels`, but they are None.")
    config, classes = pipe.classifier.config, pipe.unet.config.num_class_embeds
    size = config.sample_size
    shape = (config.in_channels, *((size, size) if isinstance(size, int) else size))
    if shape != pipe._image_shape:
        raise ValueError(f"`classifier` is for images {shape}, but the network's are {pipe._image_shape}.")
    if classes and classes != config.num_classes:
        raise ValueError(f"`classifier` knows {config.num_classes} classes, but the network {classes}.")
    names = config.get("class_names") or pipe.unet.config.get("class_names")
    labels = checked_labels(numbered_classes(class_labels, names), batch_size, config.num_classes)
    if (labels == -1).any():
        raise ValueError(f"{needs} a class for each image, but `class_labels` hold -1 (none).")
    return labels


def scale_at(noise_level: float, scale: float, interval) -> float:
    """The scale of classifier-free guidance at a noise level sigma / alpha: outside the interval there is none."""
    return scale if interval is None or interval[0] <= noise_level <= interval[1] else 1.0


def network_evaluations(scale: float) -> int:
    """How often classifier-free guidance asks the network: with the class (1), without (0), or both."""
    return 1 if scale in (0, 1) else 2


def coming_noise_level(scheduler) -> float:
    """sigma / alpha of the state at the scheduler's coming `step`."""
    return (-scheduler.sde.half_log_snr(scheduler.times[scheduler.step_index])).exp().item()


def class_gradient(classifier, images: Tensor, noise_level: float, labels: Tensor) -> Tensor:
    """grad log p(labels | images) with respect to noisy images.

    Args:
        classifier: function of (images, noise levels (N,)) that gives logits (N, classes).
        images: (N, C, H, W) images in [0, 1] plus white noise of deviation `noise_level`.
        labels: (N,) classes.
    """
    with torch.enable_grad(), frozen(classifier):
        images = images.detach().requires_grad_()
        logits = classifier(images, images.new_full((len(images),), noise_level))
        log_p = logits.to(images.dtype).log_softmax(1).gather(1, labels[:, None].to(images.device))
        return torch.autograd.grad(log_p.sum(), images)[0]


def classifier_guided(output: Tensor, classifier, labels: Tensor, scale: float, scheduler, x: Tensor) -> Tensor:
    """The network's answer for the scheduler's coming `step`, changed so that the score becomes

        grad log p_t(x) + scale grad log p_t(y | x).

    Args:
        output: (N, C, H, W) the network's answer.
        classifier, labels: see `class_gradient`.
        scale: v of the docstring's second term; at least 0.
        x: (N, C, H, W) the state x_t.
    """
    t, level = scheduler.times[scheduler.step_index], coming_noise_level(scheduler)
    parameterization = scheduler.parameterization
    low, high = parameterization.image_range
    images = parameterization.to_unit_range(x / scheduler.sde.alpha(t).item())
    gradient = class_gradient(classifier, images, level / (high - low), labels) / (high - low)  # by x / alpha
    # noise = -sigma score and x_0 = (x - sigma noise) / alpha; the answer is linear in both.
    noise = -scale * level * gradient
    return output.to(x.dtype) + parameterization.target(-level * noise, noise, scheduler.training_time(t))
