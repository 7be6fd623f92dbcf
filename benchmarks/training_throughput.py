"""How many images a second a small NCSN++ trains, next to diffusers' U-Net and the paper's own PyTorch code.

    python benchmarks/training_throughput.py results/throughput --score_sde ~/score_sde_pytorch

A step is everything that training does: noise, forward, denoising score matching loss, backward, gradient clipping,
Adam, moving average of the weights. Each contender has a process of its own, since the trainer here sets the C
library's allocator (`training/run/memory.py`) and the others' do not; the paper's code is timed with that setting,
too. They take turns, so that whatever else the machine does hits all of them alike; the first step of a turn is not
timed, since in training no other process has just had the caches. Medians over the rounds are reported, and ratios of
them. With `--device cuda` a GPU trains: all have the fused Adam, ours is also timed with contiguous tensors, and the
paper's code is left out, as its CUDA kernels would have to be compiled. `--compile` adds the networks under
`torch.compile`, in bfloat16. Writes into the output folder

- `throughput.json` and `throughput.png`: images per second of every contender,
- `loss_curves.png` (and the losses, in the JSON): that bfloat16 autocast trains as float32 does, on real images.
"""

import argparse
import copy
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import matplotlib.pyplot as plt
import torch
from diffusers import UNet2DModel
from side_by_side import Worker, bars, do_turns, medians, stop, take_turns, write_results
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "training")]

from images.loading import load_images  # noqa: E402
from run.memory import keep_freed_memory  # noqa: E402
from sde_diffusers.models.unet_ncsnpp import NCSNppUNet2DModel  # noqa: E402

WIDTHS, BLOCKS, ATTENTION, DROPOUT, SIZE = (32, 64, 64), 2, 16, 0.1, 32
SIGMA_MIN, SIGMA_MAX = 0.01, 50.0
OURS, DIFFUSERS, PAPER = "sde_diffusers", "diffusers UNet2DModel", "score_sde_pytorch"


def ours():
    """A small NCSN++ as on CIFAR-10: FIR, residual input pyramid, Fourier features, division by sigma."""
    unet = NCSNppUNet2DModel(
        sample_size=SIZE,
        block_out_channels=WIDTHS,
        layers_per_block=BLOCKS,
        attention_resolutions=(ATTENTION,),
        progressive_input="residual",
        dropout=DROPOUT,
    )
    return unet, lambda x, sigma: unet(x, sigma).sample


def diffusers_unet():
    """diffusers' plain U-Net of equal widths and depth, with attention at the same level (no FIR, no pyramid)."""
    unet = UNet2DModel(
        sample_size=SIZE,
        block_out_channels=WIDTHS,
        layers_per_block=BLOCKS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=WIDTHS[1],
        norm_num_groups=8,
        dropout=DROPOUT,
    )
    return unet, lambda x, sigma: unet(2 * x - 1, sigma.log()).sample / sigma[:, None, None, None]


def paper_network(checkout):
    """The network of `ours` built by the paper's own code, from a checkout of it."""
    if not (checkout / "models" / "ncsnpp.py").is_file():
        raise SystemExit(f"--score_sde: {checkout} is no checkout of score_sde_pytorch (no models/ncsnpp.py in it).")
    sys.path.insert(0, str(checkout))
    # It compiles CUDA kernels when imported, which it does not use on CPUs.
    with mock.patch("torch.utils.cpp_extension.load"):
        from models.ncsnpp import NCSNpp

    model = SimpleNamespace(
        nf=WIDTHS[0],
        ch_mult=tuple(width // WIDTHS[0] for width in WIDTHS),
        num_res_blocks=BLOCKS,
        attn_resolutions=(ATTENTION,),
        dropout=DROPOUT,
        embedding_type="fourier",
        fourier_scale=16,
        fir=True,
        fir_kernel=[1, 3, 3, 1],
        resblock_type="biggan",
        resamp_with_conv=True,
        skip_rescale=True,
        progressive="none",
        progressive_input="residual",
        progressive_combine="sum",
        init_scale=0.0,
        conditional=True,
        nonlinearity="swish",
        scale_by_sigma=True,
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        num_scales=1000,
    )
    data = SimpleNamespace(image_size=SIZE, num_channels=3, centered=False)
    network = NCSNpp(SimpleNamespace(model=model, data=data, training=SimpleNamespace(continuous=True)))
    return network, network


class Trainer:
    """Trains one network; `step(images)` is one full training step and returns the loss."""

    def __init__(
        self,
        network,
        score,
        bfloat16=False,
        channels_last=True,
        learning_rate=2e-4,
        seed=0,
        fused=False,
        device="cpu",
    ):
        network.train().to(device)
        if channels_last:
            network.to(memory_format=torch.channels_last)
        self.score, self.bfloat16, self.device = score, bfloat16, device
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate, fused=fused)
        self.generator = torch.Generator(device).manual_seed(seed)

    def step(self, images):
        """One step on images (N, C, H, W) in [0, 1]: loss E |sigma s(x + sigma z; sigma) + z|^2 under the VE SDE."""
        self.optimizer.zero_grad(set_to_none=True)
        t = torch.rand(len(images), generator=self.generator, device=self.device)
        sigma = SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** t
        noise = torch.randn(images.shape, generator=self.generator, device=self.device)
        scale = sigma[:, None, None, None]
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bfloat16):
            score = self.score(images + scale * noise, sigma)
        loss = (scale * score.float() + noise).square().sum((1, 2, 3)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1e-3)
        return loss.detach()


