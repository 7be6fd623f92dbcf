"""Fully sharded data parallelism (FSDP, arXiv 2304.11277): each process keeps a shard of every weight.

Weights, gradients, the optimizer's moments and the averaged weights are divided among the processes; a block of the
network is put together while it computes. `accelerate launch` asks for it by `distributed_type: FSDP`, and torch's
`fully_shard` does it. accelerate's own call of that function is passed by: it leaves out CPUs, and gives bfloat16
noise levels to a network in mixed precision, where autocast, as without shards, keeps them in float32.

Checkpoints and pipelines hold whole tensors, so that any number of processes, with or without shards, goes on.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from run.yaml_config import ConfigError

ONLY = {"version": "2", "offload_params": "false", "activation_checkpointing": "false", "auto_wrap_policy": "no_wrap"}


def fsdp_options() -> dict | None:
    """What `accelerate launch` asks `shard` for, or None; accelerate itself does not see it from then on.

    Raises:
        ConfigError: it asks for something else than this module does.
    """
    if os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    for key, allowed in ONLY.items():
        value = os.environ.get(f"FSDP_{key.upper()}", allowed)
        if value.lower() != allowed:
            raise ConfigError(f"fsdp_{key} must be {allowed} for this trainer, but accelerate was given {value}")
    return {"reshard_after_forward": os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"}


def shard(network: nn.Module, device: torch.device, reshard_after_forward: bool) -> None:
    """Divide a network, which all processes hold with equal weights, among them: block by block, then the rest.

    Args:
        network: its blocks are the members of its `nn.ModuleList`s.
        device: of this process.
        reshard_after_forward: free the whole weights of a block between its forward and backward passes.
    """
    network.to(device, memory_format=torch.contiguous_format)  # the only one that `fully_shard` takes
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    for block in (member for modules in lists for member in modules if not isinstance(member, nn.ModuleList)):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(network, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, which all processes have to ask for; another one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a whole tensor, sharded as `like` is; the tensor itself if that is none."""
    if not isinstance(like, DTensor):
        return tensor
    tensor = tensor.to(like.device).contiguous()
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).clone()


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a sharded tensor; another one as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_size(network: nn.Module) -> int | None:
    """How many numbers of a sharded network's parameters this process keeps; None if it is whole."""
    shards = [p.to_local() for p in network.parameters() if isinstance(p, DTensor)]
    return sum(shard.numel() for shard in shards) if shards else None


@contextlib.contextmanager
def gathered(network: nn.Module, shards: list[Tensor]) -> Iterator[None]:
    """While in this block, which all processes have to enter, the parameters of `network` are the whole of `shards`.

    Outside, it waits in the memory of the CPU. Nothing is done if `shards` are no shards, but its parameters.
    """
    sharded = any(isinstance(tensor, DTensor) for tensor in shards)
    if sharded:
        network.to(shards[0].device)
        with torch.no_grad():
            for parameter, tensor in zip(network.parameters(), shards, strict=True):
                parameter.copy_(whole(tensor))
    try:
        yield
    finally:
        if sharded:
            network.to("cpu")
