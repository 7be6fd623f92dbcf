"""Guidance: what a class y, a classifier or a weaker network add to the answer of a score network.

By Bayes' rule grad log p_t(x | y) = grad log p_t(x) + grad log p_t(y | x). More of the last term than the one share
draws images that are more typical of their class and less diverse. It comes from

    the network D, asked with the class and without, as a difference: classifier-free (arXiv 2207.12598), or
    a noise-conditional classifier p_t(y | x)     (section 5 and appendix I.1 of arXiv 2011.13456).

A weaker network G of the same kind errs as D does, but more, so that a step away from its answer mends errors, with or
without classes: autoguidance (arXiv 2406.02507), G + v (D - G). The three combine: each adds its own difference to
what the network answers given the class,

    D(x | y) + (w - 1) (D(x | y) - D(x)) + (v - 1) (D(x | y) - G(x | y)),    and s grad log p_t(y | x) to the score,

    w = `guidance_scale`,    v = `guide_scale`,    s = `classifier_scale`.

w = v = 1, s = 0 is the network itself. w = 0 asks both networks without the class: D(x) then stands for D(x | y), and
G(x) for G(x | y). A `guidance_interval` (low, high) of noise levels sigma / alpha is where w and v hold; elsewhere
they are 1 (arXiv 2404.07724).

D and G stand for denoisers E[x_0 | x_t]. The answers of the networks themselves (noise, score, v) are mixed, for these
are affine in x_0 with factors that depend on x and t alone, and the weights of a mixture sum to 1: mixing the answers
of two networks that are asked alike is mixing their denoisers. Likewise every sampler and SDE can use a guided answer.
In x / alpha the classifier's images are x_0 plus noise of scale sigma / alpha, whatever the SDE.
"""

import logging
import math
from contextlib import contextmanager

import torch
from diffusers import UNet2DModel
from torch import Tensor

from sde_diffusers.class_names import names_of, numbered_classes
from sde_diffusers.guidance_arguments import checked_interval, checked_labels, checked_scale
from sde_diffusers.images import pixel_format
from sde_diffusers.models.tiles import answer_in_tiles
from sde_diffusers.network_fit import (
    require_answers,
    require_consistency,
    require_mixable,
    require_network_fits,
    require_own_scheduler,
)
from sde_diffusers.optimization import SamplingNetwork, asked_for_samples
from sde_diffusers.parameterization import PURE_NOISE

guidance_log = logging.getLogger(__name__)

# How a network is asked and what it answers, by its configuration, and what the lack of a key means; ... is anything.
ASKED_ALIKE = {
    "time_embedding_type": ...,
    "image_range": ...,
    "preconditioning": None,
    "scale_by_sigma": False,
    "num_scales": None,
    "sigma_min": None,
    "sigma_max": None,
}


