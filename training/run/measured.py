"""Keys of a configuration that may be "auto": what they stand for is measured on the training images, once.

A new run measures, and from then on its configuration has the number: so it stands in config.yaml and in checkpoints,
and a resumed run, or one on other images, takes it from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from images.pixels import all_equal, suggest_sigma_data, suggest_sigma_max
from run.checkpoints import read_state
from run.config import Config
from run.yaml_config import ConfigError
from sde_diffusers.images import PixelFormat

AUTO = "auto"
MEASURED_IMAGES = 2000
KEYS = (("scheduler", "sigma_max"), ("model", "sigma_data"), ("objective", "sigma_data"))
STANDS_FOR_AUTO = {"sigma_max": 1e4, "sigma_data": 0.5}  # until the images are known


def without_auto(section: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of one section with numbers that stand for "auto", to build from before the images are known.

    Raises:
        ConfigError: a key is "auto" that can't be measured.
    """
    for key, value in arguments.items():
        if isinstance(value, str) and value == AUTO and (section, key) not in KEYS:
            known = ", ".join(f"{s}.{k}" for s, k in KEYS)
            raise ConfigError(f"{section}.{key}=auto: only {known} may be auto")
    return {
        key: STANDS_FOR_AUTO[key] if (section, key) in KEYS and value == AUTO else value
        for key, value in arguments.items()
    }


def wants_images(config: Config) -> bool:
    """Whether a key is still "auto"."""
    return any(getattr(config, section).get(key) == AUTO for section, key in KEYS)


def take_measured(config: Config, checkpoint: Path) -> list[str]:
    """Replace each "auto" by what the run of a checkpoint has measured; runs of older releases do not tell.

    Returns:
        What was taken, in words.

    Raises:
        ConfigError: the checkpoint is damaged.
    """
    if not wants_images(config):
        return []
    saved, said = read_state(checkpoint)["config"], []
    for section, key in KEYS:
        if getattr(config, section).get(key) == AUTO:
            value = getattr(config, section)[key] = saved.get(f"{section}.{key}", AUTO)
            said += [] if value == AUTO else [f"{section}.{key}: {value:.4g}, as measured when the run began"]
    return said


def measure(config: Config, images: Tensor, pixels: PixelFormat, image_range: tuple[float, float]) -> list[str]:
    """Replace each "auto" by what the images say.

    Args:
        images: values (N, C, H, W).
        pixels: what they mean.
        image_range: of the network.

    Returns:
        What was measured, in words.

    Raises:
        ConfigError: if that cannot be measured on these images.
    """
    low, high = image_range
    measures = {"sigma_max": suggest_sigma_max, "sigma_data": suggest_sigma_data}
    said = []
    for section, key in KEYS:
        if getattr(config, section).get(key) == AUTO:
            if len(images) < 2:
                raise ConfigError(
                    f"{section}.{key}=auto compares images, but the data set has only one: give a number"
                )
            if all_equal(images):
                raise ConfigError(f"{section}.{key}=auto compares images, but all are the same: give a number")
            value = (high - low) * measures[key](images, pixels=pixels)
            getattr(config, section)[key] = value
            said.append(f"{section}.{key}: {value:.4g}, from the training images")
    return said
