"""Long computations in parts that are kept: interrupted, they go on; several processes share them.

The part of a computation that belongs to the items [first, last) is a shard: one safetensors file, which appears under
its name only when complete. What is computed for an item may depend on its shard, hence on the size of the shards, but
not on which process computes it, or when.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from run.yaml_config import ConfigError

DESCRIPTION = "description.json"


def compute_in_shards(
    compute: Callable[[range], dict[str, Tensor]],
    folder: Path,
    description: dict,
    count: int,
    size: int,
    accelerator: Accelerator,
    title: str,
) -> dict[str, Tensor]:
    """The tensors of `count` items, of which those that `folder` holds already are not computed again.

    Args:
        compute: gives the named tensors of some items; they are joined along their first dimension, in order.
        folder: where the shards lie, one folder for all processes; made if necessary.
        description: everything that the results depend on, of types that JSON has.
        count, size: number of items, at least 1, and of items in a shard (the last one may have fewer).
        accelerator: of all processes, each of which has to make this call; each gets the whole result.
        title: for the progress bar.

    Raises:
        ConfigError: the folder holds the shards of another description.
    """
    description = json.loads(json.dumps({**description, "shard_size": size}))  # as it will be read
    _require_same(folder, description)
    shards = [range(first, min(first + size, count)) for first in range(0, count, size)]
    paths = {shard: folder / f"{shard.start:08d}-{shard.stop:08d}.safetensors" for shard in shards}
    missing = [shard for shard in shards if not paths[shard].exists()]
    accelerator.wait_for_everyone()  # before the first of them writes
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        _write_atomically(folder / DESCRIPTION, lambda path: path.write_text(json.dumps(description, indent=2)))
    show = accelerator.is_main_process and bool(missing)
    with tqdm(total=count, desc=title, disable=not show, mininterval=1, dynamic_ncols=True) as progress:
        # Dealt out by number, which is the same for all: another evaluation may be writing shards of this folder.
        for shard in shards[accelerator.process_index :: accelerator.num_processes]:
            if paths[shard].exists():
                continue
            if show:  # what all processes have done
                progress.update(sum(len(s) for s in shards if paths[s].exists()) - progress.n)
            tensors = {name: tensor.contiguous().cpu() for name, tensor in compute(shard).items()}
            _write_atomically(paths[shard], lambda path, tensors=tensors: save_file(tensors, path))
        accelerator.wait_for_everyone()
        if show:
            progress.update(count - progress.n)
    parts = [load_file(paths[shard]) for shard in shards]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def digest(tensor: Tensor) -> str:
    """What tells tensors apart in a description: the SHA-256 of shape and values."""
    return hashlib.sha256(repr(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes()).hexdigest()


def _require_same(folder: Path, description: dict) -> None:
    path = folder / DESCRIPTION
    present = json.loads(path.read_text()) if path.exists() else description
    differences = [
        f"{key} was {present.get(key)!r} and is {description.get(key)!r} now"
        for key in sorted(present.keys() | description.keys())
        if present.get(key) != description.get(key)
    ]
    if differences:
        raise ConfigError(
            f"{folder} holds results of another configuration: {'; '.join(differences)}. Choose another output_dir, "
            "or delete that folder."
        )


def _write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    write(temporary)
    os.replace(temporary, path)
