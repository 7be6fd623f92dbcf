"""Real images with noise: what a distance of a given size looks like."""

import torch
from torch import Tensor


def noisy_images(images: Tensor, deviations: list[float], count: int | None, seed: int) -> dict[str, Tensor]:
    """Images with Gaussian noise, rounded and clipped, by a name that says how much.

    Args:
        images: uint8, (N, C, H, W).
        deviations: standard deviations in grey levels, of 255.
        count: use this many images, drawn without repetition; None or more than N: all.
        seed: of the choice and of the noise, which is the same for all deviations up to its scale.
    """
    generator = torch.Generator().manual_seed(seed)
    images = images[torch.randperm(len(images), generator=generator)[:count]]
    noise = torch.randn(images.shape, generator=generator)
    return {
        f"test images + noise {deviation:g}/255": (images + deviation * noise).round().clamp(0, 255).to(torch.uint8)
        for deviation in deviations
    }
