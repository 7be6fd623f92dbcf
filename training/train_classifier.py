"""Train a classifier of noisy images, for the guidance of a score network (appendix I.1 of arXiv 2011.13456):

    accelerate launch training/train_classifier.py training/classifier_configs/NAME.yaml key=value ...

`run/classifier_config.py` and `run/config.py` describe the keys. The run's folder is that of `train.py`, with the same
habits (resume=latest, Ctrl-C, several processes), but holds `classifier/` instead of a pipeline, and
figures/accuracy.png: the share of validation images whose class is found at each noise level. To guide with it:

    classifier = NoiseConditionalClassifier.from_pretrained("runs/NAME/classifier")
    pipe = ScoreSdePipeline.from_pretrained("pretrained/fashion-mnist-ve", classifier=classifier)
    pipe(class_labels=1, guidance_scale=0.0, classifier_scale=2.0)
"""

from run.command_help import help_if_asked

if __name__ == "__main__":
    help_if_asked(__doc__, "run/classifier_config.py", "run/config.py")

import sys

import torch
import torch.nn.functional as F

from run.classifier_config import ClassifierConfig, read_classifier_config
from run.draws import Examples
from run.figures import accuracy_curve
from run.launching import start_all_processes
from run.process import launch
from run.record import refuse_said_by_images
from run.training_run import TrainingRun
from run.yaml_config import ConfigError, construct
from sde_diffusers import VESDE, NoiseConditionalClassifier, Parameterization

MEASURED_LEVELS = 12  # noise levels at which accuracy is measured


class NoisyClassification:
    """Cross-entropy on images with noise of log-uniform deviation: the VE SDE at uniform times."""

    def __init__(self, sigma_min: float, sigma_max: float):
        sde = VESDE(sigma_min=sigma_min, sigma_max=sigma_max)
        self.parameterization = Parameterization(sde, "sample", "sigma", (0.0, 1.0))

    def draw_times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """(count,) times in float64, evenly spread over [0, 1] but for one common random shift."""
        shift = torch.rand(1, generator=generator, dtype=torch.float64)
        times = (torch.arange(count, dtype=torch.float64) + shift) / count
        return times[torch.randperm(count, generator=generator)]

    def noise_level(self, times: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """(N,) deviations at times (N,), like x."""
        return self.parameterization.sde.sigma(times).to(x.device, x.dtype)

    def __call__(self, network, x_0, noise, times, labels) -> torch.Tensor:
        """Losses (N,)."""
        return F.cross_entropy(self.logits(network, x_0, noise, times), labels, reduction="none")

    def logits(self, network, x_0, noise, times) -> torch.Tensor:
        """(N, classes) of the noisy images."""
        level = self.noise_level(times, x_0)
        return network(x_0 + level[:, None, None, None] * noise, level)


class ClassifierTraining(TrainingRun):
    """The training of a noise-conditional classifier; see `TrainingRun`."""

    result = "classifier"

    def build_objective(self):
        self.record.require_classes(self.data)
        _, labels = next(self.data.batches(min(8, self.data.num_images or 8), seed=0))
        self.checked_labels(labels, self.data.name)
        return NoisyClassification(self.config.noise.sigma_min, self.config.noise.sigma_max)

    @property
    def num_classes(self) -> int | None:
        """As configured, or as the data's class names or labels say."""
        data = self.data
        if "num_classes" in self.config.model:
            return self.config.model["num_classes"]
        if data.class_names is not None:
            return len(data.class_names)
        return None if getattr(data, "labels", None) is None else int(data.labels.max()) + 1

    def build_network(self, new):
        channels, *sides = self.data.image_shape
        size = sides[0] if sides[0] == sides[1] else tuple(sides)
        given = {"in_channels": channels, "sample_size": size, "num_classes": self.num_classes}
        if self.record.class_names:
            given["class_names"] = self.record.class_names
        if self.record.value_dtype != "uint8" or self.record.value_range != [0, 255]:
            given |= {"value_dtype": self.record.value_dtype, "value_range": self.record.value_range}
        for key in ("in_channels", "sample_size"):
            own = self.config.model.get(key, given[key])
            if (tuple(own) if isinstance(own, list) else own) != given[key]:
                raise ConfigError(f"model.{key} is {self.config.model[key]}, but the images have {given[key]}")
        return construct("model", NoiseConditionalClassifier, {**self.config.model, **given})

    def checked_labels(self, labels, name):
        if labels is None:
            raise ConfigError(f"data: {name} has no labels: there is nothing to classify")
        if self.num_classes is None:
            raise ConfigError(f"model.num_classes must be given: {name} does not tell its classes")
        if labels.max() >= self.num_classes:
            raise ConfigError(f"model.num_classes is {self.num_classes}, but {name} has the label {labels.max()}")
        return labels

    def validate(self) -> None:
        """Validation loss, as for a score network, and accuracy at each of `MEASURED_LEVELS` noise levels."""
        super().validate()
        times = torch.linspace(0, 1, MEASURED_LEVELS, dtype=torch.float64)

        def right(examples: Examples) -> torch.Tensor:
            x_0, noise, _, labels = examples
            all_logits = (self.objective.logits(self.ema_network, x_0, noise, t.expand(len(x_0))) for t in times)
            return torch.stack([logits.argmax(1) == labels for logits in all_logits], 1).float()

        accuracies = self.validation.mean(right, MEASURED_LEVELS)
        if self.accelerator.is_main_process:
            levels = self.objective.parameterization.sde.sigma(times).tolist()
            values = {f"accuracy/{level:.3g}": value for level, value in zip(levels, accuracies, strict=True)}
            self.log.metrics(self.step, accuracy=sum(accuracies) / len(accuracies), **values)
            chance = 1 / self.network.config.num_classes
            self.log.picture(self.step, "accuracy", accuracy_curve(levels, accuracies, chance))

    def save_model(self, folder):
        self.ema_network.save_pretrained(folder)

    def finish(self):
        print(
            "Done: from sde_diffusers import NoiseConditionalClassifier; "
            f'classifier = NoiseConditionalClassifier.from_pretrained("{self.folder / self.result}")'
        )


def check_classifier(config: ClassifierConfig) -> None:
    """Raise a ConfigError on what `model` can't hold, before the images are loaded."""
    refuse_said_by_images(config.model)
    with torch.device("meta"):
        construct("model", NoiseConditionalClassifier, config.model)


def main(arguments: list[str]) -> int:
    """Run the trainer; returns the exit status."""

    def configuration() -> ClassifierConfig:
        config = read_classifier_config(arguments)
        check_classifier(config)
        return config

    return launch(ClassifierTraining, configuration)


if __name__ == "__main__":
    start_all_processes()
    sys.exit(main(sys.argv[1:]))
