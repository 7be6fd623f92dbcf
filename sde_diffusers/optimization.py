"""The fastest way to ask a network for samples on this processor or GPU, chosen by trying it out.

Three things are chosen: how the weights lie in memory (`layout`), in which `precision` the layers compute, and whether
the network is compiled. The first and the last one change answers by rounding in float32, the precision by rounding in
bfloat16, which halves what is moved and is fast where the processor or GPU computes in it. The weights themselves stay
as they are: what computes in bfloat16 is a copy, which only sampling asks. Likelihoods, latent codes, restoration and
whatever takes gradients ask the network itself, and it is the network that is saved.
"""

import copy
import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

SAMPLING = "_sampling_network"  # the attribute of a network that holds its `SamplingNetwork`
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
WORKING_PRECISIONS = ("float32", "bfloat16")
COMPILING_SECONDS = 120.0
"""What compiling may take: work that is shorter is done before it pays."""
HOPELESS = 3.0
"""A way whose first evaluation takes so many times as long as the best one is not tried again."""


@dataclass(frozen=True)
class Optimization:
    """What `ScoreSdePipeline.optimize` chose.

    Args:
        layout: "contiguous" or "channels_last".
        precision: "float32" or "bfloat16", or another one that was the network's own.
        compiled: whether sampling asks a compiled network.
        seconds: of one evaluation, for each way that was tried, by a name like "bfloat16, channels_last".
        notes: what could not be tried, and why.
    """

    layout: str
    precision: str
    compiled: bool
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        chosen = f"{self.precision}, {self.layout}" + (", compiled" if self.compiled else "")
        tried = "; ".join(f"{way}: {1e3 * seconds:.3g} ms" for way, seconds in self.seconds.items())
        measured = f" (an evaluation took, {tried})" if tried else ""
        return ". ".join([f"Sampling in {chosen}{measured}", *self.notes])


class SamplingNetwork:
    """What sampling asks instead of a network, of which it is an attribute.

    Args:
        source: that network.
        eager: itself, or a copy in another precision.
    """

    def __init__(self, source: nn.Module, eager: nn.Module):
        self.eager, self.compiled, self.shape = eager, None, None
        self.versions = versions(source)

    def __reduce__(self):
        """Copies of a network, and what is pickled of it, are as loaded."""
        return type(None), ()

    def __call__(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None):
        if self.compiled is None or sample.shape != self.shape or torch.is_grad_enabled():
            return self.eager(sample, timestep, class_labels=class_labels)
        output = self.compiled(sample, timestep, class_labels=class_labels)
        output.sample = output.sample.clone()  # CUDA graphs write every answer into the same memory
        return output

    def compile(self, shape: tuple[int, ...]) -> None:
        """Compile it for samples of one shape; others are answered as before."""
        on_gpu = next(self.eager.parameters()).device.type == "cuda"
        how: dict = {"mode": "reduce-overhead"} if on_gpu else {"options": {"freezing": True}}
        self.compiled, self.shape = torch.compile(self.eager, dynamic=False, **how), torch.Size(shape)


def versions(network: nn.Module) -> list[tuple]:
    """What changes with a network's weights: where they are, and how often they were written to; and its hooks."""
    hooks = [(*m._forward_hooks.values(), *m._forward_pre_hooks.values()) for m in network.modules()]
    weights = [(p.data_ptr(), p.device, p._version) for p in network.parameters() if not p.is_inference()]
    return [*weights, *(tuple(map(id, of_module)) for of_module in hooks if of_module)]


def asked_for_samples(network):
    """The `SamplingNetwork` of a network, or the network itself if there is none or its weights have changed since."""
    sampling = getattr(network, SAMPLING, None)
    return network if sampling is None or sampling.versions != versions(network) else sampling


def optimized(
    network: nn.Module, arguments: tuple, evaluations: int, layout: str | None, precision: str | None
) -> Optimization:
    """Try the ways to ask a network, and let sampling ask it in the fastest one.

    Args:
        arguments: of an evaluation: samples (N, C, H, W), what the network is conditioned on, and labels.
        evaluations, layout, precision: see `ScoreSdePipeline.optimize`.
    """
    vars(network).pop(SAMPLING, None)
    device = arguments[0].device
    own = str(next(network.parameters()).dtype).removeprefix("torch.")
    layouts = [*LAYOUTS] if layout is None else [layout]
    # A network that would be given noisy images in 16 bits stays in its own precision. Kernels of 16 bits are fast in
    # the last layout.
    both = precision is None and own == "float32" and getattr(network, "accepts_float32_input", False)
    ways = [(precision or own, name) for name in layouts] + [("bfloat16", layouts[-1])] * both
    contenders = {way: copy_of(network, *way) for way in ways}
    if not getattr(network, "accepts_float32_input", False):  # of one precision, if one is wanted
        arguments = (arguments[0].to(getattr(torch, ways[0][0])), *arguments[1:])
    seconds: dict[tuple, float] = {}
    if len(ways) > 1 or evaluations:
        seconds = seconds_of({way: partial(asked, *arguments) for way, asked in contenders.items()}, device)
    best = min(ways, key=lambda way: seconds.get(way, 0.0))
    if best[0] == own:
        nn.Module.to(network, memory_format=LAYOUTS[best[1]])
    sampling = SamplingNetwork(network, network if best[0] == own else contenders[best])
    del contenders
    named, notes = {", ".join(way): value for way, value in seconds.items()}, []
    if evaluations * seconds.get(best, 0.0) > COMPILING_SECONDS:
        name = f"{', '.join(best)}, compiled"
        try:
            sampling.compile(arguments[0].shape)
            ways_left = {"eager": partial(sampling.eager, *arguments), name: partial(sampling, *arguments)}
            found = seconds_of(ways_left, device)
            named[name] = found[name]
            if found[name] > found["eager"]:
                sampling.compiled = None
        except Exception as error:  # of any kind: no compiler, or one that fails
            sampling.compiled = None
            notes.append(f"It can't be compiled here: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
    if sampling.eager is not network or sampling.compiled is not None:
        setattr(network, SAMPLING, sampling)
    return Optimization(best[1], best[0], sampling.compiled is not None, named, tuple(notes))


def copy_of(network: nn.Module, precision: str, layout: str) -> nn.Module:
    """A network's copy for evaluations."""
    # Not by the network's own `to`, which warns that modules may be wanted in float32: none is.
    made = nn.Module.to(copy.deepcopy(network), getattr(torch, precision), memory_format=LAYOUTS[layout])
    return made.eval().requires_grad_(False)


@torch.no_grad()
def seconds_of(ways: dict, device: torch.device, rounds: int = 5) -> dict:
    """The least seconds that each function takes in some rounds in which they take turns, after one that warms up.

    On a CPU they are those of the processor, among which the work of other programs does not count.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def once(way):
        wait()
        start = clock()
        way()
        wait()
        return clock() - start

    for way in ways.values():
        way()
    seconds = {name: once(way) for name, way in ways.items()}
    hopeful = [name for name in ways if seconds[name] < HOPELESS * min(seconds.values())]
    for _ in range(rounds - 1):
        for name in hopeful:
            seconds[name] = min(seconds[name], once(ways[name]))
    return seconds
