"""Distribution error against network evaluations, for every sampler here and for those of diffusers and azula.

    python benchmarks/few_step_samplers.py OUTPUT_FOLDER

One problem for all: the VP SDE through DDPM's beta table (N = 1000), started at t = 1 from the same N(0, 1) latents
and evaluated no lower than t = 1/N (sigma = 0.01), with exact scores of two data distributions:

    gaussian   64 dimensions, variances k^-2 as in natural images. Every sampler but Langevin's is affine there, so
               mean and variances of what it draws are followed exactly; error: 2-Wasserstein distance to the data,
               relative to their total deviation.
    mixture    8 modes in the plane, weights 1 to 2. Error: sliced 2-Wasserstein distance of 4096 samples from the
               quantiles of the data, averaged over 32 directions; below "exact ODE" nothing can be told apart. For ODE
               samplers also `path`, the root mean square distance from the exact end of each latent's path.

A budget of n counts evaluations of the network, denoising at the end included. Each sampler runs with its own
default grid, and with every grid (and ending) that it can be given: azula, which leaves the grid to its noise
schedule, gets all of ours, diffusers gets its own options and its timesteps are evaluated as it rounds them. In at
most 10 evaluations ours and azula's may also stop to evaluate at a later time than 1/N, if they end without noise.
azula (`pip install azula`) is left out with a note if it is not installed.

Writes few_step_samplers.json (all runs), .md (a table) and .png into the folder.
"""

import argparse
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from few_step_contenders import BUDGETS, SDE, azula_entries, diffusers_entries, our_entries, run_ours
from side_by_side import write_results

from sde_diffusers import ScoreSdeExponentialScheduler

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from exact_scores import Gaussian, Mixture, as_images  # noqa: E402

GAUSSIAN = Gaussian(torch.linspace(-0.5, 0.5, 64), torch.diag(torch.arange(1, 65).double() ** -2))
ANGLES = torch.arange(8) * (2 * math.pi / 8)
MIXTURE = Mixture(
    torch.linspace(1, 2, 8) / torch.linspace(1, 2, 8).sum(), 0.8 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1), 0.06
)
SAMPLES, DIRECTIONS = 4096, 32


# Errors.


def latents(n, d):
    """Quasi-random standard normal points."""
    uniform = torch.quasirandom.SobolEngine(d, scramble=True, seed=0).draw(n, dtype=torch.float64)
    return math.sqrt(2) * torch.erfinv((2 * uniform - 1).clamp(-1 + 1e-12, 1 - 1e-12))


def normal_noise(shape):
    generator = torch.Generator().manual_seed(1)
    return lambda k: torch.randn(shape, generator=generator, dtype=torch.float64)


def gaussian_error(entry, budget):
    """Relative 2-Wasserstein distance between the sampler's Gaussian and the data's; the variances are independent, so
    one row of ones for the latents and one for each noise shows the affine map (of all dimensions at once)."""
    d = len(GAUSSIAN.mean)
    if entry.affine:
        rows = torch.zeros(2 + 2 * budget, d, dtype=torch.float64)
        rows[1] = 1

        def draw(k):
            z = torch.zeros_like(rows)
            z[2 + k] = 1
            return as_images(z)

        end = entry.run(GAUSSIAN, as_images(rows), budget, draw)[:, :, 0, 0]
        mean, variance = end[0], (end[1:] - end[0]).square().sum(0)
    else:
        start = as_images(latents(SAMPLES, d))
        end = entry.run(GAUSSIAN, start, budget, normal_noise(start.shape))[:, :, 0, 0]
        mean, variance = end.mean(0), end.var(0)
    truth = GAUSSIAN.covariance.diag()
    distance = (mean - GAUSSIAN.mean).square().sum() + (variance.sqrt() - truth.sqrt()).square().sum()
    return (distance / truth.sum()).sqrt().item()


def exact_ode_gaussian():
    """The same distance for the exact ODE to t = 0: the latents are N(0, 1) and not the data's marginal at t = 1."""
    truth, alpha = GAUSSIAN.covariance.diag(), SDE.alpha(1.0)
    scale = (truth / (alpha**2 * truth + SDE.sigma(1.0) ** 2)).sqrt()
    distance = (scale * alpha * GAUSSIAN.mean).square().sum() + (scale - truth.sqrt()).square().sum()
    return (distance / truth.sum()).sqrt().item()


def mixture_quantiles(directions, n):
    """(directions, n) quantiles of the mixture's projections, by bisection."""
    levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    centers = MIXTURE.means @ directions.T  # (modes, directions)
    low, high = torch.full((len(directions), n), -3.0).double(), torch.full((len(directions), n), 3.0).double()
    for _ in range(50):
        middle = (low + high) / 2
        below = torch.zeros_like(middle)
        for weight, center in zip(MIXTURE.weights, centers, strict=True):
            below += weight * torch.special.ndtr((middle - center[:, None]) / MIXTURE.std)
        low, high = torch.where(below < levels, middle, low), torch.where(below < levels, high, middle)
    return (low + high) / 2


