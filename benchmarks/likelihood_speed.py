"""Likelihoods of 64 images: this package next to the way of the paper's code, at equal achieved error.

    OMP_NUM_THREADS=1 python benchmarks/likelihood_speed.py results/likelihood --pipelines pretrained/fashion-mnist-ve

The paper's way: scipy's RK45 in t through a flat numpy array, with two forward passes of the network and one backward
pass for each evaluation. Both ways share network, test images (of the embedded Fashion-MNIST), dequantization noise
and probe.

On a few images the error (root mean square over the images, against our solver at a tolerance of 1e-6), evaluations
and processor time are found for several tolerances. Then all images are timed: the paper's way at its tolerance of
1e-5, ours at the loosest one that was no less accurate. The ways take turns in one process. Results, with processor
and wall time, the ratios and their spread, are written to `likelihood_speed.json`, `.md` and `.png`, after each step.
"""

import argparse
import io
import math
import platform
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet
import torch
from PIL import Image
from scipy import integrate
from side_by_side import turns, write_results

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline  # noqa: E402

EPS, PAPER_TOLERANCE = 1e-5, 1e-5
TOLERANCES = [1e-5 * 10 ** (k / 4) for k in range(-2, 6)]
TRUTH_TOLERANCE = 1e-6
VARIABLES = {"ours, t": "t", "ours, noise level": "noise_level"}


def fashion_mnist(split):
    """All embedded images of a split: (N, 1, 28, 28) uint8."""
    table = pyarrow.parquet.read_table(ROOT / "data" / "fashion_mnist" / f"{split}-00000-of-00001.parquet")
    images = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    return torch.from_numpy(np.stack(images))[:, None]


def paper_way(pipe, images01, probe, tolerance):
    """(N,) bits per dimension and the number of evaluations, as the paper's code computes them."""
    scheduler, shape = pipe.scheduler, images01.shape
    n, d = shape[0], math.prod(shape[1:])

    def drift(x, t):
        t_each = torch.full((n,), t, dtype=torch.float64)
        f, g = (torch.as_tensor(value).float()[:, None, None, None] for value in coefficients(t_each))
        output = pipe.unet(x, scheduler.network_time(t_each).float()).sample
        score = scheduler.parameterization.score(output, x, t_each)
        return f * x - 0.5 * g**2 * score

    def coefficients(t):
        return scheduler.sde.drift(t), scheduler.sde.diffusion(t)

    def ode(t, flat):
        x = torch.from_numpy(flat[:-n].reshape(shape)).float()
        with torch.no_grad():
            dx = drift(x, t)
        with torch.enable_grad():
            x.requires_grad_(True)
            gradient = torch.autograd.grad((drift(x, t) * probe).sum(), x)[0]
        divergence = (gradient * probe).sum((1, 2, 3))
        return np.concatenate([dx.numpy().reshape(-1), divergence.numpy()])

    x = scheduler.parameterization.to_model_range(images01.float())
    start = np.concatenate([x.numpy().reshape(-1), np.zeros(n)])
    solution = integrate.solve_ivp(ode, (EPS, 1.0), start, rtol=tolerance, atol=tolerance, method="RK45")
    end = torch.from_numpy(solution.y[:, -1])
    z, gain = end[:-n].reshape(shape), end[-n:]
    low, high = scheduler.parameterization.image_range
    nats = -(scheduler.sde.prior_logp(z) + gain) / d
    return (nats - math.log((high - low) / 256)) / math.log(2), solution.nfev


def our_way(pipe, images01, probe, tolerance, variable=None):
    output = pipe.bits_per_dim(
        images01, dequantize=False, probes=probe, eps=EPS, rtol=tolerance, atol=tolerance, variable=variable
    )
    return output.bits_per_dim, output.nfe


