"""What an evaluation works on: the pipeline with its sampler, the feature networks, the real images."""

import dataclasses
import functools
import inspect
import re
from pathlib import Path

import torch

from evaluation.config import EvaluationConfig
from evaluation.feature_networks import FeatureNetwork, load_feature_network, shipped_statistics_path
from evaluation.likelihood import require_likelihood, require_within_range
from images.loading import ImageData, load_images
from images.sources import Source, open_source
from run.record import NUMBERED, ImageRecord, OtherImages, parted, read_record
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
    if conditional and getattr(pipe.unet.config, "label_dropout", None) == 0:
        unasked = {
            "samples.classes=none": options.num_images and options.classes == "none",
            f"samples.guidance_scale={options.guidance_scale}": options.num_images and options.guidance_scale != 1,
            "likelihood.given_class=false": config.likelihood.num_images and not config.likelihood.given_class,
        }
        for key in filter(unasked.get, unasked):
            raise ConfigError(
                f"{key} asks the network without a class, but it was trained with a class for every image "
                "(label_dropout=0): its answer means nothing"
            )
    if config.likelihood.num_images:
        require_likelihood(config, pipe)
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


def run_of(pipeline: str) -> Path:
    """The folder of the run that a pipeline's folder lies in, if it is one; links are followed."""
    path = Path(pipeline).expanduser()
    return (path.resolve() if path.exists() else path).parent


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
    record = read_record(run_of(config.pipeline))
    arguments = {"image_size": size, "channels": channels, "streaming": False}
    arguments |= {"pixels": None if options.value_range or options.white_level else pixels}
    arguments |= {"value_range": options.value_range, "white_level": options.white_level}
    needs = {
        "yardsticks": bool(config.yardsticks),
        "likelihood.num_images": bool(config.likelihood.num_images),
        "neighbors.num_images": bool(config.neighbors.num_images and config.samples.num_images),
    }
    try:
        keys = ("data_dir", "labels", "image_column", "label_column")
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
        splits = SplitsOfRun(source, record, test_split, options.max_images, arguments, options.data_dir)
        reference, test = splits.load(options.reference_split), None
        if test_split is not None and any(needs.values()):
            test = splits.load(test_split)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
    if test_split is None and needs["neighbors.num_images"]:
        print("No test images: of the nearest neighbours, exact copies alone are counted", flush=True)
    for data in (reference, test):
        if pipe is not None and data is not None and data.pixels != pixels:
            told = "data.white_level" if options.white_level else "data.value_range"
            raise ConfigError(
                f"{told}: the values of {data.name} are {data.pixels}, but those of {config.pipeline} {pixels}. An "
                "evaluation compares images of one kind: leave it out, or convert the images"
            )
    if pipe is not None:
        if config.likelihood.num_images:
            require_within_range(test)
        if config.samples.classes == "random":
            reference = _with_classes_of(pipe, reference, "samples.classes=random")
        if config.likelihood.given_class and config.likelihood.num_images:
            test = _with_classes_of(pipe, test, "likelihood.given_class=true")
    if options.name is not None:
        reference = dataclasses.replace(reference, name=options.name)
        test = test and dataclasses.replace(test, name=options.name)
    return reference, test


