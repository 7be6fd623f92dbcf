"""The configuration of an evaluation: a pipeline, a YAML file if wanted, and key=value arguments."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from images.folders import LABELS
from run.precision import PRECISIONS
from run.yaml_config import COUNT, NATURAL, NOT_NEGATIVE, POSITIVE, SEED, ConfigError, merge, one_of
from sde_diffusers.likelihood.dequantization import DEQUANTIZATIONS

METRICS = ("frechet_distance", "kernel_distance", "precision_recall", "density_coverage")
SHIPPED_SPACES = ("fashion-mnist", "cifar10")  # of classifiers that come with the repository
FEATURE_SPACES = (*SHIPPED_SPACES, "inception", "inception-tf", "dinov2")
CLASSES = ("balanced", "random", "none")
FRECHET_REFERENCES = ("data", "shipped")


@dataclass
class DataConfig:
    """The real images, brought to the channels and the size of the pipeline's."""

    dataset: str = MISSING  # "fashion_mnist", "cifar10", "cassava", a Hub id, or a folder (of parquet files or images)
    name: str | None = None  # of a folder, in results and card: say "zalando-datasets/fashion_mnist"; null = its path
    data_dir: str | None = None  # sub-folder of the data set to read
    reference_split: str = "train"  # what samples are compared with
    # For likelihoods, yardsticks, and as a measure for nearest neighbours: a split; "held_out": what the pipeline's
    # run has not trained on; "none"; "auto": "test" if there is one, else "held_out" if there was a run.
    test_split: str = "auto"
    split: str | None = None  # short for test_split
    max_images: int | None = None  # of each split; null = all
    labels: str = "auto"  # "none" reads all images without labels, as in training
    image_column: str | None = None  # needed only where a data set has several
    label_column: str | None = None  # likewise; or one of integers, text or booleans
    value_range: list[float] | None = None  # of a folder of floating-point samples; a pipeline knows its own
    white_level: int | None = None  # likewise, of 16-bit ones


@dataclass
class SamplesConfig:
    num_images: int = 10000  # 0 = none
    num_inference_steps: int | None = None  # null = the sampler's default
    guidance_scale: float = 1.0  # 1 = none
    classes: str | None = None  # "balanced", "random" (as often as in the data), "none"; null = "balanced" if possible
    seed: int = 0  # image k depends on (seed, k) and, where a sampler averages over its batch, on batch_size
    batch_size: int = 100


@dataclass
class LikelihoodConfig:
    """Bits/dim of images of the test split, in float32."""

    num_images: int = 0  # 0 = none
    model: str = "ode"  # or "sde", of which only a bound is known: see sde_diffusers/likelihood/variational_bound.py
    draws: int = 32  # of the noise level, for "sde", in each pass
    dequantize: str = "uniform"  # or "truncated_normal": see sde_diffusers/likelihood/dequantization.py
    passes: int = 1  # with fresh dequantization noise; two or more show its share of the standard error
    probes: int = 1  # of the trace estimator in each pass; likewise
    given_class: bool = False  # the likelihood given the image's class
    eps: float | None = None  # null = 1e-5, or what "truncated_normal" needs
    rtol: float = 1e-5
    atol: float = 1e-5
    seed: int = 0  # chooses the images, their dequantization noise and the probes
    batch_size: int = 50


@dataclass
class NeighborsConfig:
    """Nearest reference images of samples and, for comparison, of test images."""

    num_images: int = 1000  # of each kind; 0 = none
    space: str = "pixels"  # "pixels" (in [0, 1]) or one of feature_spaces
    shown: int = 100  # pairs on the page


