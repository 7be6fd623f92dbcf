"""Pictures of a training run: grids of samples, what the SDE does to an image, curves of loss and accuracy."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from sde_diffusers import Parameterization

SMALLEST_TILE = 64  # pixels; smaller images are enlarged by a whole factor


def image_grid(images: Tensor, columns: int) -> Image.Image:
    """Images (N, C, H, W) in [0, 1], row by row, as one picture."""
    factor = -(-SMALLEST_TILE // min(images.shape[-2:]))
    tiles = images.float().cpu().clamp(0, 1).repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    pixels = make_grid(tiles, nrow=columns, padding=2, pad_value=1.0)
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())


def noising_strip(images: Tensor, parameterization: Parameterization, columns: int = 9) -> Image.Image:
    """Images (N, C, H, W) in [0, 1] on their way to the prior: one row each, t from 0 to 1 from left to right.

    Each x_t is divided by its scale, so that signal and noise show in their true ratio at every t.
    """
    low, high = parameterization.image_range
    sde, half_range = parameterization.sde, (high - low) / 2
    times = torch.linspace(0, 1, columns, dtype=torch.float64).clamp(min=sde.smallest_time)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strip = []
    for alpha, sigma in zip(sde.alpha(times), sde.sigma(times) / half_range, strict=True):
        x = alpha * (2 * images - 1) + sigma * noise
        strip.append((x / (alpha**2 + sigma**2).sqrt() + 1) / 2)
    grid = image_grid(torch.stack(strip, 1).flatten(0, 1), columns)

    figure = Figure(figsize=(grid.width / 100 + 0.2, grid.height / 100 + 0.7), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.asarray(grid))
    names = [f"t = {t:.2f}\n$\\sigma$ = {sigma:.3g}" for t, sigma in zip(times, sde.sigma(times), strict=True)]
    axes.set_xticks((torch.arange(columns) + 0.5).mul(grid.width / columns).tolist(), names, fontsize=7)
    axes.set_yticks([])
    return _picture(figure)


def loss_curve(
    steps: Sequence[int],
    losses: Sequence[float],
    validation_steps: Sequence[int],
    validation_losses: Sequence[float],
) -> Image.Image:
    """Training loss (raw and smoothed) and validation loss over the steps."""
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8)
    axes.plot(steps, _smoothed(losses), color="tab:blue", label="training, raw weights (smoothed)")
    if len(validation_steps):
        axes.plot(validation_steps, validation_losses, "o-", color="tab:orange", markersize=3, label="validation, EMA")
    values = np.array([*losses, *validation_losses])
    if len(values) and (values > 0).all():
        axes.set_yscale("log")
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter("{x:.3g}")
        # An untrained network's loss would leave the rest of the curve a line at the bottom.
        axes.set_ylim(0.95 * values.min(), 1.1 * min(values.max(), 5 * np.median(values)))
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return _picture(figure)


def accuracy_curve(noise_levels: Sequence[float], accuracies: Sequence[float], chance: float) -> Image.Image:
    """Accuracy of a classifier against the noise level of images in [0, 1]; `chance` is that of a guess."""
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot(noise_levels, accuracies, "o-", color="tab:blue", markersize=4, label="validation, EMA")
    axes.axhline(chance, color="0.5", linestyle="--", label="a guess")
    axes.set(xscale="log", ylim=(0, 1), xlabel="noise level (images in [0, 1])", ylabel="accuracy")
    axes.grid(alpha=0.3)
    axes.legend()
    return _picture(figure)


def noise_level_curves(levels: Sequence[float], losses: dict[int, Sequence[float | None]]) -> Image.Image:
    """Loss against the noise level s = sigma / alpha, one line for each step, from light to dark."""
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    shades = np.linspace(0.25, 1.0, len(losses))
    for shade, (step, values) in zip(shades, losses.items(), strict=True):
        known = [(level, value) for level, value in zip(levels, values, strict=True) if value is not None]
        label = f"step {step:,}" if step in (min(losses), max(losses)) else None
        axes.plot(*zip(*known, strict=True), "o-", color="tab:orange", alpha=shade, markersize=3, label=label)
    axes.set(xscale="log", yscale="log", xlabel="noise level sigma / alpha", ylabel="validation loss, EMA")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return _picture(figure)


def distance_curves(steps: Sequence[int], distances: dict[str, Sequence[float]]) -> Image.Image:
    """Distances of samples, by their names, over the steps: one panel each."""
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(distances), squeeze=False)[0]
    for axes, (name, values) in zip(panels, distances.items(), strict=True):
        axes.plot(steps, values, "o-", color="tab:green", markersize=3)
        axes.set(xlabel="step", ylabel=f"{name} of samples, EMA", yscale="log" if min(values) > 0 else "linear")
        axes.grid(alpha=0.3, which="both")
    return _picture(figure)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average over about a thirtieth of the values, without bias at the start."""
    span = max(len(values) / 30, 1.0)
    mean = weight = 0.0
    smoothed = []
    for value in values:
        mean, weight = mean + (value - mean) / span, weight + (1 - weight) / span
        smoothed.append(mean / weight)
    return smoothed


def _picture(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
