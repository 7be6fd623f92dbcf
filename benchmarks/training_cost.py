"""What training the paper's networks costs: arithmetic, speed and memory of a step; hours on 1, 8 and 32 GPUs.

    python benchmarks/training_cost.py results/training_cost --seconds 500 --link_gb_per_s 50

Three kinds of numbers, kept apart in `training_cost.json` and `training_cost.md`:

- *counted*: parameters, and floating-point operations of the forward and backward pass of one image (convolutions and
  matrix products, as PyTorch's `FlopCounterMode` counts them, on fake tensors that take neither memory nor time);
- *measured*, where there is a GPU (or `--device cpu`, for the smallest network alone): images per second and peak
  memory of a whole training step as `training/train.py` does it, in bfloat16 and channels_last, for growing batches
  until memory ends; then, compiled, at the fastest of them and at what one of 8 GPUs gets of the schedule's batch;
- *computed* from these: hours of the published schedule under data parallelism, in which each of n GPUs takes B / n of
  the B images of a step and then averages the gradient with the others, with nothing overlapped:

      hours = steps (t(B / n) + 2 (n - 1) / n * bytes / bandwidth) / 3600,    bytes = 4 parameters (float32)

  for a ring all-reduce. t(B / n) is measured, or k t(B / (k n)) for k micro-batches (an overestimate, as it holds k
  updates). The bandwidth is assumed (`--link_gb_per_s`), as is that images arrive in time. Beside it: the
  hours that the same number of images takes if every GPU trains at its highest measured rate, whatever the batch.
  Memory, for a GPU's whole share at once, is 20 bytes per parameter (24 with the buckets of DistributedDataParallel)
  and, for each image, what it added to the measured peak.

Both files are written anew after every measurement, so that a run that is stopped loses one.
"""

import argparse
import copy
import gc
import math
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from side_by_side import write_results
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "training")]

from training_cost_tables import markdown, measured  # noqa: E402

from run.draws import draw_examples  # noqa: E402
from sde_diffusers import (  # noqa: E402
    VESDE,
    VPSDE,
    DenoisingScoreMatching,
    NCSNppUNet2DModel,
    Parameterization,
)

GPUS = (1, 8, 32)
WARM_UP_STEPS, ROUNDS, ROUND_SECONDS, MIN_STEPS = 3, 3, 1.0, 2
STATE_BYTES = {"weights": 4, "gradients": 4, "Adam's moments": 8, "averaged weights": 4}  # per parameter, in float32
BUCKET_BYTES = 4  # per parameter: DistributedDataParallel's own copy of the gradient


@dataclass(frozen=True)
class Configuration:
    """A network, its objective, and the schedule it is trained with."""

    preset: str
    parameterization: Parameterization
    steps: int
    batch_size: int
    source: str
    batch_sizes: tuple[int, ...]  # to measure
    objective: dict = field(default_factory=lambda: {"reduce_mean": False})


CIFAR10_BATCHES = (4, 16, 64, 128, 256, 512, 1024, 2048)
CONFIGURATIONS = {
    configuration.preset: configuration
    for configuration in (
        Configuration(
            "small-28",
            Parameterization(VESDE(0.002, 80.0), "sample", "sigma", (-1, 1)),
            steps=20_000,
            batch_size=128,
            source="training/configs/fashion_mnist.yaml",
            batch_sizes=(4, 16, 128, 512, 2048, 8192),
            objective={"objective": "edm", "sigma_data": 0.7, "log_sigma_mean": -0.8},
        ),
        Configuration(
            "cifar10-ncsnpp-continuous",
            Parameterization(VESDE(0.01, 50.0), "score", "sigma", (0, 1)),
            steps=1_300_000,
            batch_size=128,
            source="score_sde_pytorch, configs/default_cifar10_configs.py and ve/cifar10_ncsnpp_continuous.py",
            batch_sizes=CIFAR10_BATCHES,
        ),
        Configuration(
            "cifar10-ddpmpp-continuous",
            Parameterization(VPSDE(0.1, 20.0), "epsilon", "999t", (-1, 1)),
            steps=1_300_000,
            batch_size=128,
            source="score_sde_pytorch, configs/default_cifar10_configs.py and vp/cifar10_ddpmpp_continuous.py",
            batch_sizes=CIFAR10_BATCHES,
            objective={"reduce_mean": True},
        ),
        Configuration(
            "ncsnpp-256-continuous",
            Parameterization(VESDE(0.01, 348.0), "score", "sigma", (0, 1)),
            steps=2_400_000,
            batch_size=64,
            source="score_sde_pytorch, configs/default_lsun_configs.py and ve/ffhq_256_ncsnpp_continuous.py",
            batch_sizes=(2, 8, 16, 32, 64, 128),
        ),
    )
}


