"""What a likelihood is asked for: which images, with how many levels, from which time, how exactly; or the refusal."""

import math

import numpy as np
import torch
from torch import Tensor

from sde_diffusers.images import PixelFormat, image_values
from sde_diffusers.likelihood.dequantization import CUT_OFF, DEQUANTIZATIONS, half_bin
from sde_diffusers.likelihood.probability_flow import ODE_VARIABLES
from sde_diffusers.network_fit import require_own_scheduler, size_multiple
from sde_diffusers.parameterization import require_choice
from sde_diffusers.scalars import real_number, whole_number

MOST_LEVELS = 2**32
"""Of float64's 2^53: the others are for the noise within a level."""
FINEST_TOLERANCE = 1e-13  # of the solver


def require_unbounded(scheduler) -> None:
    """Raise a ValueError if the scheduler clips: its samples are then not those of the ODE, whose density is known."""
    require_own_scheduler(scheduler)
    if scheduler.denoised_range.bounded:
        keys = ("clip_denoised", "dynamic_thresholding_ratio", "sample_max_value")
        given = ", ".join(f"`{key}`={scheduler.config[key]!r}" for key in keys if scheduler.config[key] is not None)
        raise ValueError(
            f"The scheduler bounds E[x_0 | x_t] ({given}), and the likelihood of what it draws is not known. That of "
            "the network without bounds is: `pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, "
            "clip_denoised=None, dynamic_thresholding_ratio=None, sample_max_value=None)`."
        )


def likelihood_start(scheduler, eps: float | None = None, dequantize=None, levels: int = 256) -> float:
    """The time at which the images are taken to be: `eps`, or the earliest one that SDE and network know.

    With `eps`=None, 1e-5; for "truncated_normal", where half a bin is `CUT_OFF` deviations of the noise.
    """
    sde = scheduler.sde
    if eps is not None and not 0 < real_number(eps) < scheduler.start_time:
        raise ValueError(f"`eps` must lie strictly between 0 and {scheduler.start_time}, but is {eps!r}.")
    start = 1e-5 if eps is None else real_number(eps)
    if eps is None and dequantize == "truncated_normal":
        level = half_bin(levels, scheduler.parameterization.image_range) / CUT_OFF
        start = sde.inverse_half_log_snr(-torch.tensor(level, dtype=torch.float64).log()).item()
    start = max(start, scheduler.earliest_time)
    if not start < scheduler.start_time:
        raise ValueError(
            f"`levels`={levels} lie so far apart that noise of their distance is more than the SDE ends with: take an "
            "`eps`."
        )
    return start


def read_numbers(pipe, name: str, images, in_units: bool = False) -> Tensor:
    """Images as the pipeline returns them (PIL, arrays, tensors): their numbers, (N, C, H, W)."""
    if not isinstance(images, Tensor):
        images, pictures = image_values(name, images, pipe.unet.config.in_channels, pipe.pixel_format)
        if pictures and images.is_floating_point() and not in_units and pipe.pixel_format.levels is None:
            # as files are, in the units of the data
            images = pipe.pixel_format.to_unit(images, torch.float64)
    check_shape(pipe, name, images)
    return images


def numbers_and_levels(pipe, images, levels, in_units: bool) -> tuple[Tensor, int | None]:
    """Images in float64, as numbers of which 0 and 1 are the ends of the data's range, and their number of levels.

    Raises:
        ValueError: on other levels, types or ranges.
    """
    if levels is not None and not 2 <= whole_number(levels) <= MOST_LEVELS:
        raise ValueError(f"`levels` must be an integer from 2 to 2^32, but is {levels!r}.")
    pixels, given = pipe.pixel_format, None if levels is None else int(whole_number(levels))
    name = "x" if in_units else "images"
    images = read_numbers(pipe, name, images, in_units)
    if in_units and images.is_floating_point():
        if given is not None:
            raise ValueError(f"`levels` is for integers, but `x` is {images.dtype}: give integers in [0, levels).")
        if not images.isfinite().all():
            raise ValueError("`x` must be finite, but holds NaN or infinite values.")
        inside = pixels.levels is not None and pixels.high > 1 and 0 <= images.min() and images.max() <= 1
        if inside and (images != images.round()).any():  # a dark image of zeros and ones may be meant
            raise ValueError(
                f"`x` lies in [0, 1], but must be in the data's own units, {pixels.low} to {pixels.high}: give "
                "integers, or floating-point numbers of that range."
            )
        return pixels.to_unit(images.to(pipe._execution_device, torch.float64), torch.float64), None
    if in_units and given is None and pixels.levels is None:
        raise ValueError(
            f"`x` must be floating point in the data's own units, {pixels.low} to {pixels.high}, but is "
            f"{images.dtype}: give `x.float()`, or integers in [0, levels) and `levels`."
        )
    foreign = {"torch.uint8", "torch.uint16"} - {f"torch.{pixels.dtype}"}
    if given is None and str(images.dtype) in foreign:
        raise ValueError(
            f"`{name}` are {images.dtype}, but the model's data {pixels.dtype}: convert them to its values, or give "
            "`levels`."
        )
    return checked_images(pipe, name, images, given), pixels.levels if given is None else given


