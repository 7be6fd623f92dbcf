"""Methods of this package and of others against posteriors that are known: tables of `restoration.py`.

exact      Grey images of 16 x 16 pixels from a Gaussian with full covariance, and linear measurements of one of them
           without noise, with noise of one deviation, and with one for each value: errors of the mean and of the
           covariance of 2,000 samples, in units of what as many exact draws would show (their root mean square): 1 is
           exact. azula's and deepinv's methods, where these are installed, sample the same posteriors with the same
           denoiser and as many time steps on the same grid: see `posterior_methods.py`. Few modes may hold most of the
           variance, and a mean's error then differs from run to run: errors of several seeds are pooled (root mean
           square), and the bias of MMPS with 30 steps is found without draws. What a measurement
           determines altogether is left out.
nonlinear  One Gaussian pixel, whose posterior is found by numerical integration: errors of the mean in posterior
           deviations, and the ratio of the deviations.
"""

import itertools
import math
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from posterior_methods import Counted, generator, posterior_methods
from side_by_side import earlier_rows, write_results
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
from sde_diffusers.posteriors import DPS, MMPS, TMPD, DiffPIR, PiGDM

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from gaussian_images import GaussianImages  # noqa: E402

SIZE, SAMPLES, STD = 16, 2000, 0.2  # STD in the network's range [-1, 1]
FIRST_SEED, BIAS = 3, "bias of the mean, MMPS (30 steps)"
DETERMINED = 1e-4  # deviation of a pixel below which nothing is left to draw
SIGMA_MIN, SIGMA_MAX = 1e-3, 20.0
NOISE = 0.1  # in the same range
NOISES = ("0", "scalar", "per value")


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


class Problem(Counted):
    """One measurement, in the network's range, and its exact posterior; see `posterior_methods`."""

    draws, sigma_data, seed = SAMPLES, STD, FIRST_SEED

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

    def bias(self, steps) -> float:
        """Of the mean by MMPS with 30 steps, in the same units, without draws: the method is affine in its noise, so
        that what it makes of noise that is 0 throughout is its mean."""
        draws, self.draws = self.draws, 1
        names = "pipelines.pipeline_score_sde_restoration", "schedulers.scheduling_score_sde"
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(patch(f"sde_diffusers.{name}.randn_tensor", lambda shape, **_: torch.zeros(shape)))
            mean = posterior_methods()["MMPS (30 steps)"](self, steps).double().flatten()
        self.draws = draws
        return ((mean - self.mean).norm() / (self.covariance.trace() / draws).sqrt()).item()

    def chance(self) -> float:
        """The error of the mean that 95 % of exact draws stay below; few modes may hold most of the variance."""
        values = torch.linalg.eigvalsh(self.covariance).clamp(min=0)
        z = torch.randn(20_000, len(values), generator=generator(), dtype=torch.float64)
        return (z.square() @ values / values.sum()).sqrt().quantile(0.95).item()


def exact_table(arguments, folder):
    steps, only, seeds = arguments.steps, arguments.only, arguments.seeds
    settings = {"steps": steps, "samples": SAMPLES, "noise_std": NOISE}
    records = earlier_rows(folder, "exact", settings, "records")
    done = {(r["operator"], r["noise"], r["method"], r["seed"]) for r in records}

    def keep(record):
        records.append(record)
        write_results(folder, "exact", {**settings, "records": records}, exact_lines(records))

    methods = {name: f for name, f in posterior_methods().items() if not only or any(o in name for o in only)}
    cells = [(name, noise) for noise in arguments.noises for name in arguments.operators or operators()]
    for name, noise in tqdm(cells, desc="problems"):
        problem = Problem(operators()[name], noise)
        if problem.covariance.trace() < SIZE**2 * DETERMINED**2:
            continue
        if (name, noise, BIAS, FIRST_SEED) not in done:
            bias = {"operator": name, "noise": noise, "method": BIAS, "seed": FIRST_SEED}
            keep(bias | {"bias": problem.bias(steps)})
        for method, seed in itertools.product(methods, range(FIRST_SEED, FIRST_SEED + seeds)):
            if (name, noise, method, seed) in done:
                continue
            problem.seed, start = seed, time.perf_counter()
            record = {"operator": name, "noise": noise, "method": method, "seed": seed}
            try:
                samples = methods[method](problem, steps)
                record |= problem.errors(samples) if samples.isfinite().all() else {"refused": "not finite"}
            except Exception as error:  # of whichever library: it is a result
                record["refused"] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            record["seconds"] = time.perf_counter() - start
            keep(record)
    print(exact_lines(records))


def exact_lines(records) -> str:
    """A table for each kind of noise: a row for each method, its errors of mean / covariance for each operator."""
    names = [name for name in operators() if any(r["operator"] == name for r in records)]
    text = ""
    for noise in NOISES:
        rows = [r for r in records if r["noise"] == noise]
        if not rows:
            continue
        text += f"\nNoise {noise}:\n\n| method | {' | '.join(names)} |\n|---|{'---|' * len(names)}\n"
        for method in dict.fromkeys(r["method"] for r in rows):
            own = [r for r in rows if r["method"] == method]
            texts = [cell_text([r for r in own if r["operator"] == name]) for name in names]
            text += f"| {method} | {' | '.join(texts)} |\n"
        chances = {r["operator"]: r["mean_95"] for r in rows if "mean_95" in r}
        texts = [f"{chances[name]:.2f}" if name in chances else "" for name in names]
        text += f"| 95 % of exact draws: mean below | {' | '.join(texts)} |\n"
    return text


def cell_text(records) -> str:
    """The errors of one method, pooled over its runs."""
    if not records:
        return ""
    if "bias" in records[0]:
        return f"{records[0]['bias']:.2f}"
    if refused := [r["refused"] for r in records if "refused" in r]:
        return "diverges" if "not finite" in refused else "refuses"
    mean, covariance = (statistics.fmean(r[key] ** 2 for r in records) ** 0.5 for key in ("mean", "covariance"))
    return f"{mean:.2f} / {covariance:.2f}"


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
