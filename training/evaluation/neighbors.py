"""Are samples copies of training images? How near are their nearest ones, and those of images never trained on?"""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

CHUNK = 250  # queries whose distances are held at once
QUANTILE = 0.01


@dataclass(frozen=True)
class Neighbors:
    """Distances of samples and of test images to their nearest reference images.

    Attributes:
        sample_distances: (N,); sample_indices: (N,), which reference image it is.
        test_distances: (M,).
        space: what the Euclidean distances are measured in.
    """

    sample_distances: Tensor
    sample_indices: Tensor
    test_distances: Tensor
    space: str

    def record(self) -> dict:
        """The share of samples that are nearer to a reference image than all but 1 % of the test images are.

        A model that has not memorised has a share of about 0.01 if its samples are as varied as the data; blurred or
        simple samples raise it too, copies to near 1.
        """
        threshold = self.test_distances.quantile(QUANTILE)
        return {
            "metric": "nearer_than_1_percent_of_test_images",
            "value": (self.sample_distances < threshold).double().mean().item(),
            "space": self.space,
            "num_images": len(self.sample_distances),
            "num_test_images": len(self.test_distances),
            "median_of_samples": self.sample_distances.median().item(),
            "median_of_test_images": self.test_distances.median().item(),
            "smallest_of_samples": self.sample_distances.min().item(),
            "smallest_of_test_images": self.test_distances.min().item(),
        }


def nearest(queries: Tensor, reference: Tensor, title: str) -> tuple[Tensor, Tensor]:
    """Euclidean distances (N,) of queries (N, D) from, and indices of, the nearest rows of `reference` (M, D)."""
    queries, reference = queries.float(), reference.float()
    squares = reference.square().sum(1)
    found = []
    for part in tqdm(queries.split(CHUNK), desc=title, leave=False, dynamic_ncols=True):
        # |q|^2 is the same for all references of a query.
        found.append((squares - 2 * part @ reference.T).argmin(1))
    indices = torch.cat(found)
    return (queries - reference[indices]).norm(dim=1), indices  # without the cancellation of the line above


def pixels(images: Tensor) -> Tensor:
    """uint8 images (N, C, H, W) as vectors (N, C H W) in [0, 1]."""
    return images.flatten(1).float() / 255
