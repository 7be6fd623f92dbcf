"""One picture that shows an evaluation: samples, their nearest reference images, distances, tables and curves."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from evaluation.neighbors import Neighbors
from evaluation.samples import Samples
from evaluation.tables import Table
from images.loading import ImageData
from run.figures import image_grid
from run.log import read_metrics
from sde_diffusers.images import visible

WIDTH = 14.0  # inches, at 100 pixels each
PAIRS_IN_ROW = 20
SAMPLE_ROWS = 8
TITLE_WIDTH = 180  # characters

Block = tuple[float, Callable]  # height in inches, and what draws it into a sub-figure


def draw_page(
    title: str,
    tables: list[Table],
    samples: Samples | None,
    neighbors: Neighbors | None,
    reference: ImageData,
    bits_per_dim: Tensor | None,
    training_metrics: Path,
    shown: int,
) -> Figure:
    """The page.

    Args:
        title: says what was evaluated, and how.
        tables: of the results.
        samples, neighbors, bits_per_dim: None where not asked for.
        reference: the images that the neighbours are taken from.
        training_metrics: the training run's metrics.jsonl, if there is one.
        shown: number of samples with their neighbours.
    """
    blocks: list[Block] = [_tables_block(table) for table in tables]
    if samples is not None:
        blocks.append(_samples_block(samples))
    if neighbors is not None and shown:
        blocks.append(_neighbors_block(samples, neighbors, reference, shown))
    curves = []
    if neighbors is not None:
        curves.append(lambda axes: _distances_histogram(axes, neighbors))
    if bits_per_dim is not None and len(bits_per_dim) > 1:
        curves.append(lambda axes: _likelihood_histogram(axes, bits_per_dim))
    losses = [record for record in read_metrics(training_metrics) if "validation_loss" in record]
    if len(losses) > 1:
        curves.append(lambda axes: _loss_curve(axes, losses))
    if curves:
        blocks.append(_curves_block(curves))

    title = "\n".join(line for text in title.splitlines() for line in textwrap.wrap(text, TITLE_WIDTH))
    heights = [0.3 + 0.22 * title.count("\n"), *(height for height, _ in blocks)]
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=100)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    parts[0].text(0.01, 0.5, title, va="center", fontsize=10)
    for part, (_, draw) in zip(parts[1:], blocks, strict=True):
        draw(part)
    return figure


def _tables_block(table: Table) -> Block:
    height = 0.75 + 0.25 * (1 + len(table.rows)) + 0.2 * len(table.notes)

    def draw(figure):
        figure.suptitle(table.title, x=0.01, ha="left", fontsize=11)
        top, bottom = 1 - 0.4 / height, (0.1 + 0.2 * len(table.notes)) / height
        axes = figure.add_axes((0.01, bottom, 0.98, top - bottom))
        axes.axis("off")
        lengths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
        widths = [length / sum(lengths) for length in lengths]
        cells = axes.table(
            table.rows,
            colLabels=table.header,
            colWidths=widths,
            cellLoc="left",
            colLoc="left",
            bbox=(0, 0, 1, 1),
            edges="horizontal",
        )
        cells.auto_set_font_size(False)
        cells.set_fontsize(9)
        figure.text(0.01, 0.02, "\n".join(table.notes), fontsize=9)

    return height, draw


def _samples_block(samples: Samples) -> Block:
    """The first samples, a class to a column where the classes are balanced, as many columns as fit."""
    columns = 20
    count = min(len(samples.images), columns * SAMPLE_ROWS)
    grid = image_grid(visible(samples.pixels.to_unit(samples.images[:count])), columns)
    return _picture_block(grid, f"The first {count} of {len(samples.images):,} samples")


def _neighbors_block(samples: Samples, neighbors: Neighbors, reference: ImageData, shown: int) -> Block:
    count = min(shown, len(neighbors.sample_distances))
    nearest, _ = reference[neighbors.sample_indices[:count]]
    nearest, drawn = reference.pixels.to_unit(nearest), samples.pixels.to_unit(samples.images[:count])
    grid = image_grid(visible(torch.cat([drawn, nearest], dim=-2)), PAIRS_IN_ROW)  # one above the other
    columns, rows = min(PAIRS_IN_ROW, count), -(-count // PAIRS_IN_ROW)
    texts = [
        ((k % columns + 0.5) / columns, (k // columns + 1) / rows, f"{distance:.3g}")
        for k, distance in enumerate(neighbors.sample_distances[:count].tolist())
    ]
    title = f"Samples, below each its nearest reference image and their distance in {neighbors.space}"
    return _picture_block(grid, title, texts)


def _picture_block(picture: Image.Image, title: str, texts=()) -> Block:
    """A picture over the whole width, with texts at the given fractions (x, y from the top)."""
    picture_height = 0.98 * WIDTH * picture.height / picture.width
    height = picture_height + 0.45

    def draw(figure):
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        axes = figure.add_axes((0.01, 0.05 / height, 0.98, picture_height / height))
        axes.imshow(np.asarray(picture), aspect="auto")
        axes.axis("off")
        for x, y, text in texts:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
            axes.text(x, 1 - y, text, transform=axes.transAxes, ha="center", va="bottom", fontsize=7, bbox=box)

    return height, draw


def _curves_block(curves: list[Callable]) -> Block:
    def draw(figure):
        for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
            curve(axes)
        figure.subplots_adjust(left=0.05, right=0.98, top=0.9, bottom=0.15)

    return 4.0, draw


def _distances_histogram(axes, neighbors: Neighbors) -> None:
    test = neighbors.sample_distances[:0] if neighbors.test_distances is None else neighbors.test_distances
    both = torch.cat([neighbors.sample_distances, test])
    bins = np.linspace(0, both.max().item() * 1.02 or 1.0, 50)  # where all are copies, all distances are 0
    kinds = (("samples", neighbors.sample_distances), ("test images", test))
    for (label, distances), color in zip(kinds, ("tab:blue", "tab:orange"), strict=True):
        if len(distances):
            label = f"{len(distances):,} {label}"
            axes.hist(distances.numpy(), bins, density=True, alpha=0.5, color=color, label=label)
    axes.set(xlabel=f"distance to the nearest reference image in {neighbors.space}", ylabel="density")
    axes.legend()


def _likelihood_histogram(axes, bits_per_dim: Tensor) -> None:
    axes.hist(bits_per_dim.numpy(), min(50, len(bits_per_dim)), color="tab:green", alpha=0.6)
    axes.axvline(bits_per_dim.mean().item(), color="black", label=f"mean {bits_per_dim.mean().item():.3f}")
    axes.set(xlabel="bits/dim of a test image", ylabel="images")
    axes.legend()


def _loss_curve(axes, records: list[dict]) -> None:
    axes.plot([r["step"] for r in records], [r["validation_loss"] for r in records], "o-", markersize=3)
    axes.set(xlabel="step of training", ylabel="validation loss")
    axes.grid(alpha=0.3)
