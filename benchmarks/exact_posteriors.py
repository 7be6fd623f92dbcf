"""Methods of this package and of others against posteriors that are known: tables of `restoration.py`.

exact      Grey images of 16 x 16 pixels from a Gaussian with full covariance, and linear measurements of one of them
           without noise, with noise of one deviation, and with one for each value: errors of the mean and of the
           covariance of 2,000 samples, in units of what as many exact draws would show (their root mean square): 1 is
           exact. azula's and deepinv's methods, where these are installed, sample the same posteriors with the same
           denoiser and as many time steps on the same grid. None but ours is told what the operator's structure is.
nonlinear  One Gaussian pixel, whose posterior is found by numerical integration: errors of the mean in posterior
           deviations, and the ratio of the deviations.
"""

import importlib.util
import json
import math
import sys
import time
from pathlib import Path

import torch
from side_by_side import write_results
from tqdm import tqdm

from sde_diffusers import ScoreSdeExponentialScheduler, ScoreSdeRestorationPipeline
from sde_diffusers.operators import (
    BOUNDARIES,
    Bicubic,
    Convolution,
    FourierMagnitude,
    Gamma,
    GaussianBlur,
    Mask,
    MaskedFourier,
    Quantization,
    Saturation,
    random_mask,
)
from sde_diffusers.posteriors import DAPS, DPS, MMPS, TMPD, DiffPIR, PiGDM, Projection

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from gaussian_images import GaussianImages  # noqa: E402

SIZE, SAMPLES, STD = 16, 2000, 0.2  # STD in the network's range [-1, 1]
SIGMA_MIN, SIGMA_MAX = 1e-3, 20.0
NOISE = 0.1  # in the same range


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def operators():
    kernel = torch.rand(3, 3, generator=generator()) + 0.2
    blurs = {f"blur, {b}": Convolution(kernel / kernel.sum(), b) for b in BOUNDARIES}
    return {
        "mask": Mask(random_mask((SIZE, SIZE), 0.5, generator())),
        "bicubic": Bicubic(2),
        "Fourier mask": MaskedFourier(random_mask((SIZE, SIZE), 0.6, generator())),
        "Gaussian blur": GaussianBlur(1.0),
        **blurs,
    }


def noises(shape):
    """Deviations of the noise: none, one number, one for each value (a factor of 9 between the least and the most)."""
    each = NOISE * 3 ** (2 * torch.rand(shape, generator=generator(5)) - 1)
    return {"0": 0.0, "scalar": NOISE, "per value": each}


class Problem:
    """One measurement, in the network's range, and its exact posterior."""

    def __init__(self, operator, noise: str):
        self.scheduler = ScoreSdeExponentialScheduler(
            sde="ve",
            sigma_min=SIGMA_MIN,
            sigma_max=SIGMA_MAX,
            prediction_type="sample",
            image_range=(-1, 1),
            solver_order=1,
            eta=1.0,
        )
        self.network = GaussianImages(sample_size=SIZE, in_channels=1, std=STD).answers(self.scheduler)
        self.shape = (1, 1, SIZE, SIZE)
        self.operator = operator.for_images(self.shape)
        image = self.network.draw(1, generator(1))
        self.std = noises(self.operator.measurement_shape(self.shape))[noise]
        white = torch.randn(self.operator.measurement_shape(self.shape), generator=generator(2))
        self.y = self.operator.measured(self.operator(image).float() + self.std * white)
        self.mean, self.covariance = self._posterior()
        values, vectors = torch.linalg.eigh(self.network.covariance)
        self.values, self.vectors = values.float(), vectors.float()

    def _posterior(self):
        d, prior = SIZE**2, self.network.covariance
        a = self.operator(torch.eye(d, dtype=torch.float64).view(d, *self.shape[1:])).flatten(1).T
        seen = a.abs().sum(1) > 1e-9
        std = self.std.flatten() if isinstance(self.std, torch.Tensor) else torch.full((len(a),), self.std)
        a, y, variance = a[seen], self.y.double().flatten()[seen], std.double()[seen] ** 2
        total = a @ prior @ a.T + torch.diag(variance)
        gain = torch.linalg.pinv(total, rtol=1e-9, hermitian=True) @ a @ prior
        return (y - a @ self.network.mean) @ gain + self.network.mean, prior - (a @ prior).T @ gain

    def denoise(self, x, sigma):
        """E[x_0 | x_0 + sigma noise = x], differentiable."""
        flat = x.flatten(1).float() @ self.vectors
        sigma = torch.as_tensor(sigma).float().reshape(-1, 1)
        return (flat * (self.values / (self.values + sigma**2)) @ self.vectors.T).view(x.shape)

    def errors(self, samples) -> dict[str, float]:
        """Of the mean and the covariance, in units of those of exact draws."""
        samples, k = samples.double().flatten(1), len(samples)
        trace, square = self.covariance.trace(), self.covariance.square().sum()
        mean = (samples.mean(0) - self.mean).norm() / (trace / k).sqrt()
        covariance = (samples.T.cov() - self.covariance).norm() / ((trace**2 + square) / k).sqrt()
        return {"mean": mean.item(), "covariance": covariance.item(), "mean_95": self.chance()}

    def chance(self) -> float:
        """The error of the mean that 95 % of exact draws stay below; few modes may hold most of the variance."""
        values = torch.linalg.eigvalsh(self.covariance).clamp(min=0)
        z = torch.randn(20_000, len(values), generator=generator(), dtype=torch.float64)
        return (z.square() @ values / values.sum()).sqrt().quantile(0.95).item()


