"""Posterior methods of this package, of azula and of deepinv, each as a function of a problem and a number of steps.

All sample the reverse-time SDE of one variance exploding process in first order (one of ours in second), with as many
time steps, ask the same denoiser and have the settings of their authors, but for what their names say. azula's and
deepinv's steps are even in the logarithm of sigma; ours lie where our default has them, and in "even steps" as theirs.
Only ours are told what the operator's structure is.

A problem has, in the network's range [-1, 1]:

    network, scheduler       as the pipeline takes them
    denoise(x, sigma)        E[x_0 | x_0 + sigma noise = x], differentiable
    operator, y, std, shape  y = A x_0 + noise of deviation std, of N images: shape is (N, C, H, W)
    draws                    posterior samples of each
    sigma_data               deviation of a pixel

and counts `evaluations` of the network and its vector-Jacobian `products`, for each sample.
"""

import importlib.util

import torch

from sde_diffusers import ScoreSdeExponentialScheduler, ScoreSdeRestorationPipeline
from sde_diffusers.posteriors import DAPS, DPS, MMPS, TMPD, DiffPIR, PiGDM, Projection


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Counted:
    """The counts of a problem."""

    evaluations = products = 0

    def counted(self, denoised):
        """The network's answer, which counts itself and the products with its Jacobian."""
        self.evaluations += 1
        if denoised.requires_grad:
            denoised.register_hook(self._count_product)
        return denoised

    def _count_product(self, gradient):
        self.products += 1


def drawn_shape(problem):
    return (problem.shape[0] * problem.draws, *problem.shape[1:])


