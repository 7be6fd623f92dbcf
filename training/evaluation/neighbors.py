"""Are samples copies of training images? How near are their nearest ones, and those of images never trained on?"""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from sde_diffusers.images import PixelFormat

CHUNK, BLOCK = 250, 5000  # queries whose distances are held at once, and references in double precision
QUANTILE = 0.01
COPY = 1e-6  # distance up to which an image is the same, for features that rounding has touched


@dataclass(frozen=True)
class Neighbors:
    """Distances of samples and of test images to their nearest reference images.

    Attributes:
        sample_distances: (N,); sample_indices: (N,), which reference image it is.
        test_distances: (M,); None without test images.
        space: what the Euclidean distances are measured in.
    """

    sample_distances: Tensor
    sample_indices: Tensor
    test_distances: Tensor | None
    space: str

    def record(self) -> dict:
        """The share of samples that are nearer to a reference image than all but 1 % of the test images are.

        A model that has not memorised has a share of about 0.01 if its samples are as varied as the data; blurred or
        simple samples raise it too, copies to near 1. Exact copies always count, even where more than 1 % of the test
        images are copies themselves; without test images they alone do.
        """
        own, test = self.sample_distances, self.test_distances
        copies = own <= COPY
        nearer = copies if test is None else (own < test.quantile(QUANTILE)) | copies
        record = {
            "metric": "exact_copies" if test is None else "nearer_than_1_percent_of_test_images",
            "value": nearer.double().mean().item(),
            "space": self.space,
            "num_images": len(own),
            "exact_copies": int(copies.sum()),
            "median_of_samples": own.median().item(),
            "smallest_of_samples": own.min().item(),
        }
        if test is None:
            return record
        return record | {
            "num_test_images": len(test),
            "median_of_test_images": test.median().item(),
            "smallest_of_test_images": test.min().item(),
            "exact_copies_among_test_images": int((test <= COPY).sum()),
        }


def nearest(queries: Tensor, reference: Tensor, title: str) -> tuple[Tensor, Tensor]:
    """Euclidean distances (N,) of queries (N, D) from, and indices of, the nearest rows of `reference` (M, D)."""
    squares = torch.cat([part.double().square().sum(1) for part in reference.split(BLOCK)])
    found = []
    for queried in tqdm(queries.split(CHUNK), desc=title, leave=False, dynamic_ncols=True):
        queried = queried.double()
        # |q|^2 is the same for all references of a query; what float32 cancels here are images that differ little.
        products = [queried @ part.double().T for part in reference.split(BLOCK)]
        found.append((squares - 2 * torch.cat(products, 1)).argmin(1))
    indices = torch.cat(found)
    return (queries.double() - reference[indices].double()).norm(dim=1).float(), indices


def pixels(images: Tensor, meaning: PixelFormat = PixelFormat()) -> Tensor:  # noqa: B008 (frozen)
    """Images (N, C, H, W) as vectors (N, C H W) in [0, 1]; their values are 8 bits, or what `meaning` says."""
    return meaning.to_unit(images).flatten(1)
