"""Frechet distance of Fashion-MNIST images that a weaker network guides, against the scale of its guidance.

    OMP_NUM_THREADS=1 python benchmarks/autoguidance.py PIPELINE_FOLDER GUIDE_FOLDER OUTPUT_FOLDER

A class-conditional network draws the same classes from the same latents, with few evaluations of the ODE, by

    autoguidance              v s(x | y) + (1 - v) g(x | y), with the score g of the weaker network
    autoguidance, no class    v s(x) + (1 - v) g(x)
    classifier-free           w s(x | y) + (1 - w) s(x)

where scale 1 is the network itself, and scale 0 what it is guided away from (the weaker network, or the network asked
without the class). Distances, accuracy and the way that interrupted calls go on: see `guidance.py`.

Writes autoguidance.json, .md (a table) and .png into OUTPUT_FOLDER, after each row.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from accelerate import Accelerator
from guidance import CLASSES, ROOT, drawn, judged, load_classifier, real_images
from sampler_distances import Judge
from side_by_side import earlier_rows, write_results

from sde_diffusers import NCSNppUNet2DModel, ScoreSdeExponentialScheduler, ScoreSdePipeline
from sde_diffusers.weights_digest import weights_digest

AUTO, NO_CLASS, FREE = "autoguidance", "autoguidance, no class", "classifier-free"
SCALES = {
    AUTO: (0.0, 1.0, 1.25, 1.5, 2.0, 3.0),
    NO_CLASS: (0.0, 1.0, 1.25, 1.5, 2.0, 3.0),
    FREE: (1.25, 1.5, 2.0, 3.0),
}


@dataclass(frozen=True)
class Setting:
    """A kind of guidance and its scale."""

    kind: str
    scale: float

    @property
    def arguments(self):
        if self.kind == FREE:
            return {"guidance_scale": self.scale}
        return {"guide_scale": self.scale} | ({"class_labels": None} if self.kind == NO_CLASS else {})

    @property
    def folder(self):
        return f"{self.kind.replace(', ', '-').replace(' ', '-')}-{self.scale:g}"


def table(results):
    lines = ["| guidance | scale | Frechet distance | accuracy, % | evaluations | ms an image |", "|---" * 6 + "|"]
    for r in [*results["rows"], {"kind": f"{results['real']['images']:,} real test images", **results["real"]}]:
        cells = [r["kind"], f"{r['scale']:g}" if "scale" in r else ""]
        cells += [f"{r['frechet']:.3f} ({r['low']:.3f} to {r['high']:.3f})"]
        cells += ["" if r["kind"] == NO_CLASS else f"{100 * r['accuracy']:.1f} ± {100 * r['error']:.1f}"]
        cells += [str(r["nfe"]), f"{1000 * r['cpu_s_per_image']:.0f}"] if "nfe" in r else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(results):
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for kind in SCALES:
        start = (AUTO if kind == FREE else kind, 1.0)  # the network itself
        rows = [r for r in results["rows"] if r["kind"] == kind and r["scale"] > 1 or (r["kind"], r["scale"]) == start]
        if len(rows) < 2:  # not drawn, or not yet
            continue
        rows.sort(key=lambda r: r["scale"])
        distances = [r["frechet"] for r in rows]
        bounds = [[r["frechet"] - r["low"] for r in rows], [r["high"] - r["frechet"] for r in rows]]
        axis.errorbar([r["scale"] for r in rows], distances, yerr=bounds, marker="o", capsize=3, label=kind)
    axis.axhline(results["real"]["frechet"], color="0.6", linewidth=1, label="real test images")
    axis.set(xlabel="scale (1: the network itself)", ylabel="Frechet distance", yscale="log")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder of a saved class-conditional pipeline")
    parser.add_argument("guide", help="folder of a weaker network of the same kind")
    parser.add_argument("folder", type=Path, help="where images and results are kept")
    parser.add_argument("--samples", type=int, default=1000, help="images of each row, a multiple of 10")
    parser.add_argument("--steps", type=int, default=12, help="of the ODE's solver of order 3, an evaluation each")
    parser.add_argument("--kinds", nargs="*", default=list(SCALES), choices=list(SCALES), help="rows to draw")
    args = parser.parse_args(arguments)
    judge = Judge()
    if args.samples % CLASSES or args.samples <= judge.network.dimension:
        parser.error(
            f"--samples must be a multiple of {CLASSES} above the {judge.network.dimension} features, "
            f"but is {args.samples}"
        )
    head = load_classifier(ROOT / "pretrained" / "fashion-mnist-features")[0].head

    guide = NCSNppUNet2DModel.from_pretrained(args.guide)
    pipe = ScoreSdePipeline.from_pretrained(args.pipeline, guide=guide)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = ScoreSdeExponentialScheduler.from_config(pipe.scheduler.config, solver_order=3, eta=0.0)
    for network in (pipe.unet, pipe.guide):
        network.to(memory_format=torch.channels_last)
    digests = {"network": weights_digest(pipe.unet)[:8], "guide": weights_digest(pipe.guide)[:8]}
    description = {**digests, "steps": args.steps, "torch": torch.__version__}
    accelerator = Accelerator(cpu=True)
    settings = {**description, "samples": args.samples}
    rows = [r for r in earlier_rows(args.folder, "autoguidance", settings) if r["kind"] not in args.kinds]
    results = {**settings, "rows": rows, "real": judged(real_images(args.samples), judge, head)}
    args.folder.mkdir(parents=True, exist_ok=True)
    for kind in args.kinds:
        for scale in SCALES[kind]:
            setting = Setting(kind, scale)
            parts = drawn(pipe, setting, args.steps, args.samples, args.folder, description, accelerator)
            cost = {"nfe": parts["nfe"][0].item(), "cpu_s_per_image": parts["seconds"].mean().item()}
            rows.append(asdict(setting) | cost | judged(parts["images"], judge, head))
            write_results(args.folder, "autoguidance", results, table(results), plot(results))
    print(table(results))


if __name__ == "__main__":
    main()
