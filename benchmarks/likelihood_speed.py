"""Likelihoods of 64 images: this package next to the way of the paper's code, at equal achieved error.

    python benchmarks/likelihood_speed.py results/likelihood --train_seconds 200

The paper's way: scipy's RK45 in t through a flat numpy array, with two forward passes of the network and one backward
pass for each evaluation. Two small networks are trained first on the embedded Fashion-MNIST: a denoiser (EDM) and one
that predicts the noise and is conditioned on 999 t (DDPM++). Both ways share images, noise and probe.

For each of several tolerances the error (root mean square over the images, against our solver at 1e-7) and the number
of evaluations are found on a few images; then 64 images are timed at the paper's tolerance of 1e-5, and by ours at the
loosest one that is no less accurate. The ways take turns in one process; their processor times and the ratio are
reported in `likelihood_speed.json` and `likelihood_speed.png`.
"""

import argparse
import io
import json
import math
import platform
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow.parquet
import torch
from PIL import Image
from scipy import integrate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sde_diffusers.losses import DenoisingScoreMatching  # noqa: E402
from sde_diffusers.models.unet_ncsnpp import NCSNppUNet2DModel  # noqa: E402
from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline  # noqa: E402
from sde_diffusers.schedulers.scheduling_probability_flow import ScoreSdeProbabilityFlowScheduler  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

EPS, PAPER_TOLERANCE = 1e-5, 1e-5
TOLERANCES = [1e-5 * 10 ** (k / 4) for k in range(8)]
NETWORK = {
    "sample_size": 28,
    "in_channels": 1,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "attention_resolutions": (7,),
    "patch_size": 2,
    "fir": False,
    "scale_by_sigma": False,
    "image_range": (-1.0, 1.0),
}
MODELS = {
    "denoiser": (
        {"fourier_scale": 1.0, "preconditioning": "edm", "sigma_data": 0.7},
        {"sde": "ve", "sigma_min": 0.002, "sigma_max": 80.0, "prediction_type": "sample", "image_range": (-1.0, 1.0)},
        {"objective": "edm", "sigma_data": 0.7, "log_sigma_mean": -0.8, "log_sigma_std": 1.2},
    ),
    "noise, 999 t": ({"time_embedding_type": "positional"}, {"sde": "vp"}, {"objective": "likelihood"}),
}


def fashion_mnist(split):
    """All embedded images of a split: (N, 1, 28, 28) uint8."""
    table = pyarrow.parquet.read_table(ROOT / "data" / "fashion_mnist" / f"{split}-00000-of-00001.parquet")
    images = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    return torch.from_numpy(np.stack(images))[:, None]


def train(name, images, seconds):
    """A pipeline whose network has been trained for so long."""
    torch.manual_seed(0)
    network, scheduler, objective = MODELS[name]
    unet = NCSNppUNet2DModel(**NETWORK, **network)
    pipe = ScoreSdePipeline(unet=unet, scheduler=ScoreSdeProbabilityFlowScheduler(**scheduler))
    loss = DenoisingScoreMatching(pipe.scheduler.parameterization, **objective)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)
    start, steps = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        batch = images[torch.randint(len(images), (64,))]
        x = pipe.scheduler.parameterization.to_model_range((batch + torch.rand(batch.shape)) / 256)
        loss(unet, x, torch.randn_like(x), loss.draw_times(64)).mean().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - elapsed / seconds)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    unet.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe, steps


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
    """Processor time in seconds (that of other programs does not count), evaluations and values."""
    start = time.process_time()
    values, nfe = function(*arguments)
    return time.process_time() - start, nfe, values


def compare(pipe, images, args):
    """All numbers for one network."""
    generator = torch.Generator().manual_seed(1)
    images01 = (images + torch.rand(images.shape, generator=generator)) / 256
    probe = 2.0 * torch.randint(2, images.shape, generator=generator) - 1
    few = (images01[: args.few], probe[: args.few])
    truth, _ = our_way(pipe, *few, 1e-7)

    def curve(way, *extra):
        points = []
        for tolerance in TOLERANCES:
            values, nfe = way(pipe, *few, tolerance, *extra)
            points.append({"tolerance": tolerance, "nfe": nfe, "rms_error": rms(values - truth)})
        return points

    curves = {
        "paper": curve(paper_way),
        "ours, t": curve(our_way, "t"),
        "ours, noise level": curve(our_way, "noise_level"),
    }
    allowed = curves["paper"][TOLERANCES.index(PAPER_TOLERANCE)]["rms_error"]
    accurate = [
        (point["nfe"], point["tolerance"], variable)
        for name, variable in (("ours, t", "t"), ("ours, noise level", "noise_level"))
        for point in curves[name]
        if point["rms_error"] <= allowed
    ]
    _, tolerance, variable = min(accurate)
    rounds = []
    for _ in range(args.rounds):
        paper = timed(paper_way, pipe, images01, probe, PAPER_TOLERANCE)
        ours = timed(our_way, pipe, images01, probe, tolerance, variable)
        rounds.append({"paper_cpu_s": paper[0], "ours_cpu_s": ours[0], "ratio": ours[0] / paper[0]})
    default_variable = "noise_level" if pipe.scheduler.parameterization.prediction_type == "sample" else "t"
    return {
        "images": len(images),
        "paper": {"tolerance": PAPER_TOLERANCE, "nfe": paper[1], "bits_per_dim": paper[2].mean().item()},
        "ours": {
            "tolerance": tolerance,
            "variable": variable,
            "default_variable": default_variable,
            "nfe": ours[1],
            "bits_per_dim": ours[2].mean().item(),
        },
        "allowed_rms_error": allowed,
        "rounds": rounds,
        "median_ratio": float(np.median([one["ratio"] for one in rounds])),
        "curves": curves,
    }


def rms(values):
    return values.square().mean().sqrt().item()


def plot(results, path):
    figure, axes = plt.subplots(1, len(results), figsize=(5.5 * len(results), 4), squeeze=False, layout="constrained")
    for axis, (name, result) in zip(axes[0], results.items(), strict=True):
        for label, points in result["curves"].items():
            axis.loglog([p["nfe"] for p in points], [p["rms_error"] for p in points], "o-", label=label)
        axis.axhline(result["allowed_rms_error"], color="gray", linewidth=0.8)
        axis.set(xlabel="network evaluations", ylabel="error of bits/dim (rms over images)")
        axis.set_title(f"{name}: ours takes {result['median_ratio']:.2f} of the time")
        axis.legend()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the results")
    parser.add_argument("--train_seconds", type=float, default=200, help="training time of each network")
    parser.add_argument("--few", type=int, default=8, help="images on which errors are measured")
    parser.add_argument("--images", type=int, default=64, help="images that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="times that the ways take turns")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in args.models:
        pipe, steps = train(name, fashion_mnist("train"), args.train_seconds)
        results[name] = {"training_steps": steps} | compare(pipe, fashion_mnist("test")[: args.images], args)
        print(name, json.dumps({key: results[name][key] for key in ("paper", "ours", "rounds")}), flush=True)
    machine = {"processor": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    text = json.dumps({"machine": machine, "results": results}, indent=2) + "\n"
    (args.output / "likelihood_speed.json").write_text(text, encoding="utf-8")
    plot(results, args.output / "likelihood_speed.png")


if __name__ == "__main__":
    main()
