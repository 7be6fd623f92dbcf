"""The keys of a score network's training, their defaults and what is allowed; `yaml_config.py` reads them.

The sections `model`, `scheduler` and `objective` are the arguments of the classes that they describe, so that those
classes' docstrings document them; `score_model.py` builds and checks them.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from run.precision import PRECISIONS
from run.yaml_config import COUNT, FRACTION, NATURAL, NOT_NEGATIVE, POSITIVE, SEED, one_of, read_arguments


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
    stream_by_size: bool = False  # a group's share of each batch is that of its images; false = all alike
    horizontal_flip: bool = False  # mirror each image with probability 1/2
    uniform_dequantization: bool = False  # add uniform noise of one grey level; for bits/dim


@dataclass
class OptimizerConfig:
    """AdamW (weight_decay 0 is Adam), or Muon."""

    name: str = "adamw"  # "muon" in blocks: faster at first, docs/training_runs.md; see run/muon.py
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
    # Decay after k earlier steps. true: 1 - (1 + k / inv_gamma)^-power; false: (1 + k) / (10 + k), the paper's, which
    # counts k from 1. The first average is a copy.
    warmup: bool = True
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
class DistanceConfig:
    """Distances of samples from training images, from the same noise every time; needs the extra `eval`."""

    features: str | None = None  # a feature space as evaluate.py has it, such as "fashion-mnist"
    weights: str | None = None  # path of the feature network, where it is not the usual one
    num_images: int = 1000  # samples
    num_reference: int = 10_000  # training images, or all if there are fewer
    num_inference_steps: int = 18  # steps of the scheduler
    cache_dir: str = "~/.cache/sde_diffusers/features"  # features of the training images


@dataclass
class PowerAveragesConfig:
    """Two averages of the weights, of which average.py makes those of other lengths (arXiv 2312.02696)."""

    snapshot_every: int = 0  # steps at which they are kept, in averages/; 0 = no such averages
    sigma_rel: list[float] = field(default_factory=lambda: [0.05, 0.1])  # widths, as shares of the training


@dataclass
class RunConfig:
    """The keys of every training."""

    output_dir: str = MISSING
    overwrite: bool = False  # delete the run that output_dir holds
    resume: str | None = None  # "latest" (a new run if there is no checkpoint yet), a checkpoint's folder, or null

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

    log_with: list[str] = field(default_factory=lambda: ["tensorboard"])  # also "wandb", "mlflow"
    tracker_options: dict[str, Any] = field(default_factory=dict)  # by name; for wandb.init, MLflow's start_run


@dataclass
class Config(RunConfig):
    """Of a score network; `model` may also hold a `preset` of NCSNppUNet2DModel."""

    # "auto" stands for what the training images say: scheduler.sigma_max, model.sigma_data, objective.sigma_data.
    initial_weights: str | None = None  # a pipeline's folder or Hub id, whose network a new run starts from
    new_layers: list[str] = field(default_factory=list)  # but for these, such as class_embedding for other classes
    scheduler: dict[str, Any] = field(default_factory=dict)  # `class_name` and its arguments
    objective: dict[str, Any] = field(
        default_factory=dict
    )  # arguments of DenoisingScoreMatching, or ConsistencyTuning
    label_dropout: float = 0.0  # probability that a label is withheld, for classifier-free guidance
    augmentation: float = 0.0  # probability of each transformation in images/augmentation.py; model.augment_dim=9
    teacher: str | None = None  # a pipeline whose ODE objective.solver_steps follows; null = that of initial_weights
    perceptual_classifier: str | None = None  # saved by train_classifier.py, for objective.perceptual_weight
    kept_batches: int = 0  # of objective.solver_steps with q=1: batches solved once, then used in turn; 0 = all anew
    learned_weighting: bool = False  # weigh noise levels by their losses, learned along: run/learned_weighting.py
    power_averages: PowerAveragesConfig = field(default_factory=PowerAveragesConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    sample_every: int = 1000  # 0 = never
    distance: DistanceConfig = field(default_factory=DistanceConfig)
    distance_every: int = 0  # 0 = never
    noise_levels: int = 0  # groups of noise levels by which the validation loss is told apart; 0 = only the whole

    push_to_hub: bool = False  # in the background, at checkpoints and at the end; needs `hf auth login`
    hub_model_id: str | None = None  # "owner/name"; null = one of your own, named like output_dir
    hub_private: bool | None = None  # visibility of a repository that is created; null = as your account has it
    hub_license: str | None = None  # for the model card, such as "apache-2.0"


WIDEST = 12**-0.5  # width of the mean of all steps, see power_averages.py
TRACKERS = ("tensorboard", "wandb", "mlflow")


def is_size(size) -> bool:
    """Whether `size` is a side, or height and width."""
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    return all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides)


RUN_RULES = {  # of values that are not null
    "data.validation_images": COUNT,
    "data.image_size": ("an integer of at least 1, or two of them, [height, width]", is_size),
    "data.white_level": COUNT,
    "data.value_range": ("[low, high] with low < high", lambda pair: len(pair) == 2 and pair[0] < pair[1]),
    "data.labels": ("auto or none", lambda value: value in ("auto", "none")),
    "data.max_images": COUNT,
    "data.stream_shards": COUNT,
    "data.channels": COUNT,
    "optimizer.name": one_of(("adamw", "muon")),
    "optimizer.lr": POSITIVE,
    "optimizer.betas": ("two numbers in [0, 1)", lambda betas: all(0 <= beta < 1 for beta in betas)),
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.warmup_steps": NATURAL,
    "optimizer.decay_fraction": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "ema.decay": FRACTION,
    "ema.inv_gamma": POSITIVE,
    "ema.power": POSITIVE,
    "steps": COUNT,
    "batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "gradient_clip": POSITIVE,
    "seed": SEED,
    "mixed_precision": one_of(PRECISIONS),
    "log_every": COUNT,
    "validate_every": NATURAL,
    "checkpoint_every": NATURAL,
    "checkpoints_limit": COUNT,
    "process_timeout": ("above 0 and at most 1e9 seconds", lambda seconds: 0 < seconds <= 1e9),
    "log_with": (
        f"a list of {', '.join(TRACKERS)}, none twice",
        lambda names: set(names) <= set(TRACKERS) and len(set(names)) == len(names),
    ),
    "tracker_options": ("keyed by wandb, mlflow", lambda options: set(options) <= {"wandb", "mlflow"}),
    "on_write_error": ("stop or continue", lambda value: value in ("stop", "continue")),
}
RULES = {
    **RUN_RULES,
    "samples.num_inference_steps": COUNT,
    "samples.rows": COUNT,
    "samples.columns": COUNT,
    "samples.guidance_scale": NOT_NEGATIVE,
    "label_dropout": FRACTION,
    "sample_every": NATURAL,
    "augmentation": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "power_averages.snapshot_every": NATURAL,
    "power_averages.sigma_rel": (
        f"numbers above 0 and at most {WIDEST:.4f} that differ in six digits",
        lambda widths: (
            widths
            and len({f"{width:g}" for width in widths}) == len(widths)
            and all(0 < width <= WIDEST for width in widths)
        ),
    ),
    "distance.num_images": ("at least 2", lambda value: value >= 2),
    "distance.num_reference": ("at least 2", lambda value: value >= 2),
    "distance.num_inference_steps": COUNT,
    "distance_every": NATURAL,
    "noise_levels": ("from 0 to 1000", lambda count: 0 <= count <= 1000),
    "kept_batches": NATURAL,
}


def read_config(arguments: list[str]) -> Config:
    """The configuration that command-line arguments describe; see `read_arguments`."""
    return read_arguments(Config, RULES, arguments, "train.py training/configs/demo.yaml steps=500")
