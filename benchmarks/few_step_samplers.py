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
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import matplotlib
import torch
from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler

from sde_diffusers import (
    DiscreteVPSDE,
    ScoreSdeExponentialScheduler,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
)
from sde_diffusers.schedulers.time_grids import TIME_GRIDS, time_grid
from sde_diffusers.sdes.discrete_vp import linear_beta_table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from exact_scores import Gaussian, Mixture, as_images  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

BUDGETS = (5, 10, 20, 50)
TRAIN_STEPS = 1000
SDE = DiscreteVPSDE(linear_beta_table(TRAIN_STEPS))
GAUSSIAN = Gaussian(torch.linspace(-0.5, 0.5, 64), torch.diag(torch.arange(1, 65).double() ** -2))
ANGLES = torch.arange(8) * (2 * math.pi / 8)
MIXTURE = Mixture(
    torch.linspace(1, 2, 8) / torch.linspace(1, 2, 8).sum(), 0.8 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1), 0.06
)
SAMPLES, DIRECTIONS = 4096, 32
LATER_TIMES = (0.004, 0.015)  # instead of 1/N, in few steps


@dataclass
class Entry:
    """A sampler with one grid: `run(data, x, budget, draw)` goes from x at t = 1 to the data."""

    package: str
    sampler: str
    grid: str
    run: Callable
    default: bool
    stochastic: bool = False
    affine: bool = True
    budgets: tuple[int, ...] = BUDGETS


def exact_noise(data, x, t):
    """E[noise | x_t = x]."""
    return -SDE.sigma(t) * data.score(SDE, x, t)


# The samplers of this package.


def run_ours(scheduler, steps_of):
    def run(data, x, budget, draw):
        scheduler.set_timesteps(steps_of(budget))
        assert len(scheduler.times) <= budget
        for k, t in enumerate(scheduler.times):
            z = draw(k)
            x = scheduler.step(exact_noise(data, x, t), t, x, variance_noise=z).prev_sample
        return x

    return run


