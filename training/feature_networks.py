"""Networks whose features evaluation compares images by. Interface first; see `load_feature_network`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch


class FeatureNetwork:
    """Maps uint8 images to feature vectors; an image's features do not depend on its batch (up to rounding).

    Attributes:
        name: the feature space and its version, e.g. "fashion-mnist-features-1a2b3c4d"; the digits are a digest of the
            weights, so that statistics are never compared with features of other weights.
        dimension: number of features.
        resolution: side in pixels that images are resized to.
    """

    name: str
    dimension: int
    resolution: int | None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images, computed in batches that bound the memory.

        Args:
            images: uint8, shape (N, C, H, W), C = 1 or 3, N >= 1, on any device.

        Returns:
            float32 tensor of shape (N, dimension) on the CPU.

        Raises:
            ValueError: `images` has another type or shape.
        """
        raise NotImplementedError


def load_feature_network(
    name: str, weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> FeatureNetwork:
    """Loads a feature network.

    Args:
        name: "fashion-mnist" (the classifier in `pretrained/fashion-mnist-features`; 28 x 28 gray), "dinov2" (class
            token of a DINOv2; Stein et al. 2023, arXiv:2306.04675), or "inception" (Inception-v3 with clean-fid's
            resizing, the FID's feature space; Parmar et al. 2022, arXiv:2104.11222).
        weights: "fashion-mnist": a folder with another classifier (None: the shipped one). "dinov2": a local folder or
            an id of the Hub (None: "facebook/dinov2-large"). "inception": the file `inception-2015-12-05.pt` or the
            folder that holds it (None: clean-fid's download, kept in the cache of torch.hub).
        device: where the network computes.

    Raises:
        ValueError: `name` is not one of the three, or `weights` hold something else.
        FileNotFoundError: `weights` are not there.
        ModuleNotFoundError: transformers or clean-fid is not installed.
        ConnectionError: the weights are not on this machine and cannot be downloaded.
    """
    raise NotImplementedError


def shipped_statistics_path(network: FeatureNetwork) -> Path | None:
    """The `FeatureStatistics` file of the 60,000 Fashion-MNIST training images, if `network` is the shipped one."""
    raise NotImplementedError


_Extract = Callable[[torch.Tensor], torch.Tensor]
