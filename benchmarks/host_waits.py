"""How often a GPU would wait for the host: blocking copies, and operations, for each evaluation of the network.

    python benchmarks/host_waits.py results/host_waits

A copy between host and GPU that is not `non_blocking` waits for everything that the GPU has been given, and so does
each number that the host asks for; and each operation is one that the host has to launch. Both are counted here
without a GPU: torch's meta device, whose tensors have shapes and no values, stands for it. What starts and ends a call
is left out, by the difference of a long one and a short one. Writes `host_waits.json` and `.md`.
"""

import argparse
import contextlib
import json
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sde_diffusers import (  # noqa: E402
    DenoisingScoreMatching,
    NCSNppUNet2DModel,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
)
from sde_diffusers.guidance import Guidance  # noqa: E402
from sde_diffusers.likelihood.probability_flow import ProbabilityFlow  # noqa: E402
from sde_diffusers.likelihood.probes import drawn_probes  # noqa: E402
from sde_diffusers.models import layers  # noqa: E402
from sde_diffusers.operators import Downsampling, GaussianBlur, Mask, box_mask  # noqa: E402
from sde_diffusers.posteriors.base import posterior_output  # noqa: E402
from sde_diffusers.posteriors.measurement import in_model_range  # noqa: E402
from sde_diffusers.posteriors.methods import POSTERIOR_METHODS  # noqa: E402

GPU = torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
SDES = {"shipped": "ve", "small-28": "ve", "cifar10-ncsnpp-continuous": "ve", "cifar10-ddpmpp-continuous": "vp"}
SAMPLERS = {
    "Heun": (ScoreSdeProbabilityFlowScheduler, {}),
    "Heun with churn": (ScoreSdeProbabilityFlowScheduler, {"s_churn": 5.0}),
    "exponential": (ScoreSdeExponentialScheduler, {}),
    "exponential, SDE": (ScoreSdeExponentialScheduler, {"eta": 1.0}),
    "predictor-corrector": (ScoreSdePredictorCorrectorScheduler, {}),
}


class FusedAttention(torch.autograd.Function):
    """Attention in one operation forward and one backward, as on a GPU, where it is not on the meta device."""

    @staticmethod
    def forward(ctx, q, k, v):
        return torch.empty_like(q)

    @staticmethod
    def backward(ctx, gradient):
        return torch.empty((3, *gradient.shape), device=GPU).unbind()


class HostWaits(TorchDispatchMode):
    """Counts what happens on the GPU while it is entered.

    Attributes:
        waits: by what made the host wait; operations: launched on the GPU.
    """

    def __init__(self):
        super().__init__()
        self.waits, self.operations = Counter(), 0
        self._patches = contextlib.ExitStack()

    def __enter__(self):
        # These do their copy out of a mode's sight.
        make = torch.tensor

        def tensor(data, *arguments, **options):
            if torch.device(options.get("device") or "cpu") == GPU:
                self.waits["torch.tensor on the GPU"] += 1
            return make(data, *arguments, **options)

        self._patches.enter_context(mock.patch.object(torch, "tensor", tensor))
        # The meta device has no autocast.
        self._patches.enter_context(mock.patch.object(torch, "autocast", lambda *a, **k: contextlib.nullcontext()))
        self._patches.enter_context(mock.patch.object(layers, "attention", FusedAttention.apply))
        return super().__enter__()

    def __exit__(self, *error):
        self._patches.close()
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].device == GPU:
            self.waits["a number read"] += 1
            return 2**31  # the meta device has none
        result = function(*args, **(kwargs or {}))
        if not function.is_view:  # which launches nothing
            self.operations += any(isinstance(r, torch.Tensor) and r.device == GPU for r in tree_leaves(result))
        if isinstance(result, torch.Tensor):
            if function in COPIES:
                source = args[0] if function is COPIES[0] else args[1]
                crosses = (source.device == GPU) != (result.device == GPU)
                if crosses and not (kwargs or {}).get("non_blocking", len(args) > 2 and args[2]):
                    self.waits[f"{source.device} -> {result.device}"] += 1
        return result


def counted(work, *arguments) -> HostWaits:
    with HostWaits() as count:
        work(*arguments)
    return count


def network(name: str):
    """A network on the stand-in; "shipped" is that of pretrained/fashion-mnist-ve."""
    with GPU:
        if name != "shipped":
            return NCSNppUNet2DModel.from_preset(name)
        folder = ROOT / "pretrained" / "fashion-mnist-ve" / "unet"
        return NCSNppUNet2DModel.from_config(NCSNppUNet2DModel.load_config(folder))


def shape_of(unet) -> tuple[int, int, int, int]:
    size = unet.config.sample_size
    return (2, unet.config.in_channels, *((size, size) if isinstance(size, int) else size))


