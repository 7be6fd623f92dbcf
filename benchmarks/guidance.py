"""Accuracy and Frechet distance of guided Fashion-MNIST images against the guidance scale.

    OMP_NUM_THREADS=1 python benchmarks/guidance.py PIPELINE_FOLDER CLASSIFIER_FOLDER OUTPUT_FOLDER

A class-conditional network draws the same classes from the same latents

    classifier-free            (1 - w) s(x) + w s(x | y), at all noise levels
    classifier-free, interval  the same with w between two noise levels only
    classifier                 s(x) + w grad log p_t(y | x), the network being asked without the class

where w = 1 is sampling from p(x | y) each time, once by the network and once by Bayes' rule. Accuracy is the share of
images whose class is found by the classifier `pretrained/fashion-mnist-features`: it knows clean images only and
shares nothing with the guiding one, but it is also the network in whose features the Frechet distance to the 60,000
training images is taken (95 % bootstrap intervals). That distance depends on the number of images: as many real test
images show what so few can reach.

Images are kept in OUTPUT_FOLDER/images as they are drawn, so that a second call goes on where the first one was
interrupted. Writes guidance.json, .md (a table) and .png into OUTPUT_FOLDER, after each row.
"""

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from accelerate import Accelerator
from sampler_distances import Judge
from side_by_side import earlier_rows, write_results

from sde_diffusers import NoiseConditionalClassifier, ScoreSdeExponentialScheduler, ScoreSdePipeline
from sde_diffusers.weights_digest import weights_digest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "training"))
from evaluation.feature_networks import load_classifier  # noqa: E402
from evaluation.shards import compute_in_shards  # noqa: E402
from images.loading import load_images  # noqa: E402
from images.sources import EMBEDDED_FASHION_MNIST  # noqa: E402

CLASSES, BATCH = 10, 100
FREE, INTERVAL, CLASSIFIER = "classifier-free", "classifier-free, interval", "classifier"
SCALES = {FREE: (0.0, 1.0, 1.5, 2.0, 4.0), CLASSIFIER: (1.0, 2.0, 4.0), INTERVAL: (2.0, 4.0)}
LEVELS = (0.3, 5.0)  # of images in [-1, 1]


@dataclass(frozen=True)
class Setting:
    """A kind of guidance and its scale."""

    kind: str
    scale: float

    @property
    def arguments(self):
        if self.kind == CLASSIFIER:
            return {"guidance_scale": 0.0, "classifier_scale": self.scale}
        return {"guidance_scale": self.scale, "guidance_interval": LEVELS if self.kind == INTERVAL else None}

    @property
    def folder(self):
        return f"{self.kind.replace(', ', '-')}-{self.scale:g}"


def drawn(pipe, setting, steps, samples, folder, description, accelerator):
    """(N, C, H, W) uint8 images of one setting, with evaluations and processor seconds for each."""

    def compute(part):
        # Latents depend on the images' numbers alone: the same for every setting.
        shape = (len(part), pipe.unet.config.in_channels, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(part.start))
        labels = torch.tensor(part) % CLASSES
        began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            output = pipe(
                len(part), steps, latents=latents, output_type="pt", **{"class_labels": labels, **setting.arguments}
            )
        seconds = torch.full((len(part),), (time.process_time() - began) / len(part))
        images = (output.images * 255).round().byte()
        return {"images": images, "nfe": torch.full((len(part),), output.nfe), "seconds": seconds}

    description = description | {"setting": asdict(setting), "arguments": setting.arguments}
    return compute_in_shards(
        compute, folder / "images" / setting.folder, description, samples, BATCH, accelerator, setting.folder
    )


def judged(images, judge, head):
    """Accuracy with its standard error, and Frechet distance with its interval."""
    with torch.inference_mode():
        found = head(judge.network(images)).argmax(1)
    accuracy = (found == torch.arange(len(images)) % CLASSES).float().mean().item()
    return {
        "images": len(images),
        "accuracy": accuracy,
        "error": (accuracy * (1 - accuracy) / len(images)) ** 0.5,
    } | judge(images)


