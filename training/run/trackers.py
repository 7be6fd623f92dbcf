"""Where else a run's metrics and pictures go: TensorBoard, Weights & Biases, MLflow.

The last two are accelerate's trackers, and take `tracker_options.NAME` as its `init_kwargs`, for example
`tracker_options.wandb.mode=offline`; MLflow writes where MLFLOW_TRACKING_URI says. A resumed run is a new one to them,
unless the options say otherwise, as `tracker_options.wandb.id=NAME` with `tracker_options.wandb.resume=allow` does.
"""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import MLflowTracker, WandBTracker
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from run.config import RunConfig
from run.yaml_config import ConfigError, as_dict


class TensorBoard:
    """Files for `tensorboard --logdir FOLDER`.

    Args:
        folder: of the run.
        start_step: what an earlier run wrote after this step is hidden.
    """

    def __init__(self, folder: Path, start_step: int):
        self._folder, self._start_step = folder, start_step

    @cached_property
    def _writer(self):  # only when there is something to write: until then, the folder may be another run's
        return SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._start_step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Image.Image, path: Path) -> None:
        self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `sde_diffusers`, unless the options name another one."""

    def __init__(self, folder: Path, config: RunConfig, options: dict[str, Any]):
        options = {"name": folder.name, "dir": str(folder), **options}
        self._tracker = WandBTracker(options.pop("project", "sde_diffusers"), **options)
        self._tracker.start()
        self._tracker.store_init_configuration(as_dict(config))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._tracker.log(values, step=step)

    def picture(self, step: int, name: str, image: Image.Image, path: Path) -> None:
        self._tracker.log_images({name: [np.asarray(image)]}, step=step)  # uint8: floats in [0, 1] come out black

    def close(self) -> None:
        self._tracker.finish()


class MLflow:
    """A run of the experiment `sde_diffusers`, unless the options name another one; pictures are its artifacts."""

    def __init__(self, folder: Path, config: RunConfig, options: dict[str, Any]):
        options = {"run_name": folder.name, **options}
        self._tracker = MLflowTracker(options.pop("experiment_name", "sde_diffusers"), **options)
        self._tracker.start()
        self._tracker.store_init_configuration({key: str(value) for key, value in as_dict(config).items()})

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._tracker.log(values, step=step)

    def picture(self, step: int, name: str, image: Image.Image, path: Path) -> None:
        self._tracker.log_artifact(str(path), "figures")

    def close(self) -> None:
        self._tracker.finish()


REMOTE = {"wandb": WeightsAndBiases, "mlflow": MLflow}


def check_trackers(config: RunConfig) -> None:
    """Raise a ConfigError unless what `log_with` names is installed, and `tracker_options` are of these."""
    for name, options in config.tracker_options.items():
        if name not in config.log_with:
            raise ConfigError(f"tracker_options.{name} is given, but log_with={config.log_with} does not name {name}")
        if not isinstance(options, dict):
            raise ConfigError(f"tracker_options.{name} must be a section of keys and their values, but is {options!r}")
    for name in config.log_with:
        if name in REMOTE and find_spec(name) is None:
            raise ConfigError(f"log_with: {name} is not installed: pip install {name}")


def start_trackers(config: RunConfig, folder: Path, start_step: int) -> list:
    """What `config.log_with` names; each has `scalars`, `picture` and `close`.

    Raises:
        ConfigError: one of them can't be started, of which its own library says why.
    """
    trackers: list[Any] = []
    for name in config.log_with:
        if name not in REMOTE:
            trackers.append(TensorBoard(folder, start_step))
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            trackers.append(REMOTE[name](folder, config, dict(config.tracker_options.get(name, {}))))
        except Exception as error:
            raise ConfigError(f"log_with: {name} can't be started ({type(error).__name__}: {error})") from error
    return trackers
