"""What each preset takes, from 28 to 256 pixels: parameters, memory and images a second of training and sampling.

    OMP_NUM_THREADS=1 python benchmarks/preset_sizes.py results/preset_sizes

A training step is that of `training/train.py`: bfloat16 autocast, channels_last, AdamW and averaged weights, on random
images. Each network has a process of its own, whose largest resident memory above that before the network is what is
reported; it is that of the batch in the table. Rates are of processor time, in which other programs do not count, so
they are those of an idle core. Writes `preset_sizes.json` and `.md`.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from side_by_side import write_results

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sde_diffusers import VESDE, DenoisingScoreMatching, NCSNppUNet2DModel, Parameterization  # noqa: E402

# Preset -> (side of the images, batch)
NETWORKS = {
    "small-28": (28, 64),
    "small-32": (32, 64),
    "small-64": (64, 16),
    "small-64 at 128 pixels": (128, 4),
    "cifar10-ncsnpp-continuous": (32, 4),
    "ncsnpp-256-continuous": (256, 1),
}


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def rate(work, images: int, rounds: int) -> float:
    """Images a second of processor time, the best of some rounds."""
    took = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return images / min(took)


def measure(name: str, rounds: int, batch: int | None) -> dict:
    size, usual = NETWORKS[name]
    batch = batch or usual
    before = peak_bytes()
    attention = {"attention_resolutions": (16,)} if size == 128 else {}
    network = NCSNppUNet2DModel.from_preset(name.split(" ")[0], sample_size=size, **attention)
    network.to(memory_format=torch.channels_last)
    parameters = sum(weights.numel() for weights in network.parameters())
    preconditioned = network.config.preconditioning is not None
    parameterization = Parameterization(
        VESDE(0.01, 50.0), "sample" if preconditioned else "score", "sigma", network.config.image_range or (0.0, 1.0)
    )
    objective = DenoisingScoreMatching(parameterization, "edm" if preconditioned else "sigma2")
    optimizer, ema = (
        torch.optim.AdamW(network.parameters(), 1e-4, fused=True),
        EMAModel(network.parameters(), foreach=True),
    )
    x_0 = torch.rand(batch, network.config.in_channels, size, size) * 2 - 1

    def sample():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            network(x_0, torch.ones(batch))

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            objective(network, x_0, torch.randn_like(x_0), objective.draw_times(batch)).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())

    sample()
    evaluations = rate(sample, batch, rounds)
    sampling = peak_bytes() - before
    steps = rate(step, batch, rounds)
    return {
        "parameters": parameters,
        "side": size,
        "batch": batch,
        "evaluations_per_second": evaluations,
        "training_images_per_second": steps,
        "bytes_sampling": sampling,
        "bytes_training": peak_bytes() - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--batch", type=int, help="images at once (default: those of the table)")
    parser.add_argument("--measure", choices=NETWORKS, help="one network, in this process")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.rounds, arguments.batch)))
        return
    results = {}
    lines = [
        "| network | pixels | 10^6 parameters | batch | GiB, training | GiB, sampling | images/s, training "
        "| images/s, an evaluation |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in arguments.networks:
        command = [sys.executable, __file__, str(arguments.output), "--measure", name]
        command.append(f"--rounds={arguments.rounds}")
        command += [f"--batch={arguments.batch}"] if arguments.batch else []
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        results[name] = found
        lines.append(
            f"| `{name.split(' ')[0]}` | {found['side']} | {found['parameters'] / 1e6:.2f} | {found['batch']} "
            f"| {found['bytes_training'] / 2**30:.2f} | {found['bytes_sampling'] / 2**30:.2f} "
            f"| {found['training_images_per_second']:.3g} | {found['evaluations_per_second']:.3g} |"
        )
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "networks": results}
        write_results(arguments.output, "preset_sizes", about, "\n".join(lines) + "\n")
        print(lines[-1], flush=True)


if __name__ == "__main__":
    main()
