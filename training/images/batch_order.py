"""The order of training images: global batch k is a pure function of (seed, k), whatever the number of processes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch


def check_integer(name: str, value: int, minimum: int) -> None:
    if not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def slice_of_rank(batch_size: int, seed: int, start_step: int, rank: int, world_size: int) -> slice:
    """This process's part of a global batch, after a check of all arguments of `batches`."""
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0)
    check_integer("start_step", start_step, 0)
    check_integer("world_size", world_size, 1)
    check_integer("rank", rank, 0)
    if rank >= world_size:
        raise ValueError(f"rank must be below world_size {world_size}, got {rank}")
    if batch_size % world_size:
        raise ValueError(f"batch_size must be a multiple of world_size {world_size}, got {batch_size}")
    own = batch_size // world_size
    return slice(rank * own, (rank + 1) * own)


@lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> torch.Tensor:
    """Indices of global batch `step`."""
    return order_between(count, seed, step * batch_size, (step + 1) * batch_size)


def order_between(count: int, seed: int, start: int, stop: int) -> torch.Tensor:
    """Indices at positions start to stop - 1 in the permutations of successive epochs."""
    return torch.cat(
        [
            epoch_order(count, seed, epoch)[max(start - epoch * count, 0) : stop - epoch * count]
            for epoch in range(start // count, (stop - 1) // count + 1)
        ]
    )


def flipped(images: torch.Tensor, batch_size: int, seed: int, step: int, own: slice) -> torch.Tensor:
    """Mirrors half of the images in place, at random, as drawn for the global batch."""
    mirrored = torch.from_numpy(np.random.default_rng([seed, step, 1]).random(batch_size) < 0.5)[own]
    images[mirrored] = images[mirrored].flip(-1)
    return images
