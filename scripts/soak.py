"""A training that is killed at random moments, resumed, started twice and read from, for half an hour.

    python scripts/soak.py [--minutes 30] [--seed 0] [--folder FOLDER]

A tiny network is trained by the same command again and again (`resume=latest`). Each life ends at a random moment,
three times of four by `kill -9`, else by SIGTERM; every minute the same command is started a second time beside it;
and all the while a reader loads the latest checkpoint. At the end the run is finished and compared with an undisturbed
one. The exit status says whether all of this held:

- no checkpoint lost: the latest one never goes back, and no more steps are repeated than lie between two of them;
- none mixed: each one read is whole and, bit for bit, the undisturbed run's of that step;
- nothing left behind: no half-written folder outlives the next start, and no lock the run;
- the second start is refused, with the first one's number;
- final weights, averages, moments, best model and losses are those of the undisturbed run, bit for bit.
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from safetensors.numpy import load

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT_EVERY, KEPT, SECOND_START_EVERY = 50, 3, 60.0  # steps, checkpoints, seconds
FILES = ("network.safetensors", "ema.safetensors", "optimizer.safetensors")
CONFIG = f"""
data: {{dataset: {ROOT}/data/fashion_mnist, max_images: 300, validation_images: 30}}
model: {{block_out_channels: [8], layers_per_block: 1, attention_resolutions: [], patch_size: 4, fir: false,
  scale_by_sigma: false, fourier_scale: 1.0, image_range: [-1.0, 1.0], preconditioning: edm, dropout: 0.1}}
scheduler: {{sde: ve, sigma_min: 0.002, sigma_max: 80.0, prediction_type: sample, time_input: sigma,
  image_range: [-1.0, 1.0]}}
objective: {{objective: edm}}
optimizer: {{lr: 1.0e-3}}
mixed_precision: no
steps: 100000000
batch_size: 12
log_every: 1
validate_every: 500
sample_every: 0
checkpoint_every: {CHECKPOINT_EVERY}
checkpoints_limit: {KEPT}
resume: latest
"""


def start(config: Path, folder: Path, *words: str) -> subprocess.Popen:
    """The trainer, as a process of its own."""
    command = [sys.executable, str(ROOT / "training" / "train.py"), str(config), f"output_dir={folder}", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def checkpoints(folder: Path) -> list[Path]:
    """Of a run, oldest first."""
    return sorted((folder / "checkpoints").glob("step-*"))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def digest(checkpoint: Path) -> str:
    """Of all tensors of a checkpoint, which has to be whole."""
    contents = [(checkpoint / name).read_bytes() for name in FILES]
    for content in contents:
        assert load(content)
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["step"] == step_of(checkpoint), f"{checkpoint} holds step {state['step']}"
    return hashlib.sha256(b"".join(contents)).hexdigest()


class Reader(threading.Thread):
    """Loads the latest checkpoint of a run until `ended`.

    Attributes:
        seen: {step: digest}.
        loads: how many.
        error: what went wrong, or None.
    """

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.seen, self.loads, self.error = folder, {}, 0, None
        self.ended = threading.Event()

    def run(self) -> None:
        last = 0
        try:
            while not self.ended.wait(0.2):
                if not (present := checkpoints(self.folder)):
                    assert not last, f"all checkpoints are gone after step {last}"
                    continue
                found, step = digest(present[-1]), step_of(present[-1])
                assert step >= last, f"the latest checkpoint went back from step {last} to {step}"
                assert self.seen.setdefault(step, found) == found, f"step {step} has changed"
                last, self.loads = step, self.loads + 1
        except Exception as error:
            self.error = error


def refused_beside(process: subprocess.Popen, config: Path, folder: Path) -> None:
    """Start the same command once more."""
    second = start(config, folder)
    _, error = second.communicate(timeout=300)
    assert process.poll() is None, process.communicate()
    assert second.returncode == 1 and f"is in use by process {process.pid} on" in error, error


def holder(folder: Path) -> int | None:
    """The process that holds a run's folder, dead or alive."""
    try:
        return json.loads((folder / ".lock" / "holder.json").read_text())["process"]
    except FileNotFoundError:
        return None


