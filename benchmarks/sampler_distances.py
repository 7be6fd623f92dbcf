"""Frechet distance of every sampler's images on a trained Fashion-MNIST network, against network evaluations.

    OMP_NUM_THREADS=1 python benchmarks/sampler_distances.py PIPELINE_FOLDER OUTPUT_FOLDER

Every sampler draws the same classes from the same latents with 10, 20 and 50 evaluations of the network, and the
paper's predictor-corrector also with 200, 1,000 and 2,000. The distance is taken in the features of the classifier
`pretrained/fashion-mnist-features`, to its 60,000 training images, with 95 % bootstrap intervals. It depends on the
number of images: as many real test images show what so few can reach at all.

The images of each row are kept as they are drawn, batch by batch, in OUTPUT_FOLDER/images: a second call goes on where
the first one was interrupted, and several calls can share the work, each with its own --only.
The network computes in bfloat16 where that is measured to be faster; the samplers' state is float32.

Writes sampler_distances.json, .md (a table) and .png into OUTPUT_FOLDER, after each row.
"""

import argparse
import contextlib
import fnmatch
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from side_by_side import write_results
from tqdm import tqdm

from sde_diffusers import (
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
)
from sde_diffusers.weights_digest import weights_digest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from evaluation.distances import FeatureStatistics, bootstrap_frechet, frechet_distance  # noqa: E402
from evaluation.feature_networks import load_feature_network, shipped_statistics_path  # noqa: E402
from images.loading import load_images  # noqa: E402
from images.sources import EMBEDDED_FASHION_MNIST  # noqa: E402

FEW_STEPS, MANY_STEPS = (10, 20, 50), (200, 1000, 2000)
CLASSES = 10
EXPONENTIAL, FLOW, CORRECTED = (
    ScoreSdeExponentialScheduler,
    ScoreSdeProbabilityFlowScheduler,
    ScoreSdePredictorCorrectorScheduler,
)
ODE = {"solver_order": 3, "eta": 0.0, "algorithm": "data"}
HEUN = {"method": "heun", "s_churn": 0.0, "s_min": 0.0, "s_max": None, "s_noise": 1.0}
PAPER = {"predictor": "reverse_diffusion", "corrector": "langevin", "snr": 0.16, "corrector_steps": 1}
UNCORRECTED = {**PAPER, "corrector": "none"}
PAPER_NAME = "Predictor-corrector"
# Name: class, options (all of the sampler's own: a saved configuration may hold others), evaluations of n steps.
SAMPLERS = {
    "Exponential, order 3": (EXPONENTIAL, ODE, lambda n: n),
    "Exponential, order 2": (EXPONENTIAL, {**ODE, "solver_order": 2}, lambda n: n),
    "Exponential, noise form": (EXPONENTIAL, {**ODE, "algorithm": "noise"}, lambda n: n),
    "Heun": (FLOW, HEUN, lambda n: 2 * n - 1),
    "Euler (DDIM)": (FLOW, {**HEUN, "method": "euler"}, lambda n: n),
    "Exponential SDE, order 2": (EXPONENTIAL, {**ODE, "solver_order": 2, "eta": 1.0}, lambda n: n),
    "Exponential SDE, order 3": (EXPONENTIAL, {**ODE, "eta": 1.0}, lambda n: n),
    "Exponential SDE, order 2, eta 1.7": (EXPONENTIAL, {**ODE, "solver_order": 2, "eta": 1.7}, lambda n: n),
    "Heun, churn": (FLOW, {**HEUN, "s_churn": 10.0}, lambda n: 2 * n - 1),
    "Ancestral": (CORRECTED, {**UNCORRECTED, "predictor": "ancestral"}, lambda n: n),
    "Reverse diffusion": (CORRECTED, UNCORRECTED, lambda n: n),
    "Euler-Maruyama": (CORRECTED, {**UNCORRECTED, "predictor": "euler_maruyama"}, lambda n: n),
    PAPER_NAME: (CORRECTED, PAPER, lambda n: 2 * n),
}


def sampler(name, budget, config):
    """The scheduler, with its default time grid, and the most steps that `budget` evaluations allow."""
    cls, options, evaluations = SAMPLERS[name]
    scheduler = cls.from_config(config, time_grid=None, final_denoise=None, sampling_sde=None, **options)
    return scheduler, max(n for n in range(1, budget + 1) if n == 1 or evaluations(n) <= budget)


@dataclass(frozen=True)
class Row:
    """A sampler with a budget of network evaluations."""

    name: str
    budget: int

    @property
    def folder(self):
        words = "".join(c if c.isalnum() else " " for c in self.name.lower()).split()
        return f"{'-'.join(words)}-{self.budget}"


def all_rows():
    """Cheap ones first."""
    few = [Row(name, budget) for budget in FEW_STEPS for name in SAMPLERS]
    return few + [Row(PAPER_NAME, budget) for budget in MANY_STEPS]


