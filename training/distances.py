"""Distances between two sets of images in a feature space. Interface first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and covariance of features, all that the Frechet distance needs.

    Attributes:
        mean: float64, shape (D,).
        covariance: float64, shape (D, D), with the divisor count - 1.
        count: number of images.
        description: what `save` was told ("feature_space", "dataset", "split", "resolution"); empty if never saved.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    count: int
    description: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_features(cls, features: torch.Tensor) -> FeatureStatistics:
        """Of features of shape (N, D), N >= 2."""
        raise NotImplementedError

    @classmethod
    def from_batches(cls, batches: Iterable[torch.Tensor]) -> FeatureStatistics:
        """Of features that come in batches of shape (n, D); they are summed up in float64, never held together."""
        raise NotImplementedError

    @property
    def dimension(self) -> int:
        raise NotImplementedError

    @property
    def is_reliable(self) -> bool:
        """Whether there are at least ten images for each dimension; below, a Frechet distance wants a mark."""
        raise NotImplementedError

    def save(self, path: str | Path, *, feature_space: str, dataset: str, split: str, resolution: int) -> None:
        """Writes a safetensors file (to a temporary name, then renamed) with the description as its metadata."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | Path, feature_space: str | None = None) -> FeatureStatistics:
        """Reads what `save` wrote.

        Raises:
            ValueError: the file holds no statistics, or those of another feature space than the one given.
        """
        raise NotImplementedError


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Frechet distance |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2), as the FID reports it.

    Raises:
        ValueError: dimensions or feature spaces differ, or one has fewer images than its dimension + 1.
    """
    raise NotImplementedError


def bootstrap_frechet(
    features: torch.Tensor,
    reference: FeatureStatistics,
    resamples: int = 100,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """(low, high): 95 % interval of the Frechet distance of `features` (N, D) from `reference`."""
    raise NotImplementedError


class KernelDistance(NamedTuple):
    mean: float
    standard_error: float


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    density: float
    coverage: float


def kernel_distance(
    features: torch.Tensor,
    reference: torch.Tensor,
    subsets: int = 100,
    subset_size: int = 1000,
    generator: torch.Generator | None = None,
) -> KernelDistance:
    """Kernel Inception distance (N, D) against (M, D); subset_size at most half of the smaller set."""
    raise NotImplementedError


def precision_recall(features: torch.Tensor, reference: torch.Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of generated features (N, D) against real ones (M, D)."""
    raise NotImplementedError


def density_coverage(features: torch.Tensor, reference: torch.Tensor, k: int = 5) -> DensityCoverage:
    """Density and coverage of generated features (N, D) against real ones (M, D)."""
    raise NotImplementedError
