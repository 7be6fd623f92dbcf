"""Everything random in training, as a function of (seed, step).

Everything is drawn on the CPU: times, withheld labels and augmentations, which are few numbers, for the global batch,
of which each process takes its slice; noise and dequantization noise for each image by itself, so that a process draws
its own images' alone. A resumed run goes on as an uninterrupted one would have, and N processes follow a single one.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from images.augmentation import augmented, draw_augmentations
from sde_diffusers import DenoisingScoreMatching
from sde_diffusers.images import PixelFormat

AUGMENTATION, NOISE, DEQUANTIZATION = 3, 4, 5  # streams of random numbers beside that of the batch


def seed_of(*key: int) -> int:
    """A 64-bit seed that depends on every number of the key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


class Examples(NamedTuple):
    """What the objective takes: x_0 (N, C, H, W) in the network's range, noise likewise, times (N,), labels (N,)."""

    x_0: Tensor
    noise: Tensor
    times: Tensor
    labels: Tensor | None

    def __getitem__(self, part: slice) -> "Examples":
        return Examples(*(None if values is None else values[part] for values in self))


def draw_examples(
    images: Tensor,
    labels: Tensor | None,
    objective: DenoisingScoreMatching,
    key: tuple[int, ...],
    *,
    rank: int = 0,
    world_size: int = 1,
    dequantize: bool = False,
    label_dropout: float = 0.0,
    device: torch.device | str = "cpu",
    pixels: PixelFormat = PixelFormat(),  # noqa: B008 (frozen)
    noise_by_image: bool = True,
) -> Examples:
    """Draws times and noise for one process's share of a global batch.

    Args:
        images, labels: values (n, C, H, W), floating point if augmented, and int64 (n,) or None, the share of this
            process.
        objective: draws the times.
        key: seed of all draws, for example (seed, step).
        rank, world_size: this process and their number; the global batch has n * world_size images.
        dequantize: add uniform noise of one level of the values.
        label_dropout: probability that a label is replaced by -1, the network's "no class".
        device: of the result; the times stay on the CPU, in float64.
        pixels: what the images' values mean.
        noise_by_image: False draws the noise of the global batch by one generator, as earlier releases did.
    """
    own, total = slice(rank * len(images), (rank + 1) * len(images)), world_size * len(images)
    generator = torch.Generator().manual_seed(seed_of(*key))

    def drawn(draw: Callable[..., Tensor], stream: int) -> Tensor:
        if not noise_by_image:
            return draw(total, *images.shape[1:], generator=generator)[own]
        result, of_image = torch.empty(images.shape, dtype=torch.float32), torch.Generator()
        for k, row in enumerate(result, own.start):
            draw(row.shape, generator=of_image.manual_seed(seed_of(*key, stream, k)), out=row)
        return result

    def move(x: Tensor) -> Tensor:
        return x.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else x.to(device)

    times = objective.draw_times(total, generator)[own]
    noise = drawn(torch.randn, NOISE)
    dropped = torch.rand(total, generator=generator)[own] < label_dropout
    if dequantize:
        unit = pixels.dequantized(move(images), move(drawn(torch.rand, DEQUANTIZATION)))
    else:
        unit = pixels.to_unit(move(images))
    if labels is not None:
        labels = move(torch.where(dropped, -1, labels))
    return Examples(objective.parameterization.to_model_range(unit), move(noise), times, labels)


def draw_augmented(
    images: Tensor, probability: float, key: tuple[int, ...], *, rank: int = 0, world_size: int = 1
) -> tuple[Tensor, Tensor]:
    """One process's share of a global batch, transformed at random, and labels that tell a network how.

    Args:
        images: values (n, C, H, W).
        probability: as `draw_augmentations` takes it.
        key, rank, world_size: as `draw_examples` takes them; its draws are others.

    Returns:
        Images for `draw_examples`, the values as float32, and labels (n, `images.augmentation.LABELS`).
    """
    generator = torch.Generator().manual_seed(seed_of(*key, AUGMENTATION))
    labels = draw_augmentations(world_size * len(images), probability, generator)
    labels = labels[rank * len(images) : (rank + 1) * len(images)]
    return augmented(images.float(), labels), labels
