"""Whether the noise that sampling goes through is enough, and no more than numbers can tell."""

import torch

from sde_diffusers.network_fit import say_once

SINGLE = torch.finfo(torch.float32)
MOST_DEVIATIONS = 6  # of normal noise
LEAST_COVER = 4.0  # deviations of the noise, in the largest value of an image: the usual ones have 10 to 150


def check_noise_range(scheduler) -> None:
    """Say so if images are still seen at the time where sampling begins with noise alone.

    Raises:
        ValueError: single precision, in which networks are asked, has no numbers for the least noise, or the most.
    """
    sde, start_sigma = scheduler.sde, scheduler.start_sigma
    least = sde.sigma(scheduler.sampling_eps).item()
    if not (least >= SINGLE.tiny and start_sigma <= SINGLE.max / MOST_DEVIATIONS):
        raise ValueError(
            f"{sde!r} has noise from {least:.3g} (at `sampling_eps`={scheduler.sampling_eps:g}) to {start_sigma:.3g}, "
            f"but single precision has numbers for {SINGLE.tiny:.3g} to {SINGLE.max / MOST_DEVIATIONS:.3g}."
        )
    image_range = scheduler.parameterization.image_range
    largest = max(map(abs, image_range))
    if start_sigma < LEAST_COVER * (seen := sde.alpha(scheduler.start_time).item() * largest):
        say_once(
            f"Sampling begins with noise alone, of deviation {start_sigma:.3g}, but {sde!r} leaves {seen:.3g} of a "
            f"value of {largest:g} (`image_range`={image_range}): samples come out too near to 0. More noise "
            "(`sigma_max`, `beta_max`) or another range of images, for the training as well, mends that."
        )
