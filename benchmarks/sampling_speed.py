"""Sampling: the pipeline as it is loaded next to what `pipe.optimize()` makes of it.

    OMP_NUM_THREADS=1 python benchmarks/sampling_speed.py results/sampling_speed

Each contender draws the same images (pretrained/fashion-mnist-ve, 12 steps of its own sampler, that is 12 evaluations
of the network), one at a time and 64 at once; they take turns in one process. Reported are processor time, in which
other programs do not count, and wall time, as medians over the rounds, and how far the images are from those of the
pipeline as loaded. `--compiled` lets `optimize` compile as well, which takes minutes on a slow machine. Writes
`sampling_speed.json` and `.md`.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from side_by_side import turns, write_results

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sde_diffusers import ScoreSdePipeline, optimization  # noqa: E402

SHIPPED = ROOT / "pretrained" / "fashion-mnist-ve"


def contenders_of(folder: Path, batch_size: int, compiled: bool, device: str) -> dict:
    """{name: (pipeline, what was chosen)}."""
    ways = {
        "as loaded": None,
        '`optimize(precision="float32")`': {"precision": "float32"},
        "`optimize()`": {},
    }
    if compiled:
        ways["`optimize(evaluations=...)`"] = {"evaluations": 1}
    made = {}
    for name, options in ways.items():
        pipe = ScoreSdePipeline.from_pretrained(folder).to(device)
        pipe.set_progress_bar_config(disable=True)
        if options is None:
            made[name] = pipe, "float32, contiguous"
            continue
        with mock.patch.object(optimization, "COMPILING_SECONDS", 0.0):  # one evaluation is enough to try
            chosen = pipe.optimize(batch_size, **options)
        print(f"{batch_size} images, {name}: {chosen}", flush=True)
        made[name] = pipe, str(chosen).removeprefix("Sampling in ").partition(" (")[0]
    return made


def draw(pipe, batch_size: int, steps: int) -> dict:
    generators = [torch.Generator().manual_seed(k) for k in range(batch_size)]
    cpu, wall = time.process_time(), time.perf_counter()
    images = pipe(batch_size, steps, class_labels=8, generator=generators, output_type="pt").images.cpu()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "images": images}


def compare(folder: Path, batch_size: int, args) -> list[dict]:
    """A row for each contender."""
    made = contenders_of(folder, batch_size, args.compiled, args.device)
    for pipe, _ in made.values():
        draw(pipe, batch_size, 1)  # libraries warm up
    work = {name: (lambda pipe=pipe: draw(pipe, batch_size, args.steps)) for name, (pipe, _) in made.items()}
    rounds = list(turns(work, args.rounds, f"{batch_size} images"))
    rows = []
    for name, (_, chosen) in made.items():
        row = {"images": batch_size, "contender": name, "way": chosen}
        for clock in ("cpu", "wall"):
            row[f"{clock}_s"] = statistics.median(one[name][clock] for one in rounds)
            ratios = sorted(one["as loaded"][clock] / one[name][clock] for one in rounds)
            row[f"{clock}_ratio"] = [statistics.median(ratios), ratios[0], ratios[-1]]
        difference = (rounds[0][name]["images"] - rounds[0]["as loaded"]["images"]).square().mean().sqrt()
        rows.append(row | {"rms_grey_levels": 255 * difference.item()})
    return rows


def table(rows: list[dict]) -> str:
    lines = [
        "| images | contender | chosen | processor time | wall time | times as fast | by wall time | rms, of 255 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = [f"{m:.2f} ({a:.2f} to {b:.2f})" for m, a, b in (row["cpu_ratio"], row["wall_ratio"])]
        lines.append(
            f"| {row['images']} | {row['contender']} | {row['way']} | {1e3 * row['cpu_s']:.0f} ms "
            f"| {1e3 * row['wall_s']:.0f} ms | {ratios[0]} | {ratios[1]} | {row['rms_grey_levels']:.2g} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--pipeline", type=Path, default=SHIPPED)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compiled", action="store_true", help="let `optimize` compile as well")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    args = parser.parse_args(arguments)
    rows: list[dict] = []
    for batch_size in args.batch_sizes:
        rows += compare(args.pipeline, batch_size, args)
        about = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "rounds": args.rounds,
            "device": args.device,
        }
        write_results(args.output, "sampling_speed", about | {"rows": rows}, table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
