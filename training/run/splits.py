"""The images that a configuration trains on, and those that it sets aside for validation."""

import torch

from images.loading import ImageData, StreamedImages, hold_out, load_images, split_names
from run.config import ConfigError, RunConfig

Images = ImageData | StreamedImages
LOADING_KEYS = ("image_size", "channels", "streaming", "image_column", "label_column", "data_dir")


def load_splits(config: RunConfig) -> tuple[Images, Images | None]:
    """Training and validation images; the latter are None without validation (validate_every=0).

    Raises:
        ConfigError: the data cannot be had, or lacks the labels or classes that the network expects.
    """
    try:
        train, validation = _load(config)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
    for images in (train, validation):
        if isinstance(images, ImageData):
            check_labels(config, images.labels, images.name)
    return train, validation


def check_labels(config: RunConfig, labels: torch.Tensor | None, name: str) -> None:
    """Raise a ConfigError unless a class-conditional network can be trained with these labels."""
    classes = config.model.get("num_class_embeds")
    if classes and labels is None:
        raise ConfigError(f"model.num_class_embeds is {classes}, but {name} has no labels: set it to null")
    if classes and labels.max() >= classes:
        raise ConfigError(f"model.num_class_embeds is {classes}, but {name} has the label {labels.max().item()}")


def _load(config: RunConfig) -> tuple[Images, Images | None]:
    data = config.data
    options = {key: getattr(data, key) for key in LOADING_KEYS}
    train = load_images(
        data.dataset, data.split, max_images=data.max_images, stream_shards=data.stream_shards, **options
    )
    if not config.validate_every:
        return train, None
    split = data.validation
    if split == "auto":
        names = split_names(data.dataset, data.data_dir, bool(data.streaming))
        split = "validation" if "validation" in set(names) - {data.split} else "hold_out"
    if split == "hold_out":
        # Few of few images; the test split stays unseen, so that the best model is not chosen by it.
        return hold_out(train, max(1, min(data.validation_images, (train.num_images or 0) // 10)), config.seed)
    channels, side, _ = train.image_shape
    options |= {"channels": channels, "image_size": data.image_size or side}
    return train, load_images(data.dataset, split, max_images=data.validation_images, **options)