class Guidance:
    """The networks of a pipeline as one call asks them: with its labels and scales, checked once, then at every step.

    Args:
        pipe: a `ScoreSdePipeline`.
        batch_size: number of images N that class labels are for.
        class_labels, guidance_scale, guidance_interval, classifier_scale, guide_scale: see `ScoreSdePipeline`.
        copies: number K of images for each label, one after another.
        sampling: whether samples are asked for, for which `ScoreSdePipeline.optimize` may have chosen a way.

    Attributes:
        labels: (N K,) classes that the network is given, -1 for none; or None.
        nfe: number of evaluations so far of the network and of the guide, for each image.

    Raises:
        ValueError: on arguments out of range, or that do not fit the networks or one another.
    """

    def __init__(
        self,
        pipe,
        batch_size: int,
        class_labels=None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        classifier_scale: float = 0.0,
        guide_scale: float = 1.0,
        copies: int = 1,
        sampling: bool = False,
    ):
        require_own_scheduler(pipe.scheduler)
        self.network, self.scheduler, self.tiles, self.nfe = pipe.unet, pipe.scheduler, pipe.tiles, 0
        self.asked = asked_for_samples(pipe.unet) if sampling else pipe.unet
        require_network_fits(getattr(pipe.unet, "config", None), pipe.scheduler.parameterization)
        require_answers(pipe.unet, pipe.scheduler, sampling)
        self.interval = checked_interval(guidance_interval)
        w = checked_scale("guidance_scale", guidance_scale)
        self.classifier_scale = checked_scale("classifier_scale", classifier_scale)
        self.guide_scale = checked_scale("guide_scale", guide_scale)
        self.classifier = None if self.classifier_scale == 0 else fitting_classifier(pipe, self.classifier_scale)
        self.guide = None if self.guide_scale == 1 else fitting_guide(pipe, self.guide_scale)
        require_mixable(self.scheduler, "classifier_scale", self.classifier_scale, (0,))
        require_mixable(self.scheduler, "guide_scale", self.guide_scale, (1,))

        def on_device(labels):
            return None if labels is None else labels.repeat_interleave(copies).to(pipe._execution_device)

        self.classifier_labels = on_device(self._classifier_labels(class_labels, batch_size))
        if self.classifier is not None and w == 1 and not classes_of(self.network):
            class_labels = None  # they are the classifier's alone
        labels = self._network_labels(class_labels, batch_size)
        self.labels, self.has_class = on_device(labels), labels is not None and bool((labels >= 0).any())
        self.guidance_scale = w

    @property
    def guidance_scale(self) -> float:
        """w; may be set between two steps, which raises the errors of the constructor."""
        return self._guidance_scale

    @guidance_scale.setter
    def guidance_scale(self, scale):
        scale = checked_scale("guidance_scale", scale)
        if scale != 1 and not self.has_class:
            raise ValueError(f"`guidance_scale`={scale} needs `class_labels`, but they name no class.")
        require_mixable(self.scheduler, "guidance_scale", scale, (0, 1))
        if scale != 1:
            self._require_no_class(f"`guidance_scale`={scale}", learnt=True)
        self._guidance_scale = scale

    # The answer.

    def __call__(self, x: Tensor) -> Tensor:
        """The guided answer to the state x (N, C, H, W), for the scheduler's coming `step`.

        Where x requires gradients they flow back to it.
        """
        k = self.scheduler.step_index
        return self.answer(x, self.scheduler.times[k], self.scheduler.timesteps[k])

    def answer(self, x: Tensor, t: Tensor, network_time: Tensor) -> Tensor:
        """The guided answer to the state x at any time t of the sampling SDE, a scalar.

        `network_time` is what the networks are conditioned on then, on the device of x.
        """
        w, v, level = self.guidance_scale, self.guide_scale, math.nan
        if self.interval is not None or self.classifier is not None:
            level = (-self.scheduler.sde.half_log_snr(t)).exp().item()  # sigma / alpha
        if self.interval is not None:
            low, high = self.interval
            rounded = 1e-9  # the level is computed from a logarithm
            if not low * (1 - rounded) <= level <= high * (1 + rounded):
                w = v = 1.0
        output = self.mixed(x, t, network_time, w, v)
        return output if self.classifier is None else self._towards_class(output, x, t, level)

    def mixed(self, x: Tensor, t: Tensor, network_time: Tensor, w: float = 1.0, v: float = 1.0) -> Tensor:
        """D + (w - 1) (D - D without the class) + (v - 1) (D - G), for the networks' answers; D itself by default.

        Args:
            x: (N, C, H, W) states of the sampling SDE.
            t: their time, a scalar or (N,).
            network_time: what the networks are conditioned on then, on the device of x.
        """
        x = self.scheduler.network_input(x, t)
        labels = self.labels
        none = None if labels is None else torch.full_like(labels, -1)
        if w in (0, 1):
            labels = labels if w == 1 else none
            output = given = self._ask(self.asked, x, network_time, labels)
        else:
            both = self._ask(self.asked, torch.cat([x, x]), network_time, torch.cat([none, labels]))
            without, given = both.chunk(2)
            output = without + w * (given - without)
        self.nfe += 1 if w in (0, 1) else 2
        if v != 1:
            weak = self._ask(self.guide, x, network_time, labels if classes_of(self.guide) else None)
            output = output + (v - 1) * (given - weak)
            self.nfe += 1
        return output

    def _ask(self, network, x, network_time, labels):
        own = network.eager if isinstance(network, SamplingNetwork) else network
        if not getattr(own, "accepts_float32_input", False):
            x = x.to(own.dtype)

        def held_still(*arguments, **options):  # also where a tile is asked again, when its gradient is asked for
            with frozen(own):
                return network(*arguments, **options)

        return answer_in_tiles(self.tiles, held_still if self.tiles else network, x, network_time, labels)

    def _towards_class(self, output, x, t, level):
        """The answer changed so that the score gains s grad log p_t(y | x)."""
        if level > PURE_NOISE:  # nothing is left of the image, and nothing of its class
            return output
        parameterization = self.scheduler.parameterization
        low, high = parameterization.image_range
        images = parameterization.to_unit_range(x / self.scheduler.sde.alpha(t).item())
        by_image = class_gradient(self.classifier, images, level / (high - low), self.classifier_labels)
        # noise = -sigma score and x_0 = (x - sigma noise) / alpha; the answer is linear in both.
        noise = -self.classifier_scale * level * (by_image / (high - low))
        return output.to(x.dtype) + parameterization.target(-level * noise, noise, self.scheduler.training_time(t))

    def frozen(self):
        """A context in which all that is asked is held still; see the function `frozen`."""
        return frozen(*(network for network in (self.network, self.guide, self.classifier) if network is not None))

    # Labels.

    def _network_labels(self, class_labels, batch_size) -> Tensor | None:
        """Class labels for the network and the guide as a (N,) tensor."""
        classes = classes_of(self.network)
        if class_labels is None:
            self._require_no_class("`class_labels` is None, which")
            return None
        if not classes:
            raise ValueError(f"`class_labels` is {class_labels!r}, but the network is not conditional on classes.")
        class_labels = numbered_classes(class_labels, names_of(self.network))
        labels = checked_labels(class_labels, batch_size, classes)
        if (labels == -1).any():
            self._require_no_class("`class_labels` holds -1, which")
        return labels

    def _classifier_labels(self, class_labels, batch_size) -> Tensor | None:
        """Class labels for the classifier as a (N,) tensor: each image needs one."""
        if self.classifier is None:
            return None
        needs = f"`classifier_scale`={self.classifier_scale} needs"
        if class_labels is None:
            raise ValueError(f"{needs} `class_labels`, but they are None.")
        names = names_of(self.classifier) or names_of(self.network)
        labels = checked_labels(numbered_classes(class_labels, names), batch_size, self.classifier.config.num_classes)
        if (labels == -1).any():
            raise ValueError(f"{needs} a class for each image, but `class_labels` hold -1 (none).")
        return labels

    def _require_no_class(self, what: str, learnt: bool = False) -> None:
        """Raise a `ValueError` if a network that knows classes cannot be asked without one.

        Where it can, but has not learnt to, another one if it must have (`learnt`), or else a warning is logged.
        """
        for role, network in {"network": self.network, "guide": self.guide}.items():
            if network is None or not classes_of(network):
                continue
            # diffusers' own networks, and what is made of them, would look up the embedding of entry -1.
            if issubclass(class_of(network), UNet2DModel) and not hasattr(class_of(network), "_embed_class"):
                raise ValueError(
                    f"{what} takes a {role} that can be asked without a class, but {class_of(network).__name__} can't."
                )
            if getattr(network.config, "label_dropout", None) == 0:
                message = f"{what} asks the {role} without a class, but it was trained with a class for every image "
                message += "(`label_dropout`=0): its answer means nothing."
                if learnt:
                    raise ValueError(message)
                guidance_log.warning(message)


