"""Where else a run's metrics and pictures go: TensorBoard, Weights & Biases, MLflow.

The last two are accelerate's trackers, and take `tracker_options.NAME` as its `init_kwargs`, for example
`tracker_options.wandb.mode=offline`; MLflow writes where MLFLOW_TRACKING_URI says. A resumed run is a new one to them,
unless the options say otherwise, as `tracker_options.wandb.id=NAME` with `tracker_options.wandb.resume=allow` does.
"""

from __future__ import annotations

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
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

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
    """Raise a ConfigError unless what `log_with` names is installed."""
    for name in config.log_with:
        if name in REMOTE and find_spec(name) is None:
            raise ConfigError(f"log_with: {name} is not installed: pip install {name}")


def start_trackers(config: RunConfig, folder: Path, start_step: int) -> list:
    """What `config.log_with` names; each has `scalars`, `picture` and `close`."""
    return [
        REMOTE[name](folder, config, dict(config.tracker_options.get(name, {})))
        if name in REMOTE
        else TensorBoard(folder, start_step)
        for name in config.log_with
    ]
