"""The configuration of a training run: a YAML file, then key=value arguments, checked before any work is done.

A file may name another one as its `base` (relative to its own folder) and then holds only what differs. The sections
`model`, `scheduler` and `objective` are the arguments of the classes that they describe, so that those classes'
docstrings document them; `score_model.py` builds and checks them.
"""

import difflib
import inspect
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError


class ConfigError(ValueError):
    """What the user asked for cannot be done; the message says why, and what could be."""


@dataclass
class DataConfig:
    dataset: str = MISSING  # "fashion_mnist", "cifar10", "cassava", a Hub id, a folder, or a file of arrays
    data_dir: str | None = None  # sub-folder of the data set to read
    split: str = "train"  # the split to train on
    validation: str = "auto"  # a split; "hold_out": part of the training split; "auto": "validation", else "hold_out"
    validation_images: int = 1000  # images that the validation loss is computed on (at most a tenth if held out)
    image_size: Any = None  # side, or [height, width], that images are resized and cropped to; null = as they are
    channels: int | None = None  # 1 (gray), 3 (RGB), or the number of bands; null = as the data is
    value_range: list[float] | None = None  # values that are black and white; null = of integers' type, or measured
    white_level: int | None = None  # short for value_range=[0, white_level]: 4095 for 12 bits in 16-bit files
    max_images: int | None = None  # train on this many images; null = all
    image_column: str | None = None  # needed only where a data set has several
    label_column: str | None = None  # likewise; or one of integers, text or booleans
    labels: str = "auto"  # "none" reads the images without their labels
    streaming: bool | None = None  # decode while training; null = only what exceeds 4 GiB in memory
    stream_shards: int = 1  # groups of a stream's files, of which each process reads its own; see streams.py
    horizontal_flip: bool = False  # mirror each image with probability 1/2
    uniform_dequantization: bool = False  # add uniform noise of one grey level; for bits/dim


@dataclass
class OptimizerConfig:
    """AdamW (weight_decay 0 is Adam)."""

    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0  # linear warm-up of the learning rate
    decay_fraction: float = 0.0  # share of the run, at its end, over which lr falls linearly to 0; 0 = constant


@dataclass
class EmaConfig:
    """Exponential moving average of the weights, which is what is validated, sampled and saved."""

    decay: float = 0.9999
    warmup: bool = (
        True  # decay at step k: true: 1 - (1 + k / inv_gamma)^-power; false: (1 + k) / (10 + k), the paper's
    )
    inv_gamma: float = 1.0
    power: float = 2 / 3


@dataclass
class SamplesConfig:
    """Grids of samples, from the same noise every time."""

    num_inference_steps: int = 18  # steps of the scheduler
    rows: int = 4
    columns: int = 10  # class-conditional networks: column c shows class c (modulo their number)
    guidance_scale: float = 1.0  # 1 = none


@dataclass
class RunConfig:
    """The keys of every training."""

    output_dir: str = MISSING
    overwrite: bool = False  # delete the run that output_dir holds
    resume: str | None = None  # "latest" (a new run if there is no checkpoint yet), the path of a checkpoint, or null

    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=dict)  # arguments of the network's class
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)

    steps: int = MISSING
    batch_size: int = 128  # of all processes and micro-batches together
    gradient_accumulation_steps: int = 1  # micro-batches that a process splits its share of a batch into
    gradient_clip: float | None = None  # largest norm of the gradient; null = any
    seed: int = 0
    mixed_precision: str = "auto"  # "no", "bf16", "fp16"; "auto" = bf16 where the processor or GPU has it
    channels_last: bool = True
    compile: bool = False  # torch.compile

    log_every: int = 50  # steps
    validate_every: int = 1000  # 0 = never: no images are set aside
    checkpoint_every: int = 1000  # 0 = only at the end
    checkpoints_limit: int | None = 2  # keep this many; null = all
    process_timeout: float = 7200.0  # seconds until a process that does not answer counts as lost; samples take some
    on_write_error: str = "stop"  # or "continue" without the checkpoint, say on a disk that is full for a while


@dataclass
class Config(RunConfig):
    """Of a score network; `model` may also hold a `preset` of NCSNppUNet2DModel."""

    initial_weights: str | None = None  # a pipeline's folder or Hub id, whose network a new run starts from
    scheduler: dict[str, Any] = field(default_factory=dict)  # `class_name` and its arguments; sigma_max may be "auto"
    objective: dict[str, Any] = field(default_factory=dict)  # arguments of DenoisingScoreMatching
    label_dropout: float = 0.0  # probability that a label is withheld, for classifier-free guidance
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    sample_every: int = 1000  # 0 = never

    push_to_hub: bool = False  # in the background, at checkpoints and at the end; needs `hf auth login`
    hub_model_id: str | None = None  # "owner/name"; null = one of your own, named like output_dir
    hub_private: bool | None = None  # visibility of a repository that is created; null = as your account has it
    hub_license: str | None = None  # for the model card, such as "apache-2.0"


def is_size(size) -> bool:
    """Whether `size` is a side, or height and width."""
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    return all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides)


def _positive(value) -> bool:
    return 0 < value < math.inf