# Images.


def classes(unet, start, end):
    """The classes of images `start` to `end`; None for a network without classes."""
    return torch.arange(start, end) % CLASSES if unet.config.num_class_embeds else None


def faster_precision(unet, shape):
    """Name and context of bfloat16 autocast if the network is faster in it than in float32, else of float32."""
    device, labels = unet.device, classes(unet, 0, shape[0])
    x, t, labels = (
        torch.zeros(shape, device=device),
        torch.tensor(1.0),
        labels if labels is None else labels.to(device),
    )
    contexts = {
        "float32": contextlib.nullcontext,
        "bfloat16": lambda: torch.autocast(device.type, torch.bfloat16),
    }
    seconds = {}
    for name, context in contexts.items():
        with torch.no_grad(), context():
            for _ in range(3):  # the last one counts
                start = time.process_time()
                unet(x, t, class_labels=labels).sample.sum().item()  # waits for a GPU
                seconds[name] = time.process_time() - start
    name = min(seconds, key=seconds.get)
    return name, contexts[name]


def save_atomically(tensors, path, metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file(tensors, temporary, metadata=metadata)
    temporary.replace(path)


def part_path(folder, row, k):
    return folder / "images" / row.folder / f"{k:03d}.safetensors"


def parts(samples, batch):
    """(index, first image, last image + 1) of each batch."""
    return [(k, start, min(start + batch, samples)) for k, start in enumerate(range(0, samples, batch))]


def described(row, config, settings):
    """All that the row's images depend on, as a string: images of other settings never mix."""
    options = sampler(row.name, row.budget, config)[0].config
    options = {key: value for key, value in options.items() if not key.startswith("_")}
    return json.dumps({**settings, "scheduler": options}, sort_keys=True, default=str)


def draw(pipe, row, folder, sizes, context, settings):
    """Draw the row's images that are not there yet."""
    missing = [part for part in parts(*sizes) if not part_path(folder, row, part[0]).exists()]
    about = described(row, pipe.scheduler.config, settings)
    pipe.scheduler, steps = sampler(row.name, row.budget, pipe.scheduler.config)
    for k, start, end in tqdm(missing, desc=row.folder, mininterval=1, leave=False):
        # The latents and classes depend on the images' numbers alone: the same for every sampler.
        size, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
        latents = torch.randn(end - start, channels, size, size, generator=torch.Generator().manual_seed(2 * k))
        began = time.process_time()
        with context():
            output = pipe(
                end - start,
                steps,
                class_labels=classes(pipe.unet, start, end),
                latents=latents,
                generator=torch.Generator().manual_seed(2 * k + 1),
                output_type="pt",
            )
        images = (output.images * 255).round().byte().cpu()
        metadata = {"nfe": str(output.nfe), "cpu_seconds": str(time.process_time() - began), "about": about}
        save_atomically({"images": images}, part_path(folder, row, k), metadata)


def drawn(row, folder, sizes, about):
    """(N, C, H, W) uint8 images of the row, evaluations and processor time for an image; None if not complete."""
    images, nfe, seconds = [], 0, 0.0
    for k, start, end in parts(*sizes):
        path = part_path(folder, row, k)
        if not path.exists():
            return None
        with safe_open(path, "pt") as file:
            metadata, part = file.metadata(), file.get_tensor("images")
        if metadata.get("about") != about or len(part) != end - start:
            found = metadata.get("about")
            raise SystemExit(f"{path} holds {len(part)} images of {found}, and not of {about}: choose another folder.")
        images.append(part)
        nfe, seconds = int(metadata["nfe"]), seconds + float(metadata["cpu_seconds"])
    return torch.cat(images), nfe, seconds / sizes[0]


# Distances.


class Judge:
    """Frechet distances of images from the training images."""

    def __init__(self):
        self.network = load_feature_network("fashion-mnist")
        self.reference = FeatureStatistics.load(shipped_statistics_path(self.network), self.network.name)

    def __call__(self, images):
        features = self.network(images)
        distance = frechet_distance(FeatureStatistics.from_features(features), self.reference)
        low, high = bootstrap_frechet(features, self.reference, generator=torch.Generator().manual_seed(0))
        return {"frechet": distance, "low": low, "high": high}


def evaluate(folder, sizes, config, settings, judge, known):
    """Results of all rows whose images are complete; `known` caches those of earlier calls by row."""
    for row in all_rows():
        if row not in known and (found := drawn(row, folder, sizes, described(row, config, settings))) is not None:
            images, nfe, seconds = found
            known[row] = {"sampler": row.name, "budget": row.budget, "nfe": nfe, "cpu_s_per_image": seconds}
            known[row] |= judge(images)
    return list(known.values())


def table(results):
    """Markdown: one row for each sampler, one column for each budget."""
    budgets = [*FEW_STEPS, *MANY_STEPS]
    lines = [
        "| sampler | " + " | ".join(f"{budget:,}" for budget in budgets) + " |",
        "|---" * (len(budgets) + 1) + "|",
    ]
    for name in SAMPLERS:
        cells = []
        for budget in budgets:
            found = [r for r in results["rows"] if (r["sampler"], r["budget"]) == (name, budget)]
            cells += [f"{r['frechet']:.3f} ({r['low']:.3f} to {r['high']:.3f})" for r in found] or [""]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    real = results["real"]
    lines += [
        "",
        f"{real['images']:,} real test images: {real['frechet']:.3f} ({real['low']:.3f} to {real['high']:.3f}).",
    ]
    few = min((r for r in results["rows"] if r["budget"] <= 20), key=lambda r: r["frechet"], default=None)
    many = max((r for r in results["rows"] if r["budget"] in MANY_STEPS), key=lambda r: r["budget"], default=None)
    if few and many:
        lines += [
            "",
            f"The least distance with at most 20 evaluations is {few['frechet']:.3f} ({few['sampler']}, {few['nfe']} "
            f"evaluations); {many['sampler']} with {many['nfe']:,} evaluations has {many['frechet']:.3f}.",
        ]
    return "\n".join(lines) + "\n"


def plot(results):
    figure, axis = plt.subplots(figsize=(9.5, 5.2), layout="constrained")
    for k, name in enumerate(SAMPLERS):
        rows = sorted((r for r in results["rows"] if r["sampler"] == name), key=lambda r: r["nfe"])
        if not rows:
            continue
        nfe, values = [r["nfe"] for r in rows], [r["frechet"] for r in rows]
        errors = [[r["frechet"] - r["low"] for r in rows], [r["high"] - r["frechet"] for r in rows]]
        style = {"color": "black", "linewidth": 2} if name == PAPER_NAME else {"color": f"C{k % 10}"}
        line = "--" if k >= 10 and name != PAPER_NAME else "-"
        axis.errorbar(
            nfe, values, yerr=errors, marker="o", markersize=4, capsize=3, linestyle=line, label=name, **style
        )
    axis.axhline(results["real"]["frechet"], color="0.6", linewidth=1, label="real test images")
    axis.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="Frechet distance")
    axis.set_xticks([*FEW_STEPS, *MANY_STEPS], [f"{n:,}" for n in (*FEW_STEPS, *MANY_STEPS)])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def write(folder, results):
    write_results(folder, "sampler_distances", results, table(results), plot(results))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder of a saved pipeline")
    parser.add_argument("folder", type=Path, help="where images and results are kept")
    parser.add_argument("--samples", type=int, default=1000, help="images of each row")
    parser.add_argument(
        "--batch_size", type=int, default=100, help="images drawn together; seeds are those of a batch"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network: a third less time")
    parser.add_argument("--only", nargs="*", default=["*"], help="rows to draw, as heun-20 or 'predictor-corrector-*'")
    args = parser.parse_args()
    names = [row.folder for row in all_rows()]
    for pattern in args.only:
        if not fnmatch.filter(names, pattern):
            parser.error(f"--only must match one of {', '.join(names)}, but is {pattern!r}")
    rows = [row for row in all_rows() if any(fnmatch.fnmatch(row.folder, pattern) for pattern in args.only)]
    judge = Judge()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU")
    if args.batch_size < 1:
        parser.error(f"--batch_size must be at least 1, but is {args.batch_size}")
    if args.samples <= judge.network.dimension:
        parser.error(f"--samples must exceed the {judge.network.dimension} features, but is {args.samples}")

    pipe, sizes = ScoreSdePipeline.from_pretrained(args.pipeline).to(args.device), (args.samples, args.batch_size)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.eval().to(memory_format=torch.channels_last)
    digest = weights_digest(pipe.unet)[:8]  # images of different networks never mix
    size, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    precision, context = faster_precision(pipe.unet, (args.batch_size, channels, size, size))
    if args.compile:
        pipe.unet.compile()
    real = load_images(str(EMBEDDED_FASHION_MNIST), "test", max_images=args.samples).images
    settings = {
        "network": digest,
        "batch_size": args.batch_size,
        "device": torch.cuda.get_device_name() if pipe.device.type == "cuda" else "cpu",
        "precision": precision,
        "compiled": args.compile,
        "torch": torch.__version__,
    }
    results = {**settings, "samples": args.samples, "real": {"images": len(real)} | judge(real)}
    known, config = {}, pipe.scheduler.config
    for row in tqdm(rows, desc="rows"):
        draw(pipe, row, args.folder, sizes, context, settings)
        write(args.folder, results | {"rows": evaluate(args.folder, sizes, config, settings, judge, known)})
    write(args.folder, results | {"rows": evaluate(args.folder, sizes, config, settings, judge, known)})
    print(table(json.loads((args.folder / "sampler_distances.json").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