def count(preset):
    """{"parameters": ..., "flops_forward": ..., "flops_step": ...} of a preset, the operations for one image.

    A multiplication and an addition are two operations. What is not a convolution or a matrix product (norms,
    activations, the optimizer) is not counted.
    """
    with FakeTensorMode():
        network = NCSNppUNet2DModel.from_preset(preset).train()
        images = torch.zeros(1, network.config.in_channels, *[network.config.sample_size] * 2)
        with FlopCounterMode(display=False) as counter:
            output = network(images, torch.ones(1)).sample
            forward = counter.get_total_flops()
            output.sum().backward()
    parameters = sum(p.numel() for p in network.parameters())
    return {"parameters": parameters, "flops_forward": forward, "flops_step": counter.get_total_flops()}


class Trainer:
    """Does training steps like `train_step` of training/run/training_run.py, on random images."""

    def __init__(self, configuration, batch_size, device, compiled):
        torch.manual_seed(0)
        with device:
            self.network = NCSNppUNet2DModel.from_preset(configuration.preset).train()
        self.network.to(memory_format=torch.channels_last)
        average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=2e-4, weight_decay=0, fused=True)
        self.ema = EMAModel([], decay=0.9999, foreach=True)
        self.ema.shadow_params = list(average.parameters())
        if compiled:
            self.network.compile()
        self.objective = DenoisingScoreMatching(configuration.parameterization, **configuration.objective)
        size = self.network.config.sample_size
        self.images = torch.randint(256, (batch_size, self.network.config.in_channels, size, size), dtype=torch.uint8)
        self.device, self.steps = device, 0

    def step(self):
        x_0, noise, times, labels = draw_examples(
            self.images, None, self.objective, (0, self.steps), device=self.device
        )
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = self.objective(self.network, x_0, noise, times, labels).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        self.steps += 1


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_rounds(step, device):
    """Seconds per call of `step`, one number for each of some rounds of about `ROUND_SECONDS`."""
    calls, rounds = MIN_STEPS, []
    while len(rounds) <= ROUNDS:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            step()
        synchronize(device)
        rounds.append((time.perf_counter() - start) / calls)
        calls = max(MIN_STEPS, math.ceil(ROUND_SECONDS / min(rounds)))
    return rounds[1:]  # the first one says how many calls a round holds


def measure(configuration, batch_size, device, compiled):
    """A row of the table: what a training step takes; or {"error": the first line of what went wrong}."""
    cuda = device.type == "cuda"
    row = {"batch_size": batch_size, "compiled": compiled}
    try:
        start = time.perf_counter()
        trainer = Trainer(configuration, batch_size, device, compiled)
        for _ in range(WARM_UP_STEPS):
            trainer.step()
        synchronize(device)
        row["start_seconds"] = time.perf_counter() - start
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        seconds = time_rounds(trainer.step, device)
        row["seconds_per_step"], row["rounds"] = statistics.median(seconds), seconds
        row["images_per_second"] = batch_size / row["seconds_per_step"]
        row["peak_bytes"] = torch.cuda.max_memory_allocated(device) if cuda else None
    except torch.OutOfMemoryError:
        row["error"] = "out of memory"
    except Exception as error:  # a compiler may fail in any way, and the other rows are still worth having
        row["error"] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return row


