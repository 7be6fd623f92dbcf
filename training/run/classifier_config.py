"""The configuration of a classifier's training: what `config.py` has for every run, and the noise."""

from dataclasses import dataclass, field

from run.config import RUN_RULES, RunConfig
from run.yaml_config import POSITIVE, ConfigError, read_arguments


@dataclass
class NoiseConfig:
    """Noise levels of the training, uniform in their logarithm, in the units of images in [0, 1]."""

    sigma_min: float = 0.001
    sigma_max: float = 40.0


@dataclass
class ClassifierConfig(RunConfig):
    """Of a `NoiseConditionalClassifier`; the data say `model`'s in_channels, sample_size and num_classes."""

    noise: NoiseConfig = field(default_factory=NoiseConfig)


CLASSIFIER_RULES = {**RUN_RULES, "noise.sigma_min": POSITIVE, "noise.sigma_max": POSITIVE}


def read_classifier_config(arguments: list[str]) -> ClassifierConfig:
    """The configuration that command-line arguments describe; see `read_arguments`."""
    example = "train_classifier.py training/classifier_configs/fashion_mnist.yaml steps=500"
    config = read_arguments(ClassifierConfig, CLASSIFIER_RULES, arguments, example)
    if config.noise.sigma_min >= config.noise.sigma_max:
        raise ConfigError(
            f"noise.sigma_min must be below noise.sigma_max = {config.noise.sigma_max}, "
            f"but is {config.noise.sigma_min}"
        )
    return config