def real_images(samples):
    """Test images, as many of each class, classes in turn: `samples`, or as many as there are, if that is less."""
    data = load_images(str(EMBEDDED_FASHION_MNIST), "test")
    of_class = [data.images[data.labels == k] for k in range(CLASSES)]
    count = min(samples // CLASSES, *map(len, of_class))
    return torch.stack([images[:count] for images in of_class], 1).flatten(0, 1)


def table(results):
    lines = ["| guidance | scale | accuracy, % | Frechet distance | evaluations | ms an image |", "|---" * 6 + "|"]
    for r in [*results["rows"], {"kind": f"{results['real']['images']:,} real test images", **results["real"]}]:
        cells = [r["kind"], f"{r['scale']:g}" if "scale" in r else ""]
        cells += [f"{100 * r['accuracy']:.1f} +- {100 * r['error']:.1f}"]
        cells += [f"{r['frechet']:.2f} ({r['low']:.2f} to {r['high']:.2f})"]
        cells += [str(r["nfe"]), f"{1000 * r['cpu_s_per_image']:.0f}"] if "nfe" in r else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(results):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for kind in SCALES:
        rows = sorted((r for r in results["rows"] if r["kind"] == kind), key=lambda r: r["scale"])
        scales = [r["scale"] for r in rows]
        accuracy, errors = ([100 * r[name] for r in rows] for name in ("accuracy", "error"))
        axes[0].errorbar(scales, accuracy, yerr=errors, marker="o", capsize=3, label=kind)
        distances = [r["frechet"] for r in rows]
        bounds = [[r["frechet"] - r["low"] for r in rows], [r["high"] - r["frechet"] for r in rows]]
        axes[1].errorbar(scales, distances, yerr=bounds, marker="o", capsize=3, label=kind)
    for axis, value, name in zip(
        axes,
        (100 * results["real"]["accuracy"], results["real"]["frechet"]),
        ("accuracy of an independent classifier, %", "Frechet distance"),
        strict=True,
    ):
        axis.axhline(value, color="0.6", linewidth=1, label="real test images")
        axis.set(xlabel="guidance scale", ylabel=name)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder of a saved class-conditional pipeline")
    parser.add_argument("classifier", help="folder of a noise-conditional classifier")
    parser.add_argument("folder", type=Path, help="where images and results are kept")
    parser.add_argument("--samples", type=int, default=500, help="images of each row, a multiple of 10")
    parser.add_argument("--steps", type=int, default=12, help="of the ODE's solver of order 3, an evaluation each")
    parser.add_argument("--kinds", nargs="*", default=list(SCALES), choices=list(SCALES), help="rows to draw")
    args = parser.parse_args()
    judge = Judge()
    if args.samples % CLASSES or args.samples <= judge.network.dimension:
        parser.error(
            f"--samples must be a multiple of {CLASSES} above the {judge.network.dimension} features, "
            f"but is {args.samples}"
        )
    head = load_classifier(ROOT / "pretrained" / "fashion-mnist-features")[0].head

    pipe = ScoreSdePipeline.from_pretrained(args.pipeline)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = ScoreSdeExponentialScheduler.from_config(pipe.scheduler.config, solver_order=3, eta=0.0)
    pipe.unet.to(memory_format=torch.channels_last)
    description = {"network": weights_digest(pipe.unet)[:8], "steps": args.steps, "torch": torch.__version__}
    description["solver_order"] = pipe.scheduler.config.solver_order
    accelerator = Accelerator(cpu=True)
    settings = {**description, "samples": args.samples, "interval": LEVELS}
    rows = [r for r in earlier_rows(args.folder, "guidance", settings) if r["kind"] not in args.kinds]
    results = {**settings, "rows": rows, "real": judged(real_images(args.samples), judge, head)}
    args.folder.mkdir(parents=True, exist_ok=True)
    for kind in args.kinds:
        if kind == CLASSIFIER:
            pipe.classifier = NoiseConditionalClassifier.from_pretrained(args.classifier)
            pipe.classifier.to(memory_format=torch.channels_last)
            description["classifier"] = weights_digest(pipe.classifier)[:8]
        else:
            description.pop("classifier", None)
        for scale in SCALES[kind]:
            setting = Setting(kind, scale)
            parts = drawn(pipe, setting, args.steps, args.samples, args.folder, description, accelerator)
            cost = {"nfe": parts["nfe"][0].item(), "cpu_s_per_image": parts["seconds"].mean().item()}
            rows.append(asdict(setting) | cost | judged(parts["images"], judge, head))
            write_results(args.folder, "guidance", results, table(results), plot(results))
    print(table(results))


if __name__ == "__main__":
    main()