def dequantization_asked(dequantize, passes, levels: int | None) -> tuple[str | None, int]:
    """Which of `DEQUANTIZATIONS`, None for none, and how many passes.

    Raises:
        ValueError: on anything else, and on dequantization of data without levels.
    """
    if passes is not None and not whole_number(passes) >= 1:
        raise ValueError(f"`passes` must be a positive integer, but is {passes!r}.")
    if dequantize is None:
        dequantize = levels is not None
    kind, count = dequantize, 1
    if not isinstance(dequantize, str):
        given = int(dequantize) if isinstance(dequantize, (bool, np.bool_)) else whole_number(dequantize)
        if not given >= (0 if isinstance(dequantize, (bool, np.bool_)) else 1):
            raise ValueError(
                f"`dequantize` must be a bool, a number of passes, or one of {', '.join(DEQUANTIZATIONS)}, but is "
                f"{dequantize!r}."
            )
        kind, count = "uniform" if given else None, max(1, int(given))
    else:
        require_choice("dequantize", dequantize, DEQUANTIZATIONS)
    if kind and levels is None:
        raise ValueError("`dequantize` is for images with levels, but these are floating point: give `levels`.")
    if passes is not None and (count > 1 or not kind):
        raise ValueError(f"`passes`={passes!r} and `dequantize`={dequantize!r} contradict each other.")
    return kind, count if passes is None else int(whole_number(passes))


def check_shape(pipe, name: str, images) -> None:
    channels = pipe.unet.config.in_channels
    if isinstance(images, Tensor) and images.is_complex():
        raise ValueError(f"`{name}` must be real, but is {images.dtype}.")
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != channels or not images.numel():
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"`{name}` must be a tensor of shape (N, {channels}, H, W), but is {what}.")
    if size_multiple(pipe.unet) is not None:  # else nothing is known of the network
        pipe._require_size(name, tuple(images.shape[2:]))


def checked_images(pipe, name: str, images, levels: float | None = None) -> Tensor:
    """Images as float64 in [0, 1] on the pipeline's device.

    Integers are values of the model's `pixel_format`, or k of `levels`, which become k / (levels - 1).
    """
    images, pixels = read_numbers(pipe, name, images), pipe.pixel_format
    if images.dtype == torch.bool:  # black and white
        images = images.double()
    if images.is_floating_point():
        low, high = images.min().item(), images.max().item()
        if not (low >= 0 and high <= 1 and math.isfinite(low + high)):
            raise ValueError(f"`{name}` must lie in [0, 1] if floating point, but reaches from {low} to {high}.")
        return images.to(pipe._execution_device, torch.float64)
    dtype = str(images.dtype).removeprefix("torch.")
    if pixels.levels is None and levels is None and dtype not in ("uint8", "uint16"):
        raise ValueError(
            f"`{name}` must be floating point in [0, 1], as the model's are, uint8 or uint16, but is {images.dtype}."
        )
    if levels is None and dtype in ("uint8", "uint16") and dtype != pixels.dtype:
        pixels = PixelFormat.of(dtype)  # of another depth: its own white is white
    bottom, top = (pixels.low, pixels.high) if levels is None else (0, levels - 1)
    values = images.to(torch.int64)
    low, high = values.min().item(), values.max().item()
    if low < bottom or high > top:
        raise ValueError(f"`{name}` must lie in [{bottom}, {top + 1}) if integer, but reaches from {low} to {high}.")
    return (images.to(pipe._execution_device, torch.float64) - bottom) / (top - bottom)


def check_solver(rtol, atol, variable) -> None:
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not FINEST_TOLERANCE <= real_number(value) < math.inf:
            allowed = f"a finite number of at least {FINEST_TOLERANCE:g}, as small as float64 allows"
            raise ValueError(f"`{name}` must be {allowed}, but is {value!r}.")
    if variable is not None:
        require_choice("variable", variable, ODE_VARIABLES)