# ---- contenders: functions of a problem and a number of time steps -------------------------------------------------


def ours(method):
    def sample(problem, steps):
        pipe = ScoreSdeRestorationPipeline(unet=problem.network, scheduler=problem.scheduler)
        pipe.set_progress_bar_config(disable=True)
        offset = problem.operator(torch.full(problem.shape, 0.5))
        noise, y = problem.std / 2, problem.operator.measured(offset + problem.y / 2)
        out = pipe(y, problem.operator, noise, method, SAMPLES, steps, generator=generator(3), output_type="pt")
        return 2 * out.images - 1

    return sample


OURS = {
    "MMPS (30 steps)": ours(MMPS(30, 0.0)),
    "MMPS": ours(MMPS()),
    "TMPD": ours(TMPD()),
    "Pi-GDM": ours(PiGDM(STD)),
    "DPS": ours(DPS(sigma_data=STD)),
    "DiffPIR": ours(DiffPIR()),
    "DAPS": ours(DAPS(STD)),
    "projection": ours(Projection()),
}


def azula_contenders():
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance import DiffPIRDenoiser, DPSSampler, MMPSDenoiser, PGDMSampler, TMPDenoiser
    from azula.linalg.covariance import DiagonalCovariance, IsotropicCovariance
    from azula.noise import VESchedule
    from azula.sample import DDPMSampler

    class Exact(Denoiser):
        def __init__(self, problem):
            super().__init__()
            self.schedule, self.problem = VESchedule(SIGMA_MIN, SIGMA_MAX), problem

        def forward(self, x_t, t, **kwargs):
            return DiracPosterior(mean=self.problem.denoise(x_t, self.schedule.sigma(t)))

    def run(make):
        def sample(problem, steps):
            torch.manual_seed(3)
            denoiser, y = Exact(problem), problem.y.flatten(1).expand(SAMPLES, -1)
            sampler = make(problem, denoiser, y, lambda x: problem.operator(x).flatten(1), {"steps": steps})
            sampler.silent = True
            return sampler(sampler.init((SAMPLES, *problem.shape[1:]), var=STD**2))

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


def deepinv_contenders():
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
            return self.problem.denoise(x, sigma)

    def run(fidelity):
        def sample(problem, steps):
            if isinstance(problem.std, torch.Tensor):
                raise ValueError("takes one deviation of the noise")
            physics = deepinv.physics.LinearPhysics(
                A=lambda x, **_: problem.operator(x),
                A_adjoint=lambda y, **_: problem.operator.adjoint(y),
                noise_model=deepinv.physics.GaussianNoise(sigma=problem.std),
            )
            model = PosteriorDiffusion(
                data_fidelity=fidelity(),
                denoiser=Exact(problem),
                sde=VarianceExplodingDiffusion(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, alpha=1.0),
                solver=AncestralSolver(timesteps=torch.linspace(1, 0, steps + 1, dtype=torch.float64)),
                minus_one_one=False,
            )
            y = problem.y.expand(SAMPLES, *[-1] * (problem.y.ndim - 1))
            return model(y, physics, x_init=(SAMPLES, *problem.shape[1:]), seed=3)

        return sample

    return {
        "deepinv moment matching (cg 3)": run(MomentMatchingDataFidelity),
        "deepinv moment matching (cg 30)": run(lambda: MomentMatchingDataFidelity(cg_max_iter=30)),
        "deepinv Pi-GDM": run(PiGDMDataFidelity),
        "deepinv DPS": run(lambda: DPSDataFidelity(guidance="norm")),
    }


def contenders():
    found = dict(OURS)
    for library, made in (("azula", azula_contenders), ("deepinv", deepinv_contenders)):
        if importlib.util.find_spec(library):
            found |= made()
        else:
            print(f"{library} is not installed: its methods are left out.")
    return found


