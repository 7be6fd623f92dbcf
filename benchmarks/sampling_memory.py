"""Memory that sampling takes beside the network's own: peaks of an evaluation alone and of whole samplings.

    OMP_NUM_THREADS=1 python benchmarks/sampling_memory.py results/sampling_memory

The network is small (16 channels at half the size), so that what samplers keep beside it weighs most; larger ones have
more activations for the same state. Both grow with the number of images, so few show the ratio of many. Each contender
has a process of its own, whose largest resident memory above that before its first evaluation is reported. Writes
`sampling_memory.json` and `.md`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import torch
from side_by_side import write_results

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sde_diffusers import (  # noqa: E402
    NCSNppUNet2DModel,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
)

# Memory that is freed goes back at once, as it does by itself for the tensors of many images.
AS_LARGE = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
NETWORK = "the network alone"
SAMPLERS = {
    "Heun": (ScoreSdeProbabilityFlowScheduler, {}),
    "exponential, order 3": (ScoreSdeExponentialScheduler, {}),
    "exponential, SDE, order 2": (ScoreSdeExponentialScheduler, {"eta": 1.0, "solver_order": 2}),
    "predictor-corrector": (ScoreSdePredictorCorrectorScheduler, {}),
}


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@torch.no_grad()
def measure(contender: str, images: int, size: int, steps: int) -> int:
    """Bytes that a contender takes beside what is there before."""
    shape = {"sample_size": size, "in_channels": 3, "block_out_channels": (16, 32, 32), "layers_per_block": 1}
    unet = NCSNppUNet2DModel(patch_size=2, attention_resolutions=(), fir=False, **shape).eval()
    cls, options = SAMPLERS.get(contender, SAMPLERS["Heun"])
    pipe = ScoreSdePipeline(unet=unet, scheduler=cls(sde="ve", **options))
    pipe.set_progress_bar_config(disable=True)
    pipe(1, 1, output_type="latent")  # what libraries load
    before = peak_bytes()
    if contender == NETWORK:
        unet(torch.randn(images, 3, size, size), torch.tensor(1.0))
    else:
        pipe(images, steps, output_type="latent")
    return peak_bytes() - before


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--measure", choices=[NETWORK, *SAMPLERS], help="one contender, in this process")
    args = parser.parse_args(arguments)
    if args.measure:
        print(json.dumps(measure(args.measure, args.images, args.size, args.steps)))
        return
    rows: dict[str, int] = {}
    for contender in (NETWORK, *SAMPLERS):
        command = [sys.executable, __file__, str(args.output), "--measure", contender]
        command += [f"--{name}={getattr(args, name)}" for name in ("images", "size", "steps")]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | AS_LARGE)
        rows[contender] = json.loads(done.stdout)
        print(f"{contender}: {rows[contender] / 2**30:.2f} GiB", flush=True)
    lines = ["| | peak, GiB | relative to the network |", "|---|---|---|"]
    lines += [f"| {name} | {size / 2**30:.2f} | {size / rows[NETWORK]:.2f} |" for name, size in rows.items()]
    about = {"images": args.images, "size": args.size, "steps": args.steps, "torch": torch.__version__}
    write_results(args.output, "sampling_memory", about | {"peak_bytes": rows}, "\n".join(lines) + "\n")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
