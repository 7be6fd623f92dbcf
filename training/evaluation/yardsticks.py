"""Real images with noise: what a distance of a given size looks like."""

import torch
from torch import Tensor

from sde_diffusers.images import PixelFormat


def noisy_images(
    images: Tensor,
    deviations: list[float],
    count: int | None,
    seed: int,
    pixels: PixelFormat = PixelFormat(),  # noqa: B008 (frozen)
) -> dict[str, Tensor]:
    """Images with Gaussian noise, rounded and clipped, by a name that says how much.

    Args:
        images: values of `pixels`, (N, C, H, W).
        deviations: standard deviations in grey levels, of 255 from black to white.
        count: use this many images, drawn without repetition; None or more than N: all.
        seed: of the choice and of the noise, which is the same for all deviations up to its scale.
    """
    generator = torch.Generator().manual_seed(seed)
    images = images[torch.randperm(len(images), generator=generator)[:count]]
    noise = torch.randn(images.shape, generator=generator)
    level = (pixels.high - pixels.low) / 255

    def noisy(deviation: float) -> Tensor:
        x = (images + level * deviation * noise).clamp(pixels.low, pixels.high)
        return (x if pixels.levels is None else x.round()).to(pixels.torch_dtype)

    return {f"test images + noise {deviation:g}/255": noisy(deviation) for deviation in deviations}