def clean_up(device, compiled):
    """Give back the memory of a measurement, so that the next one starts from nothing."""
    if compiled:
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure_matmul(device, size=8192, repeats=20):
    """Operations per second of a bfloat16 matrix product: what the GPU can reach, as a yardstick."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    synchronize(device)
    return repeats * 2 * size**3 / (time.perf_counter() - start)


def measure_all(results, device, batch_sizes, compiling, deadline, write):
    """Fill in `rows` of every configuration: first uncompiled, cheap before dear; then compiled, in the same order."""
    configurations = results["configurations"]

    def take(name, batch_size, compiled):
        rows = configurations[name]["rows"]
        smaller = [row for row in rows if row.get("error") == "out of memory" and row["batch_size"] <= batch_size]
        if smaller and not compiled:
            return
        if time.monotonic() >= deadline:
            results["not_measured"].append(f"`{name}` at {batch_size}{' compiled' if compiled else ''}")
        else:
            progress.set_postfix_str(f"{name}, batch {batch_size}{', compiled' if compiled else ''}")
            rows.append(measure(CONFIGURATIONS[name], batch_size, device, compiled))
            clean_up(device, compiled)
        write()
        progress.update()

    def cost(job):
        return job[1] * configurations[job[0]]["flops_step"]

    plain = [(name, size) for name in configurations for size in batch_sizes or CONFIGURATIONS[name].batch_sizes]
    with tqdm(desc="training cost", unit="row", total=len(plain)) as progress:
        for name, batch_size in sorted(plain, key=cost):
            take(name, batch_size, compiled=False)
        if not compiling:
            return
        for which in (fastest_batch, share_of_eight):
            jobs = [(name, which(name, configurations[name]["rows"])) for name in configurations]
            for name, batch_size in sorted((job for job in jobs if job[1]), key=cost):
                if all(row["batch_size"] != batch_size for row in configurations[name]["rows"] if row["compiled"]):
                    take(name, batch_size, compiled=True)


def fastest_batch(name, rows):
    """The batch size with the highest rate uncompiled, None if there is none."""
    rows = measured(rows, compiled=False)
    return max(rows, key=lambda row: row["images_per_second"])["batch_size"] if rows else None


def share_of_eight(name, rows):
    """One of 8 GPUs' part of the schedule's batch, if that was measured uncompiled."""
    share = CONFIGURATIONS[name].batch_size // 8
    return share if any(row["batch_size"] == share for row in measured(rows, compiled=False)) else None


def all_reduce_seconds(num_bytes, gpus, gb_per_s):
    """A ring all-reduce: every GPU sends and receives 2 (n - 1) / n of the bytes."""
    return 2 * (gpus - 1) / gpus * num_bytes / (gb_per_s * 1e9)


def activation_bytes(entry):
    """What each image of a batch adds to the peak of memory: (peak - state) / batch, at the largest batch measured."""
    rows = [row for row in measured(entry["rows"], compiled=False) if row["peak_bytes"] is not None]
    if not rows:
        return None
    row = max(rows, key=lambda row: row["batch_size"])
    return (row["peak_bytes"] - sum(STATE_BYTES.values()) * entry["parameters"]) / row["batch_size"]


def schedule_cost(name, entry, gb_per_s):
    """What the schedule takes on each of `GPUS`, from the fastest measured way to do a GPU's share of a step."""
    configuration, parameters, rows, costs = CONFIGURATIONS[name], entry["parameters"], measured(entry["rows"]), []
    for gpus in GPUS:
        share = configuration.batch_size // gpus  # all of them are powers of two
        fitting = [row for row in rows if share % row["batch_size"] == 0]
        if not fitting:
            continue
        row = min(fitting, key=lambda row: row["seconds_per_step"] / row["batch_size"])
        compute = row["seconds_per_step"] * (share // row["batch_size"])
        reduce = {
            number: all_reduce_seconds(size * parameters, gpus, gb_per_s)
            for number, size in (("float32", 4), ("bfloat16", 2))
        }
        best = max(row["images_per_second"] for row in rows)
        state = (sum(STATE_BYTES.values()) + (BUCKET_BYTES if gpus > 1 else 0)) * parameters
        costs.append(
            {
                "gpus": gpus,
                "images_per_gpu": share,
                "micro_batch": row["batch_size"],
                "compiled": row["compiled"],
                "compute_seconds_per_step": compute,
                "all_reduce_seconds": reduce,
                "hours": configuration.steps * (compute + reduce["float32"]) / 3600,
                "hours_at_highest_rate": configuration.steps * configuration.batch_size / (gpus * best) / 3600,
                "memory_bytes": state + share * entry["activation_bytes_per_image"],
            }
        )
    return costs


def compute(results):
    """Fill in what follows from the counted and the measured."""
    for name, entry in results["configurations"].items():
        for row in measured(entry["rows"]):
            row["flops_per_second"] = entry["flops_step"] * row["images_per_second"]
        entry["activation_bytes_per_image"] = activation_bytes(entry)
        on_gpu = results["device_type"] == "cuda"
        entry["schedule_cost"] = schedule_cost(name, entry, results["assumed"]["link_gb_per_s"]) if on_gpu else []


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for training_cost.json and training_cost.md")
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, metavar="NAME", help=", ".join(CONFIGURATIONS))
    parser.add_argument("--seconds", type=float, default=240.0, help="no measurement begins after that many")
    parser.add_argument("--batch_sizes", type=int, nargs="+", help="instead of growing ones until memory ends")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: the GPU, or no measurements without one")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on GPUs")
    parser.add_argument(
        "--link_gb_per_s", type=float, default=50.0, help="assumed, of every GPU (default: %(default)s)"
    )
    args = parser.parse_args(arguments)
    for name in ("seconds", "link_gb_per_s", "batch_sizes"):
        values = getattr(args, name)
        if values is not None and min(values if isinstance(values, list) else [values]) <= 0:
            parser.error(f"--{name} must be above 0, got {values}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU")
    args.only = args.only or (["small-28"] if args.device == "cpu" else list(CONFIGURATIONS))
    if args.device == "cpu" and args.only != ["small-28"]:
        parser.error(f"--device cpu is for --only small-28, got {' '.join(args.only)}")
    if args.device is None and torch.cuda.is_available():
        args.device = "cuda"
    if args.compile is None:
        args.compile = args.device == "cuda"
    return args


