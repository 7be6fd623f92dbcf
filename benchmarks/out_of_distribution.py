"""Which images are unusual to a score network: six scores, and where each of them fails.

    OMP_NUM_THREADS=1 python benchmarks/out_of_distribution.py OUTPUT_FOLDER [--images 64] [--cifar10 PATH_OR_ID]

The network knows Fashion-MNIST. Its test images are told from others by

    bits/dim              more is more unusual: the first idea, known to fail on smooth images (arXiv 1810.09136)
    typicality            |bits/dim - mean bits/dim of training images| (arXiv 1906.02994, one image)
    score norms           distance of log(s |score at noise s|), s = 0.01 ... 10, of the image without noise, from
                          that of training images, in their covariance (Mahalanobis; arXiv 2010.13132)
    reconstruction error  |denoised - x|^2 over that of training images, mean over noise levels (arXiv 2211.07740)
    the same at noise 2   at the highest of these levels alone: a fourth of the evaluations
    bits less PNG's       bits/dim - those of a lossless coder, which knows how complex an image is, and nothing of
                          garments (arXiv 1909.11480)

AUC: the probability that an unusual image has a higher score than a test image; 0.5 is chance, and below it the score
takes the unusual for the more usual. Needs scikit-learn, which ships the digits. Interrupted, the same call goes on.
Writes out_of_distribution.json, .md (a table) and .png (ROC curves).
"""

import argparse
import json
import math
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from datasets import load_dataset
from numpy import asarray, stack
from PIL import Image
from side_by_side import write_results
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

from sde_diffusers import ScoreSdePipeline
from sde_diffusers.weights_digest import weights_digest

ROOT = Path(__file__).resolve().parents[1]
NAME = "out_of_distribution"
REFERENCE, TEST = "training images", "test images"
NORM_LEVELS = [10 ** (k / 3 - 2) for k in range(10)]
RECONSTRUCTION_LEVELS = (0.25, 0.5, 1.0, 2.0)
NOISE_DRAWS = 4
BATCH = 16


def garments(split: str, count: int) -> Tensor:
    images = load_dataset(str(ROOT / "data" / "fashion_mnist"), split=split)[:count]["image"]
    return torch.from_numpy(stack([asarray(image) for image in images]))[:, None]


def gray(pictures) -> Tensor:
    return torch.from_numpy(stack([asarray(p.convert("L").resize((28, 28), Image.BICUBIC)) for p in pictures]))[
        :, None
    ]


def image_sets(count: int, cifar10: str) -> dict[str, Tensor]:
    """{name: (count, 1, 28, 28) uint8}; of training images more, whose first ones get a likelihood."""
    test = garments("test", count)
    digits = [Image.fromarray((image * 255 / 16).round().astype("uint8")) for image in load_digits().images[:count]]
    return {
        REFERENCE: garments("train", 6 * count),
        TEST: test,
        "handwritten digits": gray(digits),
        "CIFAR-10 in gray": gray(load_dataset(cifar10, split="test")[:count]["img"]),
        "noise": torch.randint(256, test.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8),
        "inverted": 255 - test,
        "shifted by 7": test.roll((7, 7), (2, 3)),
    }


# Scores.


def bits(pipe, images: Tensor, tolerance: float) -> list[float]:
    generators = [torch.Generator().manual_seed(k) for k in range(len(images))]
    return pipe.bits_per_dim(images, generator=generators, rtol=tolerance, atol=tolerance).bits_per_dim.tolist()


def coder_bits(image: Tensor) -> float:
    """Bits/dim of PNG, without what it needs for an image of one gray."""

    def size(picture):
        Image.fromarray(picture).save(buffer := BytesIO(), "PNG", optimize=True)
        return len(buffer.getvalue())

    picture = image[0].numpy()
    return 8 * (size(picture) - size(0 * picture)) / picture.size


def denoised(pipe, x: Tensor, level: float) -> Tensor:
    t = pipe.scheduler.sde.inverse_half_log_snr(-torch.tensor(level, dtype=torch.float64).log())
    return torch.cat([pipe.denoise(part, t.item()) for part in x.split(BATCH)])


def log_norms(pipe, x: Tensor) -> Tensor:
    """(N, levels)."""
    return torch.stack(
        [((x - denoised(pipe, x, s)) / s).flatten(1).norm(dim=1).log() for s in NORM_LEVELS], 1
    ).double()


def reconstruction_errors(pipe, x: Tensor) -> Tensor:
    """(N, levels); the noise is the same for all sets."""
    generator, errors = torch.Generator().manual_seed(0), []
    for level in RECONSTRUCTION_LEVELS:
        noise = torch.randn(NOISE_DRAWS, *x.shape[1:], generator=generator)
        noisy = (x[:, None] + level * noise).flatten(0, 1)
        error = (denoised(pipe, noisy, level).unflatten(0, (len(x), NOISE_DRAWS)) - x[:, None]).square()
        errors.append(error.flatten(1).mean(1))
    return torch.stack(errors, 1).double()


