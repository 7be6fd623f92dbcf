"""Samples that somebody has drawn already: a folder of images in the place of a pipeline."""

import math
from functools import partial
from pathlib import Path

import torch

from evaluation.config import EvaluationConfig
from evaluation.samples import Samples
from evaluation.shards import digest
from images.loading import ImageData, first_image, load_images, read_one
from images.pixels import decode_image
from images.sources import open_source
from run.yaml_config import ConfigError


def is_folder_of_samples(pipeline: str) -> bool:
    """Whether what is to be evaluated is a folder or file of images, and no saved pipeline."""
    path = Path(pipeline).expanduser()
    return path.is_file() or (path.is_dir() and not (path / "model_index.json").is_file())


def load_samples(config: EvaluationConfig) -> ImageData:
    """The images of the folder, at most `samples.num_images` of them, without their labels.

    Raises:
        ConfigError: they cannot be read; or the configuration asks for what only a pipeline can do.
    """
    if config.likelihood.num_images or config.update_card:
        raise ConfigError("likelihood.num_images and update_card need a pipeline, but the samples are a folder's")
    if config.scheduler or config.samples.num_inference_steps or config.samples.guidance_scale != 1:
        raise ConfigError(f"scheduler and the sampler's settings need a pipeline, but {config.pipeline} holds images")
    if config.samples.classes is not None:
        raise ConfigError(
            f"samples.classes={config.samples.classes} needs a pipeline, but {config.pipeline} holds images"
        )
    folder, options = Path(config.pipeline).expanduser(), {"streaming": False}
    for name in ("pipeline", "best"):
        if (folder / name / "model_index.json").is_file():
            raise ConfigError(
                f"{config.pipeline} is a run's folder, and its images are figures: evaluate {folder / name}"
            )
    try:
        told = {"value_range": config.data.value_range, "white_level": config.data.white_level}
        source = open_source(config.pipeline, labels="none")
        if len(source.splits) > 1:
            raise ValueError(
                f"it has the splits {', '.join(map(repr, source.splits))}: give the folder of one of them"
            )
        if any(told.values()):  # what values mean, of the samples as of the real images; but 8 bits mean one thing
            rows = source["train"]
            images = (read_one(rows, k) for k in range(len(rows)))
            first = first_image(images, partial(decode_image, dtype=None), source.name)
            options |= told if first.dtype != torch.uint8 else {}
        samples = load_images(source, max_images=config.samples.num_images or None, **options)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{config.pipeline} is neither a pipeline nor a folder of images: {error}") from error
    if samples.pixels.levels is None and told["value_range"] is None:
        raise ConfigError(
            f"the images of {config.pipeline} are floating-point numbers, whose least and largest need not be those "
            "of the real images: say which values are black and white by data.value_range=[low,high]"
        )
    return samples


def as_samples(data: ImageData, seed: int) -> Samples:
    """The images as an evaluation takes samples: in random order, since a folder may be sorted by class."""
    return Samples(
        images=data.images[torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))],
        labels=None,
        sampler={"class_name": "images of a folder"},
        batch_size=len(data),
        nfe=0,
        images_per_second=math.nan,
        machine={},
        pixels=data.pixels,
    )


def images_digest(images: torch.Tensor) -> str:
    """Twelve hexadecimal digits that tell sets of images apart."""
    return digest(images)[:12]
