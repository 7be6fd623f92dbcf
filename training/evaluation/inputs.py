"""What an evaluation works on: the pipeline with its sampler, the feature networks, the real images."""

import dataclasses
import inspect
from pathlib import Path

import torch

from evaluation.config import EvaluationConfig
from evaluation.feature_networks import FeatureNetwork, load_feature_network, shipped_statistics_path
from images.loading import ImageData, load_images
from images.sources import Source, open_source
from run.record import ImageRecord, parted, read_record
from run.score_model import SCHEDULERS
from run.splits import HELD_OUT
from run.yaml_config import ConfigError, construct
from sde_diffusers import ScoreSdePipeline
from sde_diffusers.network_fit import require_answers, require_mixable


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
    for key, number in (("samples", options.num_images), ("likelihood", config.likelihood.num_images)):
        if number:
            try:
                require_answers(pipe.unet, pipe.scheduler, sampling=key == "samples")
            except ValueError as error:
                raise ConfigError(f"{key}.num_images={number}: {error}") from error
    try:
        require_mixable(pipe.scheduler, "samples.guidance_scale", options.guidance_scale, (0, 1))
    except ValueError as error:
        raise ConfigError(str(error)) from error
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
    if config.frechet_reference == "shipped" and shipped_statistics_path(*networks.values()) is None:
        raise ConfigError("frechet_reference=shipped needs the shipped feature network: leave feature_weights out")
    return networks


def load_data(
    config: EvaluationConfig, pipe: ScoreSdePipeline | None, samples: ImageData | None = None
) -> tuple[ImageData, ImageData | None]:
    """Reference and test images, of the channels and size of the pipeline's, or of the given samples.

    The latter are None where nothing needs them, or there are none.
    """
    options = config.data
    if options.test_split == options.reference_split:
        raise ConfigError(f"data.test_split is {options.test_split!r}, as reference_split is: choose another, or none")
    if options.name is not None and not Path(options.dataset).expanduser().is_dir():
        raise ConfigError(f"data.name is for a folder, but data.dataset is {options.dataset!r}")
    if pipe is None:
        (channels, *size), pixels = samples.image_shape, samples.pixels
    else:
        (channels, *size), pixels = pipe._image_shape, pipe.pixel_format
    record = read_record(Path(config.pipeline).parent)
    arguments = {"max_images": options.max_images, "image_size": size, "channels": channels, "streaming": False}
    arguments |= {"pixels": None if options.value_range or options.white_level else pixels}
    arguments |= {"value_range": options.value_range, "white_level": options.white_level}
    needs = {
        "yardsticks": bool(config.yardsticks),
        "likelihood.num_images": bool(config.likelihood.num_images),
        "neighbors.num_images": bool(config.neighbors.num_images and config.samples.num_images),
    }
    try:
        keys = ("data_dir", "image_column", "label_column")
        source = open_source(options.dataset, **{key: getattr(options, key) for key in keys})
        asked, test_split = (
            options.test_split,
            _test_split(options.test_split, options.reference_split, source, record),
        )
        options.test_split = test_split or "none"  # which numbers will say
        lacking = [key for key in needs if needs[key] and test_split is None]
        if lacking and asked == "auto" and pipe is not None or set(lacking) - {"neighbors.num_images"}:
            raise ValueError(
                f"{', '.join(lacking)}: there are no test images. {source.name} has the splits "
                f"{', '.join(map(repr, source.splits))}, and beside {config.pipeline} is no run that has held some "
                "out. Choose data.test_split, or go without: data.test_split=none"
            )
        reference, test = load_images(source, options.reference_split, **arguments), None
        if record and record.held_out and options.reference_split == record.split:
            reference, held_out, _ = parted(reference, record.held_out)  # it has trained on the others
            test = held_out if test_split == HELD_OUT else None
        if test_split == HELD_OUT and (test is None or not len(test)):
            raise ValueError(f"the images that {config.pipeline}'s run has held out are not in {source.name}")
        if test_split not in (None, HELD_OUT) and any(needs.values()):
            test = load_images(source, test_split, **arguments)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
    if test_split is None and needs["neighbors.num_images"]:
        print("No test images: of the nearest neighbours, exact copies alone are counted", flush=True)
    test = test if any(needs.values()) else None
    if pipe is not None:
        if config.samples.classes == "random":
            reference = _with_classes_of(pipe, reference, "samples.classes=random")
        if config.likelihood.given_class and config.likelihood.num_images:
            test = _with_classes_of(pipe, test, "likelihood.given_class=true")
    if options.name is not None:
        reference = dataclasses.replace(reference, name=options.name)
        test = test and dataclasses.replace(test, name=options.name)
    return reference, test


def _test_split(asked: str, reference_split: str, source: Source, record: ImageRecord | None) -> str | None:
    """The split of the test images; None for none."""
    held_out = record is not None and bool(record.held_out)
    if asked == "auto":
        return "test" if "test" in source.splits and reference_split != "test" else HELD_OUT if held_out else None
    if asked == HELD_OUT and not held_out:
        raise ValueError("data.test_split is held_out, but beside the pipeline is no run that has held images out")
    return None if asked == "none" else asked


def _with_classes_of(pipe: ScoreSdePipeline, data: ImageData, key: str) -> ImageData:
    """The data with the network's numbers of their classes: by the names where both have some."""
    classes, names = pipe.unet.config.num_class_embeds, pipe.class_names
    if data.labels is None:
        raise ConfigError(f"{key} needs labels, but {data.name} has none")
    if names and data.class_names and list(names) != data.class_names:
        unknown = [data.class_names[k] for k in data.labels.unique().tolist() if data.class_names[k] not in names]
        if unknown:
            raise ConfigError(
                f"{key}: {data.name} has the classes {', '.join(unknown)}, but the network knows {', '.join(names)}"
            )
        numbers = torch.tensor([names.index(name) if name in names else -1 for name in data.class_names])
        data = dataclasses.replace(data, labels=numbers[data.labels], class_names=list(names))
    if data.labels.max() >= classes:
        raise ConfigError(f"{key}: {data.name} has the label {data.labels.max()}, but the network {classes} classes")
    return data