def measure(pipe, images: Tensor, found: dict, options, save) -> None:
    """Complete the raw numbers of one set."""
    found.setdefault("bits", [])
    for first in range(len(found["bits"]), options.images, BATCH):
        found["bits"] += bits(pipe, images[first : min(first + BATCH, options.images)], options.tolerance)
        save()
    x = images.float() / 127.5 - 1
    found["coder"] = [coder_bits(image) for image in images]
    if "norms" not in found:
        found["norms"] = log_norms(pipe, x).tolist()
        found["errors"] = reconstruction_errors(pipe, x).tolist()
        save()


def scores(found: dict, reference: dict) -> dict[str, Tensor]:
    """{name: (N,), more for the unusual}."""

    def numbers(key, of):
        return torch.tensor(of[key], dtype=torch.float64)

    usual, away = numbers("norms", reference), numbers("norms", found)
    away = away - usual.mean(0)
    return {
        "bits/dim": numbers("bits", found),
        "typicality": (numbers("bits", found) - numbers("bits", reference).mean()).abs(),
        "score norms": (away @ torch.linalg.inv(usual.T.cov()) * away).sum(1).sqrt(),
        "reconstruction error": (numbers("errors", found) / numbers("errors", reference).mean(0)).mean(1),
        "the same at noise 2": numbers("errors", found)[:, RECONSTRUCTION_LEVELS.index(2.0)],
        "bits less PNG's": numbers("bits", found) - numbers("coder", found),
    }


# Results.


def area(usual: Tensor, unusual: Tensor) -> tuple[float, float]:
    """Area under the ROC curve and its standard error (Hanley and McNeil, 1982)."""
    difference = unusual[:, None] - usual
    a = ((difference > 0).double() + 0.5 * (difference == 0)).mean().item()
    q_1, q_2, m, n = a / (2 - a), 2 * a**2 / (1 + a), len(unusual), len(usual)
    return a, math.sqrt((a * (1 - a) + (m - 1) * (q_1 - a**2) + (n - 1) * (q_2 - a**2)) / (m * n))


def roc(usual: Tensor, unusual: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the usual and of the unusual that lie above each threshold."""
    thresholds = torch.cat([usual, unusual]).sort(descending=True).values
    above = [torch.cat([torch.zeros(1), (v >= thresholds[:, None]).float().mean(1)]) for v in (usual, unusual)]
    return above[0], above[1]


def table(areas: dict, means: dict) -> str:
    names = list(next(iter(areas.values())))
    lines = [f"| | mean bits/dim | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for unusual, row in areas.items():
        cells = [f"{a:.2f} ({error:.2f})" for a, error in row.values()]
        lines.append(f"| {unusual} | {means[unusual]:.2f} | {' | '.join(cells)} |")
    lines.append(f"| {TEST} | {means[TEST]:.2f} | {' | '.join([''] * len(names))} |")
    return "\n".join(lines) + "\n"


def picture(of_sets: dict[str, dict[str, Tensor]]) -> plt.Figure:
    names = [name for name in of_sets if name != TEST]
    figure, axes = plt.subplots(1, len(names), figsize=(3 * len(names), 3.2), sharey=True, layout="constrained")
    for ax, name in zip(axes, names, strict=True):
        for score, values in of_sets[name].items():
            ax.plot(*roc(of_sets[TEST][score], values), label=score)
        ax.plot([0, 1], [0, 1], color="0.8", lw=1, zorder=0)
        ax.set(title=name, xlabel="test images above", aspect="equal")
    axes[0].set_ylabel("unusual ones above")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=ROOT / "pretrained" / "fashion-mnist-ve")
    parser.add_argument("--images", type=int, default=64, help="of each kind")
    parser.add_argument("--cifar10", default="uoft-cs/cifar10", help="a folder in the Hub's layout, or an id")
    parser.add_argument("--tolerance", type=float, default=0.01)
    options = parser.parse_args(arguments)
    pipe = ScoreSdePipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    settings = {"model": options.model.name, "network": weights_digest(pipe.unet)[:12], "images": options.images}
    settings |= {"tolerance": options.tolerance, "norm_levels": NORM_LEVELS}
    path, found = options.folder / f"{NAME}.json", {}
    if path.exists() and (earlier := json.loads(path.read_text()))["settings"] == settings:
        found = earlier["found"]

    def save(**more):
        write_results(options.folder, NAME, {"settings": settings, **more, "found": found})

    for name, images in tqdm(image_sets(options.images, options.cifar10).items(), desc="Sets"):
        measure(pipe, images, found.setdefault(name, {}), options, save)
    of_sets = {name: scores(values, found[REFERENCE]) for name, values in found.items() if name != REFERENCE}
    areas = {
        name: {score: area(of_sets[TEST][score], values[score]) for score in values}
        for name, values in of_sets.items()
        if name != TEST
    }
    means = {name: sum(values["bits"]) / len(values["bits"]) for name, values in found.items()}
    results = {"settings": settings, "areas": areas, "mean_bits_per_dim": means, "found": found}
    write_results(options.folder, NAME, results, table(areas, means), picture(of_sets))


if __name__ == "__main__":
    main()
