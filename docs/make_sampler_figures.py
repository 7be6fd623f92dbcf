"""Figures of the samplers for the documentation.

    python docs/make_sampler_figures.py OUTPUT_FOLDER [--pipeline FOLDER] [--benchmark few_step_samplers.json]

sampler_trajectory.png   the default few-step solver and its SDE form carrying one cloud of latents to a mixture in the
                         plane (exact scores)
sampler_gallery.png      with --pipeline: the same latents through every sampler, at equal numbers of evaluations
sampler_quality.png      with --benchmark: quality against evaluations, from benchmarks/few_step_samplers.py
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib
import torch

from sde_diffusers import ScoreSdePipeline

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
from exact_scores import as_images, exact_output  # noqa: E402
from few_step_samplers import MIXTURE, latents, plot  # noqa: E402
from sampler_distances import EXPONENTIAL, SAMPLERS, sampler  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def trajectory(path):
    """Rows: ODE and SDE; columns: the state x / alpha at a few noise levels, with the ways taken since the start."""
    shown = (0, 4, 7, 10, 13, 20)
    rows = (("ODE, 20 evaluations", {}), ("SDE (eta = 1), 20 evaluations", {"eta": 1.0, "solver_order": 2}))
    figure, axes = plt.subplots(2, len(shown), figsize=(2.3 * len(shown), 5), layout="constrained")
    for row, (title, options) in zip(axes, rows, strict=True):
        scheduler = EXPONENTIAL(sde="vp", **options)
        scheduler.set_timesteps(20)
        x = as_images(latents(1500, 2)) * scheduler.init_noise_sigma
        generator, alphas = torch.Generator().manual_seed(0), [*scheduler.sde.alpha(scheduler.times).tolist(), 1.0]
        levels, states = [*(-scheduler.sde.half_log_snr(scheduler.times)).exp().tolist(), 0.0], [x]
        for t in scheduler.timesteps:
            x = scheduler.step(exact_output(scheduler, MIXTURE, x), t, x, generator=generator).prev_sample
            states.append(x)
        points = torch.stack([s[:, :, 0, 0] / a for s, a in zip(states, alphas, strict=True)])
        for axis, k in zip(row, shown, strict=True):
            size = 1.25 + 2.5 * min(levels[k], 1e3)
            axis.plot(points[: k + 1, :10, 0], points[: k + 1, :10, 1], color="C1", linewidth=0.6, alpha=0.7)
            axis.scatter(points[k, :, 0], points[k, :, 1], s=1.2, color="C0", linewidths=0)
            axis.set(xlim=(-size, size), ylim=(-size, size), xticks=[], yticks=[], aspect="equal")
            axis.set_title(f"step {k}: noise {levels[k]:.3g}", fontsize=9)
        row[0].set_ylabel(title, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def gallery(folder, path, budgets=(5, 10, 20, 50), images=3):
    """Rows: samplers; columns: the same few latents for each budget of evaluations."""
    pipe = ScoreSdePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    size, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    shape = (images, channels, *([size] * 2 if isinstance(size, int) else size))
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    config = pipe.scheduler.config
    figure, axes = plt.subplots(
        len(SAMPLERS), len(budgets), figsize=(1.0 * images * len(budgets) + 1.8, 1.08 * len(SAMPLERS) + 0.4)
    )
    figure.subplots_adjust(left=0.16, right=0.995, bottom=0.005, top=0.95, wspace=0.04, hspace=0.06)
    for axis, budget in zip(axes[0], budgets, strict=True):
        axis.set_title(f"at most {budget} evaluations", fontsize=9)
    for row, name in zip(axes, SAMPLERS, strict=True):
        for axis, budget in zip(row, budgets, strict=True):
            pipe.scheduler, steps = sampler(name, budget, config)
            generators = [torch.Generator().manual_seed(seed) for seed in range(images)]
            drawn = pipe(images, steps, generator=generators, latents=start, output_type="pt").images.cpu()
            strip = torch.cat(list(drawn), dim=2).permute(1, 2, 0)
            axis.imshow(strip.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the figures are written")
    parser.add_argument("--pipeline", help="a saved pipeline")
    parser.add_argument("--benchmark", type=Path, help="few_step_samplers.json")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        trajectory(arguments.folder / "sampler_trajectory.png")
        if arguments.pipeline:
            gallery(arguments.pipeline, arguments.folder / "sampler_gallery.png")
    if arguments.benchmark:
        results = json.loads(arguments.benchmark.read_text(encoding="utf-8"))
        plot(results).savefig(arguments.folder / "sampler_quality.png", dpi=150)


if __name__ == "__main__":
    main()