def main(arguments=None):
    args = parse(arguments)
    deadline = time.monotonic() + args.seconds
    device = torch.device(args.device) if args.device else None
    name = {"cuda": torch.cuda.get_device_name, "cpu": lambda: f"{torch.get_num_threads()} CPU threads"}
    results = {
        "device_type": args.device,
        "device": name[args.device]() if args.device else None,
        "torch": torch.__version__,
        "precision": "bfloat16 autocast, float32 weights",
        "rounds": ROUNDS,
        "assumed": {"link_gb_per_s": args.link_gb_per_s},
        "matmul_flops_per_second": measure_matmul(device) if args.device == "cuda" else None,
        "state_bytes_per_parameter": STATE_BYTES,
        "configurations": {},
        "not_measured": [],
    }
    for preset in args.only:
        schedule = {k: v for k, v in vars(CONFIGURATIONS[preset]).items() if k in ("steps", "batch_size", "source")}
        results["configurations"][preset] = {**count(preset), "schedule": schedule, "rows": []}

    def write():
        compute(results)
        write_results(args.output, "training_cost", results, markdown(results))

    write()
    if device is not None:
        measure_all(results, device, args.batch_sizes, args.compile, deadline, write)
    print((args.output / "training_cost.md").read_text())


if __name__ == "__main__":
    main()
