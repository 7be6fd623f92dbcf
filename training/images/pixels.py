"""From image files and arrays to tensors of their numbers at their own depth; and how far such images lie apart."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps

from images.batch_order import check_integer, epoch_order
from images.files import channels_first, read_file
from sde_diffusers.images import INTEGER_RANGES, TENSOR_TYPES, PixelFormat, known_values, with_channels

MAX_BROKEN = 0.01  # share of images that may be unreadable
NAMED = 5  # images whose reasons an error gives
DECODING_THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class UnreadableImage(ValueError):
    """Bytes that are no image, or not a whole one."""


class Skipped(list):
    """Names of the images that were left out; `reasons` says why, by name."""

    def __init__(self):
        super().__init__()
        self.reasons: dict[str, str] = {}

    def add(self, name: str, reason) -> None:
        self.append(name)
        self.reasons[name] = str(reason)

    def explain(self) -> str:
        """The first of them, with their reasons."""
        return "; ".join(f"{name} ({self.reasons.get(name, 'unreadable')})" for name in self[:NAMED])


def check_broken(skipped: Skipped, total: int, name: str) -> None:
    """Raise a ValueError if too many of `total` images of the data set `name` are `skipped`, which names them."""
    if len(skipped) > MAX_BROKEN * total:
        raise ValueError(f"{name}: more than 1 % of {total} images cannot be read, among them {skipped.explain()}")


def file_name(value) -> str | None:
    """Of an encoded image as `datasets` stores it, where it is known."""
    return value["path"] if isinstance(value, dict) else None


def decode_image(
    value: dict | np.ndarray | None,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    dtype: str | None = "uint8",
) -> torch.Tensor:
    """Decodes an image, upright: the first frame of an animation, all pages of a TIFF file, on white if transparent.

    Args:
        value: {"bytes": the file's content or None, "path": where to read it if it is None}, as `datasets` stores it;
            or an array (H, W), (C, H, W) or (H, W, C).
        image_size, channels: as in `load_images`.
        dtype: "uint8" scales 16 bits to 8; None keeps the image's own depth.

    Returns:
        Tensor of shape (C, H, W) and one of `TENSOR_TYPES`; uint8 unless `dtype` is None.

    Raises:
        UnreadableImage: broken, empty or missing files, values that are not finite, decompression bombs; another
            number of channels; floating-point images where 8 bits are asked for.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    try:
        if isinstance(value, np.ndarray):
            decoded = channels_first(known_values(value), channels)
        else:
            decoded = read_file(value, channels)
        if isinstance(decoded, Image.Image):
            bands = decoded.mode in ("LA", "RGBA")  # whose last one PIL would take for opacity, and weigh the others
            if size is not None and not bands:
                decoded = ImageOps.fit(decoded, (size[1], size[0]), Image.Resampling.LANCZOS)
            pixels = np.array(decoded)
            pixels = with_channels(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), channels)
            pixels = _fit(pixels, size) if size is not None and bands else pixels
        else:
            pixels = with_channels(decoded, channels)
            pixels = _eight_bits(pixels) if dtype == "uint8" else pixels
            pixels = pixels if size is None else _fit(pixels, size)
    except Exception as error:  # decoders meet broken bytes with nearly any error
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(np.int32)
    return torch.from_numpy(np.ascontiguousarray(pixels) if pixels.flags.writeable else pixels.copy())


def _eight_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        raise ValueError("a floating-point image has no known range")
    if values.dtype == np.int16:
        raise ValueError("16 bits with a sign have no known range")
    return values if values.dtype == np.uint8 else (values / 257).round().astype(np.uint8)


