"""How far apart two images look: their distance in the feature maps of a classifier (arXiv 1801.03924, equation 1).

    d(a, b) = mean over the layers l, and over the places of each, of |u_l(a) - u_l(b)|^2,   u_l = map_l / |map_l|,

without weights learned from people's judgements, which know photographs alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NOISE_LEVEL = 0.01  # that the classifier is told, in its units: almost none
SHORTEST = 1e-4  # length below which a vector of features is not scaled to 1


class PerceptualDistance:
    """Distance of images in a classifier's feature maps, from 0 to 4.

    Args:
        classifier: a `NoiseConditionalClassifier`; it is asked in its own precision, and its weights do not learn.
        image_range: that of the images, which is [0, 1] for the classifier.
    """

    def __init__(self, classifier: torch.nn.Module, image_range: tuple[float, float] = (0.0, 1.0)):
        self.classifier = classifier.eval().requires_grad_(False)
        self.low, self.high = image_range

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (N,) of images (N, C, H, W), of which the gradient may be asked; errors are the classifier's."""
        distance = sum((u - v).square().sum(1).mean((1, 2)) for u, v in zip(*map(self._maps, (a, b)), strict=True))
        return distance / len(self.classifier.blocks)

    def _maps(self, images):
        unit = (images - self.low) / (self.high - self.low)
        with torch.autocast(images.device.type, enabled=False):
            maps = self.classifier.feature_maps(unit, NOISE_LEVEL)
        return [F.normalize(m, dim=1, eps=SHORTEST) for m in maps]