def ours(make, **options):
    def sample(problem, steps):
        scheduler = ScoreSdeExponentialScheduler.from_config(
            problem.scheduler.config, **{"solver_order": 1, **options}
        )
        pipe = ScoreSdeRestorationPipeline(unet=problem.network, scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        operator = problem.operator
        offset = operator(torch.full(problem.shape, 0.5))
        noise, y = problem.std / 2, operator.measured(offset + problem.y / 2)
        method = make(problem.sigma_data)
        out = pipe(
            y, operator, noise, method, problem.draws, steps, generator=generator(problem.seed), output_type="pt"
        )
        problem.evaluations, problem.products = out.nfe, out.products
        return 2 * out.images - 1

    return sample


OURS = {
    "MMPS (30 steps)": ours(lambda s: MMPS(30, 0.0)),
    "MMPS (30 steps), second order": ours(lambda s: MMPS(30, 0.0), solver_order=2),
    "MMPS": ours(lambda s: MMPS()),
    "MMPS, even steps": ours(lambda s: MMPS(), time_grid="log_snr"),
    "TMPD": ours(lambda s: TMPD()),
    "Pi-GDM": ours(PiGDM),
    "DPS": ours(lambda s: DPS(sigma_data=s)),
    "DiffPIR": ours(lambda s: DiffPIR()),
    "DAPS": ours(DAPS),
    "projection": ours(lambda s: Projection()),
}


def azula_methods():
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance import DiffPIRDenoiser, DPSSampler, MMPSDenoiser, PGDMSampler, TMPDenoiser
    from azula.linalg.covariance import DiagonalCovariance, IsotropicCovariance
    from azula.noise import VESchedule
    from azula.sample import DDPMSampler

    class Exact(Denoiser):
        def __init__(self, problem):
            super().__init__()
            sde = problem.scheduler.sde
            self.schedule, self.problem = VESchedule(sde.sigma_min, sde.sigma_max), problem

        def forward(self, x_t, t, **kwargs):
            return DiracPosterior(mean=self.problem.counted(self.problem.denoise(x_t, self.schedule.sigma(t))))

    def run(make):
        def sample(problem, steps):
            torch.manual_seed(problem.seed)
            denoiser, y = Exact(problem), problem.y.flatten(1).repeat_interleave(problem.draws, 0)
            sampler = make(problem, denoiser, y, lambda x: problem.operator(x).flatten(1), {"steps": steps})
            sampler.silent = True
            return sampler(sampler.init(drawn_shape(problem), var=problem.sigma_data**2))

        return sample

    def variance(problem):
        return problem.std.flatten() ** 2 if isinstance(problem.std, torch.Tensor) else problem.std**2

    def cov(problem):
        v = variance(problem)
        return DiagonalCovariance(v) if isinstance(v, torch.Tensor) else IsotropicCovariance(v)

    def mmps(solver, iterations):
        return run(
            lambda p, d, y, a, o: DDPMSampler(MMPSDenoiser(d, y, a, cov(p), solver=solver, iterations=iterations), **o)
        )

    def needing_noise(make):
        def made(p, d, y, a, o):
            if not isinstance(p.std, torch.Tensor) and p.std == 0:
                raise ValueError("divides by the noise")
            return make(p, d, y, a, o)

        return made

    def inverse(p):
        return lambda y: p.operator.pseudo_inverse(y.view(len(y), *p.y.shape[1:]))

    return {
        "azula MMPS (gmres, 1)": mmps("gmres", 1),
        "azula MMPS (cg, 30)": mmps("cg", 30),
        "azula TMPD": run(lambda p, d, y, a, o: DDPMSampler(TMPDenoiser(d, y, a, variance(p)), **o)),
        "azula DiffPIR": run(
            needing_noise(lambda p, d, y, a, o: DDPMSampler(DiffPIRDenoiser(d, y, a, variance(p)), **o))
        ),
        "azula Pi-GDM": run(lambda p, d, y, a, o: PGDMSampler(d, y, a, inverse(p), eta=1.0, **o)),
        "azula DPS": run(lambda p, d, y, a, o: DPSSampler(d, y, a, **o)),
    }


def deepinv_methods():
    import deepinv
    from deepinv.sampling import (
        AncestralSolver,
        DPSDataFidelity,
        MomentMatchingDataFidelity,
        PiGDMDataFidelity,
        PosteriorDiffusion,
        VarianceExplodingDiffusion,
    )

    class Exact(deepinv.models.Denoiser):
        def __init__(self, problem):
            super().__init__()
            self.problem = problem

        def forward(self, x, sigma, **kwargs):
            return self.problem.counted(self.problem.denoise(x, sigma))

    def run(fidelity):
        def sample(problem, steps):
            if isinstance(problem.std, torch.Tensor):
                raise ValueError("takes one deviation of the noise")
            physics = deepinv.physics.LinearPhysics(
                A=lambda x, **_: problem.operator(x),
                A_adjoint=lambda y, **_: problem.operator.adjoint(y),
                noise_model=deepinv.physics.GaussianNoise(sigma=problem.std),
            )
            sde = problem.scheduler.sde
            model = PosteriorDiffusion(
                data_fidelity=fidelity(),
                denoiser=Exact(problem),
                sde=VarianceExplodingDiffusion(sigma_min=sde.sigma_min, sigma_max=sde.sigma_max, alpha=1.0),
                solver=AncestralSolver(timesteps=torch.linspace(1, 0, steps + 1, dtype=torch.float64)),
                minus_one_one=False,
            )
            y = problem.y.repeat_interleave(problem.draws, 0)
            return model(y, physics, x_init=drawn_shape(problem), seed=problem.seed)

        return sample

    return {
        "deepinv moment matching (cg 3)": run(MomentMatchingDataFidelity),
        "deepinv moment matching (cg 30)": run(lambda: MomentMatchingDataFidelity(cg_max_iter=30)),
        "deepinv Pi-GDM": run(PiGDMDataFidelity),
        "deepinv DPS": run(lambda: DPSDataFidelity(guidance="norm")),
    }


def posterior_methods():
    """{name: function of (problem, steps) that gives samples, the first measurement's first}, of what is installed."""
    found = dict(OURS)
    for library, made in (("azula", azula_methods), ("deepinv", deepinv_methods)):
        if importlib.util.find_spec(library):
            found |= made()
        else:
            print(f"{library} is not installed: its methods are left out.")
    return found
