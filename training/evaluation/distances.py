"""Distances between two sets of images, generated and real, in the feature space of a network.

    Frechet distance    of Gaussians with the features' means and covariances (Heusel et al. 2017, arXiv:1706.08500)
    kernel distance     squared maximum mean discrepancy, cubic kernel (Binkowski et al. 2018, arXiv:1801.01401)
    precision, recall   shares within the other set's neighbourhoods (Kynkaanniemi et al. 2019, arXiv:1904.06991)
    density, coverage   the same with less weight on outliers (Naeem et al. 2020, arXiv:2002.09797)

All are computed in float64, and pairs of images in chunks, so that 10,000 against 60,000 fit into little memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from run.written_folder import write_whole

RELIABLE_SAMPLES = 10  # images for each dimension below which a Frechet distance is marked
BATCH = 10_000  # features that are held in float64 at a time
CHUNK = 2**24  # pairs of images whose distances are held at a time: 128 MiB


# ---- Frechet distance ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
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
        """Of features of shape (N, D), N >= 2.

        Raises:
            ValueError: another shape, or values that are not finite.
        """
        return cls.from_batches(features.split(BATCH))

    @classmethod
    def from_batches(cls, batches: Iterable[torch.Tensor]) -> FeatureStatistics:
        """Of features that come in batches of shape (n, D); they are summed up in float64, never held together.

        Raises:
            ValueError: fewer than two images in all, a batch of another shape, or values that are not finite.
        """
        count, mean, scatter = 0, 0.0, 0.0  # scatter: sum of (x - mean)(x - mean)^T
        for batch in batches:
            batch = _checked("features", batch, dimension=len(mean) if count else None, minimum=1)
            # Chan et al. 1979, "Updating formulae and a pairwise algorithm for computing sample variances": stable.
            n, batch_mean = len(batch), batch.mean(0)
            centred, shift = batch - batch_mean, batch_mean - mean
            scatter = scatter + centred.T @ centred + torch.outer(shift, shift) * (count * n / (count + n))
            mean = mean + shift * (n / (count + n))
            count += n
        if count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {count}")
        return cls(mean, scatter / (count - 1), count)

    @property
    def dimension(self) -> int:
        return len(self.mean)

    @cached_property
    def root(self) -> torch.Tensor:
        """Some A of shape (D, D) with A A^T = covariance; eigenvalues that rounding made negative count as 0."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp(min=0).sqrt()

    @property
    def is_reliable(self) -> bool:
        """Whether there are at least ten images for each dimension; below, a Frechet distance wants a mark."""
        return self.count >= RELIABLE_SAMPLES * self.dimension

    def save(self, path: str | Path, *, feature_space: str, dataset: str, split: str, resolution: int) -> None:
        """Writes a safetensors file (to a temporary name, then renamed) with the description as its metadata.

        Args:
            path: the file; its folder exists.
            feature_space: `FeatureNetwork.name`.
            dataset, split: the images' origin.
            resolution: side in pixels of the images, before the network resized them.
        """
        path = Path(path)
        description = {"feature_space": feature_space, "dataset": dataset, "split": split, "resolution": resolution}
        tensors = {"mean": self.mean, "covariance": self.covariance, "count": torch.tensor(self.count)}
        tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
        metadata = {key: str(value) for key, value in description.items()}
        write_whole(path, lambda incomplete: save_file(tensors, incomplete, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path, feature_space: str | None = None) -> FeatureStatistics:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no statistics, or those of another feature space than the one given.
        """
        try:
            with safe_open(path, framework="pt") as file:
                description = file.metadata() or {}
                mean, covariance, count = (file.get_tensor(key) for key in ("mean", "covariance", "count"))
        except SafetensorError as error:
            raise ValueError(f"{path} holds no feature statistics: {error}") from error
        found = description.get("feature_space")
        if feature_space not in (None, found):
            raise ValueError(f"{path} holds statistics of the feature space {found!r}, not of {feature_space!r}")
        return cls(mean, covariance, int(count), description)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Frechet distance |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2), as the FID reports it.

    From few images it comes out too large, by an amount that falls like 1 / count and grows with the dimension:
    compare only distances from equal counts, and mark those of statistics that are not `is_reliable`.

    Raises:
        ValueError: dimensions or feature spaces differ, or one has fewer images than its dimension + 1.
    """
    _check_comparable(a, b)
    difference = a.mean - b.mean
    # tr (C_a C_b)^1/2 is the sum of the singular values of A^T B for any A A^T = C_a and B B^T = C_b. Unlike a matrix
    # square root of the product it needs no regularisation, and stays real, where a covariance is singular.
    cross = torch.linalg.svdvals(a.root.T @ b.root).sum()
    distance = difference @ difference + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(distance.item(), 0.0)


def bootstrap_frechet(
    features: torch.Tensor,
    reference: FeatureStatistics,
    resamples: int = 100,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """95 % interval of the mean Frechet distance of N images of the same model, by the bootstrap.

    It says where the mean over many draws of N images may lie, of which the given ones are one draw, and covers it in
    about 95 % of the draws. The distance of another N images, which varies as much again, lies in it less often: in
    about 80 %. Two models differ if their intervals are apart; one that lies in the other's interval may still be
    another. Near a distance of 0, where what is seen is bias more than distance, it is up to 1.6 times too wide.

    It says nothing about the bias that N images have (see `frechet_distance`): the interval holds for distances from N
    images, not from infinitely many. A resample repeats images, and has about twice that bias; so the quantiles are
    taken of the resamples' deviations from their own mean. The reference counts as fixed.

    Args:
        features: of the generated images, shape (N, D), N > D.
        reference: of the real images.
        resamples: at least 20.
        generator: draws the resamples.

    Returns:
        (low, high), around the distance of `features` from `reference`.

    Raises:
        ValueError: as `frechet_distance`, or `resamples` is below 20.
    """
    if resamples < 20:
        raise ValueError(f"resamples must be at least 20, got {resamples}")
    statistics = FeatureStatistics.from_features(features)
    _check_comparable(statistics, reference)
    features = features.double().cpu()
    distances = []
    for _ in tqdm(range(resamples), desc="Bootstrap", delay=2):
        chosen = torch.randint(len(features), (len(features),), generator=generator)
        distances.append(frechet_distance(FeatureStatistics.from_features(features[chosen]), reference))
    distances = torch.tensor(distances, dtype=torch.float64)
    low, high = (distances - distances.mean()).quantile(distances.new_tensor([0.025, 0.975])).tolist()
    distance = frechet_distance(statistics, reference)
    return max(distance + low, 0.0), distance + high


def _check_comparable(a: FeatureStatistics, b: FeatureStatistics) -> None:
    if a.dimension != b.dimension:
        raise ValueError(f"statistics must have one dimension, got {a.dimension} and {b.dimension}")
    spaces = {s.description["feature_space"] for s in (a, b) if "feature_space" in s.description}
    if len(spaces) > 1:
        raise ValueError(f"statistics must be of one feature space, got {' and '.join(sorted(spaces))}")
    if (count := min(a.count, b.count)) <= a.dimension:
        raise ValueError(
            f"a Frechet distance in {a.dimension} dimensions needs at least {a.dimension + 1} images, got {count}"
        )


# ---- Kernel distance -----------------------------------------------------------------------------------------------


class KernelDistance(NamedTuple):
    mean: float
    standard_error: float


def kernel_distance(
    features: torch.Tensor,
    reference: torch.Tensor,
    subsets: int = 100,
    subset_size: int = 1000,
    generator: torch.Generator | None = None,
) -> KernelDistance:
    """Kernel Inception distance: unbiased squared MMD under (x.y / D + 1)^3, averaged over random subsets.

    Being unbiased it may be negative, and distances from different numbers of images compare.

    Args:
        features: of the generated images, shape (N, D).
        reference: of the real images, shape (M, D).
        subsets: pairs of subsets, at least 2.
        subset_size: images of a subset, from 2 to half of the smaller set.
        generator: draws the subsets.

    Returns:
        The mean over the subsets, and a standard error of it as an estimate from N and M images. The subsets share
        images, so it is not their deviation / sqrt(subsets): by Hoeffding's inequality for U-statistics, the mean over
        all subsets of m out of n images has at most m / n times the variance of one subset.

    Raises:
        ValueError: an argument is out of range.
    """
    features = _checked("features", features, dimension=None, minimum=4)
    reference = _checked("reference", reference, dimension=features.shape[1], minimum=4)
    smaller = min(len(features), len(reference))
    if not 2 <= subset_size <= smaller // 2:
        raise ValueError(f"subset_size must be in 2 ... {smaller // 2}, half of the smaller set, got {subset_size}")
    if subsets < 2:
        raise ValueError(f"subsets must be at least 2, got {subsets}")

    def draw(points: torch.Tensor) -> torch.Tensor:
        return points[torch.randperm(len(points), generator=generator)[:subset_size]]

    distances = [_squared_mmd(draw(features), draw(reference)) for _ in tqdm(range(subsets), desc="KID", delay=2)]
    distances = torch.tensor(distances, dtype=torch.float64)
    # var(subset) = within + var(mean over all), and var(mean over all) <= m / n var(subset)
    shared = subset_size / (smaller - subset_size)
    return KernelDistance(distances.mean().item(), distances.std().item() * (shared + 1 / subsets) ** 0.5)


def _squared_mmd(x: torch.Tensor, y: torch.Tensor) -> float:
    """Unbiased estimate from two sets of m points: Gretton et al. 2012, JMLR 13, lemma 6."""

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    m = len(x)
    k_xx, k_yy = kernel(x, x), kernel(y, y)
    within = (k_xx.sum() - k_xx.trace() + k_yy.sum() - k_yy.trace()) / (m * (m - 1))
    return (within - 2 * kernel(x, y).mean()).item()


# ---- Neighbourhoods ------------------------------------------------------------------------------------------------


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    density: float
    coverage: float


def precision_recall(features: torch.Tensor, reference: torch.Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991, section 3).

    An image lies in a set's manifold if it is no farther from one of the set's images than this one's k-th nearest
    neighbour in the set. Both numbers depend on the sizes of the sets (the larger one, the smaller its
    neighbourhoods): compare only results from equal sizes.

    Args:
        features: of the generated images, shape (N, D), N > k.
        reference: of the real images, shape (M, D), M > k.
        k: neighbours, at least 1.

    Returns:
        precision: share of generated images in the manifold of the real ones; recall: the reverse.

    Raises:
        ValueError: an argument is out of range.
    """
    features, reference = _two_sets(features, reference, k)
    precision = torch.cat([near.any(1) for near in _neighbours(features, reference, _radii(reference, k))])
    recall = torch.cat([near.any(1) for near in _neighbours(reference, features, _radii(features, k))])
    return PrecisionRecall(precision.double().mean().item(), recall.double().mean().item())


def density_coverage(features: torch.Tensor, reference: torch.Tensor, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, arXiv:2002.09797, section 3).

    A real image's neighbourhood reaches to its k-th nearest neighbour among the real images.

    Args:
        features, reference, k: as in `precision_recall`.

    Returns:
        density: real neighbourhoods that a generated image lies in, on average, divided by k (may exceed 1);
        coverage: share of real images with a generated one in their neighbourhood. The expected coverage of two sets
        of the same distribution and size is about 1 - 2^-k; it falls with fewer generated images than real ones.

    Raises:
        ValueError: an argument is out of range.
    """
    features, reference = _two_sets(features, reference, k)
    count, covered = 0, torch.zeros(len(reference), dtype=torch.bool)
    for near in _neighbours(features, reference, _radii(reference, k)):
        count += near.sum().item()
        covered |= near.any(0)
    return DensityCoverage(count / (k * len(features)), covered.double().mean().item())


def _two_sets(features: torch.Tensor, reference: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both checked, and moved to the middle of the reference, where squared distances lose fewer digits."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    features = _checked("features", features, dimension=None, minimum=k + 1)
    reference = _checked("reference", reference, dimension=features.shape[1], minimum=k + 1)
    return features - reference.mean(0), reference - reference.mean(0)


def _squared_distances(points: torch.Tensor, centres: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Of consecutive chunks of points: the number of the first one, and distances of shape (chunk, len(centres))."""
    norms = centres.square().sum(1)
    size = max(1, CHUNK // len(centres))
    for start in tqdm(range(0, len(points), size), desc="Neighbours", delay=2):
        chunk = points[start : start + size]
        yield start, torch.addmm(norms, chunk, centres.T, alpha=-2).add_(chunk.square().sum(1, keepdim=True))


def _radii(points: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distance of each point from its k-th nearest neighbour among the others."""
    radii = []
    for start, distances in _squared_distances(points, points):
        own = torch.arange(len(distances))
        distances[own, start + own] = torch.inf
        radii.append(distances.topk(k, largest=False).values[:, -1])
    return torch.cat(radii)


def _neighbours(points: torch.Tensor, centres: torch.Tensor, radii: torch.Tensor) -> Iterator[torch.Tensor]:
    """Chunks, of shape (chunk, len(centres)), of which points lie in which centre's neighbourhood."""
    for _, distances in _squared_distances(points, centres):
        yield distances <= radii


def _checked(name: str, features: torch.Tensor, dimension: int | None, minimum: int) -> torch.Tensor:
    """Features (N, D) as float64 on the CPU."""
    if features.ndim != 2 or len(features) < minimum or dimension not in (None, features.shape[1]):
        wanted = f"(N, {'D' if dimension is None else dimension}) with N >= {minimum}"
        raise ValueError(f"{name} must have the shape {wanted}, got {tuple(features.shape)}")
    if not features.isfinite().all():
        raise ValueError(f"{name} must be finite, but {(~features.isfinite()).any(1).sum()} rows are not")
    return features.double().cpu()
