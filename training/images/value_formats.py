"""What the values of images mean: as given, as known of other images, or as measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from images.pixels import suggest_white_level, value_extremes, value_type
from images.streams import out_of_range
from sde_diffusers.images import PixelFormat

logger = logging.getLogger("images")


def measured_format(
    images: torch.Tensor,
    known: PixelFormat | None,
    value_range: Sequence[float] | None,
    name_of: Callable[[int], str],
    name: str,
) -> PixelFormat:
    """The format of images in memory; a given range must hold all values."""
    dtype = value_type(images)
    low, high = value_extremes(images)
    if known is not None and known.dtype != dtype:
        raise ValueError(f"{name} holds {dtype} where the images before hold {known.dtype}")
    if known is None and value_range is None and dtype == "float32":
        if low == high:
            raise ValueError(f"{name}: all values are {low}, so that their range cannot be measured: give value_range")
        value_range = (low, high)
        logger.warning("%s: floating-point values from %.7g to %.7g, taken as value_range", name, low, high)
    pixels = known or PixelFormat.of(dtype, value_range)
    if low >= pixels.low and high <= pixels.high:
        if known is None and value_range is None:
            _warn_of_unused_values(name, "these images", pixels, low, high)
        return pixels
    k = next(k for k in range(len(images)) if out_of_range(images[k], pixels))
    what = (
        f"{name}: {name_of(k)} holds values beyond the range {pixels.low:g} to {pixels.high:g}; all images: "
        f"{low:g} to {high:g}"
    )
    if known is None or dtype != "float32":
        raise ValueError(f"{what} (value_range or white_level)")
    logger.warning("%s. The range stays as it was", what)
    return pixels


def format_of_stream(first: torch.Tensor, value_range: Sequence[float] | None, name: str) -> PixelFormat:
    dtype = value_type(first)
    if value_range is None and dtype == "float32":
        raise ValueError(
            f"{name}: floating-point images that are streamed need value_range, which show_data.py measures"
        )
    pixels = PixelFormat.of(dtype, value_range)
    if value_range is None:
        _warn_of_unused_values(name, "the first image", pixels, *value_extremes(first))
    return pixels


def _warn_of_unused_values(name: str, which: str, pixels: PixelFormat, low: float, high: float) -> None:
    """Log it if integers use so little of their type's range that black or white must be something else."""
    if white := suggest_white_level(pixels.dtype, high):
        logger.warning(
            "%s: no value of %s is above %d, so that they are nearly black: white_level=%d (data.white_level) says "
            "which value is white",
            name,
            which,
            high,
            white,
        )
    elif pixels.dtype == "int16" and high - low < 2**14:
        logger.warning(
            "%s: the values of %s lie from %d to %d, in a range from -32768 to 32767, so that there is hardly any "
            "contrast: value_range=[%d,%d] (data.value_range) says which values are black and white",
            name,
            which,
            low,
            high,
            low,
            high,
        )
