"""Distances of image sets from the reference images, in one feature space after another."""

from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from evaluation.distances import (
    FeatureStatistics,
    bootstrap_frechet,
    density_coverage,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from evaluation.feature_networks import FeatureNetwork
from evaluation.shards import compute_in_shards, digest
from sde_diffusers.images import PixelFormat, visible

SHARD_SIZE = 1000  # images
SUBSET_SIZE = 1000  # of the kernel distance
UNRELIABLE = "fewer than ten images for each feature dimension: biased upwards"


def eight_bits(images: Tensor, meaning: PixelFormat) -> Tensor:
    """Images as the feature networks take them: what one would see of them, in 8 bits."""
    if meaning == PixelFormat() and images.shape[1] in (1, 3):
        return images
    return PixelFormat().from_unit(visible(meaning.to_unit(images)))


def compute_features(
    images: Tensor, name: str, network: FeatureNetwork, cache: Path, accelerator: Accelerator
) -> Tensor:
    """Features (N, D) of uint8 images (N, C, H, W), kept under `cache` by what network and images contain.

    Args:
        name: of the images, for the progress bar.
    """
    sha256 = digest(images)
    folder = cache / network.name / sha256[:16]
    found = compute_in_shards(
        lambda part: {"features": network(images[part.start : part.stop])},
        folder,
        {"feature_space": network.name, "sha256": sha256, "shape": list(images.shape)},
        len(images),
        SHARD_SIZE,
        accelerator,
        f"{network.name}: {name}",
    )
    return found["features"]


def compare_features(
    metrics: list[str],
    features: Tensor,
    reference: Tensor,
    statistics: FeatureStatistics,
    bootstrap_resamples: int = 0,
    seed: int = 0,
) -> Iterator[dict]:
    """Records {"metric": name, "value": number or None, ...} of the metrics asked for.

    Precision, recall, density and coverage depend on the number of images on both sides: as many are compared as the
    smaller side has, the reference images chosen by the seed, the others in their order.

    Args:
        metrics: of `METRICS` in `config.py`.
        features, reference: (N, D), (M, D).
        statistics: what the Frechet distance is measured from.
        bootstrap_resamples: for the 95 % interval of the Frechet distance; 0 = none.
        seed: of subsets and resamples.
    """
    n = min(len(features), len(reference))
    generator = torch.Generator().manual_seed(seed)
    own, subset = features[:n], reference[torch.randperm(len(reference), generator=generator)[:n]]
    compute = {
        "frechet_distance": lambda: _frechet(features, statistics, bootstrap_resamples, generator),
        "kernel_distance": lambda: _kernel(features, reference, min(SUBSET_SIZE, n // 2), generator),
        "precision_recall": lambda: _pair(precision_recall(own, subset, k=3), n, k=3),
        "density_coverage": lambda: _pair(density_coverage(own, subset, k=5), n, k=5),
    }
    for metric in metrics:
        try:
            yield from compute[metric]()
        except ValueError as error:  # too few images
            yield {"metric": metric, "value": None, "num_reference": len(reference), "refused": str(error)}


def _frechet(features, statistics, resamples, generator) -> list[dict]:
    own = FeatureStatistics.from_features(features)
    record = {
        "metric": "frechet_distance",
        "value": frechet_distance(own, statistics),
        "num_reference": statistics.count,
    }
    if not (own.is_reliable and statistics.is_reliable):
        record["mark"] = UNRELIABLE
    if resamples:
        record["interval_95"] = list(bootstrap_frechet(features, statistics, resamples, generator))
    return [record]


def _kernel(features, reference, subset_size, generator) -> list[dict]:
    distance = kernel_distance(features, reference, subset_size=subset_size, generator=generator)
    record = {"metric": "kernel_distance", "value": distance.mean, "standard_error": distance.standard_error}
    return [record | {"subset_size": subset_size, "num_reference": len(reference)}]


def _pair(values, count: int, k: int) -> list[dict]:
    about = {"num_images": count, "num_reference": count, "k": k}
    return [{"metric": metric, "value": value} | about for metric, value in values._asdict().items()]
