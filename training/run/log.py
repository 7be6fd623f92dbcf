"""What a run writes down as it goes: metrics.jsonl, figures/*.png and the same for TensorBoard."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from run.figures import loss_curve


class RunLog:
    """Metrics and pictures of a run; only the main process has one.

    Args:
        folder: of the run.
        start_step: what an earlier run wrote after this step is dropped, so that no step appears twice.
    """

    def __init__(self, folder: Path, start_step: int):
        self._metrics, self._figures = folder / "metrics.jsonl", folder / "figures"
        self._figures.mkdir(parents=True, exist_ok=True)
        self._records = [record for record in read_metrics(self._metrics) if record["step"] <= start_step]
        incomplete = self._metrics.with_suffix(".incomplete")
        incomplete.write_text("".join(json.dumps(record) + "\n" for record in self._records))
        os.replace(incomplete, self._metrics)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def metrics(self, step: int, **values: float) -> None:
        """Append one line of metrics."""
        record = {"step": step, **values}
        self._records.append(record)
        with self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Image.Image, keep: bool = False) -> Path:
        """Save a picture as figures/NAME.png, or with `keep` as figures/NAME-STEP.png beside earlier ones."""
        path = self._figures / (f"{name}-{step:08d}.png" if keep else f"{name}.png")
        image.save(path)
        self._board.add_image(name, np.asarray(image), step, dataformats="HWC")
        return path

    def draw_loss(self, step: int) -> None:
        """Draw the loss curve up to now."""

        def column(name):
            return zip(*((r["step"], r[name]) for r in self._records if name in r), strict=True)

        if any("loss" in record for record in self._records):
            validation = tuple(column("validation_loss")) or ((), ())
            self.picture(step, "loss", loss_curve(*column("loss"), *validation))

    def close(self) -> None:
        self._board.close()


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics file; one that a crash cut short is left out, and a missing file is empty."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
