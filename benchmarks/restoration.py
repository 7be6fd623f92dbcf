"""How well posterior samples restore images, and how true to the posterior they are.

    python benchmarks/restoration.py gaussian OUTPUT_FOLDER
    python benchmarks/restoration.py exact OUTPUT_FOLDER [--steps 100] [--only WORD ...] [--operators NAME ...]
                                                         [--noises NAME ...] [--seeds 1]
    python benchmarks/restoration.py nonlinear OUTPUT_FOLDER
    python benchmarks/restoration.py images OUTPUT_FOLDER [--data fashion-mnist] [--dataset FOLDER] [--count 200]
                                                          [--pipeline FOLDER] [--only WORD ...]
    python benchmarks/restoration.py calibration OUTPUT_FOLDER [--count 200] [--dataset FOLDER] [--dtype float32]

gaussian  Colour images of 4 x 4 pixels from a Gaussian whose denoiser is exact, so that the posterior under a linear
          measurement is known: error of each method's mean (root mean square over the pixels, relative to that of the
          posterior's deviation), of its covariance (Frobenius norm, relative to the true one's) and coverage (how much
          of the true posterior lies in the method's central 90 % intervals, mean over undetermined pixels and
          measurements). All methods run under the reverse-time SDE (exponential solver, order 1, eta = 1). Where a
          method is affine in the measurement and the state, its moments are followed exactly; the others' are those of
          samples, whose own error in the covariance is given as "floor".
exact, nonlinear
          see `exact_posteriors.py`; azula's and deepinv's methods take part where they are installed
images    see `restored_images.py`
calibration
          see `calibration.py`

Each writes a .json and a .md of its name.
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from calibration import calibration_table
from exact_posteriors import NOISES, exact_table, nonlinear_table
from posterior_methods import generator
from restored_images import image_table
from side_by_side import write_results
from tqdm import tqdm

from sde_diffusers import ScoreSdeExponentialScheduler, ScoreSdeRestorationPipeline
from sde_diffusers.operators import (
    Downsampling,
    GaussianBlur,
    Grayscale,
    Mask,
    box_mask,
    random_mask,
)
from sde_diffusers.posteriors import DPS, MMPS, Measurement, PiGDM, Projection, posterior_output

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from gaussian_images import GaussianImages  # noqa: E402

NOISE = 0.05  # of noisy measurements, in units of images in [0, 1]


# ---- Gaussian images -----------------------------------------------------------------------------------------------

SIZE, MEASUREMENTS, SAMPLES = 4, 4, 1000
STEPS, AFFINE_STEPS = 150, 300  # time steps of sampled methods, and of those whose moments are followed
GAUSSIAN_OPERATORS = {
    "box": Mask(box_mask(SIZE, SIZE, (1, 1, 3, 4))),
    "random 75 % missing": Mask(random_mask((SIZE, SIZE), 0.75, generator())),
    "grayscale": Grayscale(),
    "downsampling 2": Downsampling(2),
    "blur 1.0": GaussianBlur(1.0),
}
GAUSSIAN_METHODS = {  # with the true deviation of the images; True: affine
    "projection": (Projection(), True),
    "DPS": (DPS(sigma_data=0.2), False),
    "Pi-GDM": (PiGDM(sigma_data=0.2), True),
    "MMPS, default": (MMPS(), False),
    "MMPS, converged": (MMPS(steps=60, damping=0.0), True),
}


def gaussian_problem(name, noise_std):
    """Scheduler, network and MEASUREMENTS random measurements (in the network's range [-1, 1])."""
    scheduler = ScoreSdeExponentialScheduler(
        sde="ve",
        sigma_min=1e-3,
        sigma_max=20.0,
        prediction_type="sample",
        image_range=(-1, 1),
        solver_order=1,
        eta=1.0,
    )
    network = GaussianImages(sample_size=SIZE).answers(scheduler)
    operator = GAUSSIAN_OPERATORS[name]
    x = network.draw(MEASUREMENTS, generator(1))
    noise = torch.randn(operator.measurement_shape(x.shape), generator=generator(2), dtype=x.dtype)
    noise = operator(noise) if isinstance(operator, Mask) else noise
    return scheduler, network, operator, operator(x) + noise_std * noise


def affine_moments(scheduler, network, operator, y, noise_std, method):
    """Means (N, d) and covariance (d, d) of what an affine method draws, without random numbers.

    Each step is x' = M x + c(y) + B z + B_p z_p. Rows of one batch carry, from step to step, the images of the means
    and, column by column, a square root of the covariance: unit vectors through each step show M, B and B_p.
    """
    n, d = len(y), len(network.mean)
    shape = (n, network.config.in_channels, SIZE, SIZE)
    axes = torch.eye(d, dtype=torch.float64).view(d, *shape[1:])
    zero = torch.zeros(d, *shape[1:], dtype=torch.float64)
    # rows: the N means; then the responses to the state's, the step's and the projection's unit vectors, from y[0]
    rows = torch.cat([torch.arange(n), torch.zeros(1 + 3 * d, dtype=torch.long)])
    problem = Measurement(operator, y[rows], noise_std, 1.0)
    origin = torch.zeros(1, *shape[1:], dtype=torch.float64)
    still = torch.zeros(shape, dtype=torch.float64)
    step_noise = torch.cat([still, origin, zero, axes, zero])
    projection_noise = torch.cat([still, origin, zero, zero, axes])
    means, covariance = still, scheduler.init_noise_sigma**2 * torch.eye(d, dtype=torch.float64)
    scheduler.set_timesteps(AFFINE_STEPS)
    ends = [*scheduler.times[1:].tolist(), None]
    for t, end in zip(scheduler.timesteps, ends, strict=True):
        x = torch.cat([means, origin, axes, zero, zero])
        output = posterior_output(lambda x, t=t: network(x, t).sample, scheduler, method, problem, x)
        x = scheduler.step(output, t, x, variance_noise=step_noise).prev_sample
        alpha, sigma = (
            (1.0, 0.0) if end is None else (scheduler.sde.alpha(end).item(), scheduler.sde.sigma(end).item())
        )
        x = method.project(problem, x, alpha, sigma, lambda: projection_noise)
        means = x[:n]
        m, b, b_p = (x[n + 1 :] - x[n]).flatten(1).T.split(d, dim=1)
        covariance = m @ covariance @ m.T + b @ b.T + b_p @ b_p.T
    if noise_std == 0:
        means = operator.consistent(means, y)
        seen = (lambda v: v - operator.pseudo_inverse(operator(v)))(axes).flatten(1).T
        covariance = seen @ covariance @ seen.T
    return means.flatten(1), covariance


def sampled_moments(network, scheduler, operator, y, noise_std, method):
    """Means and pooled covariance of samples, by the pipeline itself (images in [0, 1] are wide enough)."""
    pipe = ScoreSdeRestorationPipeline(unet=network, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    offset = operator(torch.full((len(y), network.config.in_channels, SIZE, SIZE), 0.5, dtype=torch.float64))
    images = pipe(
        offset + y / 2, operator, noise_std / 2, method, SAMPLES, STEPS, generator=generator(3), output_type="pt"
    ).images
    samples = (2 * images.double() - 1).flatten(1).unflatten(0, (len(y), SAMPLES))
    means = samples.mean(1)
    residual = (samples - means[:, None]).flatten(0, 1)
    return means, residual.T @ residual / (len(residual) - len(y))


def gaussian_table(folder):
    records = []
    cells = [(name, noise) for noise in (0.0, NOISE) for name in GAUSSIAN_OPERATORS]
    cells.remove(("blur 1.0", 0.0))  # so few pixels are determined by their exact blur: nothing is left to draw
    normal = torch.distributions.Normal(0.0, 1.0)
    for name, noise in tqdm(cells, desc="operators"):
        scheduler, network, operator, y = gaussian_problem(name, 2 * noise)
        mean, covariance = network.posterior(operator, y, 2 * noise)
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        free = deviation > 1e-4
        for label, (method, affine) in GAUSSIAN_METHODS.items():
            try:
                method.check(operator, noise)
            except ValueError:
                continue
            if affine:
                means, spread = affine_moments(scheduler, network, operator, y, 2 * noise, method)
            else:
                means, spread = sampled_moments(network, scheduler, operator, y, 2 * noise, method)
            half = 1.6449 * spread.diagonal().clamp(min=0).sqrt()
            upper, lower = ((means + sign * half - mean)[:, free] / deviation[free] for sign in (1, -1))
            floor = 0.0 if affine else sampling_floor(covariance)
            records.append(
                {
                    "operator": name,
                    "noise_std": noise,
                    "method": label,
                    "mean_error": ((means - mean).square().mean().sqrt() / deviation.square().mean().sqrt()).item(),
                    "covariance_error": ((spread - covariance).norm() / covariance.norm()).item(),
                    "coverage": (normal.cdf(upper) - normal.cdf(lower)).mean().item(),
                    "floor": floor,
                }
            )
    lines = ["| operator | noise | method | mean error | covariance error | floor | coverage of 90 % |"]
    lines.append("|---|---|---|---|---|---|---|")
    for r in records:
        floor = f"{100 * r['floor']:.1f} %" if r["floor"] else "exact"
        lines.append(
            f"| {r['operator']} | {r['noise_std']} | {r['method']} | {100 * r['mean_error']:.1f} % | "
            f"{100 * r['covariance_error']:.1f} % | {floor} | {100 * r['coverage']:.1f} % |"
        )
    results = {"steps": STEPS, "affine_steps": AFFINE_STEPS, "records": records}
    write_results(folder, "gaussian", results, "\n".join(lines) + "\n")
    print("\n".join(lines))


def sampling_floor(covariance):
    """Expected relative Frobenius error of the covariance of as many exact draws."""
    n = MEASUREMENTS * (SAMPLES - 1)
    return math.sqrt((covariance.trace() ** 2 / covariance.square().sum() + 1) / n)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("gaussian", "exact", "nonlinear", "images", "calibration"))
    parser.add_argument("folder", type=Path, help="where the results are written")
    parser.add_argument("--steps", type=int, help="time steps of the sampler; 20, and 100 for exact")
    parser.add_argument("--only", nargs="*", default=(), help="methods whose names hold one of these words")
    parser.add_argument("--operators", nargs="*", default=(), help="exact: names of operators, all by default")
    parser.add_argument("--noises", nargs="*", default=NOISES, choices=NOISES, help="exact: all by default")
    parser.add_argument("--seeds", type=int, default=1, help="exact: runs of each method, whose errors are pooled")
    parser.add_argument(
        "--data", choices=("fashion-mnist", "cifar10"), default="fashion-mnist", help="images, calibration: of what"
    )
    parser.add_argument("--dataset", help="images, calibration: their folder, where the Hub can't be reached")
    parser.add_argument("--pipeline", help="images, calibration: another network than the one that ships")
    parser.add_argument("--dtype", default="float32", help="images, calibration: of the network's weights")
    parser.add_argument("--count", type=int, default=200, help="images, calibration: how many")
    parser.add_argument("--batch", type=int, default=50, help="images, calibration: at a time")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.table == "gaussian":
        gaussian_table(arguments.folder)
    elif arguments.table == "exact":
        arguments.steps = arguments.steps or 100
        exact_table(arguments, arguments.folder)
    elif arguments.table == "nonlinear":
        nonlinear_table(arguments.folder)
    else:
        arguments.steps = arguments.steps or 20
        table = image_table if arguments.table == "images" else calibration_table
        table(arguments, arguments.folder)


if __name__ == "__main__":
    main()
