"""From the bytes of an image file to a uint8 tensor, and how far such images lie apart."""

from __future__ import annotations

import os
from collections.abc import Sequence

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps

from images.batch_order import check_integer, epoch_order

MAX_BROKEN = 0.01  # share of images that may be unreadable
DECODING_THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class UnreadableImage(ValueError):
    """Bytes that are no image, or not a whole one."""


def check_broken(skipped: list[str], total: int, name: str) -> None:
    """Raise a ValueError if too many of `total` images of the data set `name` are `skipped`, which names them."""
    if len(skipped) > MAX_BROKEN * total:
        some = ", ".join(skipped[:10])
        raise ValueError(f"{name}: more than 1 % of {total} images cannot be read, among them {some}")


def file_name(value: dict | None) -> str | None:
    """Of an encoded image as `datasets` stores it, where it is known."""
    return value["path"] if value else None


def decode_image(value: dict | None, image_size: int | None = None, channels: int | None = None) -> torch.Tensor:
    """Decodes an image, upright: the first frame of an animation, on white if transparent, 16 bits scaled to 8.

    Args:
        value: {"bytes": the file's content or None, "path": where to read it if it is None}, as `datasets` stores it.
        image_size, channels: as in `load_images`.

    Returns:
        uint8 tensor of shape (C, H, W).

    Raises:
        UnreadableImage: broken, empty or missing files, floating-point images, decompression bombs.
    """
    try:
        with datasets.Image().decode_example(value) as file:  # animations stay open
            image = _to_eight_bits(file)
            image = image.convert({1: "L", 3: "RGB", None: "L" if image.mode in ("1", "L") else "RGB"}[channels])
    except Exception as error:  # decoders meet broken bytes with nearly any error
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("a floating-point image has no known range")
    if image.mode.startswith("I"):  # 16-bit gray
        samples = np.asarray(image).clip(0, 65535) / 257
        return Image.fromarray(samples.round().astype(np.uint8))
    if image.has_transparency_data:
        opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return opaque.convert("L" if image.mode in ("L", "LA", "La") else "RGB")
    return image


def conform(image: torch.Tensor, shape: Sequence[int], name: str) -> torch.Tensor:
    if len(image) == 1 and shape[0] == 3 and image.shape[1:] == tuple(shape[1:]):
        image = image.expand(3, -1, -1)
    if image.shape != tuple(shape):
        raise ValueError(
            f"{name} has shape {tuple(image.shape)} where the images before it have {tuple(shape)}: give image_size"
            + (" and channels" if len(image) != shape[0] else "")
        )
    return image


def suggest_sigma_max(images: torch.Tensor, max_images: int = 2000, seed: int = 0) -> float:
    """Largest Euclidean distance between two images in [0, 1], the sigma_max that mixes all modes of the data.

    Technique 1 of Song and Ermon, "Improved techniques for training score-based generative models", 2020
    (arXiv:2006.09011). A network on [-1, 1] wants twice the value.

    Args:
        images: uint8, shape (N, C, H, W), N at least 2.
        max_images: compare a random choice of this many; the result is then a lower bound.
        seed: determines the choice.

    Raises:
        ValueError: `images` has another type or shape, or `max_images` is below 2.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) < 2:
        raise ValueError(f"images must be uint8 (N, C, H, W) with N >= 2, got {images.dtype} {tuple(images.shape)}")
    check_integer("max_images", max_images, 2)
    chosen = images if len(images) <= max_images else images[epoch_order(len(images), seed, 0)[:max_images]]
    points = chosen.flatten(1) / 255
    return max(torch.cdist(chunk, points).max().item() for chunk in points.split(500))
