"""What a run writes down as it goes: metrics.jsonl, figures/*.png and the same for its trackers."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from run.figures import loss_curve
from run.lock import FolderLock
from run.written_folder import write_whole


class RunLog:
    """Metrics and pictures of a run; only the main process has one.

    Args:
        folder: of the run.
        start_step: what an earlier run wrote after this step is dropped, so that no step appears twice (a run that
            goes back keeps it all aside, see `folder.py`).
        trackers: of `trackers.py`.
        lock: of the folder, which must be held whenever something is written; None if nobody else can be there.

    Attributes:
        records: the lines of metrics.jsonl.
    """

    def __init__(self, folder: Path, start_step: int, trackers: Sequence = (), lock: FolderLock | None = None):
        self._lock = lock
        self._metrics, self._figures = folder / "metrics.jsonl", folder / "figures"
        self._figures.mkdir(parents=True, exist_ok=True)
        self.records = [record for record in read_metrics(self._metrics) if record["step"] <= start_step]
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        write_whole(self._metrics, lambda path: path.write_text(lines))
        self._trackers = trackers

    def metrics(self, step: int, **values: float | list[float | None]) -> None:
        """Append one line of metrics; lists do not go to the trackers."""
        self.require_held()
        record = {"step": step, **values}
        self.records.append(record)
        with self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
        scalars = {name: value for name, value in values.items() if not isinstance(value, list)}
        for tracker in self._trackers if scalars else ():
            tracker.scalars(step, scalars)

    def picture(self, step: int, name: str, image: Image.Image, keep: bool = False) -> Path:
        """Save a picture as figures/NAME.png, or with `keep` as figures/NAME-STEP.png beside earlier ones."""
        self.require_held()
        path = self._figures / (f"{name}-{step:08d}.png" if keep else f"{name}.png")
        write_whole(path, lambda incomplete: image.save(incomplete, format="PNG"))
        for tracker in self._trackers:
            tracker.picture(step, name, image, path)
        return path

    def draw_loss(self, step: int) -> None:
        """Draw the loss curve up to now."""

        def column(name):
            return zip(*((r["step"], r[name]) for r in self.records if name in r), strict=True)

        if any("loss" in record for record in self.records):
            validation = tuple(column("validation_loss")) or ((), ())
            self.picture(step, "loss", loss_curve(*column("loss"), *validation))

    def require_held(self) -> None:
        """Raise `FolderLost` if another process has taken the folder: nothing more may be written there."""
        if self._lock is not None:
            self._lock.require_held()

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics file; those that a crash has damaged are left out, and a missing file is empty."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line.decode())
        except ValueError:  # no JSON, or no text
            continue
        records += [record] if isinstance(record, dict) and "step" in record else []
    return records
