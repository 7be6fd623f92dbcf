"""Unconditional and class-conditional generation with a score network, and the score itself.

The pipeline knows neither which SDE it samples nor which sampler does it: the scheduler says at which times the
network is evaluated, and turns each answer into the next state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin, UNet2DModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from sde_diffusers.class_names import Labels, names_of
from sde_diffusers.fitting.fitted_network import warn_of_other_fit
from sde_diffusers.generators import LATENT_NAMES, latents_size, replaced, require_generators, require_state_alone
from sde_diffusers.guidance import Guidance, classes_of, image_shape
from sde_diffusers.hub.pipeline_mixin import HubPipelineMixin
from sde_diffusers.images import Images, PixelFormat, pixel_format, read_images, require_pil_mode, to_array, to_pil
from sde_diffusers.models.tiles import Tiles
from sde_diffusers.network_fit import require_configured, require_own_scheduler, require_size
from sde_diffusers.optimization import LAYOUTS, WORKING_PRECISIONS, Optimization, optimized
from sde_diffusers.parameterization import require_choice
from sde_diffusers.pipelines.codes_and_likelihoods import CodesAndLikelihoodsMixin
from sde_diffusers.pipelines.scores import ScoresMixin
from sde_diffusers.scalars import real_number, whole_number

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class StateNotFiniteError(RuntimeError):
    """A sampler's state has become infinite, or no number."""