@contextmanager
def frozen(*networks: torch.nn.Module):
    """Hold networks still meanwhile: no dropout, and no gradients for parameters, which would only be stored."""
    if not torch.is_inference_mode_enabled():
        for network in networks:
            make_weights_ordinary(network)
    modules = [module for network in networks for module in network.modules() if module.training]
    parameters = [weight for network in networks for weight in network.parameters() if weight.requires_grad]
    for module in modules:
        module.training = False
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module in modules:
            module.training = True
        for parameter in parameters:
            parameter.requires_grad_(True)


def make_weights_ordinary(network: torch.nn.Module) -> None:
    """Replace weights that were loaded inside `torch.inference_mode`, through which no gradient passes, by copies."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_inference():
                    copy = tensor.detach().clone()
                    is_weight = tensors is module._parameters
                    tensors[name] = torch.nn.Parameter(copy, tensor.requires_grad) if is_weight else copy


def class_gradient(classifier, images: Tensor, noise_level: float, labels: Tensor) -> Tensor:
    """grad log p(labels | images) with respect to noisy images, itself differentiable where these require gradients.

    Args:
        classifier: function of (images, noise levels (N,)) that gives logits (N, classes).
        images: (N, C, H, W) images in [0, 1] plus white noise of deviation `noise_level`.
        labels: (N,) classes.
    """
    differentiable = images.requires_grad and torch.is_grad_enabled()
    with torch.enable_grad():
        images = images if differentiable else images.detach().requires_grad_()
        logits = classifier(images, images.new_full((len(images),), noise_level))
        log_p = logits.to(images.dtype).log_softmax(1).gather(1, labels[:, None])
        return torch.autograd.grad(log_p.sum(), images, create_graph=differentiable)[0]


# What fits the network.


def fitting_classifier(pipe, scale):
    """The pipeline's classifier; a `ValueError` if there is none, or it does not fit the network."""
    if pipe.classifier is None:
        raise ValueError(f"`classifier_scale`={scale} needs a `classifier`, but the pipeline has none.")
    require_shape("classifier", pipe)
    known, classes = pipe.classifier.config.num_classes, classes_of(pipe.unet)
    if classes and classes != known:
        raise ValueError(f"`classifier` knows {known} classes, but the network {classes}.")
    require_same_names("classifier", pipe)
    return pipe.classifier


