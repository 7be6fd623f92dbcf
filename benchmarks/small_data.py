"""What makes few images go further: a network for few garments, trained in several ways for equal processor time.

    python benchmarks/small_data.py runs/small_data --images 500

Each way is a run of `training/train.py` on the first images of `data/fashion_mnist`, with a network that is smaller
than the demo's, at a constant learning rate, on one thread; they differ in the keys of `WAYS`. What counts is the loss
of the averaged weights on 512 test images against the processor time of the run, which other work on the machine
changes by a tenth. One run each: differences of one per cent may be chance. `small_data.json` and `small_data.png` are
written after every run; a run that is there already is not repeated.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from side_by_side import plt, write_results

ROOT = Path(__file__).resolve().parents[1]
KEYS = [
    "data.validation=test",
    "model.block_out_channels=[32,64]",
    "model.augment_dim=9",
    "optimizer.decay_fraction=0",
    "validate_every=100",
    "sample_every=0",
    "checkpoint_every=0",
    "log_with=[]",
]
WAYS = {  # name -> keys
    "plain": [],
    "augmentation 0.12": ["augmentation=0.12"],
    "dropout 0.1": ["model.dropout=0.1"],
    "learned weighting": ["learned_weighting=true"],
    "augmentation and dropout": ["augmentation=0.12", "model.dropout=0.1"],
}


def train(keys: list[str]) -> dict:
    """{"processor_seconds", "steps", "validation_loss", "training_loss"}: the last three at each validation."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "training/train.py",
            "training/configs/demo.yaml",
            *keys,
            f"output_dir={folder}/run",
        ]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        records = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    validations = [record for record in records if "validation_loss" in record]
    losses = {record["step"]: record["loss"] for record in records if "loss" in record}
    return {
        "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "steps": [record["step"] for record in validations],
        "validation_loss": [record["validation_loss"] for record in validations],
        "training_loss": [losses[record["step"]] for record in validations],
    }


def curves(runs: dict) -> plt.Figure:
    """The validation losses against processor time."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, run in runs.items():
        minutes = [step / run["steps"][-1] * run["processor_seconds"] / 60 for step in run["steps"]]
        axes.plot(minutes, run["validation_loss"], marker=".", label=name)
    axes.set(xlabel="processor minutes", ylabel="loss on test images, averaged weights")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    return figure


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the results")
    parser.add_argument("--images", type=int, default=500, help="to train on")
    parser.add_argument("--steps", type=int, default=800, help="of each run, 64 images each")
    options = parser.parse_args(arguments)
    path = options.folder / "small_data.json"
    common = [*KEYS, f"data.max_images={options.images}", f"steps={options.steps}"]
    found = json.loads(path.read_text()) if path.exists() else {"keys": common, "ways": {}, "runs": {}}
    runs = found["runs"]
    if found["keys"] != common or any(found["ways"][name] != WAYS.get(name) for name in runs):
        sys.exit(f"{path} holds runs with other keys: choose another folder.")
    for name, keys in WAYS.items():
        if name not in runs:
            runs[name] = train([*common, *keys])
            results = {"keys": common, "ways": WAYS, "runs": runs}
            write_results(options.folder, "small_data", results, figure=curves(runs))


if __name__ == "__main__":
    main(sys.argv[1:])
