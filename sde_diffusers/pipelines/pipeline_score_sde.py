"""Unconditional and class-conditional generation with a score network, and the score itself.

The pipeline knows neither which SDE it samples nor which sampler does it: the scheduler says at which times the
network is evaluated, and turns each answer into the next state.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin, UNet2DModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from sde_diffusers.class_names import numbered_classes
from sde_diffusers.guidance import (
    check_interval,
    check_scale,
    checked_labels,
    classifier_guided,
    classifier_labels,
    coming_noise_level,
    network_evaluations,
    scale_at,
)
from sde_diffusers.hub import HubPipelineMixin
from sde_diffusers.images import PixelFormat, pixel_format, read_images, require_pil_mode, to_array, to_pil
from sde_diffusers.likelihood import (
    LikelihoodOutput,
    ProbabilityFlowOutput,
    decode_latents,
    encode_images,
    image_bits_per_dim,
    interpolate_images,
)
from sde_diffusers.parameterization import expand_like

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
LATENT_NAMES = ["latents"]


@dataclass
class ScoreSdePipelineOutput(BaseOutput):
    """Output of `ScoreSdePipeline`.

    Args:
        images: a list of N PIL images, an array (N, H, W, C) or a tensor (N, C, H, W); numbers lie in [0, 1], except
            for the output type "latent".
        nfe: number of evaluations of the network that each image took (where classifier-free guidance acts, it is
            evaluated twice; a classifier's evaluations are not counted).
    """

    images: list[Image.Image] | np.ndarray | Tensor
    nfe: int


class ScoreSdePipeline(HubPipelineMixin, DiffusionPipeline):
    """Sampling from a score-based generative model (arXiv 2011.13456) with any of this package's schedulers.

    Args:
        unet: a `UNet2DModel` (`NCSNppUNet2DModel` or diffusers' own), asked and answering as the scheduler's
            configuration says.
        scheduler: a scheduler of this package. Swap samplers with
            `pipe.scheduler = ScoreSdeProbabilityFlowScheduler.from_config(pipe.scheduler.config)`.
        classifier: optional, a `NoiseConditionalClassifier`, whose gradient guides with `classifier_scale` above 0.

    Raises:
        ValueError: if the scheduler is not of this package (see `sde_diffusers.convert` for diffusers' ones).
    """

    model_cpu_offload_seq = "unet->classifier"
    _optional_components = ["classifier"]
    _callback_tensor_inputs = LATENT_NAMES

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin, classifier: ModelMixin | None = None):
        super().__init__()
        if not hasattr(scheduler, "parameterization"):
            raise ValueError(
                f"`scheduler` must be one of sde_diffusers (ScoreSde...Scheduler), but is {type(scheduler).__name__}."
            )
        self.register_modules(unet=unet, scheduler=scheduler, classifier=classifier)

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """A pipeline of this class that shares the components of another one; see `DiffusionPipeline.from_pipe`."""
        # diffusers' own takes only networks of exactly the class that the constructor is annotated with
        return super().from_pipe(pipeline, **{**pipeline.components, **kwargs})

    # Sampling.

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        class_labels=None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end=None,
        callback_on_step_end_tensor_inputs: list[str] = LATENT_NAMES,
        image=None,
        strength: float = 0.5,
        guidance_interval: tuple[float, float] | None = None,
        classifier_scale: float = 0.0,
        data_units: bool = False,
    ) -> ScoreSdePipelineOutput | tuple:
        """Draw images, from noise or (`image`) starting with given ones.

        Args:
            batch_size: number of images N.
            num_inference_steps: number of time steps (not of network evaluations); the default is the scheduler's.
            class_labels: a class, or N of them (list or tensor), in [0, num_class_embeds), or their names where the
                model has names; None = no class.
            guidance_scale: w of classifier-free guidance (arXiv 2207.12598), at least 0: the network's answer is
                (1 - w) unconditional + w conditional. 1 is the conditional network itself, 0 the unconditional one.
            generator: source of all noise, or a list of N, so that each image has its own seed.
            latents: (N, C, H, W) standard normal noise to start from instead of drawing it.
            output_type: "pil", "np", "pt", or "latent" for the last state as it is, in the scheduler's image range.
                PIL images have the data's own depth; PIL has no modes for more than 8 bits and several channels.
            return_dict: whether to return a `ScoreSdePipelineOutput` and not the tuple (images, nfe).
            callback_on_step_end: called as `callback(pipe, k, timestep, {"latents": x})` after every evaluation of
                the network (there are `pipe.num_timesteps`); a dictionary that it returns may replace "latents".
            callback_on_step_end_tensor_inputs: names for the callback's dictionary; only "latents" exists.
            image: one image, of which `batch_size` versions are drawn, or N of them: PIL, arrays (H, W, C) or tensors
                (C, H, W), uint8 or in [0, 1]. Noise is added and then removed (SDEdit, arXiv 2108.01073).
            strength: the share of the time steps that are done, in (0, 1], as in diffusers' image-to-image: with more
                of them, the image that comes out has less to do with `image`.
            guidance_interval: (low, high), noise levels sigma / alpha, in the units of the network's images, between
                which `guidance_scale` holds; elsewhere it is 1 (arXiv 2404.07724). None = everywhere.
            classifier_scale: v of classifier guidance, at least 0: v times the gradient of the pipeline's
                classifier's log p_t(y | x_t) is added to the score (appendix I.1 of arXiv 2011.13456). With an
                unconditional network 1 draws from p(x | y); a conditional one is asked without the class by
                `guidance_scale=0`.
            data_units: whether "np" and "pt" are values of the data's own type and range (`pixel_format`) and not in
                [0, 1]: uint16 from 0 to 65535, say, which "pt" holds as int32.

        Raises:
            ValueError: on arguments out of range, before anything is drawn.
        """
        if image is not None:
            image = self._start_image(image, strength)
            batch_size = len(image) if batch_size == 1 else batch_size
        shape = self._check(batch_size, guidance_scale, generator, latents, output_type)
        check_interval(guidance_interval)
        if image is not None and len(image) not in (1, batch_size):
            raise ValueError(f"`image` must be one or `batch_size` = {batch_size} of them, but holds {len(image)}.")
        targets = classifier_labels(self, class_labels, batch_size, classifier_scale)
        if targets is not None and guidance_scale == 1 and not self.unet.config.num_class_embeds:
            class_labels = None  # they are the classifier's alone
        labels = self._guided_labels(class_labels, batch_size, guidance_scale)
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in LATENT_NAMES]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may hold {LATENT_NAMES} only, but holds {unknown}."
            )
        device = self._execution_device
        steps = self.scheduler.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        self.scheduler.set_timesteps(steps, device=device)

        # The state stays in float32, whatever the network computes in.
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        latents = latents.to(device, torch.float32)
        if image is None:
            x = latents * self.scheduler.init_noise_sigma
        else:
            t = self.scheduler.start_late(math.ceil(strength * steps))
            x = self.scheduler.sde.alpha(t) * image.to(device) + self.scheduler.sde.sigma(t) * latents
        timesteps = self.scheduler.timesteps[self.scheduler.step_index :]
        self._guidance_scale, self._num_timesteps = guidance_scale, len(timesteps)  # a callback may change the scale
        nfe = 0
        for k, t in enumerate(self.progress_bar(timesteps)):
            scale = scale_at(coming_noise_level(self.scheduler), self.guidance_scale, guidance_interval)
            output = self._network(self.scheduler.scale_model_input(x, t), t, labels, scale)
            nfe += network_evaluations(scale)
            if targets is not None:
                output = classifier_guided(output, self.classifier, targets, classifier_scale, self.scheduler, x)
            x = self.scheduler.step(output, t, x, generator=generator).prev_sample
            if callback_on_step_end is not None:
                values = {name: x for name in callback_on_step_end_tensor_inputs}
                x = (callback_on_step_end(self, k, t, values) or {}).get("latents", x)
        images = self._images(x, output_type, data_units)
        self.maybe_free_model_hooks()
        return ScoreSdePipelineOutput(images, nfe) if return_dict else (images, nfe)

    @property
    def guidance_scale(self) -> float:
        """w of the sampling that is under way, or was last."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Number of times at which that sampling evaluates the network."""
        return self._num_timesteps

    # The central objects.

    def score(self, x: Tensor, t, class_labels=None) -> Tensor:
        """The score grad log p_t(x) of the noisy images' density.

        Args:
            x: (N, C, H, W) noisy images at time t of the sampling SDE, in the scheduler's image range. Gradients
                flow back to x if it requires them.
            t: SDE time in (0, 1], a number or (N,).
            class_labels: as in `__call__`.

        Returns:
            (N, C, H, W), in x's dtype, at least float32.
        """
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        noise, _ = self._noise_and_denoised(x, t, class_labels)
        return -noise / expand_like(self.scheduler.sde.sigma(t), noise)

    def denoise(self, x: Tensor, t, class_labels=None) -> Tensor:
        """The denoised images E[x_0 | x_t = x] (Tweedie's formula), in the scheduler's image range; see `score`."""
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        return self._noise_and_denoised(x, t, class_labels)[1]

    def _noise_and_denoised(self, x, t, class_labels):
        earliest, latest = self.scheduler.sde.smallest_time, self.scheduler.start_time
        if t.ndim > 1 or (t.ndim == 1 and len(t) != len(x)) or not ((t > 0) & (t >= earliest) & (t <= latest)).all():
            interval = f"[{earliest}" if earliest else "(0"
            raise ValueError(f"`t` must be a time in {interval}, {latest}] or {len(x)} of them, but is {t.tolist()}.")
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            network_time = self.scheduler.network_time(t).to(x.device, torch.float32)
            scaled = x * expand_like(self.scheduler.input_scale(t), x)
            output = self._network(scaled, network_time, self._labels(class_labels, len(x)), 1.0)
            return self.scheduler.noise_and_denoised(output.to(x.dtype), x, t)

    def _network(self, x, network_time, labels, guidance_scale):
        """The network's answer, guided if `guidance_scale` is not 1."""
        if not getattr(self.unet, "accepts_float32_input", False):
            x = x.to(self.unet.dtype)
        if labels is not None:
            labels = labels.to(x.device)
        if guidance_scale == 1:
            return self.unet(x, network_time, class_labels=labels).sample
        none = torch.full_like(labels, -1)
        if guidance_scale == 0:
            return self.unet(x, network_time, class_labels=none).sample
        both = torch.cat([none, labels])
        without, given = self.unet(torch.cat([x, x]), network_time, class_labels=both).sample.chunk(2)
        return without + guidance_scale * (given - without)

    # Latent codes and likelihoods.

    def encode(
        self, images: Tensor, class_labels=None, rtol=1e-5, atol=1e-5, variable=None, return_dict=False
    ) -> Tensor | ProbabilityFlowOutput:
        """Latent codes of images: the probability flow ODE from `scheduler.sampling_eps` to t = 1.

        Args:
            images: (N, C, H, W) uint8, or floating point in [0, 1].
            class_labels: as in `__call__`.
            rtol, atol: tolerances of the adaptive solver, relative to and in the units of its state: the network's
                images, or, in "noise_level", these divided by the deviation of images at that time.
            variable: what the solver steps in: "t", exactly as the paper's code, or "noise_level", a function of
                sigma / alpha in which fewer evaluations are as accurate. None takes the latter for denoisers
                (prediction type "sample") and tables (time input "index"), and else, for the paper's networks, "t".
            return_dict: whether to return a `ProbabilityFlowOutput`, which also reports evaluations and tolerances.

        Returns:
            (N, C, H, W) float32 codes. For likely images they resemble draws from the prior, whose standard deviation
            is `scheduler.init_noise_sigma`; divided by it they can be given to `__call__` as `latents`.

        Raises:
            ValueError: on arguments of a wrong shape or out of range.
            RuntimeError: if the network's answers are not finite.
        """
        output = encode_images(self, images, class_labels, rtol, atol, variable)
        return output if return_dict else output.sample

    def decode(
        self, latents: Tensor, class_labels=None, rtol=1e-5, atol=1e-5, variable=None, return_dict=False
    ) -> Tensor | ProbabilityFlowOutput:
        """Inverse of `encode`: (N, C, H, W) latent codes to float32 images in the range [0, 1], but not clipped.

        There is no final denoising. Other arguments and errors are those of `encode`.
        """
        output = decode_latents(self, latents, class_labels, rtol, atol, variable)
        return output if return_dict else output.sample

    def interpolate(
        self,
        a: Tensor,
        b: Tensor,
        steps: int,
        class_labels=None,
        rtol=1e-5,
        atol=1e-5,
        variable=None,
        return_dict=False,
    ) -> Tensor | ProbabilityFlowOutput:
        """Ways from images a[i] to b[i], spherical in the space of latent codes.

        Args:
            a, b: (N, C, H, W) as in `encode`.
            steps: number of images K >= 2 on each way, both ends included.

        Returns:
            (K, N, C, H, W) float32 images in the range [0, 1], not clipped. Other arguments and errors are those of
            `encode`; the labels hold for both ends and the way between them.
        """
        output = interpolate_images(self, a, b, steps, class_labels, rtol, atol, variable)
        return output if return_dict else output.sample

    def bits_per_dim(
        self,
        images: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        dequantize: bool | int | None = None,
        probes: int | str | Tensor = 1,
        eps: float = 1e-5,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        class_labels=None,
        probe_distribution: str = "rademacher",
        levels: int | None = None,
        variable: str | None = None,
    ) -> LikelihoodOutput:
        """Negative log-likelihood of images in bits per dimension, by the probability flow ODE (section D.2).

        Args:
            images: (N, C, H, W) integers of the data's own range, [0, levels) (uint8 by default), or floating point in
                [0, 1].
            generator: source of dequantization noise and probes, or a list of N, so that each image has its own.
            dequantize: number of passes (True: one) with uniform noise u in (round((levels - 1) image) + u) / levels,
                whose average bounds the discrete likelihood. False: the density at the given values, which must then
                have been dequantized for the result to be comparable.
            probes: number of random probes of the trace estimator, given ones (N, C, H, W) or (P, N, C, H, W), or
                "exact" for the full trace, with as many vector-Jacobian products as an image has dimensions.
            eps: time that stands for the images, in (0, 1); raised to the earliest one that the SDE and the network
                know where they start later (DDPM tables, another SDE than the training's).
            rtol, atol, variable: see `encode`. The tolerances hold for the log-likelihood in nats as well; with
                `probes="exact"` a tenth of them is used.
            class_labels: as in `__call__`; the likelihood is then that given the class.
            probe_distribution: "rademacher" (of less variance) or "gaussian".
            levels: number of values of a pixel, 2^(bit depth); None = as the data of the network has it (256 for 8
                bits). Floating-point data have none: the result is then that of their density in their own units.

        Returns:
            `LikelihoodOutput`, in the first place `.bits_per_dim` (N,).

        Raises:
            ValueError: on arguments of a wrong shape or out of range.
            RuntimeError: if the network's answers are not finite.
        """
        return image_bits_per_dim(
            self,
            images,
            class_labels=class_labels,
            generator=generator,
            dequantize=dequantize,
            probes=probes,
            probe_distribution=probe_distribution,
            levels=levels,
            eps=eps,
            rtol=rtol,
            atol=atol,
            variable=variable,
        )

    # Arguments and results.

    def _check(self, batch_size, guidance_scale, generator, latents, output_type) -> tuple[int, ...]:
        """Refuse what cannot be sampled; the shape of the images otherwise."""
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer, but is {batch_size!r}.")
        check_scale("guidance_scale", guidance_scale)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, but is {output_type!r}.")
        if output_type == "pil":
            require_pil_mode(self.pixel_format, self._image_shape[0])
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"`generator` is a list of {len(generator)}, but `batch_size` is {batch_size}.")
        shape = (batch_size, *self._image_shape)
        if latents is not None and (latents.ndim != 4 or latents.shape[:2] != shape[:2]):  # any size of image will do
            raise ValueError(f"`latents` must have shape {shape}, but have {tuple(latents.shape)}.")
        return shape

    @property
    def pixel_format(self) -> PixelFormat:
        """What the values of the data were that the network was trained on."""
        return pixel_format(self.unet)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the network's classes, if it has any."""
        return self.unet.config.get("class_names")

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the network was made for."""
        size = self.unet.config.sample_size
        return (self.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))

    def _start_image(self, image, strength) -> Tensor:
        """(N, C, H, W) given images in the network's range, checked."""
        if not isinstance(strength, (int, float)) or not 0 < strength <= 1:
            raise ValueError(f"`strength` must lie in (0, 1], but is {strength!r}.")
        image = read_images("image", image, self._image_shape[0], self.pixel_format)
        if image.shape[1:] != self._image_shape:
            raise ValueError(f"`image` must have shape {self._image_shape}, but has {tuple(image.shape[1:])}.")
        return self.scheduler.parameterization.to_model_range(image)

    @property
    def _knows_no_class(self) -> bool:
        """Whether the network takes the label -1 for "no class"; diffusers' own would look up entry -1."""
        return not type(self.unet).__module__.startswith("diffusers.")

    def _labels(self, class_labels, batch_size) -> Tensor | None:
        """Class labels as a (N,) tensor, checked."""
        if class_labels is None:
            return None
        classes = self.unet.config.num_class_embeds
        if not classes:
            raise ValueError(f"`class_labels` is {class_labels!r}, but the network is not conditional on classes.")
        class_labels = numbered_classes(class_labels, self.class_names)
        labels = checked_labels(class_labels, batch_size, classes)
        if (labels == -1).any() and not self._knows_no_class:
            raise ValueError(f"`class_labels` holds -1, but {type(self.unet).__name__} has no label for no class.")
        return labels

    def _guided_labels(self, class_labels, batch_size, guidance_scale) -> Tensor | None:
        """Class labels as `_labels` gives them, if they and the network allow for guidance of this scale."""
        labels = self._labels(class_labels, batch_size)
        if guidance_scale != 1 and labels is None:
            raise ValueError(f"`guidance_scale`={guidance_scale} needs `class_labels`, but they are None.")
        if guidance_scale != 1 and not self._knows_no_class:
            raise ValueError(
                f"`guidance_scale`={guidance_scale} needs a network that can be asked without a class, "
                f"but {type(self.unet).__name__} can't."
            )
        return labels

    def _images(self, x: Tensor, output_type: str, data_units: bool = False):
        """The network's range -> images of the given type."""
        if output_type == "latent":
            return x
        return self._of_type(self.scheduler.parameterization.to_unit_range(x).clamp(0, 1), output_type, data_units)

    def _of_type(self, images: Tensor, output_type: str, data_units: bool = False):
        """Images in [0, 1] as PIL, numpy or tensor."""
        if output_type == "pil":
            return to_pil(images, self.pixel_format)
        if output_type == "np" and data_units:
            return to_array(images, self.pixel_format)
        images = self.pixel_format.from_unit(images) if data_units else images
        return images if output_type == "pt" else images.cpu().permute(0, 2, 3, 1).numpy()