@dataclass(frozen=True)
class Contender:
    """One bar of the chart."""

    network: str  # OURS, DIFFUSERS or PAPER
    bfloat16: bool
    keeps_memory: bool  # with the allocator set as training/train.py does
    score_sde: Path | None = None  # for PAPER
    channels_last: bool = True
    compiled: bool = False

    @property
    def name(self):
        kept = ", allocator set" if self.keeps_memory and self.network != OURS else ""
        contiguous = "" if self.channels_last or self.network == PAPER else ", contiguous"
        compiled = ", compiled" if self.compiled else ""
        return f"{self.network}, {'bfloat16' if self.bfloat16 else 'float32'}{contiguous}{compiled}{kept}"


def train_in_turns(connection, contender, images, threads, device):
    """Process of a contender: answers its number of parameters, then does its turns.

    If torch.compile fails it answers with the first line of the error instead, and ends.
    """
    if contender.keeps_memory:
        keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if contender.network == PAPER:
        network, score = paper_network(contender.score_sde)
    else:
        network, score = ours() if contender.network == OURS else diffusers_unet()
    images = images.clone().to(device)  # out of the memory that the processes share
    fused = contender.network == OURS or device == "cuda"  # on a CPU each as it is trained
    trainer = Trainer(
        network, score, contender.bfloat16, channels_last=contender.channels_last, fused=fused, device=device
    )
    if contender.compiled:
        network.compile()
    try:
        for _ in range(5):  # until the memory that a step needs is there
            trainer.step(images)
        synchronize(device)
    except Exception as error:
        if not contender.compiled:
            raise
        connection.send(f"{type(error).__name__}: {error}".splitlines()[0])
        return
    connection.send(sum(p.numel() for p in trainer.parameters))
    do_turns(connection, lambda: trainer.step(images), untimed=1, wait=lambda: synchronize(device))


