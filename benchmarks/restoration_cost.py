"""What MMPS costs at its default, and how well it restores, beside an earlier state of this repository:

    python benchmarks/restoration_cost.py results/restoration_cost [--before REVISION] [--rounds 3]

Test images of Fashion-MNIST, noise of deviation 0.05, `pretrained/fashion-mnist-ve`, the same seeds. Each turn is a
new process, which restores them once after a short start; its processor time is what counts, so that other programs do
not. REVISION is by default the last one before operators of any kind. Writes `restoration_cost.json` and `.md`:
medians, and the least and largest share of all rounds in brackets.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import turns, write_results
from startup_time import extract

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "a7800bf3"
TASKS = ("a hole of 14 x 14", "75 % missing", "4x down-sampling", "blur")
NOISE = 0.05  # of the measurements, in units of images in [0, 1]


def operator_of(task: str):
    """What is measured, by the package that is first on the path."""
    import torch

    from sde_diffusers.operators import Downsampling, GaussianBlur, Mask, box_mask

    return {
        "a hole of 14 x 14": lambda: Mask(box_mask(28, 28, (7, 7, 21, 21))),
        "75 % missing": lambda: Mask(torch.rand(28, 28, generator=torch.Generator().manual_seed(0)) < 0.75),
        "4x down-sampling": lambda: Downsampling(4),
        "blur": lambda: GaussianBlur(2.0),
    }[task]()


def turn(task: str, count: int, steps: int) -> None:
    """Restore once, and print the processor time in seconds and the PSNR in dB as JSON."""
    import torch
    from safetensors.torch import load_file

    from sde_diffusers import ScoreSdePipeline, ScoreSdeRestorationPipeline

    operator = operator_of(task)
    model = ScoreSdePipeline.from_pretrained(ROOT / "pretrained" / "fashion-mnist-ve")
    pipe = ScoreSdeRestorationPipeline(**model.components)
    pipe.set_progress_bar_config(disable=True)
    images = load_file(os.environ["IMAGES"])["images"][:count]
    measurement = operator(images)
    measurement = measurement + NOISE * torch.randn(measurement.shape, generator=torch.Generator().manual_seed(1))

    def restored(steps):
        chance = torch.Generator().manual_seed(2)
        options = {"num_inference_steps": steps, "generator": chance, "output_type": "pt"}
        return pipe(measurement, operator, NOISE, **options).images

    restored(1)
    start = time.process_time()
    error = (restored(steps) - images).square().mean()
    print(json.dumps([time.process_time() - start, -10 * error.log10().item()]))


def save_images(path: Path, dataset: str, count: int) -> None:
    """The first test images in [0, 1], where both states can read them."""
    sys.path.insert(0, str(ROOT / "training"))
    from safetensors.torch import save_file

    from images.loading import load_images

    save_file({"images": load_images(dataset, split="test").images[:count] / 255}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--before", default=BEFORE, metavar="REVISION")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=32, help="images")
    parser.add_argument("--steps", type=int, default=20, help="evaluations of the denoiser")
    parser.add_argument("--dataset", default="fashion_mnist", help="name or folder of the data")
    parser.add_argument("--turn", choices=TASKS, help=argparse.SUPPRESS)  # what the processes are started with
    options = parser.parse_args()
    if options.turn:
        return turn(options.turn, options.count, options.steps)

    with tempfile.TemporaryDirectory() as temporary:
        extract(options.before, Path(temporary))
        save_images(Path(temporary) / "images.safetensors", options.dataset, options.count)

        def contender(task: str, package: Path):
            command = [sys.executable, "-W", "ignore", __file__, str(options.output), "--turn", task]
            command += ["--count", str(options.count), "--steps", str(options.steps)]
            environment = os.environ | {"PYTHONPATH": str(package), "IMAGES": f"{temporary}/images.safetensors"}
            answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            return json.loads(answer.splitlines()[-1])

        states = {"before": Path(temporary), "now": ROOT}
        contenders = {(task, state): (task, package) for task in TASKS for state, package in states.items()}
        contenders = {key: lambda both=both: contender(*both) for key, both in contenders.items()}
        rounds = list(turns(contenders, options.rounds, "Restorations"))

    lines = ["| task | before: seconds, PSNR | now: seconds, PSNR | share of the time |", "| --- | --- | --- | --- |"]
    for task in TASKS:
        seconds = {state: [result[task, state][0] for result in rounds] for state in states}
        shares = [now / before for before, now in zip(seconds["before"], seconds["now"], strict=True)]
        cells = [f"{statistics.median(seconds[s]):.2f}, {rounds[0][task, s][1]:.2f} dB" for s in states]
        share = f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
        lines.append(f"| {task} | {' | '.join(cells)} | {share} |")
    table = "\n".join(lines) + "\n"
    results = [{f"{task}, {state}": value for (task, state), value in result.items()} for result in rounds]
    write_results(options.output, "restoration_cost", {"before": options.before, "rounds": results}, table)
    print(table)


if __name__ == "__main__":
    main()
