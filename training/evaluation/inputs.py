"""What an evaluation works on: the pipeline with its sampler, the feature networks, the real images."""

import dataclasses
import inspect
from pathlib import Path

import torch

from evaluation.config import EvaluationConfig
from evaluation.feature_networks import FeatureNetwork, load_feature_network, shipped_statistics_path
from images.loading import ImageData, load_images
from run.config import ConfigError, construct
from run.score_model import SCHEDULERS
from sde_diffusers import ScoreSdePipeline


def load_pipeline(config: EvaluationConfig, device: torch.device) -> ScoreSdePipeline:
    """The pipeline, with the configuration's sampler in place of its own.

    Raises:
        ConfigError: there is no such pipeline, or it cannot be sampled as the configuration asks.
    """
    try:
        pipe = ScoreSdePipeline.from_pretrained(config.pipeline)
    except (OSError, ValueError) as error:
        raise ConfigError(f"pipeline {config.pipeline!r} cannot be loaded: {error}") from error
    pipe.scheduler = _sampler(config, pipe.scheduler)
    pipe.unet.to(memory_format=torch.channels_last)  # what bf16 convolutions on CPUs are fast in
    pipe.set_progress_bar_config(disable=True)
    options, conditional = config.samples, bool(pipe.unet.config.num_class_embeds)
    if options.classes not in (None, "none") and not conditional:
        raise ConfigError(f"samples.classes is {options.classes!r}, but the network is not conditional on classes")
    if options.guidance_scale != 1 and (options.classes == "none" or not conditional):
        raise ConfigError(f"samples.guidance_scale={options.guidance_scale} needs classes, but there are none")
    if options.num_inference_steps is not None:
        try:
            pipe.scheduler.set_timesteps(options.num_inference_steps)
        except ValueError as error:
            raise ConfigError(f"samples.num_inference_steps={options.num_inference_steps}: {error}") from error
    if config.likelihood.given_class and not conditional:
        raise ConfigError("likelihood.given_class=true needs a network that is conditional on classes")
    return pipe.to(device)


def _sampler(config: EvaluationConfig, own):
    """The scheduler that `config.scheduler` describes; what it does not say is as in the pipeline's own."""
    arguments = dict(config.scheduler)
    name = arguments.pop("class_name", type(own).__name__)
    if name not in SCHEDULERS:
        raise ConfigError(f"scheduler.class_name must be one of {', '.join(SCHEDULERS)}, but is {name!r}")
    known = inspect.signature(SCHEDULERS[name]).parameters
    kept = {key: value for key, value in own.config.items() if key in known}
    return construct("scheduler", SCHEDULERS[name], {**kept, **arguments})


def load_networks(config: EvaluationConfig, device: torch.device) -> dict[str, FeatureNetwork]:
    """The networks of the feature spaces, by the names that the configuration gives them."""
    try:
        networks = {
            space: load_feature_network(space, config.feature_weights.get(space), device)
            for space in config.feature_spaces
        }
    except (ValueError, OSError, ModuleNotFoundError) as error:  # a ConnectionError is an OSError
        raise ConfigError(f"feature_spaces: {error}") from error
    if config.frechet_reference == "shipped" and shipped_statistics_path(networks["fashion-mnist"]) is None:
        raise ConfigError("frechet_reference=shipped needs the shipped feature network: leave feature_weights out")
    return networks


def load_data(config: EvaluationConfig, pipe: ScoreSdePipeline) -> tuple[ImageData, ImageData | None]:
    """Reference and test images, of the pipeline's channels and size; the latter are None where nothing needs them."""
    size, options = pipe.unet.config.sample_size, config.data
    side = size if isinstance(size, int) or size is None else (size[0] if size[0] == size[1] else None)
    if options.name is not None and not Path(options.dataset).expanduser().is_dir():
        raise ConfigError(f"data.name is for a folder, but data.dataset is {options.dataset!r}")
    keys = ("data_dir", "max_images", "image_column", "label_column")
    arguments = {key: getattr(options, key) for key in keys}
    arguments |= {"image_size": side, "channels": pipe.unet.config.in_channels, "streaming": False}
    neighbors = config.neighbors.num_images and config.samples.num_images
    need_test = bool(config.yardsticks or config.likelihood.num_images or neighbors)
    try:
        reference = load_images(options.dataset, options.reference_split, **arguments)
        test = load_images(options.dataset, options.test_split, **arguments) if need_test else None
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
    if config.samples.classes == "random":
        _require_labels("samples.classes=random", reference, pipe)
    if config.likelihood.given_class and config.likelihood.num_images:
        _require_labels("likelihood.given_class=true", test, pipe)
    if options.name is not None:
        reference = dataclasses.replace(reference, name=options.name)
        test = test and dataclasses.replace(test, name=options.name)
    return reference, test


def _require_labels(key: str, data: ImageData, pipe: ScoreSdePipeline) -> None:
    classes = pipe.unet.config.num_class_embeds
    if data.labels is None:
        raise ConfigError(f"{key} needs labels, but {data.name} has none")
    if data.labels.max() >= classes:
        raise ConfigError(f"{key}: {data.name} has the label {data.labels.max()}, but the network {classes} classes")