def exact_table(folder, steps, only, some_operators):
    path = folder / "exact.json"
    records = json.loads(path.read_text(encoding="utf-8"))["records"] if path.is_file() else []
    done = {(r["operator"], r["noise"], r["method"]) for r in records}
    methods = {name: f for name, f in contenders().items() if not only or any(o in name for o in only)}
    cells = [(name, noise) for noise in ("scalar", "0", "per value") for name in some_operators or operators()]
    for name, noise in tqdm(cells, desc="problems"):
        problem = Problem(operators()[name], noise)
        for method, sample in methods.items():
            if (name, noise, method) in done:
                continue
            record, start = {"operator": name, "noise": noise, "method": method}, time.perf_counter()
            try:
                samples = sample(problem, steps)
                record |= problem.errors(samples) if samples.isfinite().all() else {"refused": "not finite"}
            except Exception as error:  # of whichever library: it is a result
                record["refused"] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            record["seconds"] = time.perf_counter() - start
            records.append(record)
            results = {"steps": steps, "samples": SAMPLES, "noise_std": NOISE, "records": records}
            write_results(folder, "exact", results, exact_lines(records))
    print(exact_lines(records))


def exact_lines(records) -> str:
    """A table for each kind of noise: a row for each method, its errors of mean / covariance for each operator."""
    names = [name for name in operators() if any(r["operator"] == name for r in records)]
    text = ""
    for noise in ("0", "scalar", "per value"):
        rows = [r for r in records if r["noise"] == noise]
        if not rows:
            continue
        text += f"\nNoise {noise}:\n\n| method | {' | '.join(names)} |\n|---|{'---|' * len(names)}\n"
        for method in dict.fromkeys(r["method"] for r in rows):
            cells = {r["operator"]: r for r in rows if r["method"] == method}
            texts = [cell_text(cells.get(name)) for name in names]
            text += f"| {method} | {' | '.join(texts)} |\n"
        chances = {r["operator"]: r["mean_95"] for r in rows if "mean_95" in r}
        texts = [f"{chances[name]:.2f}" if name in chances else "" for name in names]
        text += f"| 95 % of exact draws: mean below | {' | '.join(texts)} |\n"
    return text


def cell_text(record) -> str:
    if record is None:
        return ""
    if "refused" in record:
        return "diverges" if record["refused"] == "not finite" else "refuses"
    return f"{record['mean']:.2f} / {record['covariance']:.2f}"


# ---- one pixel, measured by a curve --------------------------------------------------------------------------------


def nonlinear_table(folder):
    scheduler = Problem(GaussianBlur(1.0), "scalar").scheduler
    network = GaussianImages(sample_size=1, in_channels=1, std=0.4).answers(scheduler)
    pipe = ScoreSdeRestorationPipeline(unet=network, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    x = torch.linspace(-1, 2, 30_001, dtype=torch.float64)
    pixels = torch.tensor([0.2, 0.35, 0.5, 0.65, 0.8]).view(-1, 1, 1, 1)
    curves = {"gamma 2.2": Gamma(2.2), "gamma 1/2.2": Gamma(1 / 2.2), "saturation 1.5": Saturation(1.5)}
    curves |= {"quantization 8": Quantization(8), "Fourier magnitude": FourierMagnitude()}
    methods = {"MMPS": MMPS(1, 0.0), "Pi-GDM": PiGDM(0.4), "DPS": DPS(sigma_data=0.4), "TMPD": TMPD()}
    methods["DiffPIR"] = DiffPIR()
    records = []
    for name, operator in curves.items():
        y, seen = operator(pixels), operator(x.view(-1, 1, 1, 1)).flatten()
        rounding = isinstance(operator, Quantization)
        noise = operator.rounding_std if rounding else 0.05
        off = seen - y.double().view(-1, 1)
        likelihood = (off.abs() < 1e-6).double() if rounding else (-0.5 * (off / noise) ** 2).exp()
        density = likelihood * (-0.5 * ((x - 0.5) / 0.2) ** 2).exp()
        density /= density.sum(1, keepdim=True)
        mean = (density * x).sum(1)
        deviation = (density * (x - mean[:, None]) ** 2).sum(1).sqrt()
        for label, method in methods.items():
            out = pipe(y, operator, noise, method, 1000, 100, generator=generator(), output_type="pt").images
            samples = out.double().view(len(y), -1)
            error = (samples.mean(1) - mean).abs() / deviation
            ratio = samples.std(1) / deviation
            worst = ratio[ratio.log().abs().argmax()].item()
            records.append({"operator": name, "method": label, "mean_error": error.max().item(), "ratio": worst})
    lines = [f"| A | {' | '.join(methods)} |", f"|---|{'---|' * len(methods)}"]
    for name in curves:
        cells = [r for r in records if r["operator"] == name]
        lines.append(f"| {name} | " + " | ".join(f"{r['mean_error']:.2f}, {r['ratio']:.2f}" for r in cells) + " |")
    write_results(folder, "nonlinear", {"records": records}, "\n".join(lines) + "\n")
    print("\n".join(lines))
    assert all(math.isfinite(r["ratio"]) for r in records)