def timed(function, *arguments):
    """Values and, in seconds, processor time (that of other programs does not count) and wall time; evaluations."""
    cpu, wall = time.process_time(), time.perf_counter()
    values, nfe = function(*arguments)
    return values, {"nfe": nfe, "cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def rms(values):
    return values.square().mean().sqrt().item()


def compare(pipe, images, args, write):
    """All numbers for one network; `write` is told them as they come."""
    generator = torch.Generator().manual_seed(1)
    images01 = (images + torch.rand(images.shape, generator=generator)) / 256
    probe = 2.0 * torch.randint(2, images.shape, generator=generator) - 1
    few = (images01[: args.few], probe[: args.few])
    truth, _ = our_way(pipe, *few, TRUTH_TOLERANCE, "noise_level")

    result = {"images": len(images), "few": args.few, "rounds": []}
    result["curves"] = curves = {"paper": [], **{name: [] for name in VARIABLES}}
    for tolerance in args.tolerances:
        for name, points in curves.items():
            way = (paper_way, pipe, *few, tolerance)
            if name != "paper":
                way = (our_way, pipe, *few, tolerance, VARIABLES[name])
            values, cost = timed(*way)
            points.append({"tolerance": tolerance, "rms_error": rms(values - truth), **cost})
        write(result)

    allowed = curves["paper"][args.tolerances.index(PAPER_TOLERANCE)]["rms_error"]
    accurate = [
        (point["nfe"], -point["tolerance"], name)
        for name in VARIABLES
        for point in curves[name]
        if point["rms_error"] <= allowed
    ]
    if not accurate:
        print(f"None of {args.tolerances} gave ours the error of the paper's way, {allowed:.1e}: nothing is timed.")
        return
    _, tolerance, name = min(accurate)
    tolerance = -tolerance
    result |= {"allowed_rms_error": allowed, "tolerance": tolerance, "variable": VARIABLES[name]}
    ways = {
        "paper": lambda: timed(paper_way, pipe, images01, probe, PAPER_TOLERANCE),
        "ours": lambda: timed(our_way, pipe, images01, probe, tolerance, VARIABLES[name]),
    }
    for done in turns(ways, args.rounds, "likelihoods"):
        (theirs, paper), (values, ours) = done["paper"], done["ours"]
        result["rounds"].append(
            {"paper": paper, "ours": ours} | {key: ours[key] / paper[key] for key in ("cpu_s", "wall_s")}
        )
        result["bits_per_dim"] = {"paper": theirs.mean().item(), "ours": values.mean().item()}
        result["rms_difference"] = rms(values - theirs)
        write(result)


def table(results):
    """Markdown: the timed rounds, then the few images at all tolerances."""
    lines = []
    for name, result in results.items():
        lines += [f"**{name}**", ""]
        if result["rounds"]:
            paper, ours = result["rounds"][-1]["paper"], result["rounds"][-1]["ours"]
            cpu, wall = (sorted(one[key] for one in result["rounds"]) for key in ("cpu_s", "wall_s"))
            bits, variable = result["bits_per_dim"], result["variable"]
            lines += [
                f"| {result['images']} images | tolerance | evaluations | processor time | wall time | bits/dim |",
                "|---|---|---|---|---|---|",
                f"| the paper's way | {PAPER_TOLERANCE:.1e} | {paper['nfe']} | {paper['cpu_s']:.0f} s "
                f"| {paper['wall_s']:.0f} s | {bits['paper']:.4f} |",
                f"| ours, in `{variable}` | {result['tolerance']:.1e} | {ours['nfe']} | {ours['cpu_s']:.0f} s "
                f"| {ours['wall_s']:.0f} s | {bits['ours']:.4f} |",
                "",
                f"Ratio of processor times: {np.median(cpu):.2f} ({cpu[0]:.2f} to {cpu[-1]:.2f} in {len(cpu)} rounds)"
                f", of wall times: {np.median(wall):.2f} ({wall[0]:.2f} to {wall[-1]:.2f}). The ways differ by "
                f"{result['rms_difference']:.1e} bits/dim (rms over images).",
                "",
            ]
        names = list(result["curves"])
        lines.append(f"| tolerance ({result['few']} images) | " + " | ".join(names) + " |")
        lines.append("|---" * (len(names) + 1) + "|")
        for points in zip(*result["curves"].values(), strict=True):
            cells = [f"{p['rms_error']:.1e} ({p['nfe']} evaluations, {p['cpu_s']:.0f} s)" for p in points]
            lines.append(f"| {points[0]['tolerance']:.1e} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def plot(results):
    """Error against evaluations (left) and against processor time (right), one row for each network."""
    size = (10, 3.6 * len(results))
    figure, axes = plt.subplots(len(results), 2, figsize=size, squeeze=False, layout="constrained")
    for row, (name, result) in zip(axes, results.items(), strict=True):
        for axis, key, label in zip(
            row, ("nfe", "cpu_s"), ("network evaluations", f"processor seconds, {result['few']} images"), strict=True
        ):
            for way, points in result["curves"].items():
                axis.loglog([p[key] for p in points], [p["rms_error"] for p in points], "o-", label=way)
            if "allowed_rms_error" in result:
                axis.axhline(result["allowed_rms_error"], color="gray", linewidth=0.8)
            axis.set(xlabel=label, ylabel="error of bits/dim (rms over images)", title=name)
            axis.grid(alpha=0.3, which="both")
        row[0].legend()
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the results")
    parser.add_argument("--pipelines", nargs="+", required=True, help="folders of pipelines for 28 x 28 gray images")
    parser.add_argument("--few", type=int, default=8, help="images on which errors are measured")
    parser.add_argument("--images", type=int, default=64, help="images that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="times that the ways take turns")
    parser.add_argument("--tolerances", type=float, nargs="+", default=TOLERANCES, help="of the few; 1e-5 among them")
    args = parser.parse_args()
    if PAPER_TOLERANCE not in args.tolerances:
        parser.error(f"--tolerances must hold the paper's, {PAPER_TOLERANCE}, but are {args.tolerances}")
    args.output.mkdir(parents=True, exist_ok=True)
    machine = {"processor": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    results = {}
    for folder in args.pipelines:
        pipe = ScoreSdePipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        pipe.unet.eval()
        p = pipe.scheduler.parameterization
        name = f"{pipe.scheduler.config.sde}, {p.prediction_type}, conditioned on {p.time_input}"

        def write(result, name=name):
            results[name] = result
            everything = {"machine": machine, "results": results}
            write_results(args.output, "likelihood_speed", everything, table(results), plot(results))

        compare(pipe, fashion_mnist("test")[: args.images], args, write)
    print(table(results))


if __name__ == "__main__":
    main()
