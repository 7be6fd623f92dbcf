"""Images that are too large for a network at once: it answers for tiles that overlap, and the answers are blended.

    D(x) = sum_k w_k D(x_k),        sum_k w_k = 1,

x_k being the pixels of tile k. In the outer quarter of an overlap, where the network saw the tile end though the image
goes on, w_k = 0; over the half between the quarters it rises linearly to 1. Networks' answers (noise, score, x_0, v)
are affine in x_0, with factors that depend on x and t alone, so that blending them is blending denoisers.

An answer that depends on pixels at most a quarter of the overlap away is that for the whole image. What reaches
further, attention above all, ends with the tile: the network composes no more than it could see at once.
"""

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Tiles:
    """Squares of `size` pixels, each of which has `overlap` pixels in common with the next one."""

    size: int
    overlap: int

    def blended(self, ask, x: Tensor) -> Tensor:
        """The answers of `ask` to the tiles of x (N, C, H, W), one after another, as one.

        Where x requires gradients each tile is asked again for them, so that one tile is in the memory at a time.
        """
        backwards = x.requires_grad and torch.is_grad_enabled()
        answer = torch.zeros((), device=x.device)
        for (top, down), (left, across) in product(self._along(x.shape[2]), self._along(x.shape[3])):
            tile = x[:, :, top : top + len(down), left : left + len(across)]
            part = checkpoint(ask, tile, use_reentrant=False) if backwards else ask(tile)
            around = left, x.shape[3] - left - len(across), top, x.shape[2] - top - len(down)
            answer = answer + pad(part * torch.outer(down, across).to(x.device), around)
        return answer

    def _along(self, length: int) -> list[tuple[int, Tensor]]:
        """The tiles along one side of the image: where each begins, and its weights."""
        size, overlap = min(self.size, length), self.overlap
        starts = [*range(0, length - size, self.size - overlap), length - size]
        pixels, weights = torch.arange(length) + 0.5, torch.zeros(len(starts), length)
        for weight, start in zip(weights, starts, strict=True):
            inside = pixels - start if start > 0 else torch.full((length,), math.inf)  # distance from the tile's ends
            if start < starts[-1]:
                inside = torch.minimum(inside, start + size - pixels)
            weight[:] = ((inside - overlap / 4) / (overlap / 2)).clamp(0, 1)
        weights /= weights.sum(0)
        return [(start, weight[start : start + size]) for start, weight in zip(starts, weights, strict=True)]


def answer_in_tiles(tiles: Tiles | None, network, x: Tensor, network_time: Tensor, class_labels) -> Tensor:
    """The network's answer to x (N, C, H, W); None stands for no tiles."""

    def ask(part: Tensor) -> Tensor:
        return network(part, network_time, class_labels=class_labels).sample

    return ask(x) if tiles is None else tiles.blended(ask, x)