@dataclass
class ScoreSdePipelineOutput(BaseOutput):
    """Output of `ScoreSdePipeline`.

    Args:
        images: a list of N PIL images, an array (N, H, W, C) or a tensor (N, C, H, W); numbers lie in [0, 1], except
            for the output type "latent".
        nfe: number of evaluations of networks that each image took: of the network (two where classifier-free guidance
            acts) and of the guide (one where it acts). A classifier's evaluations are not counted.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    nfe: int


class ScoreSdePipeline(HubPipelineMixin, ScoresMixin, CodesAndLikelihoodsMixin, DiffusionPipeline):
    """Sampling from a score-based generative model (arXiv 2011.13456) with any of this package's schedulers.

    Args:
        unet: a `UNet2DModel` (`NCSNppUNet2DModel` or diffusers' own), asked and answering as the scheduler's
            configuration says.
        scheduler: a scheduler of this package. Swap samplers with
            `pipe.scheduler = ScoreSdeProbabilityFlowScheduler.from_config(pipe.scheduler.config)`.
        classifier: optional, a `NoiseConditionalClassifier`, whose gradient guides with `classifier_scale` above 0.
        guide: optional, a weaker network of the same kind as `unet` (fewer images, smaller; of the same classes or of
            none), trained with the same SDE and asked as `unet` is, which guides with a `guide_scale` other than 1.

    Raises:
        ValueError: if the scheduler is not of this package (see `sde_diffusers.convert` for diffusers' ones). A
            network that cannot be asked as the scheduler asks (see `require_network_fits`) is refused when it is used.
    """

    model_cpu_offload_seq = "unet->guide->classifier"
    _optional_components = ["classifier", "guide"]
    _callback_tensor_inputs = LATENT_NAMES
    tiles: Tiles | None = None

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        classifier: ModelMixin | None = None,
        guide: ModelMixin | None = None,
    ):
        super().__init__()
        require_configured(unet)
        require_own_scheduler(scheduler)
        self.register_modules(unet=unet, scheduler=scheduler, classifier=classifier, guide=guide)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs):
        """A pipeline of this class that shares the components of another one; see `DiffusionPipeline.from_pipe`."""
        # diffusers' own takes only networks of exactly the class that the constructor is annotated with
        new = super().from_pipe(pipeline, **{**pipeline.components, **kwargs})
        new.tiles = getattr(pipeline, "tiles", None)
        return new

    # Sampling.

    @torch.inference_mode(False)  # through whose tensors the classifier's gradient could not pass
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = LATENT_NAMES,
        image: Images | None = None,
        strength: float = 0.5,
        guidance_interval: tuple[float, float] | None = None,
        classifier_scale: float = 0.0,
        guide_scale: float = 1.0,
        data_units: bool = False,
    ) -> ScoreSdePipelineOutput:
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
            return_dict: False returns the tuple (images, nfe), which the annotation leaves out.
            callback_on_step_end: called as `callback(pipe, k, timestep, {"latents": x})` after every evaluation of
                the network (there are `pipe.num_timesteps`), of which `pipe.scheduler.at_grid_point` tells whether it
                ended a time step. A dictionary that it returns may replace "latents". It may set
                `pipe.guidance_scale`, and stop with `pipe._interrupt = True`: the state is then returned as it is.
            callback_on_step_end_tensor_inputs: names for the callback's dictionary; only "latents" exists.
            image: one image, of which `batch_size` versions are drawn, or N of them: PIL, arrays (H, W, C) or tensors
                (C, H, W), uint8 or in [0, 1], of any size that the network takes. Noise is added and then removed
                (SDEdit, arXiv 2108.01073).
            strength: the share of the time steps that are done, in (0, 1], in whole steps (rounded down) as in
                diffusers' image-to-image: with more of them, the image that comes out has less to do with `image`.
                Without an `image` there is none to give.
            guidance_interval: (low, high), noise levels sigma / alpha, in the units of the network's images, between
                which `guidance_scale` and `guide_scale` hold; elsewhere they are 1 (arXiv 2404.07724). None: always.
            classifier_scale: s of classifier guidance, at least 0: s times the gradient of the pipeline's
                classifier's log p_t(y | x_t) is added to the score (appendix I.1 of arXiv 2011.13456). With an
                unconditional network 1 draws from p(x | y); a conditional one is asked without the class by
                `guidance_scale=0`.
            guide_scale: v of autoguidance (arXiv 2406.02507), at least 0, with classes or without: the network's
                answer is (1 - v) guide + v network. 1 is the network itself, 0 the weaker `guide`. The three kinds
                of guidance combine as the first lines of `sde_diffusers/guidance.py` say.
            data_units: whether "np" and "pt" are values of the data's own type and range (`pixel_format`) and not in
                [0, 1]: uint16 from 0 to 65535, say, which "pt" holds as int32.

        Raises:
            ValueError: on arguments out of range, before anything is drawn.
            StateNotFiniteError: if the state is no longer finite.

        Examples:
            >>> pipe = ScoreSdePipeline.from_pretrained("pretrained/fashion-mnist-ve")
            >>> pipe(4, 20, class_labels="Bag", guidance_scale=1.5).images[0].save("bag.png")
        """
        require_own_scheduler(self.scheduler)
        if not 0 < real_number(strength) <= 1:
            raise ValueError(f"`strength` must lie in (0, 1], but is {strength!r}.")
        if image is None and strength != 0.5:
            raise ValueError(f"`strength`={strength!r} needs an `image` to start from, but that is None.")
        self._require_data_units(data_units, output_type)
        if image is not None:
            image = self._start_image(image)
            batch_size = len(image) if batch_size == 1 else batch_size
        size = None if image is None else image.shape[2:]
        callback = callback_on_step_end, callback_on_step_end_tensor_inputs
        shape = self._check(batch_size, generator, latents, output_type, *callback, size)
        batch_size = shape[0]
        if image is not None and len(image) not in (1, batch_size):
            raise ValueError(f"`image` must be one or `batch_size` = {batch_size} of them, but holds {len(image)}.")
        scales = classifier_scale, guide_scale
        guidance = Guidance(self, batch_size, class_labels, guidance_scale, guidance_interval, *scales, sampling=True)
        device = self._execution_device
        steps = self.scheduler.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        self.scheduler.set_timesteps(steps, device=device)
        if image is not None:
            steps_left = int(self.scheduler.num_inference_steps * real_number(strength) * (1 + 1e-6))  # of float32
            if steps_left == 0:
                raise ValueError(f"`strength`={strength} of {steps} steps is less than one.")
            self.scheduler.start_late(steps_left)
        warn_of_other_fit(self.scheduler, self.unet, guidance)

        # The state stays in float32, whatever the network computes in.
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        latents = latents.to(device, torch.float32)
        if image is None:
            x = latents * self.scheduler.init_noise_sigma
        else:
            t = self.scheduler.times[self.scheduler.step_index]
            x = self.scheduler.sde.alpha(t) * image.to(device) + self.scheduler.sde.sigma(t) * latents
        x = self._walk(x, guidance, guidance, generator, *callback)
        images = self._images(x, output_type, data_units)
        self.maybe_free_model_hooks()
        output = ScoreSdePipelineOutput(images, guidance.nfe)
        return output if return_dict else cast(Any, (images, guidance.nfe))

    def _walk(self, x, guidance, answer, generator, callback, callback_inputs, project=lambda x: x):
        """Follow the scheduler's steps from the state x, with the network's `answer(x)` at each.

        `project` changes the state at grid points. See `__call__` for the callback.
        """
        first = self.scheduler.step_index
        timesteps = self.scheduler.timesteps[first:]
        self._guidance, self._num_timesteps, self._interrupt = guidance, len(timesteps), False
        sound, done = torch.zeros((), dtype=torch.int64, device=x.device), 0  # states that are finite, and all
        with guidance.frozen(), self.scheduler.sampling():
            for k, t in enumerate(self.progress_bar(timesteps)):
                if self.interrupt:
                    break
                x = self.scheduler.step(answer(x), t, x, generator=generator).prev_sample
                if self.scheduler.at_grid_point:
                    x = project(x)
                if callback is not None:
                    x = replaced(x, callback(self, k, t, {name: x for name in callback_inputs}))
                sound, done = sound + x.isfinite().all(), k + 1
                if sound.device.type == "cpu" and sound < done:
                    break
        # Read once, as it makes the host wait for a GPU; on the meta device there is nothing to read.
        if not sound.is_meta and (finite := sound.item()) < done:
            raise StateNotFiniteError(
                f"The sampler's state is not finite after evaluation {finite + 1} of {len(timesteps)}, at t = "
                f"{self.scheduler.times[first + finite].item():.4g}. Either the network's answers are not (float16 "
                "overflows where bfloat16 and float32 do not), or its steps grow without bound (is it asked as it was "
                "trained: `time_input`, `prediction_type`, `image_range`? Does the `snr` of the corrector suit it?)."
            )
        return x

    @property
    def guidance_scale(self) -> float:
        """w of the sampling that is under way, or was last; a callback may set it."""
        return self._guidance.guidance_scale

    @guidance_scale.setter
    def guidance_scale(self, scale):
        self._guidance.guidance_scale = scale

    _guidance_scale = guidance_scale  # the name by which callbacks for diffusers' own pipelines set it

    @property
    def num_timesteps(self) -> int:
        """Number of times at which that sampling evaluates the network."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked it to stop."""
        return self._interrupt

    def optimize(
        self, batch_size: int = 1, evaluations: int = 0, layout: str | None = None, precision: str | None = None
    ) -> Optimization:
        """Try out how this processor or GPU samples fastest, and sample so from now on.

        Answers stay the same up to rounding: that of float32, or of bfloat16 where that was chosen. Likelihoods, codes
        and restoration go on in the network's own precision; saving writes the network's own weights, and what is
        loaded again is as before. When weights are changed, also through `.data`, this has to be called again.

        Args:
            batch_size: of the sampling to come.
            evaluations: how many evaluations of the network are to come, about: compiling, which takes up to minutes,
                is tried where they would take longer than that.
            layout: "channels_last" or "contiguous"; None = the faster one, by trial.
            precision: "float32" or "bfloat16"; None = the faster one, by trial, where the network takes noisy images
                in float32 whatever it computes in.

        Returns:
            `Optimization`: what was chosen, and the times that were measured; its text says it in a line.

        Raises:
            ValueError: on other numbers or names; if the network's weights wait elsewhere (offloading).
        """
        n, more = whole_number(batch_size), whole_number(evaluations)
        if not n >= 1:
            raise ValueError(f"`batch_size` must be a positive integer, but is {batch_size!r}.")
        if not more >= 0:
            raise ValueError(f"`evaluations` must be an integer of at least 0, but is {evaluations!r}.")
        require_choice("layout", layout, (None, *LAYOUTS))
        require_choice("precision", precision, (None, *WORKING_PRECISIONS))
        require_own_scheduler(self.scheduler)
        if hasattr(self.unet, "_hf_hook"):
            raise ValueError("`optimize` is for a network that stays on its device, but `unet` is offloaded.")
        device, dtype = self._execution_device, torch.promote_types(self.unet.dtype, torch.float32)
        dtype = dtype if getattr(self.unet, "accepts_float32_input", False) else self.unet.dtype
        x = torch.randn(int(n), *self._image_shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        labels = torch.zeros(int(n), dtype=torch.int64, device=device) if classes_of(self.unet) else None
        network_time = self.scheduler.network_time(torch.tensor(0.5)).to(device, torch.float32)
        return optimized(self.unet, (x, network_time, labels), int(more), layout, precision)

    def enable_tiling(self, tile_size: int, overlap: int | None = None) -> None:
        """Ask the networks for one tile of the images after another from now on, for images that do not fit at once.

        Where tiles overlap their answers are blended: see `sde_diffusers.models.tiles`. Classifiers see whole images.

        Args:
            tile_size: side in pixels, one that the network takes.
            overlap: of neighbouring tiles, 4 to half of `tile_size`; None = a quarter, but at least 4. Both should be
                multiples of what the network takes in one step (of its patches and strides), which then lie alike in
                all tiles.

        Raises:
            ValueError: on other numbers.
        """
        size = whole_number(tile_size)
        if not size >= 8:
            raise ValueError(f"`tile_size` must be an integer of at least 8, but is {tile_size!r}.")
        common = max(size // 4, 4) if overlap is None else whole_number(overlap)
        if not 4 <= common <= size // 2:
            raise ValueError(f"`overlap` must be an integer from 4 to {size // 2}, but is {overlap!r}.")
        before, self.tiles = self.tiles, Tiles(int(size), int(common))
        try:
            self._require_size("tile_size", (int(size), int(size)))
        except ValueError:
            self.tiles = before  # what is refused changes nothing
            raise

    def disable_tiling(self) -> None:
        """Ask the networks for whole images again."""
        self.tiles = None

    # Arguments and results.

    def _check(self, batch_size, generator, latents, output_type, callback, inputs, size=None) -> tuple[int, ...]:
        """Refuse what cannot be sampled; otherwise the images' shape, `size` (H, W) being also the latents' or own."""
        n, channels = whole_number(batch_size), self.unet.config.in_channels
        if not n >= 1:
            raise ValueError(f"`batch_size` must be a positive integer, but is {batch_size!r}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, but is {output_type!r}.")
        if output_type == "pil":
            require_pil_mode(self.pixel_format, channels)
        require_generators(generator, int(n), "images")
        if callback is not None and not callable(callback):
            raise ValueError(f"`callback_on_step_end` must be a function or None, but is {callback!r}.")
        require_state_alone(inputs)
        if latents is not None:
            size = latents_size(latents, int(n), channels, size)
            self._require_size("latents", size)
        return (n, channels, *(self._image_shape[1:] if size is None else size))

    @property
    def pixel_format(self) -> PixelFormat:
        """What the values of the data were that the network was trained on."""
        return pixel_format(self.unet)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the network's classes, if it has any."""
        return names_of(self.unet)

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the network was made for."""
        return image_shape(self.unet)

    def _start_image(self, image) -> Tensor:
        """(N, C, H, W) given images in the network's range, checked."""
        image = read_images("image", image, self.unet.config.in_channels, self.pixel_format)
        self._require_size("image", tuple(image.shape[2:]))
        return self.scheduler.parameterization.to_model_range(image)

    def _require_size(self, name: str, size: tuple[int, int]) -> None:
        """Raise a `ValueError` unless the networks take images of this (H, W), or their tiles."""
        size = size if self.tiles is None else (min(size[0], self.tiles.size), min(size[1], self.tiles.size))
        networks = [network for network in (self.unet, getattr(self, "guide", None)) if network is not None]
        own = size if self.unet.config.sample_size is None else self._image_shape[1:]
        require_size(name, size, own, networks)

    def _require_data_units(self, data_units: bool, output_type: str) -> None:
        require_choice("data_units", data_units, (False, True))
        if data_units and output_type not in ("np", "pt"):
            raise ValueError(f"`data_units` is for `output_type` 'np' and 'pt', but that is {output_type!r}.")

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