def _fit(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The centre of (C, H, W), resized (antialiased) to (h, w); no value lies beyond those that there were."""
    if values.shape[1:] == tuple(size):
        return values
    fitted = []
    for band in values:
        image = Image.fromarray(band if band.dtype == np.uint8 else band.astype(np.float32))
        resized = np.array(ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS))
        resized = resized if values.dtype.kind == "f" else resized.round()
        fitted.append(resized.clip(band.min(), band.max()).astype(values.dtype))
    return np.stack(fitted)


def conform(image: torch.Tensor, shape: Sequence[int], name: str, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """The image, if it has the shape and type of those before it; grey becomes RGB where they are RGB.

    16 bits with a sign and without are one type where the values allow it.

    Raises:
        ValueError: naming the image and what differs.
    """
    if len(image) == 1 and shape[0] == 3 and image.shape[1:] == tuple(shape[1:]):
        image = image.expand(3, -1, -1)
    if image.shape != tuple(shape):
        raise ValueError(
            f"{name} has shape {tuple(image.shape)} where the images before it have {tuple(shape)}: give image_size"
            + (" and channels" if len(image) != shape[0] else "")
        )
    if (same := as_type(image, dtype)) is None:
        raise ValueError(
            f"{name} holds {value_type(image)} where the images before it hold "
            f"{value_type(image.new_empty(0, dtype=dtype))}: their values do not compare. Convert them to one type"
        )
    return same


def as_type(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """The same values of another type, if they are 16 bits that allow to be so with a sign, and without; else None."""
    if images.dtype == dtype or not images.numel():
        return images.to(dtype)
    signed_or_not = {images.dtype, dtype} == {torch.int16, torch.int32}
    fits = signed_or_not and images.max() <= 32767 and (dtype == torch.int16 or images.min() >= 0)
    return images.to(dtype) if fits else None


def value_type(images: torch.Tensor) -> str:
    """Which of `VALUE_TYPES` a tensor holds."""
    return next(name for name, dtype in TENSOR_TYPES.items() if dtype == images.dtype)


def value_extremes(images: torch.Tensor) -> tuple[float, float]:
    """The least and the largest value."""
    low, high = torch.aminmax(images)
    return low.item(), high.item()


def all_equal(images: torch.Tensor) -> bool:
    """Whether all images (N, C, H, W) are one."""
    return torch.equal(images.amin(0), images.amax(0))


def suggest_white_level(dtype: str, largest: float) -> int | None:
    """The white of files whose values need fewer bits (camera data of 10 or 12 in 16, masks of 1 in 8): 2^bits - 1.

    "Fewer" is at least two bits of 16 and four of 8: pictures that are merely dark reach higher. Else None.
    """
    if dtype == "uint16" and largest <= INTEGER_RANGES["uint16"][1] // 4:
        return max(255, 2 ** int(largest).bit_length() - 1)
    if dtype == "uint8" and 0 < largest < 16:
        return 2 ** int(largest).bit_length() - 1
    return None


def suggest_sigma_max(
    images: torch.Tensor,
    max_images: int = 2000,
    seed: int = 0,
    pixels: PixelFormat = PixelFormat(),  # noqa: B008 (frozen)
) -> float:
    """Largest Euclidean distance between two images in [0, 1], the sigma_max that mixes all modes of the data.

    Technique 1 of Song and Ermon, "Improved techniques for training score-based generative models", 2020
    (arXiv:2006.09011). A network on [-1, 1] wants twice the value.

    Args:
        images: of the type of `pixels`, shape (N, C, H, W), N at least 2.
        max_images: compare a random choice of this many; the result is then a lower bound.
        seed: determines the choice.
        pixels: what the values mean.

    Raises:
        ValueError: `images` has another type or shape, or `max_images` is below 2.
    """
    points = _chosen(images, max_images, seed, pixels).flatten(1)
    return max(torch.cdist(chunk, points).max().item() for chunk in points.split(500))


def suggest_sigma_data(
    images: torch.Tensor,
    max_images: int = 2000,
    seed: int = 0,
    pixels: PixelFormat = PixelFormat(),  # noqa: B008 (frozen)
) -> float:
    """Standard deviation of the images' values in [0, 1], the sigma_data of EDM's preconditioning (arXiv 2206.00364).

    A network on [-1, 1] wants twice the value. Arguments and errors are those of `suggest_sigma_max`.
    """
    return _chosen(images, max_images, seed, pixels).double().std(correction=0).item()


def _chosen(images: torch.Tensor, max_images: int, seed: int, pixels: PixelFormat) -> torch.Tensor:
    """Some images in [0, 1]."""
    if images.dtype != pixels.torch_dtype or images.ndim != 4 or len(images) < 2:
        raise ValueError(
            f"images must be {pixels.dtype} (N, C, H, W) with N >= 2, got {images.dtype} {tuple(images.shape)}"
        )
    check_integer("max_images", max_images, 2)
    return pixels.to_unit(
        images if len(images) <= max_images else images[epoch_order(len(images), seed, 0)[:max_images]]
    )
