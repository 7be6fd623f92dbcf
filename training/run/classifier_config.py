"""The configuration of a classifier's training: what `config.py` has for every run, and the noise."""

import math
from dataclasses import dataclass, field

from run.config import RUN_RULES, ConfigError, RunConfig, merge


@dataclass
class NoiseConfig:
    """Noise levels of the training, uniform in their logarithm, in the units of images in [0, 1]."""

    sigma_min: float = 0.001
    sigma_max: float = 40.0


@dataclass
class ClassifierConfig(RunConfig):
    """Of a `NoiseConditionalClassifier`; the data say `model`'s in_channels, sample_size and num_classes."""

    noise: NoiseConfig = field(default_factory=NoiseConfig)


_POSITIVE = ("a finite number above 0", lambda value: 0 < value < math.inf)
CLASSIFIER_RULES = {**RUN_RULES, "noise.sigma_min": _POSITIVE, "noise.sigma_max": _POSITIVE}


def read_classifier_config(arguments: list[str]) -> ClassifierConfig:
    """The configuration that command-line arguments describe: `FILE.yaml key=value section.key=value ...`.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    if not arguments or "=" in arguments[0]:
        raise ConfigError(
            "the first argument must be a YAML file, as in: train_classifier.py "
            "training/classifier_configs/fashion_mnist.yaml steps=500"
        )
    config = merge(ClassifierConfig, CLASSIFIER_RULES, arguments[:1], arguments[1:])
    if config.noise.sigma_min >= config.noise.sigma_max:
        raise ConfigError(
            f"noise.sigma_min must be below noise.sigma_max = {config.noise.sigma_max}, "
            f"but is {config.noise.sigma_min}"
        )
    return config