def of_sampling(unet, scheduler, **options) -> tuple[float, float]:
    """Waits and operations for each evaluation."""
    pipe = ScoreSdePipeline(unet=unet, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    counts, evaluations = [], []
    for steps in (2, 2, 4):  # the first one makes what is kept
        counts.append(counted(lambda n=steps: pipe(2, n, output_type="latent", **options)))
        evaluations.append(pipe.num_timesteps)
    _, few, many = counts
    more = evaluations[2] - evaluations[1]
    return (many.waits.total() - few.waits.total()) / more, (many.operations - few.operations) / more


def of_training(unet, scheduler, images: int = 2) -> tuple[float, float]:
    """Waits and operations of a forward and backward pass; those of the optimizer are torch's."""
    objective = DenoisingScoreMatching(scheduler.parameterization, reduce_mean=True)
    x = torch.empty(images, *shape_of(unet)[1:], device=GPU)

    def step():
        objective(unet.train(), x, torch.empty_like(x), objective.draw_times(images)).mean().backward()

    counted(step)
    unet.zero_grad()
    count = counted(step)
    return count.waits.total(), count.operations


def of_likelihood(unet, scheduler) -> tuple[float, float]:
    """Waits and operations of an evaluation of the ODE and its trace. The solver asks for one number a step, that is,
    for every six evaluations: the size of its error."""
    pipe = ScoreSdePipeline(unet=unet.eval(), scheduler=scheduler)
    x = torch.empty(shape_of(unet), device=GPU, dtype=torch.float64)
    guidance, probes = Guidance(pipe, len(x), None), drawn_probes(1, "rademacher", x, None)
    flow = ProbabilityFlow(pipe, x.shape, guidance, None, probes=probes)
    flow.interval = (1e-5, 1.0)
    state, u = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1), flow.variable_of_time(0.5)
    with guidance.frozen():
        counted(flow, u, state)
        count = counted(flow, u, state)
    return count.waits.total(), count.operations


def operators_of(side: int) -> dict:
    """A mask, means of 2 x 2 pixels and a blur, of square images."""
    mask = box_mask(side, side, (0, 0, side // 2, side // 2)).to(GPU)
    return {"mask": Mask(mask), "downsampling": Downsampling(2), "blur": GaussianBlur(1.0)}


def of_restoration(unet, scheduler, method, operator, noise_std=0.05) -> tuple[float, float]:
    """Waits and operations of an evaluation of the posterior's denoiser and the end of its step.

    Args:
        method: one of `POSTERIOR_METHODS`, made.
        noise_std: of the measurement: a number, or a list of two.
    """
    pipe = ScoreSdePipeline(unet=unet.eval(), scheduler=scheduler)
    scheduler.set_timesteps(4, device=GPU)
    shape = shape_of(unet)
    x, operator = torch.empty(shape, device=GPU), operator.for_images(shape, GPU)
    if isinstance(noise_std, list):
        noise_std = torch.tensor(noise_std).reshape(-1, *[1] * (x.ndim - 1)).to(GPU)
    image_range = scheduler.parameterization.image_range
    problem = in_model_range(operator, operator(x), noise_std, None, image_range, shape)
    guidance = Guidance(pipe, len(x), None)

    def evaluation():
        posterior_output(guidance, scheduler, method, problem, x)
        method.project(problem, x, 0.9, 0.3, lambda size=shape: torch.randn(size, device=GPU))

    with guidance.frozen():
        counted(evaluation)
        count = counted(evaluation)
    return count.waits.total(), count.operations


def measure(names) -> list[dict]:
    rows = []
    for name in names:
        unet, sde = network(name), SDES[name]
        asked = {"prediction_type": "sample"} if unet.config.preconditioning == "edm" else {}
        for title, (cls, options) in SAMPLERS.items():
            for sampling_sde in (None, "vp" if sde == "ve" else "ve"):
                scheduler = cls(sde=sde, sampling_sde=sampling_sde, **options, **asked)
                task = f"sampling, {title}" + (f", `sampling_sde={sampling_sde}`" if sampling_sde else "")
                rows.append((name, task, *of_sampling(unet.eval(), scheduler)))
        scheduler = ScoreSdeProbabilityFlowScheduler(sde=sde, **asked)
        blur = operators_of(unet.config.sample_size)["blur"]
        for method, make in POSTERIOR_METHODS.items():
            noise_std = 0.0 if method == "projection" else 0.05  # which takes exact measurements alone of a blur
            counts = of_restoration(unet, scheduler, make(), blur, noise_std)
            rows.append((name, f"restoration of a blur, `{method}`", *counts))
        rows.append((name, "likelihood, an evaluation", *of_likelihood(unet, scheduler)))
        rows.append((name, "training, forward and backward", *of_training(unet, scheduler)))
    return [dict(zip(("network", "task", "waits", "operations"), row, strict=True)) for row in rows]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--networks", nargs="+", choices=SDES, default=[*SDES], help="those to be counted")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    lines = ["| network | task | blocking copies | operations |", "| --- | --- | --- | --- |"]
    for name in options.networks:
        new = measure([name])
        rows += new
        lines += [f"| `{r['network']}` | {r['task']} | {r['waits']:g} | {r['operations']:.0f} |" for r in new]
        found = json.dumps({"torch": torch.__version__, "rows": rows}, indent=2)
        (options.output / "host_waits.json").write_text(found)
        (options.output / "host_waits.md").write_text("\n".join(lines) + "\n")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