def fitting_guide(pipe, scale):
    """The pipeline's guide; a `ValueError` if there is none, or it cannot be asked as the network is."""
    if pipe.guide is None:
        raise ValueError(f"`guide_scale`={scale} needs a `guide`, but the pipeline has none.")
    require_shape("guide", pipe)
    known, classes = classes_of(pipe.guide), classes_of(pipe.unet)
    if known and classes != known:
        raise ValueError(f"`guide` knows {known} classes, but the network {classes or 'none'}.")
    if known:
        require_same_names("guide", pipe)
    require_consistency(pipe.guide.config, bool(getattr(pipe.unet.config, "consistency", False)))
    channels = pipe.unet.config.in_channels
    of_guide, of_network = (getattr(net.config, "out_channels", None) or channels for net in (pipe.guide, pipe.unet))
    if of_guide != of_network:
        raise ValueError(f"`guide` answers with {of_guide} channels, but the network with {of_network}.")
    for key, default in ASKED_ALIKE.items():
        of_guide, of_network = (setting(net.config, key, default) for net in (pipe.guide, pipe.unet))
        if of_guide != of_network and ... not in (of_guide, of_network):
            raise ValueError(
                f"`guide` must be asked as the network is, but its {key} is {of_guide!r} and the network's "
                f"{of_network!r}."
            )
    return pipe.guide


def require_same_names(name, pipe) -> None:
    """Raise a `ValueError` if the component `name` knows classes by other names, or in another order."""
    of_other, of_network = names_of(getattr(pipe, name)), names_of(pipe.unet)
    if of_other and of_network and list(of_other) != list(of_network):
        raise ValueError(f"`{name}` knows the classes {list(of_other)}, but the network {list(of_network)}.")


def require_shape(name, pipe) -> None:
    """Raise a `ValueError` unless the component `name` is for images as the network's, as far as it is known."""
    other = getattr(pipe, name)
    sizes = [net.config.sample_size for net in (other, pipe.unet)]
    channels = [(net.config.in_channels,) for net in (other, pipe.unet)]
    shapes = channels if None in sizes else [image_shape(net) for net in (other, pipe.unet)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"`{name}` is for images {shapes[0]}, but the network's are {shapes[1]}.")
    if getattr(other.config, "value_dtype", None) is not None and pixel_format(other) != pixel_format(pipe.unet):
        raise ValueError(
            f"`{name}` is for images of {pixel_format(other)}, but the network's are of {pixel_format(pipe.unet)}."
        )


def image_shape(network) -> tuple[int, int, int]:
    """(C, H, W) of the images that a network was made for; a `ValueError` if its configuration does not say."""
    size = network.config.sample_size
    if size is None:
        raise ValueError(
            "`sample_size` of the network is None, so that nothing says how large its images are: give `latents` (or "
            "an `image`) of that size, or set it by `unet.register_to_config(sample_size=...)`."
        )
    return (network.config.in_channels, *((size, size) if isinstance(size, int) else size))


def setting(config, key, default):
    """What a configuration has under a key of `ASKED_ALIKE`; lists, as files give them, as tuples.

    Fourier features of diffusers' own networks come with the division by sigma.
    """
    if key == "scale_by_sigma" and getattr(config, "time_embedding_type", None) == "fourier":
        default = True
    value = getattr(config, key, default)
    return tuple(value) if isinstance(value, list) else value


def classes_of(network) -> int | None:
    """Number of classes that a score network knows; None or 0 if it is not conditional on classes."""
    return getattr(network.config, "num_class_embeds", None)  # which a network of one's own may lack


def class_of(network) -> type:
    """The class of a network, also where `torch.compile` wraps it."""
    return type(getattr(network, "_orig_mod", network))
