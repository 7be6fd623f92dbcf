"""Augmentation that does not leak into what is generated, for small data sets.

Each image is transformed at random, and the network is told how: by labels that are all 0 for an image as it is. So it
can be asked for untransformed images, however many transformed ones it has seen. The transformations and labels are
those that EDM trains CIFAR-10 with (Karras et al. 2022, arXiv 2206.00364, appendix F.2), but for one detail below:

    labels 0, 1    mirrored left to right (half of the images), upside down                        each 0 or 1
    label  2       scaled by 2^(0.2 w)                                                             w ~ N(0, 1)
    labels 3, 4    rotated by an angle a, uniform in [-pi, pi]                                     cos a - 1, sin a
    labels 5, 6    stretched by 2^(0.2 w) along a direction r, and compressed as much across it    w cos 2r, w sin 2r
    labels 7, 8    moved by 0.125 (w_1, w_2) of width and height                                   w_1, w_2

EDM's labels 5 and 6 are w cos r and w sin r, which a stretch along r + pi shares with a compression along r. Twice the
angle tells them apart, and gives the two descriptions of each stretch, (w, r) and (-w, r + pi/2), the same labels.

Scaling, rotation, stretching and moving, in this order, are one affine map. The image, continued beyond its border by
its mirror images, is read there by `torch.nn.functional.grid_sample`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LABELS = 9
SCALE_STD, STRETCH_STD, MOVE_STD = 0.2, 0.2, 0.125  # octaves, octaves, share of the side
DIAGONAL = 0.5  # share of the stretched images whose direction is not that of an axis


def draw_augmentations(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Labels of random transformations, float32 (count, 9); their number of draws depends on `count` alone.

    Args:
        probability: of each of the last five lines above; mirroring left to right has 1/2.
    """

    def happens(chance: float) -> Tensor:
        return torch.rand(count, generator=generator) < chance

    def normal() -> Tensor:
        return torch.randn(count, generator=generator)

    def angle() -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * math.pi

    mirrored = happens(0.5).float()
    upside_down = (happens(probability) & happens(0.5)).float()
    scale = normal() * happens(probability)
    rotation = angle() * happens(probability)
    stretch, direction = normal() * happens(probability), angle() * happens(DIAGONAL)
    moves = torch.stack([normal(), normal()]) * happens(probability)
    return torch.stack(
        [
            mirrored,
            upside_down,
            scale,
            rotation.cos() - 1,
            rotation.sin(),
            stretch * (2 * direction).cos(),
            stretch * (2 * direction).sin(),
            *moves,
        ],
        dim=1,
    )


def affine_maps(labels: Tensor, height: int, width: int) -> Tensor:
    """Where the points of transformed images come from, as `affine_grid` takes it: float64 (N, 2, 3).

    Args:
        labels: (N, 9) of `draw_augmentations`.
    """
    _, _, scale, cos_minus_1, sin, stretch_a, stretch_b, move_x, move_y = labels.double().unbind(1)

    def matrices(rows: list[list[Tensor]]) -> Tensor:
        return torch.stack([torch.stack(row, 1) for row in rows], 1)

    rotation = matrices([[cos_minus_1 + 1, -sin], [sin, cos_minus_1 + 1]])
    # The symmetric matrix with eigenvalues 2^(0.2 w) along r and 2^(-0.2 w) across it.
    stretch = torch.linalg.matrix_exp(
        math.log(2) * STRETCH_STD * matrices([[stretch_a, stretch_b], [stretch_b, -stretch_a]])
    )
    pixels = 2 ** (SCALE_STD * scale)[:, None, None] * (stretch @ rotation)  # p -> pixels p, about the image's centre
    sides = torch.tensor([width, height], dtype=torch.float64)
    units = pixels * (sides / sides[:, None])  # in units in which either side goes from -1 to 1
    inverse = torch.linalg.inv(units)
    move = 2 * MOVE_STD * torch.stack([move_x, move_y], 1)[:, :, None]
    return torch.cat([inverse, -inverse @ move], 2)


def augmented(images: Tensor, labels: Tensor) -> Tensor:
    """The images transformed as their labels say; where these are 0 they are left alone, and mirroring is exact.

    Args:
        images: float (N, C, H, W), in any range.
        labels: (N, 9) of `draw_augmentations`.

    Returns:
        A new tensor like `images`; what bicubic interpolation overshoots is cut off at each image's extremes.
    """
    images = images.clone()
    for label, axis in ((0, -1), (1, -2)):
        chosen = labels[:, label] == 1
        images[chosen] = images[chosen].flip(axis)
    chosen = (labels[:, 2:] != 0).any(1)
    if chosen.any():
        part = images[chosen]
        grid = F.affine_grid(affine_maps(labels[chosen], *part.shape[2:]).to(part), part.shape, align_corners=False)
        sampled = F.grid_sample(part, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
        images[chosen] = sampled.clamp(part.amin((1, 2, 3), keepdim=True), part.amax((1, 2, 3), keepdim=True))
    return images
