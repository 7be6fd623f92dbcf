"""Inverse problems: images that a score network thinks likely and that agree with a measurement.

Inpainting, colorization, super-resolution, deblurring and any other measurement y = A x_0 + noise: images are drawn
from the posterior p(x_0 | y) whose prior p(x_0) is the network's. Nothing is trained for the task.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from sde_diffusers.class_names import Labels
from sde_diffusers.generators import LATENT_NAMES
from sde_diffusers.guidance import Guidance
from sde_diffusers.images import Images, image_values, read_images
from sde_diffusers.operators.base import Operator
from sde_diffusers.operators.blur import Convolution, GaussianBlur
from sde_diffusers.operators.channels import Grayscale
from sde_diffusers.operators.checks import check_operator, operator_for
from sde_diffusers.operators.resampling import Bicubic, Downsampling
from sde_diffusers.parameterization import PURE_NOISE, require_choice
from sde_diffusers.pipelines.measured_pictures import (
    held_elsewhere,
    masked_images,
    require_brightness,
    require_grey,
    rounding_std,
)
from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline
from sde_diffusers.posteriors.base import PosteriorMethod, posterior_output
from sde_diffusers.posteriors.exact import ExactPart
from sde_diffusers.posteriors.measurement import in_model_range, read_noise_std, require_covariance
from sde_diffusers.posteriors.methods import POSTERIOR_METHODS
from sde_diffusers.posteriors.units import warn_of_units
from sde_diffusers.scalars import real_number, whole_number, whole_numbers

LONGEST_SIDE = 2**16  # of images, in pixels
SMALLER = {"box": Downsampling, "bicubic": Bicubic}  # what made an image small, by PIL's names


@dataclass
class ScoreSdeRestorationOutput(BaseOutput):
    """Output of `ScoreSdeRestorationPipeline` for N measurements with K posterior samples each.

    Args:
        images: the samples, those of the first measurement first: a list of N K PIL images, an array (N K, H, W, C) or
            a tensor (N K, C, H, W); numbers lie in [0, 1], or are values of the data (`data_units`).
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
    """Posterior sampling for measurements, linear or not, with any score network, SDE and sampler of this package.

    Components and all other methods are those of `ScoreSdePipeline`, whose saved folders load here as well;
    `ScoreSdeRestorationPipeline.from_pipe(pipe)` shares the components of one that is loaded.
    """

    @torch.inference_mode(False)  # through whose tensors the products' gradients could not pass
    @torch.no_grad()
    def __call__(
        self,
        measurement: Tensor,
        operator: Operator,
        noise_std: float | Sequence[float] | np.ndarray | Tensor = 0.0,
        method: str | PosteriorMethod = "mmps",
        num_samples: int = 1,
        num_inference_steps: int | None = None,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = LATENT_NAMES,
        guidance_interval: tuple[float, float] | None = None,
        classifier_scale: float = 0.0,
        guide_scale: float = 1.0,
        noise_covariance: Callable[[Tensor], Tensor] | None = None,
        image_size: int | tuple[int, int] | None = None,
        data_units: bool = False,
    ) -> ScoreSdeRestorationOutput:
        """Draw images from the posterior given a measurement.

        Args:
            measurement: (N, ...) floating point, of the shape that `operator` gives to N images, in units of images in
                [0, 1]. What it holds at missing pixels, such as NaN, does not matter.
            operator: A, one of `sde_diffusers.operators`, or any `LinearOperator` or `Operator` of yours. It is tried
                before anything is drawn: see `sde_diffusers.operators.checks`.
            noise_std: deviation of the measurement's independent noise, in the same units: a number; one for each of
                the N measurements (list or tensor), or for each measured value (a tensor of two or more dimensions
                that broadcasts to the measurement); at most 1e15. Where it is 0 the images reproduce the measurement:
                observed pixels in [0, 1] exactly, other operators' values but for the clipping to [0, 1] and the
                operator's `tolerance`; those of a nonlinear operator as well as the method does it. For counts see
                `poisson_noise_std`.
            method: "mmps", "pigdm", "dps", "projection", "tmpd", "diffpir" or "daps" (see
                `sde_diffusers.posteriors`), or an instance of one of these with other parameters: `MMPS(steps=5)`.
            num_samples: number K of samples for each measurement.
            num_inference_steps: number of time steps; the default is the scheduler's.
            class_labels: a class, or N of them (list or tensor), in [0, num_class_embeds); None = no class.
            generator: source of all noise, or a list of N K of them.
            output_type: "pil", "np" or "pt".
            return_dict: False returns the output's values as a tuple, which the annotation leaves out.
            callback_on_step_end, callback_on_step_end_tensor_inputs: see `ScoreSdePipeline`.
            guidance_scale, guidance_interval, classifier_scale, guide_scale: see `ScoreSdePipeline`. The guided
                network is the prior: its covariance is that of x_0 given x_t.
            noise_covariance: in place of `noise_std`, a function w -> C w of measurements (N K, ...), for noise that
                is not independent: linear, symmetric and positive. Of missing values it counts for nothing.
            image_size: (height, width) of the images, or one number for both; the default is the operator's, if it
                takes only one, and else that of the network's training. Networks of this package take any size, those
                of diffusers multiples of 2^(levels - 1).
            data_units: whether images and their means are of the data's own type and in its range, as for
                `ScoreSdePipeline`, and deviations in its units. What is measured, and its noise, is in [0, 1] all the
                same.

        Raises:
            ValueError: on arguments that do not fit one another or the network, on operators that are not what they
                should be, or whose exact measurements the method can't solve in the operator's `iterations`; before
                anything is drawn.
        """
        if isinstance(method, str):
            require_choice("method", method, POSTERIOR_METHODS)
        elif isinstance(method, type) or not hasattr(method, "changes_denoiser"):  # a class may be loaded twice
            raise ValueError(f"`method` must be one of {tuple(POSTERIOR_METHODS)}, or a method, but is {method!r}.")
        chosen: PosteriorMethod = POSTERIOR_METHODS[method]() if isinstance(method, str) else method
        if not whole_number(num_samples) >= 1:
            raise ValueError(f"`num_samples` must be a positive integer, but is {num_samples!r}.")
        num_samples = int(whole_number(num_samples))
        if isinstance(operator, type) or not hasattr(operator, "for_images"):  # a class may be loaded twice
            raise ValueError(f"`operator` must be an `Operator`, an instance, but is {operator!r}.")
        size = self._size_of_images("measurement", measurement, operator, image_size)
        device = self._execution_device
        shape = (len(measurement) * num_samples, self.unet.config.in_channels, *size)
        repeated = operator_for(operator.repeat(num_samples), shape, device)
        check_operator(repeated, shape)
        one_each = operator_for(operator, (len(measurement), *shape[1:]), device)
        self._require_measured("measurement", measurement, one_each, size)
        seen = one_each.measured(torch.ones_like(measurement, dtype=torch.float32, device=device)) != 0
        if not measurement.to(device)[seen].to(torch.float32).isfinite().all():
            raise ValueError("`measurement` must be finite in float32, but holds infinite values or NaN.")
        noise_std = read_noise_std(noise_std, measurement, seen)
        if noise_covariance is not None and (isinstance(noise_std, Tensor) or noise_std > 0):
            raise ValueError("`noise_covariance` and `noise_std` were both given, but are two ways to say one thing.")
        chosen.check(operator, noise_std, noise_covariance)
        if output_type == "latent":
            raise ValueError("`output_type` must be one of ('pil', 'np', 'pt'), but is 'latent'.")
        self._require_data_units(data_units, output_type)
        self._check(
            len(measurement) * num_samples,
            generator,
            None,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            size,
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
        self.scheduler.set_timesteps(steps, device=device)
        if chosen.changes_denoiser and steps == 1 and self._starts_from_pure_noise():
            raise ValueError(
                "`num_inference_steps` must be at least 2, but is 1: this scheduler starts from pure noise, which"
                " does not tell how images vary, and so not what the measurement says of them."
            )
        self.scheduler.leave_fit()  # which is to the network's answers alone

        measurement = measurement.to(device, torch.float32).repeat_interleave(num_samples, 0)
        if isinstance(noise_std, Tensor):
            noise_std = noise_std.to(device)
            noise_std = noise_std.repeat_interleave(num_samples, 0) if len(noise_std) > 1 else noise_std
        if noise_covariance is not None:
            require_covariance(noise_covariance, measurement)
        warn_of_units(repeated, repeated.measured(measurement), noise_std, noise_covariance)
        exact = ExactPart(repeated, noise_std, noise_covariance)
        measurement = exact.attained(measurement)
        image_range = self.scheduler.parameterization.image_range
        problem = in_model_range(repeated, measurement, noise_std, noise_covariance, image_range, shape)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        exact.rehearse(measurement, noise)
        chosen.rehearse(problem.rehearsed(), noise)
        answer = partial(posterior_output, guidance, self.scheduler, chosen, problem)

        def draw(shape=shape):
            return randn_tensor(tuple(shape), generator=generator, device=device, dtype=torch.float32)

        def project(x):
            return chosen.project(problem, x, *self._kernel_reached(), draw)

        x = draw() * self.scheduler.init_noise_sigma
        x = self._walk(
            x, guidance, answer, generator, callback_on_step_end, callback_on_step_end_tensor_inputs, project
        )
        images = self.scheduler.parameterization.to_unit_range(x)
        images = exact.imposed(images, measurement).clamp(0, 1)
        samples = images.unflatten(0, (-1, num_samples))
        std = None if num_samples == 1 else samples.std(1)
        if std is not None and output_type == "pil":
            std = (2 * std).clamp(max=1)
        elif std is not None and data_units:
            std = (self.pixel_format.high - self.pixel_format.low) * std
        self.maybe_free_model_hooks()
        output = ScoreSdeRestorationOutput(
            images=self._of_type(images, output_type, data_units),
            mean=self._of_type(samples.mean(1), output_type, data_units),
            std=None if std is None else self._of_type(std, output_type),
            nfe=guidance.nfe,
            products=self.scheduler.step_index * chosen.products,
        )
        values = (output.images, output.mean, output.std, output.nfe, output.products)
        return output if return_dict else cast(Any, values)

    # What people ask for.

    def inpaint(self, image: Images, mask: Images, **kwargs) -> ScoreSdeRestorationOutput:
        """Paint the missing pixels of images.

        Args:
            image: PIL, an array (H, W, C) or a tensor (C, H, W), uint8 or in [0, 1]; or N of them. Of any size that
                the network takes, as in all of these methods.
            mask: white (True, 1) where pixels are missing, whatever `image` holds there, NaN too: a PIL image painted
                by hand (grey, 1-bit, or a layer RGBA whose opaque pixels count), or a binary array (H, W) or tensor.
                One, or one for each image, or several for one image.
            kwargs: of `__call__`.

        Raises:
            ValueError: on a mask that marks no pixel, has values in between, or does not fit the images; on arguments
                that `__call__` refuses.

        Examples:
            >>> pipe = ScoreSdeRestorationPipeline.from_pretrained("pretrained/fashion-mnist-ve")
            >>> pipe.inpaint(image, mask, num_samples=4).mean[0].save("filled_in.png")
        """
        image, operator = masked_images(image, mask, self.unet.config.in_channels, self.pixel_format)
        return self._restore("image", image, operator, image.shape[2:], kwargs)

    def colorize(
        self, gray: Images, weights: Sequence[float] | Tensor = (1 / 3, 1 / 3, 1 / 3), **kwargs
    ) -> ScoreSdeRestorationOutput:
        """Give colours to grey images.

        Args:
            gray: PIL, an array (H, W) or a tensor (1, H, W), uint8 or in [0, 1]; or N of them (N, H, W, 1),
                (N, 1, H, W).
            weights: of red, green and blue in what is grey. The default is the mean, as in the paper; photographs that
                PIL or a camera made grey are (0.299, 0.587, 0.114).
            kwargs: of `__call__`.

        Raises:
            ValueError: on a PIL image that has colours, whose grey could be of any weights.
        """
        require_grey("gray", gray)
        gray = read_images("gray", gray, 1, self.pixel_format)
        return self._restore("gray", gray, Grayscale(weights), gray.shape[2:], kwargs)

    def super_resolve(self, image: Images, factor: int, resample: str = "box", **kwargs) -> ScoreSdeRestorationOutput:
        """Enlarge images that were made small.

        Args:
            image: PIL, an array (H / factor, W / factor, C) or a tensor, uint8 or in [0, 1]; or N of them.
            factor: integer from 2 to 1024.
            resample: how they were made small, "box" (means of factor x factor pixels) or "bicubic", as in PIL.
            kwargs: of `__call__`.

        Raises:
            ValueError: on a factor that is no integer from 2 to 1024, on another `resample`; on arguments that
                `__call__` refuses.
        """
        require_choice("resample", resample, SMALLER)
        image, operator = (
            read_images("image", image, self.unet.config.in_channels, self.pixel_format),
            SMALLER[resample](factor),
        )
        return self._restore("image", image, operator, [int(factor) * side for side in image.shape[2:]], kwargs)

    def deblur(
        self,
        image: Images,
        kernel: float | Tensor | np.ndarray | Sequence[Sequence[float]],
        noise_std: float | Sequence[float] | np.ndarray | Tensor | None = None,
        boundary: str | None = None,
        **kwargs,
    ) -> ScoreSdeRestorationOutput:
        """Sharpen blurred images.

        Args:
            image: PIL, an array (H, W, C) or a tensor (C, H, W), uint8 or in [0, 1]; or N of them.
            kernel: the deviation in pixels of a Gaussian, or the kernel (h, w) itself, of sum 1.
            noise_std: of `__call__`; None is that of rounding, which an inverse blur amplifies, to the integers that
                the image holds, and to 8 bits if they are floating point; or what `noise_covariance` says, if given.
            boundary: what took part in the blur from beyond the edges, one of `sde_diffusers.operators.BOUNDARIES`;
                None is "symmetric" for a Gaussian and "reflect" for a kernel. With "valid", the image lacks the pixels
                whose blur reached beyond, and the restored one has them: kernel - 1 more each way.
            kwargs: of `__call__`.

        Raises:
            ValueError: on a deviation that is not above 0, a kernel that is no finite and real (h, w) array or whose
                sum is not 1 (0.5 to 2), on an unknown `boundary`; on arguments that `__call__` refuses.
        """
        options = {} if boundary is None else {"boundary": boundary}
        gaussian = not math.isnan(real_number(kernel))
        operator = GaussianBlur(real_number(kernel), **options) if gaussian else Convolution(kernel, **options)
        require_brightness(operator)
        channels = self.unet.config.in_channels
        given, image = image, read_images("image", image, channels, self.pixel_format)
        if noise_std is None and kwargs.get("noise_covariance") is not None:
            noise_std = 0.0
        elif noise_std is None:
            noise_std = rounding_std(
                "image", image_values("image", given, channels, self.pixel_format)[0], self.pixel_format
            )
        return self._restore(
            "image", image, operator, operator.blurred_from(image.shape[2:]), {"noise_std": noise_std, **kwargs}
        )

    def _restore(self, name, measurement, operator, size, kwargs):
        if "image_size" in kwargs:
            raise ValueError(f"`image_size` must not be given beside `{name}`, whose size tells it.")
        size = self._size_of_images(name, measurement, operator, tuple(size))
        self._require_measured(name, measurement, operator, size)
        return self(measurement, operator, image_size=size, **kwargs)

    # Arguments, and where the scheduler stands.

    def _size_of_images(self, name: str, y, operator: Operator, size) -> tuple[int, int]:
        """(H, W) of the images that y measures, one that the network takes; y is refused if it is no measurement."""
        if not isinstance(y, Tensor) or not y.is_floating_point() or y.ndim < 2 or not len(y) or held_elsewhere(y):
            what = f"{held_elsewhere(y)}{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"`{name}` must be a floating point tensor (N, ...), but is {what}.")
        given = "image_size" if name == "measurement" and size is not None else name
        size = operator.image_size or self._image_shape[1:] if size is None else size
        sides = [whole_number(size)] * 2 if whole_number(size) > 0 else whole_numbers(size)
        if len(sides) != 2 or not all(0 < side <= LONGEST_SIDE for side in sides):
            what = "`image_size`" if given == "image_size" else f"`{name}` means images whose size"
            allowed = f"a whole number from 1 to {LONGEST_SIDE:,}, or (height, width)"
            raise ValueError(f"{what} must be {allowed}, but is {size!r}.")
        size = int(sides[0]), int(sides[1])
        self._require_size(given, size)
        return size

    def _require_measured(self, name: str, y: Tensor, operator: Operator, size: tuple[int, int]) -> None:
        """Raise a `ValueError` unless y has the shape that an operator gives to images of this size."""
        shape = (len(y), self.unet.config.in_channels, *size)
        expected = tuple(operator.measurement_shape(shape))
        if y.shape != expected:
            hint = " (images of another size: `image_size`)" if name == "measurement" else ""
            raise ValueError(
                f"`{name}` must have the shape {expected}, what {type(operator).__name__} makes of images "
                f"{shape[1:]}, but has {tuple(y.shape)}{hint}."
            )

    def _starts_from_pure_noise(self) -> bool:
        t = self.scheduler.times[0]
        return bool(self.scheduler.sde.sigma(t) > self.scheduler.sde.alpha(t) * PURE_NOISE)

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
