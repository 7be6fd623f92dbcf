"""Figures that explain the ideas, with exact scores of mixtures of Gaussians in place of a network's.

    python docs/make_concept_figures.py OUTPUT_FOLDER

concept_sdes.png             scale, noise and signal-to-noise ratio of each SDE over time
concept_score_field.png      a density in the plane and its score, at three noise levels
concept_forward_reverse.png  one-dimensional data on their way to noise and back: the SDE and its reverse
concept_ode_versus_sde.png   the probability flow ODE and the reverse-time SDE from the same noise
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from sde_diffusers import (
    VESDE,
    VPSDE,
    ExponentialVESDE,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
    SubVPSDE,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from exact_scores import Mixture, as_images, exact_output  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

LINE = Mixture([0.35, 0.65], [[-1.3], [0.9]], 0.18)
PLANE = Mixture([0.25, 0.35, 0.4], [[-1.6, -0.9], [1.5, -0.8], [0.1, 1.5]], 0.35)
HEIGHT = 3.2  # |x| up to which the line is drawn
PATHS, POINTS, STEPS = 9, 6000, 400
PATH_STYLE = {"color": "#d1495b", "linewidth": 0.9, "alpha": 0.9}


def density(mixture, sde, points, t):
    """p_t at points (..., d), for data from the mixture."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    modes = Normal(alpha * mixture.means, (alpha**2 * mixture.std**2 + sigma**2).sqrt())
    return MixtureSameFamily(Categorical(mixture.weights), Independent(modes, 1)).log_prob(points).exp()


def sdes(path):
    """Columns: alpha, sigma, sigma / alpha."""
    t = torch.linspace(1e-3, 1, 300, dtype=torch.float64)
    named = {"VE": VESDE(), "$dx = 25^t dw$": ExponentialVESDE(25.0), "VP": VPSDE(), "sub-VP": SubVPSDE()}
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
    for k, (name, sde) in enumerate(named.items()):
        style = {"label": name, "color": f"C{k}", "linestyle": ("-", "--", "-", "--")[k], "linewidth": 1.8}
        axes[0].plot(t, sde.alpha(t), **style)
        axes[1].semilogy(t, sde.sigma(t), **style)
        axes[2].semilogy(t, (-sde.half_log_snr(t)).exp(), **style)
    titles = (r"scale of the image, $\alpha(t)$", r"noise, $\sigma(t)$", r"noise level, $\sigma(t)/\alpha(t)$")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="$t$", xlim=(0, 1))
        axis.grid(alpha=0.25)
    axes[2].legend(fontsize=8)
    save(figure, path)


def score_field(path, size=3.4):
    sde = VESDE(0.01, 10.0)
    fine = torch.linspace(-size, size, 200, dtype=torch.float64)
    coarse = torch.linspace(-0.92 * size, 0.92 * size, 19, dtype=torch.float64)
    pixels, tails = (torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1) for axis in (fine, coarse))
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.8), layout="constrained")
    for axis, sigma in zip(axes, (0.1, 0.7, 2.0), strict=True):
        t = sde.inverse_half_log_snr(-torch.tensor(sigma, dtype=torch.float64).log())
        axis.imshow(density(PLANE, sde, pixels, t), origin="lower", extent=(-size, size) * 2, cmap="Blues", alpha=0.9)
        score = PLANE.score(sde, as_images(tails.reshape(-1, 2)), t)[:, :, 0, 0]
        norm = score.norm(dim=1, keepdim=True)
        arrows = (score / norm.sqrt() / norm.max().sqrt()).reshape(tails.shape)  # square roots: all arrows show
        axis.quiver(*tails.unbind(-1), *arrows.unbind(-1), scale=18, width=0.005, color="#d1495b", pivot="mid")
        axis.set(title=rf"$\sigma(t) = {sigma}$", xticks=[], yticks=[], aspect="equal")
    save(figure, path)


def forward_paths(sde, generator):
    """Paths (STEPS + 1, POINTS) of the forward SDE from data, by its exact transitions."""
    times = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
    modes = LINE.means[torch.multinomial(LINE.weights, POINTS, replacement=True, generator=generator), 0]
    states = [modes + LINE.std * torch.randn(POINTS, generator=generator, dtype=torch.float64)]
    for s, t in zip(times[:-1], times[1:], strict=True):
        a, b = sde.transition(s, t)
        states.append(a * states[-1] + b * torch.randn(POINTS, generator=generator, dtype=torch.float64))
    return times, torch.stack(states)


