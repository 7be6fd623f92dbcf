"""The images that a configuration trains on, and those that it sets aside for validation."""

import math

import numpy as np
import torch

from images.loading import ImageData, StreamedImages, hold_out, load_images
from images.rows import Rows
from images.sources import Source, open_source
from run.config import DataConfig, RunConfig
from run.record import ImageRecord, parted
from run.yaml_config import ConfigError

Images = ImageData | StreamedImages
OPENING_KEYS = ("image_column", "label_column", "data_dir", "labels")
LOADING_KEYS = ("image_size", "channels", "streaming", "value_range", "white_level")
HELD_OUT = "held_out"  # what the part of a split is called that a run has set aside


def load_splits(config: RunConfig, record: ImageRecord | None = None) -> tuple[Images, Images | None]:
    """Training and validation images; the latter are None without validation (validate_every=0).

    Args:
        config: of the run.
        record: of the run that is resumed: the same images are held out again, and values mean what they did.

    Raises:
        ConfigError: the data cannot be had, or lacks the labels or classes that the network expects.
    """
    try:
        train, validation = _load(config, record)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
    if record and config.model.get("num_class_embeds"):
        record.require_classes(train)
    for images, which in ((train, ""), (validation, ", for validation,")):
        if isinstance(images, ImageData):
            check_labels(config, images.labels, images.name + which)
    return train, validation


def check_batches(config: RunConfig, processes: int) -> None:
    """Raise a ConfigError unless the processes, and their micro-batches, can share a batch equally."""
    parts = processes * config.gradient_accumulation_steps
    if config.batch_size % parts:
        raise ConfigError(
            f"batch_size must be a multiple of processes * gradient_accumulation_steps = {processes} * "
            f"{config.gradient_accumulation_steps}, but is {config.batch_size}"
        )
    shards = config.data.stream_shards
    if shards > 1 and (shards % processes or config.batch_size % shards):
        raise ConfigError(
            f"data.stream_shards must be 1, or a multiple of the number of processes ({processes}) that "
            f"divides batch_size ({config.batch_size}), but is {shards}"
        )


def check_labels(config: RunConfig, labels: torch.Tensor | None, name: str) -> None:
    """Raise a ConfigError unless a class-conditional network can be trained with these labels."""
    classes = config.model.get("num_class_embeds")
    if classes and labels is None:
        raise ConfigError(f"model.num_class_embeds is {classes}, but {name} has no labels: set it to null")
    if classes and labels.max() >= classes:
        raise ConfigError(f"model.num_class_embeds is {classes}, but {name} has the label {labels.max().item()}")


def about_classes(config: RunConfig, data: Images) -> str | None:
    """What has to be said if the network is not told of the classes of the data, or has more than these."""
    classes, count = config.model.get("num_class_embeds"), len(data.class_names or ())
    if count and not classes:
        return f"The {count} classes are not used: model.num_class_embeds={count} would train the network on them"
    if count and classes > count:
        return f"model.num_class_embeds is {classes}, but {data.name} has {count} classes: the rest is never trained"
    return None


def keep_numbers(source: Source, names: list[str]) -> None:
    """Number the classes of files and tables in memory as the run does, if they are the same."""
    for rows in source.splits.values():
        own = rows.class_names or []
        if isinstance(rows, Rows) and rows.labels is not None and own != names and sorted(own) == sorted(names):
            rows.labels, rows.class_names = np.array([names.index(name) for name in own])[rows.labels], list(names)


def open_data(data: DataConfig) -> Source:
    """The data set of a configuration, opened."""
    options = {key: getattr(data, key) for key in OPENING_KEYS}
    return open_source(data.dataset, streaming=bool(data.streaming), **options)


def loading_options(data: DataConfig) -> dict:
    """How its images are loaded, as `load_images` takes it."""
    return {key: getattr(data, key) for key in LOADING_KEYS}


def _load(config: RunConfig, record: ImageRecord | None) -> tuple[Images, Images | None]:
    data = config.data
    if data.split == HELD_OUT:
        raise ValueError(f"split {HELD_OUT!r} is what a run has not trained on: it is for evaluation")
    source, options = open_data(data), loading_options(data)
    if record and record.class_names:
        keep_numbers(source, record.class_names)
    known = record.pixels if record and data.value_range is None and data.white_level is None else None
    train = load_images(
        source,
        data.split,
        max_images=data.max_images,
        stream_shards=data.stream_shards,
        stream_by_size=data.stream_by_size,
        pixels=known,
        **options,
    )
    held_out = None
    if record:
        record.require_shape(train)
    if record and record.held_out:  # never trained on, whatever validates now
        if not isinstance(train, ImageData):
            raise ValueError(
                f"{train.name} is streamed, but this run has held {len(record.held_out)} images out, which cannot be "
                "left out of a stream: set data.streaming=false"
            )
        train, held_out = _held_out_again(train, record)
    if not config.validate_every:
        return train, None
    split = data.validation
    if split == "auto":
        split = "validation" if "validation" in set(source.splits) - {data.split} else "hold_out"
    if split == data.split:
        raise ValueError(f"validation is {split!r}, the split that is trained on: choose another, or hold_out")
    if split == "hold_out":
        if train.num_images == 1:
            raise ValueError(
                f"validate_every={config.validate_every} sets images aside, but {train.name} has only one: set it to "
                "0, or data.validation to another split"
            )
        if held_out is not None:
            return train, held_out
        if record and isinstance(train, ImageData):
            raise ValueError(
                f"validate_every={config.validate_every} would set images aside that this run has trained on, since "
                "it held none out: set it to 0, or data.validation to another split"
            )
        # Few of few images; the test split stays unseen, so that the best model is not chosen by it.
        return hold_out(train, max(1, min(data.validation_images, (train.num_images or 0) // 10)), config.seed)
    gray = train.image_shape[0] == 1 and data.channels is None  # of colours, they are refused
    options |= {"channels": None if gray else train.image_shape[0], "pixels": train.pixels}
    validation = load_images(source, split, max_images=data.validation_images, **options)
    if data.streaming and (validation.num_images or math.inf) >= data.validation_images:
        print(f"Validation: the first {data.validation_images} images of the split {split}, which is streamed")
    if validation.image_shape != train.image_shape:
        shapes = (" x ".join(map(str, images.image_shape)) for images in (validation, train))
        raise ValueError(
            f"the images of the split {split} are {' and those that are trained on '.join(shapes)}: data.image_size "
            "and data.channels make them the same"
        )
    return train, validation


def _held_out_again(data: ImageData, record: ImageRecord) -> tuple[ImageData, ImageData]:
    train, validation, missing = parted(data, record)
    count = len(record.held_out)
    if not len(validation) or not len(train):
        raise ValueError(f"none of the {count} images that this run has held out is in {data.name} any more")
    if missing:
        print(f"{len(missing)} of the {count} images held out for validation are missing, such as {missing[0]}")
    return train, validation
