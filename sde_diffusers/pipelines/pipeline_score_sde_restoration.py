"""Inverse problems: images that a score network thinks likely and that agree with a measurement.

Inpainting, colorization, super-resolution, deblurring and any other linear measurement y = A x_0 + noise: images are
drawn from the posterior p(x_0 | y) whose prior p(x_0) is the network's. Nothing is trained for the task.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from sde_diffusers.guidance import Guidance
from sde_diffusers.images import read_images, read_mask
from sde_diffusers.operators import Convolution, Downsampling, GaussianBlur, Grayscale, LinearOperator, Mask
from sde_diffusers.parameterization import require_choice
from sde_diffusers.pipelines.pipeline_score_sde import LATENT_NAMES, ScoreSdePipeline
from sde_diffusers.posteriors import POSTERIOR_METHODS, Measurement, PosteriorMethod, posterior_output
from sde_diffusers.scalars import real_number, whole_number

ROUNDING_STD = 1 / (255 * math.sqrt(12))  # deviation of the error of rounding to 8 bits


@dataclass
class ScoreSdeRestorationOutput(BaseOutput):
    """Output of `ScoreSdeRestorationPipeline` for N measurements with K posterior samples each.

    Args:
        images: the samples, those of the first measurement first: a list of N K PIL images, an array (N K, H, W, C) or
            a tensor (N K, C, H, W); numbers lie in [0, 1].
        mean: the samples' mean for each measurement, N of the same kind: the estimate of least squared error.
        std: the samples' pixel-wise standard deviation, N of the same kind, or None if K = 1. In pictures (PIL), black
            is 0 and white 0.5 or more.
        nfe: number of evaluations of networks that each sample took, as in `ScoreSdePipelineOutput`.
        products: number of vector-Jacobian products of the guided denoiser that each sample took, at most.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    mean: list[Image.Image] | np.ndarray | Tensor
    std: list[Image.Image] | np.ndarray | Tensor | None
    nfe: int
    products: int