class MixtureErrors:
    def __init__(self):
        angles = torch.arange(DIRECTIONS, dtype=torch.float64) * (math.pi / DIRECTIONS)
        self.directions = torch.stack([angles.cos(), angles.sin()], 1)
        self.quantiles = mixture_quantiles(self.directions, SAMPLES)
        self.start = as_images(latents(SAMPLES, 2))
        scheduler = ScoreSdeExponentialScheduler(sde="vp_discrete")
        self.exact = run_ours(scheduler, lambda n: n)(MIXTURE, self.start, 1000, lambda k: None)

    def sliced(self, x):
        projected = (x[:, :, 0, 0] @ self.directions.T).T.sort(dim=1).values
        return (projected - self.quantiles).square().mean().sqrt().item()

    def __call__(self, entry, budget):
        x = entry.run(MIXTURE, self.start, budget, normal_noise(self.start.shape))
        path = None if entry.stochastic else (x - self.exact).square().sum(1).mean().sqrt().item()
        return self.sliced(x), path


# Results.


def measure():
    """All runs, as a list of dictionaries."""
    errors, results = MixtureErrors(), []
    exact = {"gaussian": exact_ode_gaussian(), "mixture": errors.sliced(errors.exact)}
    print("exact ODE:", exact)
    with torch.no_grad():
        for entry in [*our_entries(), *diffusers_entries(), *azula_entries()]:
            for budget in entry.budgets:
                run = {key: getattr(entry, key) for key in ("package", "sampler", "grid", "default", "stochastic")}
                try:
                    mixture, path = errors(entry, budget)
                    run |= {"nfe": budget, "gaussian": gaussian_error(entry, budget), "mixture": mixture, "path": path}
                except (ValueError, IndexError) as error:  # too few steps for that grid of diffusers
                    print(f"{entry.package} {entry.sampler} ({entry.grid}) at {budget}: {error}")
                    continue
                results.append(run)
    return {"exact_ode": exact, "runs": results}


def best_of(runs, package, sampler, error, nfe, default):
    """The run with the least error among a sampler's grids (or its default)."""
    runs = [r for r in runs if (r["package"], r["sampler"], r["nfe"]) == (package, sampler, nfe)]
    runs = [r for r in runs if r[error] is not None and math.isfinite(r[error]) and (r["default"] or not default)]
    return min(runs, key=lambda r: r[error], default=None)


def table(results):
    """Markdown: errors of every sampler with its default grid, and with its best grid of each cell.

    Bold: the least one, and all that are no larger than the exact ODE's, among which there is no better or worse.
    """
    runs, exact = results["runs"], results["exact_ode"]
    names = list(dict.fromkeys((r["package"], r["sampler"]) for r in runs))
    columns = [(error, nfe) for error in ("gaussian", "mixture", "path") for nfe in BUDGETS]
    lines = [f"Errors of the exact ODE: gaussian {exact['gaussian']:.4f}, mixture {exact['mixture']:.4f}.\n"]
    for default, title in ((True, "Default grid"), (False, "Best grid and ending of each cell")):
        lines += [f"**{title}**\n", "| sampler | " + " | ".join(f"{error} {nfe}" for error, nfe in columns) + " |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        found = {c: [best_of(runs, *name, *c, default) for name in names] for c in columns}
        least = {c: max(min(r[c[0]] for r in found[c] if r is not None), exact.get(c[0], 0.0)) for c in columns}
        for i, (package, sampler) in enumerate(names):
            cells = []
            for c in columns:
                run = found[c][i]
                text = "" if run is None else f"{run[c[0]]:.4f}"
                text = f"**{text}**" if run is not None and run[c[0]] <= least[c] else text
                cells.append(text if default or run is None else f"{text} {run['grid']}")
            lines.append(f"| {package}: {sampler} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


LINES = [
    ("ours", "Exponential data 3", True, {"color": "C3", "linewidth": 2.5}),
    ("ours", "Heun", True, {"color": "C1"}),
    ("ours", "Euler (DDIM)", True, {"color": "C4"}),
    ("ours", "ancestral", True, {"color": "C5"}),
    ("ours", "Exponential SDE data 2", True, {"color": "C3", "linestyle": ":"}),
    ("diffusers", "DPM-Solver++ 2", False, {"color": "C0", "linestyle": "--"}),
    ("diffusers", "DEIS 3", False, {"color": "C9", "linestyle": "--"}),
    ("azula", "xEAB 2", False, {"color": "C2", "linestyle": "--"}),
    ("azula", "zEAB 3", False, {"color": "C8", "linestyle": "--"}),
    ("azula", "vAB 3", False, {"color": "C7", "linestyle": "--"}),
]


def plot(results):
    """Quality against evaluations: ours with their default grids, the others with the best for each point."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    titles = {"gaussian": "Gaussian, 64 dimensions", "mixture": "Mixture, 8 modes"}
    for axis, (error, title) in zip(axes, titles.items(), strict=True):
        for package, sampler, default, style in LINES:
            found = [best_of(results["runs"], package, sampler, error, nfe, default) for nfe in BUDGETS]
            points = [(run["nfe"], run[error]) for run in found if run is not None]
            if points:
                label = f"{sampler}" if package == "ours" else f"{package} {sampler} (best grid)"
                axis.loglog(*zip(*points, strict=True), marker="o", markersize=4, label=label, **style)
        axis.axhline(results["exact_ode"][error], color="0.6", linewidth=1, label="exact ODE")
        axis.set_xticks(BUDGETS, [str(nfe) for nfe in BUDGETS])
        axis.minorticks_off()
        axis.set(title=title, xlabel="network evaluations", ylabel="Wasserstein distance")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the JSON, the table and the figure are written")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    results = measure()
    write_results(folder, "few_step_samplers", results, table(results), plot(results))
    print(table(results))


if __name__ == "__main__":
    main()
