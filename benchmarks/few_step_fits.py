"""Frechet distance of images in 2 to 8 evaluations of a fitted Fashion-MNIST pipeline, and the levels that these take.

    OMP_NUM_THREADS=1 python benchmarks/few_step_fits.py PIPELINE_FOLDER OUTPUT_FOLDER [--samples 1000]
    OMP_NUM_THREADS=1 python benchmarks/few_step_fits.py PIPELINE_FOLDER OUTPUT_FOLDER --times 8 4

The same classes from the same latents by four solvers of the ODE: on the grid "noise_share", which reaches down to
`sampling_eps`; on the default grid, which follows the number of evaluations; on that one with the unified corrector;
and as `sde_diffusers.fit_sampler` fitted them to the network. Distances are those of `sampler_distances.py`.

With --times it is seconds that are measured, of 64 images: so many evaluations on the grid "noise_share", and so many
fitted ones, which take turns; give numbers that have the same distance.

Writes few_step_fits.json, .md (a table) and .png into the folder, or few_step_times.json.
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sampler_distances import Judge, classes, faster_precision
from side_by_side import medians, take_turns, write_results
from tqdm import tqdm

from sde_diffusers import ScoreSdeExponentialScheduler, ScoreSdePipeline
from sde_diffusers.weights_digest import weights_digest

ODE = {"eta": 0.0, "solver_order": 3}
WIDE, FITTED = "order 3, to `sampling_eps`", "fitted"
SOLVERS = {
    WIDE: {**ODE, "time_grid": "noise_share"},
    "order 3, default grid": ODE,
    "order 3, corrected": {**ODE, "unified_corrector": True},
    FITTED: {},
}
BATCH = 100


def drawn(pipe, steps, samples, context):
    """(N, C, H, W) uint8 images of all classes in turn, from latents that depend on their numbers alone."""
    images = []
    for start in range(0, samples, BATCH):
        end = min(start + BATCH, samples)
        generator = torch.Generator().manual_seed(start)
        with context():
            output = pipe(
                end - start,
                steps,
                class_labels=classes(pipe.unet, start, end),
                latents=torch.randn(end - start, *pipe._image_shape, generator=generator),
                output_type="pt",
            )
        images.append((output.images * 255).round().byte().cpu())
    return torch.cat(images)


def measure(pipe, samples):
    """All rows: solver, evaluations, noise levels, distance with its interval."""
    size, judge, rows = pipe._image_shape, Judge(), []
    precision, context = faster_precision(pipe.unet, (BATCH, *size))
    config = pipe.scheduler.config
    fitted = sorted(map(int, config.fits["steps"]))
    for solver, steps in tqdm([(solver, n) for n in fitted for solver in SOLVERS]):
        pipe.scheduler = ScoreSdeExponentialScheduler.from_config(config, **SOLVERS[solver])
        images = drawn(pipe, steps, samples, context)
        levels = (-pipe.scheduler.sde.half_log_snr(pipe.scheduler.times)).exp().tolist()
        rows.append({"solver": solver, "evaluations": steps, "levels": levels} | judge(images))
        print(rows[-1], flush=True)
    return {"network": weights_digest(pipe.unet)[:8], "samples": samples, "precision": precision, "rows": rows}


def times(pipe, evaluations, rounds=7, images=64):
    """Wall and processor time of a batch, by so many evaluations of the two solvers."""
    precision, context = faster_precision(pipe.unet, (images, *pipe._image_shape))
    latents = torch.randn(images, *pipe._image_shape, generator=torch.Generator().manual_seed(0))
    labels, config = classes(pipe.unet, 0, images), pipe.scheduler.config

    def drawing(solver, steps, clock):
        scheduler = ScoreSdeExponentialScheduler.from_config(config, **SOLVERS[solver])

        def draw():
            pipe.scheduler, start = scheduler, clock()
            with context():
                pipe(images, steps, class_labels=labels, latents=latents, output_type="pt")
            return clock() - start

        return draw

    results = {"network": weights_digest(pipe.unet)[:8], "images": images, "precision": precision}
    clocks = {"wall_s": time.perf_counter, "cpu_s": time.process_time}
    for name, clock in clocks.items():
        contenders = {f"{s}, {n}": drawing(s, n, clock) for s, n in zip((WIDE, FITTED), evaluations, strict=True)}
        found = take_turns(contenders, rounds, name)
        wide, fitted = found.values()
        shares = sorted(b / a for a, b in zip(wide, fitted, strict=True))
        results[name] = {
            "median": medians(found),
            "rounds": found,
            "share": [shares[rounds // 2], shares[0], shares[-1]],
        }
    return results


def table(results):
    """Markdown: a row a solver, a column a number of evaluations."""
    budgets = sorted({row["evaluations"] for row in results["rows"]})
    lines = ["| solver | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    for solver in SOLVERS:
        found = {row["evaluations"]: row for row in results["rows"] if row["solver"] == solver}
        cells = [f"{found[n]['frechet']:.3f} ({found[n]['low']:.3f} to {found[n]['high']:.3f})" for n in budgets]
        lines.append(f"| {solver} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results):
    """Distances against evaluations, and where in the noise the evaluations are."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for color, solver in zip(("0.6", "C0", "C2", "C3"), SOLVERS, strict=True):
        rows = [row for row in results["rows"] if row["solver"] == solver]
        steps, values = [r["evaluations"] for r in rows], [r["frechet"] for r in rows]
        left.semilogy(steps, values, marker="o", markersize=4, color=color, label=solver)
        if solver != "order 3, corrected":  # at the levels of the default
            shift = {"0.6": 0.18, "C0": 0.0, "C3": -0.18}[color]
            for row in rows:
                right.semilogx(
                    row["levels"], [row["evaluations"] + shift] * len(row["levels"]), "o", markersize=4, color=color
                )
    left.set(xlabel="network evaluations", ylabel=f"Frechet distance, {results['samples']:,} images")
    right.set(xlabel="noise level sigma / alpha", ylabel="network evaluations", title="where they are")
    right.invert_xaxis()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="of Fashion-MNIST, with fits in its scheduler's configuration")
    parser.add_argument("folder", type=Path, help="where the JSON, the table and the figure are written")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--times", type=int, nargs=2, help="evaluations of both")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    pipe = ScoreSdePipeline.from_pretrained(args.pipeline)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.eval().to(memory_format=torch.channels_last)
    if args.times is not None:
        results = times(pipe, args.times)
        write_results(args.folder, "few_step_times", results)
        print(results)
        return
    results = measure(pipe, args.samples)
    write_results(args.folder, "few_step_fits", results, table(results), plot(results))
    print(table(results))


if __name__ == "__main__":
    main()
