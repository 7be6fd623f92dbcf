"""A score network as a generative classifier: accuracy and calibration of `pipe.class_log_prob` on test images.

    OMP_NUM_THREADS=1 python benchmarks/generative_classifier.py OUTPUT_FOLDER [--model FOLDER] [--images 200]

By Bayes' rule p(class | x) is proportional to p(x | class), a likelihood for each class from the same dequantization
noise and the same probes. Likelihoods of d pixels add up d errors of the network, so that their differences are large
and the probabilities extreme: the same rule with log p(x | class) / T, T >= 1, has the same accuracy, and the T of
lowest cross-entropy on one half of the images is tried on the other (arXiv 1706.04599).

Interrupted, the same call goes on. Writes generative_classifier.json, .md (a table) and .png (calibration).
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from datasets import load_dataset
from numpy import stack
from side_by_side import write_results
from tqdm import tqdm

from sde_diffusers import ScoreSdePipeline
from sde_diffusers.weights_digest import weights_digest

ROOT = Path(__file__).resolve().parents[1]
NAME = "generative_classifier"
TEMPERATURES = [2 ** (k / 4) for k in range(33)]  # 1 to 256
BINS = 10


def calibration(log_probs: torch.Tensor, labels: torch.Tensor) -> dict:
    """Accuracy, cross-entropy and expected calibration error of (N, classes) log-probabilities, and its bins."""
    confidence, guesses = log_probs.exp().max(1)
    right = (guesses == labels).double()
    index = (confidence * BINS).long().clamp(max=BINS - 1)
    bins = [
        {"confidence": confidence[here].mean().item(), "accuracy": right[here].mean().item(), "images": len(here)}
        for here in (torch.nonzero(index == k).flatten() for k in range(BINS))
        if len(here)
    ]
    gap = sum(b["images"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / len(labels)
    accuracy = right.mean().item()
    return {
        "images": len(labels),
        "accuracy": accuracy,
        "standard_error": (accuracy * (1 - accuracy) / len(labels)) ** 0.5,
        "cross_entropy": -log_probs.gather(1, labels[:, None]).mean().item(),
        "calibration_error": gap,
        "bins": bins,
    }


def cooled(log_probs: torch.Tensor, temperature: float) -> torch.Tensor:
    return (log_probs / temperature).log_softmax(1)


def summary(log_probs: torch.Tensor, labels: torch.Tensor) -> dict:
    """As it is, and the second half of the images at the temperature that is best on the first."""
    half = len(labels) // 2
    best = min(TEMPERATURES, key=lambda t: calibration(cooled(log_probs[:half], t), labels[:half])["cross_entropy"])
    return {
        "as it is": calibration(log_probs, labels),
        "second half as it is": calibration(log_probs[half:], labels[half:]),
        "second half, cooled": calibration(cooled(log_probs[half:], best), labels[half:]) | {"temperature": best},
    }


def table(rows: dict) -> str:
    lines = ["| | images | accuracy | cross-entropy, nats | calibration error | temperature |", "|---" * 6 + "|"]
    for name, r in rows.items():
        cells = [name, r["images"], f"{r['accuracy']:.3f} ({r['standard_error']:.3f})", f"{r['cross_entropy']:.2f}"]
        cells += [f"{r['calibration_error']:.3f}", f"{r.get('temperature', 1):.3g}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def picture(rows: dict) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(5, 4.5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.7", lw=1)
    for name in ("as it is", "second half, cooled"):
        bins = rows[name]["bins"]
        (line,) = axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], marker="o", label=name)
        for b in bins:
            axes.annotate(b["images"], (b["confidence"], b["accuracy"]), (4, -11), textcoords="offset points",
                          color=line.get_color(), size=8)  # fmt: skip
    axes.set(xlabel="mean confidence (numbers: images)", ylabel="share that is right", xlim=(0, 1.05), ylim=(0, 1.05))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=ROOT / "pretrained" / "fashion-mnist-ve")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=0.05)
    options = parser.parse_args(arguments)
    pipe = ScoreSdePipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    settings = {"model": options.model.name, "network": weights_digest(pipe.unet)[:12], "batch": options.batch_size}
    settings |= {"tolerance": options.tolerance}
    path, found = options.folder / f"{NAME}.json", []
    if path.exists() and (earlier := json.loads(path.read_text()))["settings"] == settings:
        found = earlier["log_probs"]
    data = load_dataset(str(ROOT / "data" / "fashion_mnist"), split="test")[: options.images]
    images, labels = torch.from_numpy(stack(data["image"]))[:, None], torch.tensor(data["label"])
    for first in tqdm(range(len(found), len(images), options.batch_size), desc="Batches"):
        batch = images[first : first + options.batch_size]
        generators = [torch.Generator().manual_seed(first + k) for k in range(len(batch))]
        tolerances = {"rtol": options.tolerance, "atol": options.tolerance}
        found += pipe.class_log_prob(batch, generator=generators, **tolerances).tolist()
        log_probs = torch.tensor(found, dtype=torch.float64)
        rows = summary(log_probs, labels[: len(found)])
        results = {"settings": settings, "rows": rows, "log_probs": found}
        write_results(options.folder, NAME, results, table(rows), picture(rows))


if __name__ == "__main__":
    main()