_POSITIVE = ("a finite number above 0", _positive)
_FRACTION = ("in [0, 1)", lambda value: 0 <= value < 1)
_COUNT = ("at least 1", lambda value: value >= 1)
_NATURAL = ("at least 0", lambda value: value >= 0)
PRECISIONS = ("auto", "no", "bf16", "fp16")
RUN_RULES = {  # of values that are not null
    "data.validation_images": _COUNT,
    "data.image_size": ("an integer of at least 1, or two of them, [height, width]", lambda size: is_size(size)),
    "data.white_level": _COUNT,
    "data.value_range": ("[low, high] with low < high", lambda pair: len(pair) == 2 and pair[0] < pair[1]),
    "data.labels": ("auto or none", lambda value: value in ("auto", "none")),
    "data.max_images": _COUNT,
    "data.stream_shards": _COUNT,
    "data.channels": _COUNT,
    "optimizer.lr": _POSITIVE,
    "optimizer.betas": ("two numbers in [0, 1)", lambda betas: all(0 <= beta < 1 for beta in betas)),
    "optimizer.eps": _POSITIVE,
    "optimizer.weight_decay": _NATURAL,
    "optimizer.warmup_steps": _NATURAL,
    "optimizer.decay_fraction": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "ema.decay": _FRACTION,
    "ema.inv_gamma": _POSITIVE,
    "ema.power": _POSITIVE,
    "steps": _COUNT,
    "batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "gradient_clip": _POSITIVE,
    "seed": _NATURAL,
    "mixed_precision": (f"one of {', '.join(PRECISIONS)}", lambda value: value in PRECISIONS),
    "log_every": _COUNT,
    "validate_every": _NATURAL,
    "checkpoint_every": _NATURAL,
    "checkpoints_limit": _COUNT,
    "process_timeout": _POSITIVE,
    "on_write_error": ("stop or continue", lambda value: value in ("stop", "continue")),
}
RULES = {
    **RUN_RULES,
    "samples.num_inference_steps": _COUNT,
    "samples.rows": _COUNT,
    "samples.columns": _COUNT,
    "samples.guidance_scale": ("a finite number of at least 0", lambda value: 0 <= value < math.inf),
    "label_dropout": _FRACTION,
    "sample_every": _NATURAL,
}


def read_config(arguments: list[str]) -> Config:
    """The configuration that command-line arguments describe: `FILE.yaml key=value section.key=value ...`.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    if not arguments or "=" in arguments[0]:
        raise ConfigError(
            "the first argument must be a YAML file, as in: train.py training/configs/demo.yaml steps=500"
        )
    return merge(Config, RULES, arguments[:1], arguments[1:])


def merge(schema: type, rules: dict, files: list[str], overrides: list[str], **given):
    """An instance of the dataclass `schema`: YAML files, then key=value words, then `given` values (rank rising).

    Args:
        rules: {dotted key: (what is allowed, in words; the test of a value that is not null)}.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise ConfigError(f"argument {override!r} must have the form key=value, as in seed=1")
    structure = OmegaConf.structured(schema)
    try:
        config = OmegaConf.merge(structure, *(_read_yaml(Path(path)) for path in files))
        config = OmegaConf.merge(config, OmegaConf.from_dotlist(overrides), given)
        if missing := OmegaConf.missing_keys(config):
            raise ConfigError(f"these keys must be given: {', '.join(sorted(missing))}")
        config = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error, structure)) from error
    except YAMLError as error:
        raise ConfigError(f"an argument is not YAML: {error}") from error
    for key, (allowed, rule) in rules.items():
        value = config
        for name in key.split("."):
            value = getattr(value, name)
        if value is not None and not rule(value):
            raise ConfigError(f"{key} must be {allowed}, but is {value!r}")
    return config


def save_config(config: RunConfig, path: Path) -> None:
    """Write the whole configuration, defaults included, as a YAML file that `read_config` accepts."""
    OmegaConf.save(OmegaConf.structured(config), path)


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as {dotted key: value}, of types that JSON has."""

    def flatten(node, prefix=""):
        if not isinstance(node, dict):
            return {prefix[:-1]: list(node) if isinstance(node, tuple) else node}
        return {key: value for name in node for key, value in flatten(node[name], f"{prefix}{name}.").items()}

    return flatten(OmegaConf.to_container(OmegaConf.structured(config)))


def construct(section: str, cls, arguments: dict[str, Any]):
    """`cls(**arguments)`, with errors that name the section and the nearest allowed keys.

    Raises:
        ConfigError: on an unknown key or a value that the class refuses.
    """
    allowed = [name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs")]
    for key in arguments:
        if key not in allowed:
            raise ConfigError(f"{section}.{key} is not a key. {_near(key, allowed)}")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{section}: {error}") from error


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise ConfigError(f"there is no configuration file {path}")
    try:
        content = OmegaConf.load(path)
    except YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path} must hold keys and values, as in steps: 1000")
    base = content.pop("base", None)
    return content if base is None else OmegaConf.merge(_read_yaml(path.parent / base), content)


def _explain(error: OmegaConfBaseException, schema: DictConfig) -> str:
    reason = str(error).splitlines()[0]
    *parents, name = str(error.full_key or "").split(".")
    parent = OmegaConf.select(schema, ".".join(parents)) if parents else schema
    if error.full_key and isinstance(parent, DictConfig) and name not in list(parent):  # `in` denies ???
        return f"{error.full_key} is not a key. {_near(name, list(parent))}"
    return f"{error.full_key}: {reason}" if error.full_key else reason


def _near(name: str, allowed: list[str]) -> str:
    matches = difflib.get_close_matches(str(name), allowed)
    return f"Did you mean {' or '.join(matches)}?" if matches else f"Allowed: {', '.join(allowed)}."