def sampled_paths(scheduler, start, generator):
    """Times and paths (K, POINTS) of a scheduler with the exact score; `start` (POINTS,) is standard normal."""
    scheduler.set_timesteps(STEPS)
    x = as_images(start[:, None] * scheduler.init_noise_sigma)
    times, states = [1.0], [x]
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(exact_output(scheduler, LINE, x), t, x, generator=generator).prev_sample
        if scheduler.at_grid_point:
            states.append(x)
            times.append(scheduler.times[k + 1].item() if k + 1 < len(scheduler.times) else 0.0)
    return torch.tensor(times, dtype=torch.float64), torch.stack(states)[:, :, 0, 0, 0]


def heat_map(axis, sde, reverse):
    """The densities p_t over time, from t = 0 to 1 or, in reverse, from 1 to 0; each column in units of its root."""
    t, x = torch.linspace(1e-4, 1, 300, dtype=torch.float64), torch.linspace(-HEIGHT, HEIGHT, 300).double()
    columns = torch.stack([density(LINE, sde, x[:, None], time) for time in t], 1).sqrt()
    axis.pcolormesh(t, x, columns, cmap="Blues", vmax=1.15, shading="gouraud", rasterized=True)
    axis.set(xlim=(1, 0) if reverse else (0, 1), ylim=(-HEIGHT, HEIGHT), xlabel="$t$", yticks=[])


def margin(axis, sde, t, samples):
    """The density at one time, sideways, with the histogram of what has arrived there."""
    x = torch.linspace(-HEIGHT, HEIGHT, 400, dtype=torch.float64)
    axis.hist(
        samples.numpy(), bins=90, range=(-HEIGHT, HEIGHT), density=True, orientation="horizontal", color="#9ecae1"
    )
    axis.plot(density(LINE, sde, x[:, None], t), x, color="#08519c", linewidth=1.4)
    axis.set(ylim=(-HEIGHT, HEIGHT), xticks=[], yticks=[])
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def forward_reverse(path):
    sde, generator = VPSDE(), torch.Generator().manual_seed(5)
    times, forward = forward_paths(sde, generator)
    euler = ScoreSdePredictorCorrectorScheduler(sde="vp", predictor="euler_maruyama", corrector="none")
    start = torch.randn(POINTS, generator=generator, dtype=torch.float64)
    back_times, backward = sampled_paths(euler, start, generator)
    figure, axes = plt.subplots(1, 5, figsize=(12, 3.4), width_ratios=(1, 5, 1, 5, 1), layout="constrained")
    for axis, reverse, t, x in ((axes[1], False, times, forward), (axes[3], True, back_times, backward)):
        heat_map(axis, sde, reverse)
        axis.plot(t, x[:, :PATHS], **PATH_STYLE)
    axes[1].set_title(r"forward:  $dx = f x\,dt + g\,dw$")
    axes[3].set_title(r"reverse:  $dx = [f x - g^2\,\nabla\log p_t(x)]\,dt + g\,d\bar w$")
    for axis, t, x, title in zip(
        axes[::2],
        (1e-4, 1.0, 1e-4),
        (forward[0], forward[-1], backward[-1]),
        ("data", "noise", "samples"),
        strict=True,
    ):
        margin(axis, sde, t, x)
        axis.set_title(title)
    save(figure, path)


def ode_versus_sde(path):
    sde, generator = VPSDE(), torch.Generator().manual_seed(1)
    start = torch.randn(POINTS, generator=generator, dtype=torch.float64)
    start[:PATHS] = torch.linspace(-1.8, 1.8, PATHS)
    samplers = {
        r"probability flow ODE:  $dx = [f x - \frac{1}{2} g^2\,\nabla\log p_t(x)]\,dt$": (
            ScoreSdeProbabilityFlowScheduler(sde="vp", time_grid="uniform")
        ),
        r"reverse SDE:  $dx = [f x - g^2\,\nabla\log p_t(x)]\,dt + g\,d\bar w$": (
            ScoreSdePredictorCorrectorScheduler(sde="vp", predictor="euler_maruyama", corrector="none")
        ),
    }
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), width_ratios=(5, 1, 5, 1), layout="constrained")
    for (wide, narrow), (title, scheduler) in zip(axes.reshape(2, 2), samplers.items(), strict=True):
        times, states = sampled_paths(scheduler, start, generator)
        heat_map(wide, sde, reverse=True)
        wide.plot(times, states[:, :PATHS], **PATH_STYLE)
        wide.set_title(title, fontsize=11)
        margin(narrow, sde, 1e-4, states[-1, PATHS:])
        narrow.set_title("samples")
    save(figure, path)


def save(figure, path):
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the figures are written")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        sdes(folder / "concept_sdes.png")
        score_field(folder / "concept_score_field.png")
        forward_reverse(folder / "concept_forward_reverse.png")
        ode_versus_sde(folder / "concept_ode_versus_sde.png")


if __name__ == "__main__":
    main()
