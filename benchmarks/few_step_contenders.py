"""The contenders of few_step_samplers.py: samplers of this package, of diffusers and of azula, each with its grids."""

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

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

BUDGETS = (5, 10, 20, 50)
TRAIN_STEPS = 1000
SDE = DiscreteVPSDE(linear_beta_table(TRAIN_STEPS))
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
            if cls is exponential and grid != "few_steps":  # which ends by denoising
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
