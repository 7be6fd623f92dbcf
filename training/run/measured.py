"""Keys of a configuration that may be "auto": what they stand for is measured on the training images, once.

A new run measures, and from then on its configuration has the number: so it stands in config.yaml and in checkpoints,
and a resumed run, or one on other images, takes it from there.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from images.pixels import suggest_sigma_max
from run.checkpoints import STATE
from run.config import Config, ConfigError

AUTO = "auto"
MEASURED_IMAGES = 2000
KEYS = (("scheduler", "sigma_max"), ("model", "sigma_data"), ("objective", "sigma_data"))
STANDS_FOR_AUTO = {"sigma_max": 1e4, "sigma_data": 0.5}  # until the images are known


def wants_images(config: Config) -> bool:
    """Whether a key is still "auto"."""
    return any(getattr(config, section).get(key) == AUTO for section, key in KEYS)


def take_measured(config: Config, checkpoint: Path) -> None:
    """Replace each "auto" by what the run of a checkpoint has measured.

    Raises:
        ConfigError: the checkpoint does not tell.
    """
    saved = json.loads((checkpoint / STATE).read_text())["config"]
    for section, key in KEYS:
        if getattr(config, section).get(key) == AUTO:
            value = saved.get(f"{section}.{key}", AUTO)
            if value == AUTO:  # written before measured values were kept
                raise ConfigError(f"{section}.{key} is auto, but {checkpoint} does not tell its value: give a number")
            getattr(config, section)[key] = value


def measure(config: Config, images: torch.Tensor, image_range: tuple[float, float]) -> list[str]:
    """Replace each "auto" by what the images (N, C, H, W), uint8, have; returns what is to be said about it."""
    span = image_range[1] - image_range[0]
    measured = {
        "sigma_max": lambda: span * suggest_sigma_max(images),  # near the largest distance of two images
        "sigma_data": lambda: span * (images.double() / 255).std().item(),  # of all pixels
    }
    said = []
    for section, key in KEYS:
        if getattr(config, section).get(key) == AUTO:
            value = float(f"{measured[key]():.6g}")
            getattr(config, section)[key] = value
            said.append(f"{section}.{key}: {value:.4g}, from the training images")
    return said