class ScoreSdeRestorationPipeline(ScoreSdePipeline):
    """Posterior sampling for linear measurements, with any score network, SDE and sampler of this package.

    Components and all other methods are those of `ScoreSdePipeline`, whose saved folders load here as well;
    `ScoreSdeRestorationPipeline.from_pipe(pipe)` shares the components of one that is loaded.
    """

    @torch.inference_mode(False)  # through whose tensors the products' gradients could not pass
    @torch.no_grad()
    def __call__(
        self,
        measurement: Tensor,
        operator: LinearOperator,
        noise_std: float = 0.0,
        method: str | PosteriorMethod = "mmps",
        num_samples: int = 1,
        num_inference_steps: int | None = None,
        class_labels=None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end=None,
        callback_on_step_end_tensor_inputs: list[str] = LATENT_NAMES,
        guidance_interval: tuple[float, float] | None = None,
        classifier_scale: float = 0.0,
        guide_scale: float = 1.0,
    ) -> ScoreSdeRestorationOutput | tuple:
        """Draw images from the posterior given a measurement.

        Args:
            measurement: floating point, of the shape that `operator` gives to N images of the network's size, in units
                of images in [0, 1]. What it holds at missing pixels does not matter.
            operator: A, one of `sde_diffusers.operators`.
            noise_std: deviation of the measurement's white noise, in the same units. At 0 the images reproduce the
                measurement: observed pixels exactly, other operators' values but for the clipping to [0, 1].
            method: "mmps", "pigdm", "dps" or "projection" (see `sde_diffusers.posteriors`), or an instance of one of
                these methods with other parameters, such as `MMPS(steps=5)`.
            num_samples: number K of samples for each measurement.
            num_inference_steps: number of time steps; the default is the scheduler's.
            class_labels: a class, or N of them (list or tensor), in [0, num_class_embeds); None = no class.
            generator: source of all noise, or a list of N K of them.
            output_type: "pil", "np" or "pt".
            return_dict: whether to return a `ScoreSdeRestorationOutput` and not its values as a tuple.
            callback_on_step_end, callback_on_step_end_tensor_inputs: see `ScoreSdePipeline`.
            guidance_scale, guidance_interval, classifier_scale, guide_scale: see `ScoreSdePipeline`. The guided
                network is the prior: its covariance is that of x_0 given x_t.

        Raises:
            ValueError: on arguments that do not fit one another or the network, before anything is drawn.
        """
        if isinstance(method, str):
            require_choice("method", method, POSTERIOR_METHODS)
            method = POSTERIOR_METHODS[method]()
        if not whole_number(num_samples) >= 1:
            raise ValueError(f"`num_samples` must be a positive integer, but is {num_samples!r}.")
        if not 0 <= real_number(noise_std) < math.inf:
            raise ValueError(f"`noise_std` must be a finite number of at least 0, but is {noise_std!r}.")
        num_samples, noise_std = whole_number(num_samples), real_number(noise_std)
        self._check_measurement("measurement", measurement, operator)
        method.check(operator, noise_std)
        if output_type == "latent":
            raise ValueError("`output_type` must be one of ('pil', 'np', 'pt'), but is 'latent'.")
        shape = self._check(
            len(measurement) * num_samples, generator, None, output_type, callback_on_step_end_tensor_inputs
        )
        guidance = Guidance(
            self,
            len(measurement),
            class_labels,
            guidance_scale,
            guidance_interval,
            classifier_scale,
            guide_scale,
            copies=num_samples,
        )
        steps = self.scheduler.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        device = self._execution_device
        self.scheduler.set_timesteps(steps, device=device)

        operator = operator.repeat(num_samples)
        # Values at missing pixels, for example, say nothing of the image.
        measurement = operator.attainable(measurement.to(device, torch.float32).repeat_interleave(num_samples, 0))
        problem = self._in_model_range(measurement, operator, noise_std, shape)
        answer = partial(posterior_output, guidance, self.scheduler, method, problem)
        draw = partial(randn_tensor, shape, generator=generator, device=device, dtype=torch.float32)

        def project(x):
            return method.project(problem, x, *self._kernel_reached(), draw)

        x = draw() * self.scheduler.init_noise_sigma
        x = self._walk(
            x, guidance, answer, generator, callback_on_step_end, callback_on_step_end_tensor_inputs, project
        )
        images = self.scheduler.parameterization.to_unit_range(x)
        if noise_std == 0:
            images = operator.consistent(images, measurement)
        images = images.clamp(0, 1)
        samples = images.unflatten(0, (-1, num_samples))
        std = None if num_samples == 1 else samples.std(1)
        if std is not None and output_type == "pil":
            std = (2 * std).clamp(max=1)
        self.maybe_free_model_hooks()
        output = ScoreSdeRestorationOutput(
            images=self._of_type(images, output_type),
            mean=self._of_type(samples.mean(1), output_type),
            std=None if std is None else self._of_type(std, output_type),
            nfe=guidance.nfe,
            products=self.scheduler.step_index * method.products,
        )
        return output if return_dict else (output.images, output.mean, output.std, output.nfe, output.products)

    # What people ask for.

    def inpaint(self, image, mask, **kwargs) -> ScoreSdeRestorationOutput | tuple:
        """Paint the missing pixels of images.

        Args:
            image: PIL, an array (H, W, C) or a tensor (C, H, W), uint8 or in [0, 1]; or N of them.
            mask: white (True, 1) where pixels are missing, whatever `image` holds there: a PIL image painted by hand
                (grey, 1-bit, or a layer RGBA whose opaque pixels count), or a binary array (H, W) or tensor. One, or
                one for each image, or several for one image.
            kwargs: of `__call__`.
        """
        image = read_images("image", image, self.unet.config.in_channels, self.pixel_format)
        operator = Mask(read_mask("mask", mask, tuple(image.shape[2:])))
        image = image.expand(len(operator.mask), -1, -1, -1) if len(image) == 1 else image
        operator.measurement_shape(tuple(image.shape))
        return self._restore("image", operator(image), operator, kwargs)

    def colorize(self, gray, weights=(1 / 3, 1 / 3, 1 / 3), **kwargs) -> ScoreSdeRestorationOutput | tuple:
        """Give colours to grey images.

        Args:
            gray: PIL, an array (H, W) or a tensor (1, H, W), uint8 or in [0, 1]; or N of them (N, H, W, 1),
                (N, 1, H, W).
            weights: of red, green and blue in what is grey. The default is the mean, as in the paper; photographs that
                PIL or a camera made grey are (0.299, 0.587, 0.114).
            kwargs: of `__call__`.
        """
        return self._restore("gray", read_images("gray", gray, 1, self.pixel_format), Grayscale(weights), kwargs)

    def super_resolve(self, image, factor: int, **kwargs) -> ScoreSdeRestorationOutput | tuple:
        """Enlarge images whose pixels are means of factor x factor pixels.

        Args:
            image: PIL, an array (H / factor, W / factor, C) or a tensor, uint8 or in [0, 1]; or N of them.
            factor: integer above 1 that divides H and W.
            kwargs: of `__call__`.
        """
        return self._restore(
            "image",
            read_images("image", image, self.unet.config.in_channels, self.pixel_format),
            Downsampling(factor),
            kwargs,
        )

    def deblur(self, image, kernel, noise_std: float = ROUNDING_STD, **kwargs) -> ScoreSdeRestorationOutput | tuple:
        """Sharpen blurred images.

        Args:
            image: PIL, an array (H, W, C) or a tensor (C, H, W), uint8 or in [0, 1]; or N of them.
            kernel: the deviation in pixels of a Gaussian (edges are mirrored), or the kernel (h, w) itself (edges are
                periodic).
            noise_std: of `__call__`; the default is the rounding of 8-bit images, which an inverse blur amplifies.
            kwargs: of `__call__`.
        """
        operator = Convolution(kernel) if math.isnan(real_number(kernel)) else GaussianBlur(kernel)
        image = read_images("image", image, self.unet.config.in_channels, self.pixel_format)
        return self._restore("image", image, operator, {"noise_std": noise_std, **kwargs})

    def _restore(self, name, measurement, operator, kwargs):
        self._check_measurement(name, measurement, operator)
        return self(measurement, operator, **kwargs)

    # Arguments, and the scheduler's units.

    def _check_measurement(self, name: str, y, operator: LinearOperator) -> None:
        if not isinstance(y, Tensor) or not y.is_floating_point() or y.ndim != 4 or not len(y):
            what = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"`{name}` must be a floating point tensor (N, ...) of four dimensions, but is {what}.")
        expected = operator.measurement_shape((len(y), *self._image_shape))
        if y.shape != expected:
            raise ValueError(
                f"`{name}` must have the shape {expected}, what {type(operator).__name__} makes of the network's "
                f"images {self._image_shape}, but has {tuple(y.shape)}."
            )
        if not y.isfinite().all():
            raise ValueError(f"`{name}` must be finite, but holds infinite values or NaN.")

    def _in_model_range(self, y, operator, noise_std, shape) -> Measurement:
        """The measurement of images in the network's range, low + (high - low) x."""
        low, high = self.scheduler.parameterization.image_range
        offset = operator(torch.full(shape, low, device=y.device))
        return Measurement(operator, offset + (high - low) * y, (high - low) * noise_std, (high - low) / 2)

    def _kernel_reached(self) -> tuple[float, float]:
        """alpha and sigma of the state after a step that ended at a grid point."""
        scheduler = self.scheduler
        if scheduler.step_index < len(scheduler.times):
            t = scheduler.times[scheduler.step_index]
        elif scheduler.final_denoise:
            return 1.0, 0.0
        else:
            t = scheduler.sampling_eps
        return scheduler.sde.alpha(t).item(), scheduler.sde.sigma(t).item()