@dataclass
class EvaluationConfig:
    pipeline: str = MISSING  # a folder or the id of a repository on the Hub
    output_dir: str = MISSING
    cache_dir: str = "~/.cache/sde_diffusers/features"  # features of data sets, shared by all evaluations
    save_images: bool = False  # samples as PNG files in output_dir/samples
    update_card: bool = False  # write the results into the pipeline's README.md

    data: DataConfig = field(default_factory=DataConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    scheduler: dict[str, Any] = field(default_factory=dict)  # `class_name`, arguments; otherwise the pipeline's
    mixed_precision: str = "no"  # of the network while sampling: "no", "bf16", "fp16", "auto" (bf16 where native)

    feature_spaces: list[str] = field(default_factory=list)  # of FEATURE_SPACES: see feature_networks.py
    feature_weights: dict[str, str] = field(default_factory=dict)  # feature space -> a path; see feature_networks.py
    metrics: list[str] = field(default_factory=lambda: list(METRICS))  # in each of the feature spaces
    frechet_reference: str = "data"  # "shipped": the statistics of all training images that come with a classifier
    bootstrap_resamples: int = 0  # for a 95 % interval of the mean distance of so many images; 0 = none
    yardsticks: list[float] = field(default_factory=list)  # also test images + noise of these deviations, grey levels
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    neighbors: NeighborsConfig = field(default_factory=NeighborsConfig)


def _all_of(choices):
    return (f"a list of {', '.join(choices)}, none twice", lambda v: set(v) <= set(choices) and len(set(v)) == len(v))


RULES = {  # of values that are not null
    "data.max_images": COUNT,
    "data.labels": one_of(LABELS),
    "samples.num_images": NATURAL,
    "samples.num_inference_steps": COUNT,
    "samples.guidance_scale": NOT_NEGATIVE,
    "samples.classes": one_of(CLASSES),
    "samples.seed": SEED,
    "samples.batch_size": COUNT,
    "mixed_precision": one_of(PRECISIONS),
    "feature_spaces": _all_of(FEATURE_SPACES),
    "feature_weights": (f"keyed by {', '.join(FEATURE_SPACES)}", lambda value: set(value) <= set(FEATURE_SPACES)),
    "metrics": _all_of(METRICS),
    "frechet_reference": one_of(FRECHET_REFERENCES),
    "bootstrap_resamples": ("0 or at least 20", lambda value: value == 0 or value >= 20),
    "yardsticks": ("standard deviations of at least 0", lambda values: all(0 <= v < math.inf for v in values)),
    "likelihood.num_images": NATURAL,
    "likelihood.model": one_of(("ode", "sde")),
    "likelihood.draws": COUNT,
    "likelihood.dequantize": one_of(DEQUANTIZATIONS),
    "likelihood.passes": COUNT,
    "likelihood.probes": COUNT,
    "likelihood.eps": ("in (0, 1)", lambda value: 0 < value < 1),
    "likelihood.rtol": POSITIVE,
    "likelihood.atol": POSITIVE,
    "likelihood.seed": SEED,
    "likelihood.batch_size": COUNT,
    "neighbors.num_images": NATURAL,
    "neighbors.space": one_of(("pixels", *FEATURE_SPACES)),
    "neighbors.shown": NATURAL,
}


def read_evaluation_config(arguments: list[str]) -> EvaluationConfig:
    """The configuration that command-line arguments describe: `PIPELINE [FILE.yaml] key=value section.key=value ...`.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    if not arguments or "=" in arguments[0]:
        raise ConfigError(
            "the first argument must be a pipeline, as in: evaluate.py pretrained/fashion-mnist-ve "
            "training/evaluations/fashion_mnist.yaml output_dir=runs/evaluation"
        )
    pipeline, *overrides = arguments
    files, given = [], {}
    while overrides and "=" not in overrides[0] and not overrides[0].startswith("-") and not files:
        word = overrides.pop(0)
        if Path(word).expanduser().is_dir():  # a folder of images against a folder of images
            given["data"] = {"dataset": word}
        else:
            files.append(word)
    config = merge(EvaluationConfig, RULES, files, overrides, pipeline=pipeline, **given)
    if config.data.split is not None:
        if config.data.test_split not in ("auto", config.data.split):
            raise ConfigError(
                f"data.split={config.data.split} is short for data.test_split, but that is {config.data.test_split}: "
                "give one of them"
            )
        config.data.test_split = config.data.split
    for space in config.feature_weights:
        if config.feature_spaces and space not in config.feature_spaces:
            raise ConfigError(f"feature_weights.{space} is for a feature space that is none of feature_spaces")
    if config.data.test_split == config.data.reference_split:
        raise ConfigError(
            f"data.test_split and data.reference_split are both {config.data.reference_split!r}: a split says nothing "
            "about itself. Choose another one, held_out (what the run has not trained on) or none"
        )
    if config.neighbors.space not in ("pixels", *config.feature_spaces):
        raise ConfigError(
            f"neighbors.space must be pixels or one of feature_spaces, {config.feature_spaces}, "
            f"but is {config.neighbors.space!r}"
        )
    if not config.samples.num_images and not config.likelihood.num_images and not config.yardsticks:
        raise ConfigError("samples.num_images, likelihood.num_images and yardsticks leave nothing to evaluate")
    unread = {"ode": ("draws",), "sde": ("dequantize", "probes", "rtol", "atol")}[config.likelihood.model]
    for key in unread:
        if getattr(config.likelihood, key) != getattr(LikelihoodConfig, key):
            raise ConfigError(f"likelihood.{key} is not for likelihood.model={config.likelihood.model}: leave it out")
    if config.yardsticks and not config.feature_spaces:
        raise ConfigError("yardsticks are for the distances in feature_spaces, but there are none")
    if config.frechet_reference == "shipped" and config.feature_spaces not in [[space] for space in SHIPPED_SPACES]:
        raise ConfigError(
            f"frechet_reference=shipped is for feature_spaces=[{'] or ['.join(SHIPPED_SPACES)}], "
            f"but they are {config.feature_spaces}"
        )
    return config