def last_step(folder: Path) -> int:
    """Of the metrics, whose last line may have been cut short."""
    return int(re.findall(r'^{"step": (\d+),.*}$', (folder / "metrics.jsonl").read_text(), re.MULTILINE)[-1])


def leftovers(folder: Path) -> list[str]:
    """Of writes that were not finished."""
    return [str(path) for path in folder.rglob(".*") if path.name.endswith((".incomplete", ".replaced"))]


def soak(config: Path, folder: Path, minutes: float, moments: random.Random) -> tuple[dict, Reader]:
    """Kill and resume for so long; {what: how often}, and what the reader saw."""
    counts = {"kill -9": 0, "SIGTERM": 0, "second starts": 0, "most steps repeated": 0}
    reader = Reader(folder)
    reader.start()
    began = time.monotonic()
    next_second, longest = began + SECOND_START_EVERY / 2, None
    while time.monotonic() < began + 60 * minutes or longest is None:
        process = start(config, folder)
        if longest is None:  # half of all lives are to see a checkpoint, however slow the machine
            while process.poll() is None and not checkpoints(folder):
                time.sleep(0.01)
            longest = 2 * (time.monotonic() - began)
        end = time.monotonic() + longest * moments.random()
        while (due := time.monotonic() > next_second) or time.monotonic() < end:
            if process.poll() is not None or reader.error is not None:
                break
            if due and holder(folder) == process.pid:
                next_second = time.monotonic() + SECOND_START_EVERY
                refused_beside(process, config, folder)
                counts["second starts"] += 1
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()
        if reader.error:
            process.kill()
            raise reader.error
        kill = moments.random() < 0.75
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        output = process.communicate(timeout=300)
        counts["kill -9" if kill else "SIGTERM"] += 1
        assert kill or process.returncode in (0, 128 + signal.SIGTERM, -signal.SIGTERM), output
        if present := checkpoints(folder):
            lost = last_step(folder) - step_of(present[-1])
            counts["most steps repeated"] = max(lost, counts["most steps repeated"])
            assert lost <= CHECKPOINT_EVERY, f"{lost} steps after {present[-1]}"
            assert len(present) <= KEPT + 1, present
    reader.ended.set()
    reader.join()
    if reader.error:
        raise reader.error
    return counts, reader


def finish(config: Path, folder: Path, *words: str) -> dict[int, float]:
    """Train to the end without disturbance; {step: loss}."""
    process = start(config, folder, *words)
    output = process.communicate()
    assert process.returncode == 0, output
    assert not leftovers(folder) and not (folder / ".lock").exists(), leftovers(folder)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(record["step"], record["loss"]) for record in records if "loss" in record]
    assert [step for step, _ in losses] == list(range(1, len(losses) + 1)), "steps are missing, or there twice"
    return dict(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="for both runs; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "soak.yaml"
        config.write_text(CONFIG)
        disturbed, undisturbed = folder / "disturbed", folder / "undisturbed"
        counts, reader = soak(config, disturbed, options.minutes, random.Random(options.seed))
        steps = (step_of(checkpoints(disturbed)[-1]) // CHECKPOINT_EVERY + 2) * CHECKPOINT_EVERY
        losses = finish(config, disturbed, f"steps={steps}")
        twin = finish(config, undisturbed, f"steps={steps}", "checkpoints_limit=null")
        assert losses == twin, "the losses differ"
        whole = {step_of(checkpoint): digest(checkpoint) for checkpoint in checkpoints(undisturbed)}
        last = checkpoints(disturbed)[-1]
        assert step_of(last) == steps and digest(last) == whole[steps], "the final weights differ"
        weights = [run / "best" / "unet" / "diffusion_pytorch_model.safetensors" for run in (disturbed, undisturbed)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), "the best models differ"
        compared = {step for step in reader.seen if step in whole}
        assert all(reader.seen[step] == whole[step] for step in compared), "a checkpoint is another run's"
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"{reader.loads} loads of {len(reader.seen)} checkpoints, {len(compared)} of them compared; {steps} steps")
    print("Nothing lost, nothing mixed; the end is that of the undisturbed run, bit for bit.")


if __name__ == "__main__":
    main()