def our_entries():
    def add(name, cls, stochastic=False, affine=True, calls=1, **options):
        default = cls(sde="vp_discrete", **options).time_grid
        for grid in TIME_GRIDS:
            endings = [(grid, {}, BUDGETS)]
            endings += [(f"{grid}, to t = {eps}", {"sampling_eps": eps}, (5, 10)) for eps in LATER_TIMES]
            if cls is exponential:
                endings.append((f"{grid}, eps", {"final_denoise": False}, BUDGETS))
            for label, ending, budgets in endings:
                scheduler = cls(sde="vp_discrete", time_grid=grid, **options, **ending)
                heun = scheduler.order == 2
                steps_of = (lambda n: (n + 1) // 2) if heun else (lambda n, calls=calls: max(1, n // calls))
                run, is_default = run_ours(scheduler, steps_of), label == default
                entries.append(Entry("ours", name, label, run, is_default, stochastic, affine, budgets))

    entries = []
    exponential, flow, pc = (
        ScoreSdeExponentialScheduler,
        ScoreSdeProbabilityFlowScheduler,
        ScoreSdePredictorCorrectorScheduler,
    )
    for algorithm in ("data", "noise"):
        for order in (1, 2, 3):
            add(f"Exponential {algorithm} {order}", exponential, algorithm=algorithm, solver_order=order)
    for order in (1, 2, 3):
        add(f"Exponential SDE data {order}", exponential, stochastic=True, solver_order=order, eta=1.0)
    add("Euler (DDIM)", flow, method="euler")
    add("Heun", flow)
    add("Heun, churn 10", flow, stochastic=True, s_churn=10.0)
    for predictor in ("ancestral", "reverse_diffusion", "euler_maruyama"):
        add(predictor, pc, stochastic=True, predictor=predictor, corrector="none")
    add("reverse_diffusion + langevin", pc, stochastic=True, affine=False, calls=2)
    return entries


# Those of diffusers.


def run_diffusers(make, denoise):
    """With `denoise`, one evaluation of the budget is kept for E[x_0 | x] at the end."""

    def run(data, x, budget, draw):
        scheduler = make()
        scheduler.set_timesteps(budget - denoise)
        takes_noise = {"variance_noise"} & set(scheduler.step.__code__.co_varnames)
        for k, timestep in enumerate(scheduler.timesteps):
            z = {"variance_noise": draw(k)} if takes_noise else {}
            t = (timestep.double() + 1) / TRAIN_STEPS
            x = scheduler.step(exact_noise(data, x, t), timestep, x, **z).prev_sample
        if denoise:
            t = torch.tensor(1 / TRAIN_STEPS, dtype=torch.float64)
            x = (x - SDE.sigma(t) * exact_noise(data, x, t)) / SDE.alpha(t)
        return x

    return run


def diffusers_entries():
    grids = {
        "linspace": {},
        "trailing": {"timestep_spacing": "trailing"},
        "karras": {"use_karras_sigmas": True},
        "log_snr": {"use_exponential_sigmas": True},
    }
    entries = []
    for grid, options in grids.items():
        for order in (2, 3):
            for name, algorithm in (("DPM-Solver++", "dpmsolver++"), ("SDE-DPM-Solver++", "sde-dpmsolver++")):
                if (order, algorithm) == (3, "sde-dpmsolver++"):
                    continue  # diffusers has order 1 and 2 of it
                make = lambda o=options, a=algorithm, k=order: DPMSolverMultistepScheduler(  # noqa: E731
                    TRAIN_STEPS, 1e-4, 0.02, algorithm_type=a, solver_order=k, **o
                )
                stochastic = algorithm.startswith("sde")
                run = run_diffusers(make, False)
                entries.append(Entry("diffusers", f"{name} {order}", grid, run, not options, stochastic))
            make = lambda o=options, k=order: DEISMultistepScheduler(TRAIN_STEPS, 1e-4, 0.02, solver_order=k, **o)  # noqa: E731
            for denoise in (False, True):
                run, label = run_diffusers(make, denoise), grid + ", denoised" * denoise
                entries.append(Entry("diffusers", f"DEIS {order}", label, run, not options and not denoise))
    return entries


# Those of azula.


def run_azula(cls, options, grid, ending, lowest):
    """`ending`: "eps" (azula's own: the last step ends at the lowest level), "zero" (at no noise, for the samplers
    that can), or "denoised" (one evaluation is kept for E[x_0 | x]). `lowest` is the earliest time."""
    from azula.denoise import Denoiser, DiracPosterior

    class Exact(Denoiser):
        def __init__(self, data, budget):
            super().__init__()
            self.data, self.calls = data, 0
            self.steps = budget - (ending == "denoised")
            if cls.__name__ == "HeunSampler":
                self.steps = budget // 2 if ending == "eps" else (budget - 1) // 2
            points = self.steps + (ending != "zero")
            self.grid = time_grid(grid, points, SDE, 1.0, lowest)
            self.alphas, self.sigmas = SDE.alpha(self.grid), SDE.sigma(self.grid)
            if ending == "zero":
                self.alphas = torch.cat([self.alphas, torch.ones(1).double()])
                self.sigmas = torch.cat([self.sigmas, torch.zeros(1).double()])

        def index(self, tau):
            return ((1 - tau) * self.steps).round().long()

        def schedule(self, tau):
            return self.alphas[self.index(tau)], self.sigmas[self.index(tau)]

        def forward(self, x, tau):
            self.calls += 1
            t = self.grid[self.index(tau)]
            return DiracPosterior((x - SDE.sigma(t) * exact_noise(self.data, x, t)) / SDE.alpha(t))

    def run(data, x, budget, draw):
        denoiser, drawn = Exact(data, budget), iter(range(10**6))
        sampler = cls(denoiser, steps=denoiser.steps, silent=True, dtype=torch.float64, **options)
        with mock.patch("torch.randn_like", lambda x: draw(next(drawn))):
            x = sampler(x)
        if ending == "denoised":
            x = denoiser(x, torch.tensor(0.0, dtype=torch.float64)).mean
        assert denoiser.calls <= budget
        return x

    return run


def azula_entries():
    try:
        import azula.sample as azula
    except ImportError as error:
        print(f"azula is left out: {error}. To compare with it: pip install azula")
        return []
    samplers = [("DDIM", azula.DDIMSampler, {}, False), ("Heun", azula.HeunSampler, {}, False)]
    samplers += [("DDPM", azula.DDPMSampler, {}, True), ("Ito", azula.ItoSampler, {}, True)]
    for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
        samplers += [(f"{name} {k}", getattr(azula, f"{name}Sampler"), {"order": k}, False) for k in (2, 3)]
    entries = []
    for name, cls, options, stochastic in samplers:
        for grid in TIME_GRIDS:
            for ending in ("eps", "denoised", "zero"):
                if ending == "zero" and name[:3] not in ("DDI", "zAB", "vAB"):
                    continue  # they take the logarithm of the noise level, or evaluate there
                for lowest in (1 / TRAIN_STEPS, *(() if ending == "eps" else LATER_TIMES)):
                    run = run_azula(cls, options, grid, ending, lowest)
                    default = (grid, ending) == ("uniform", "eps")
                    label = grid if ending == "eps" else f"{grid}, {ending}"
                    label, budgets = (label, BUDGETS) if lowest == 1e-3 else (f"{label}, to t = {lowest}", (5, 10))
                    entries.append(Entry("azula", name, label, run, default, stochastic, budgets=budgets))
    return entries


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


def plot(results, path):
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
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the JSON, the table and the figure are written")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    results = measure()
    (folder / "few_step_samplers.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "few_step_samplers.md").write_text(table(results), encoding="utf-8")
    plot(results, folder / "few_step_samplers.png")
    print(table(results))


if __name__ == "__main__":
    main()
