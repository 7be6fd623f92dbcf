"""What a run says when it starts, and when a signal ends it."""

import shlex
import sys
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from run.config import RunConfig
from run.sharding import shard_size
from run.splits import Images


def describe_run(
    config: RunConfig, accelerator: Accelerator, data: Images, held_out: int, network: nn.Module, step: int
) -> str:
    """Folder, images, network and steps of a run that goes on after `step` steps, in lines.

    Args:
        held_out: number of validation images.
    """
    own = shard_size(network)
    shards = "" if own is None else f" (FSDP: {own:,} of them on the first)"
    devices = f"{accelerator.num_processes} x {accelerator.device.type}{shards}"
    shape = " x ".join(map(str, data.image_shape))
    parameters = sum(p.numel() for p in network.parameters())
    lines = (
        f"Results: {Path(config.output_dir).resolve()}",
        f"Images: {data.num_images or 'a stream'} of {data.name}, {shape}; for validation: {held_out}",
        f"Network: {parameters:,} parameters, on {devices}, mixed precision: {accelerator.mixed_precision}",
        f"Steps: {config.steps:,} of {config.batch_size} images, from step {step:,}",
    )
    return "\n".join(lines)


def how_to_resume(accelerator: Accelerator, network: nn.Module, overwrite: bool) -> str:
    """The command that goes on with the run of this process's command line; `overwrite` is its configuration's."""
    launcher = "python" if accelerator.num_processes == 1 else f"torchrun --nproc-per-node {accelerator.num_processes}"
    if shard_size(network) is not None:
        launcher = f"ACCELERATE_USE_FSDP=true FSDP_VERSION=2 {launcher}"
    arguments = [a for a in sys.argv if not a.startswith(("resume=", "overwrite="))]
    in_file = " overwrite=false" if overwrite and "overwrite=true" not in sys.argv else ""
    return f"{launcher} {shlex.join(arguments)} resume=latest{in_file}"