def synchronize(device):
    """Wait until the GPU has done what it was told to."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(contenders, images, rounds, steps, threads, device):
    """({name: images per second, one number per round}, {name: number of parameters}, {name: error of torch.compile}).

    The contenders take turns; those that could not be compiled are left out.
    """
    workers = {c.name: Worker(train_in_turns, c, images, threads, device) for c in contenders}
    answers = {name: worker.ready() for name, worker in workers.items()}
    failures = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
    workers = {name: worker for name, worker in workers.items() if name not in failures}

    def rate(worker):
        return lambda: steps * len(images) / worker.turn(steps)

    rates = take_turns({name: rate(worker) for name, worker in workers.items()}, rounds, "throughput")
    stop(workers.values())
    return rates, {name: answers[name] for name in workers}, failures


def loss_curves(images, steps, batch_size, device):
    """Losses of our network from the same start, with the same images and noise, in bfloat16 and float32."""
    torch.manual_seed(0)
    network, _ = ours()
    losses = {}
    for name in ("bfloat16", "float32"):
        twin = copy.deepcopy(network)
        trainer = Trainer(
            twin,
            lambda x, sigma, twin=twin: twin(x, sigma).sample,
            name == "bfloat16",
            learning_rate=1e-3,
            device=device,
        )
        torch.manual_seed(0)  # dropout
        order = torch.Generator().manual_seed(0)
        losses[name] = []
        for _ in tqdm(range(steps), desc=f"loss curve, {name}", unit="step"):
            batch = images[torch.randint(len(images), (batch_size,), generator=order)]
            losses[name].append(trainer.step(batch.to(device)).item())
    return losses


def plot_losses(losses, window=10):
    """Both loss curves, faint as they are and bold as running means."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, values), style, color in zip(losses.items(), ("-", "--"), ("tab:orange", "tab:blue"), strict=True):
        axes.plot(values, color=color, alpha=0.25)
        means = torch.tensor(values).unfold(0, min(window, len(values)), 1).mean(1)
        axes.plot(range(len(values) - len(means), len(values)), means, style, color=color, label=name)
    axes.set(xlabel="training step", ylabel="denoising score matching loss", yscale="log")
    axes.legend(title=f"mean over {window} steps")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the JSON file and the figures")
    parser.add_argument("--score_sde", type=Path, help="checkout of github.com/yang-song/score_sde_pytorch to compare")
    parser.add_argument(
        "--images", default=str(ROOT.parent / "shared" / "data" / "cifar10"), help="data set or folder"
    )
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="times that each contender gets its turn")
    parser.add_argument("--steps", type=int, default=2, help="training steps per turn")
    parser.add_argument("--curve_steps", type=int, default=200, help="training steps of the loss curves; 0: none")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="also time compiled networks, in bfloat16")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    if cuda and args.score_sde:
        parser.error("--score_sde is for --device cpu: on a GPU the paper's code uses CUDA kernels that it compiles")
    if cuda and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU")
    for name in ("batch_size", "rounds", "steps", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    try:
        images = load_images(args.images, image_size=SIZE, channels=3, max_images=10_000, streaming=False).images
    except (OSError, ValueError) as error:
        parser.error(f"--images {args.images}: {error}")
    images = images.float() / 255
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)

    contenders = [
        Contender(OURS, bfloat16=True, keeps_memory=True),
        Contender(OURS, bfloat16=False, keeps_memory=True),
        Contender(DIFFUSERS, bfloat16=True, keeps_memory=False),
        Contender(DIFFUSERS, bfloat16=False, keeps_memory=False),
    ]
    if cuda:
        contenders.append(Contender(OURS, bfloat16=True, keeps_memory=True, channels_last=False))
        contenders.append(Contender(OURS, bfloat16=False, keeps_memory=True, channels_last=False))
    if args.compile:
        contenders.append(Contender(OURS, bfloat16=True, keeps_memory=True, compiled=True))
        contenders.append(Contender(DIFFUSERS, bfloat16=True, keeps_memory=False, compiled=True))
    if args.score_sde:
        paper = Contender(PAPER, bfloat16=False, keeps_memory=False, score_sde=args.score_sde, channels_last=False)
        contenders += [paper, replace(paper, keeps_memory=True)]
    rates, parameters, failures = measure(
        contenders, images[: args.batch_size], args.rounds, args.steps, args.threads, args.device
    )
    rate = medians(rates)
    ratios = {
        f"{name} / {other}": rate[name] / rate[other]
        for name in rate
        for other in rate
        if name.startswith(OURS) and not other.startswith(OURS)
    }
    keep_freed_memory()
    losses = loss_curves(images, args.curve_steps, args.batch_size, args.device) if args.curve_steps else {}

    results = {
        "images_per_second": rate,
        "rounds": rates,
        "ratios": ratios,
        "parameters": parameters,
        "losses": losses,
        "batch_size": args.batch_size,
        "threads": args.threads,
        "machine": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    if failures:
        results["failures"] = failures
    colors = ["tab:blue" if name.startswith(OURS) else "tab:gray" for name in rates]
    figure = bars(rates, "images per second, full training step", colors)
    write_results(args.output, "throughput", results, figure=figure)
    if losses:
        plot_losses(losses).savefig(args.output / "loss_curves.png", dpi=150)
    for name, error in failures.items():
        print(f"not compiled: {name}: {error}")
    for name, median in rate.items():
        print(f"{median:8.1f} images/s  {name}")
    for name, ratio in ratios.items():
        print(f"{ratio:8.2f} x  {name}")


if __name__ == "__main__":
    main()