@dataclasses.dataclass
class SplitsOfRun:
    """The splits of a data set, of which one may be parted: into what the pipeline's run has trained on, and what not.

    Attributes:
        record: of the run; None without one.
        test_split: that of the test images; None for none.
        max_images: of each split, evenly spaced; None for all.
        arguments: of `load_images`.
        data_dir: that the source was opened with.
    """

    source: Source
    record: ImageRecord | None
    test_split: str | None
    max_images: int | None
    arguments: dict
    data_dir: str | None = None

    def __post_init__(self):
        if self.record and self.record.held_out and not self.record.held_out_digests and not self._same_data():
            message = (
                f"{self.record.dataset}, which the pipeline's run has read, has no names of images but numbers, and "
                f"{self.source.name} may be other images: which of them were held out cannot be known"
            )
            if self.test_split == HELD_OUT:
                raise ValueError(f"{message}. Choose another data.test_split, or none")
            print(f"{message[0].upper()}{message[1:]}: all are compared with", flush=True)
            self.record = None

    def _same_data(self) -> bool:
        """Whether names of images mean the same as in the run: those of files do, numbers of rows of the same data.

        For records of older releases, which hold no digests."""
        if not all(re.fullmatch(NUMBERED, name) for name in self.record.held_out):
            return True
        return self._in_the_same_place

    @property
    def _in_the_same_place(self) -> bool:
        ours, theirs = (Path(name).expanduser().resolve() for name in (self.source.name, self.record.dataset))
        return ours == theirs

    @functools.cached_property
    def _max_images_of_run(self) -> int | None:
        """How many images of its split the run has chosen; None of all, and where these cannot be chosen again."""
        record = self.record
        if record.max_images is None or not self._in_the_same_place:
            return None
        found = len(self.source[record.split])
        if (record.num_found, record.data_dir) == (found, self.data_dir):
            return record.max_images
        then = "it has read a stream, or is of an older release"
        if record.num_found is not None:
            then = f"it chose among {_place(record.num_found, record.data_dir)}, and here are "
            then += _place(found, self.data_dir)
        print(
            f"Which {record.max_images} images of {self.source.name} the pipeline's run has trained on cannot be "
            f"known, since {then}: all are compared with",
            flush=True,
        )
        return None

    def load(self, split: str) -> ImageData:
        """The images of a split, or those held out; of the split that the run has read, those that it trained on."""
        record = self.record
        held_out = record is not None and bool(record.held_out) and split in (record.split, HELD_OUT)
        chosen = record is not None and split == record.split and self._max_images_of_run is not None
        if not held_out and not chosen:
            return load_images(self.source, split, max_images=self.max_images, **self.arguments)
        try:
            data = self._parts[split == HELD_OUT]
        except OtherImages as error:
            if self.test_split == HELD_OUT:
                raise ValueError(f"{error}. Choose another data.test_split, or none") from error
            print(f"{error}: all are compared with", flush=True)
            self.record = None
            return load_images(self.source, split, max_images=self.max_images, **self.arguments)
        count = len(data) if self.max_images is None else min(self.max_images, len(data))
        return data.part(torch.tensor([i * len(data) // count for i in range(count)], dtype=torch.int64))

    @functools.cached_property
    def _parts(self) -> tuple[ImageData, ImageData]:
        names = self.record.held_out
        chosen = load_images(self.source, self.record.split, max_images=self._max_images_of_run, **self.arguments)
        if not names:
            return chosen, chosen.part(torch.tensor([], dtype=torch.int64))
        others, held_out, missing = parted(chosen, self.record)
        if not len(others):
            raise ValueError(f"{self.source.name} holds no image but those that the pipeline's run has held out")
        if not len(held_out):
            raise OtherImages(f"the images that the pipeline's run has held out are not in {self.source.name}")
        if missing:
            print(f"{len(missing)} of the {len(names)} images held out are missing, such as {missing[0]}", flush=True)
        return others, held_out


def _place(count: int, data_dir: str | None) -> str:
    return f"{count} images" + (f" in data.data_dir={data_dir}" if data_dir else "")


def _test_split(asked: str, reference_split: str, source: Source, record: ImageRecord | None) -> str | None:
    """The split of the test images; None for none."""
    held_out = record is not None and bool(record.held_out)
    if asked == "auto":
        trained_on = record is not None and record.split == "test"
        unseen = "test" in source.splits and reference_split != "test" and not trained_on
        return "test" if unseen else HELD_OUT if held_out else None
    if asked == HELD_OUT and not held_out:
        raise ValueError("data.test_split is held_out, but beside the pipeline is no run that has held images out")
    return None if asked == "none" else asked


def _with_classes_of(pipe: ScoreSdePipeline, data: ImageData, key: str) -> ImageData:
    """The data with the network's numbers of their classes: by the names where both have some.

    Labels without names have their numbers for names, where the network's names are numbers, too."""
    classes, names = pipe.unet.config.num_class_embeds, pipe.class_names
    if data.labels is None:
        raise ConfigError(f"{key} needs labels, but {data.name} has none")
    if names and not data.class_names and all(map(str.isdecimal, names)):
        numbered = [str(k) for k in range(int(data.labels.max()) + 1)]
        data = dataclasses.replace(data, class_names=numbered)
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
