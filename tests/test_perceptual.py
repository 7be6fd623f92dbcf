"""How far apart images look to a classifier: by its definition, and to the one that ships."""

from pathlib import Path

import pytest
import torch

from images.loading import load_images
from sde_diffusers import NoiseConditionalClassifier
from sde_diffusers.perceptual import PerceptualDistance

SHIPPED = Path(__file__).parents[1] / "pretrained" / "fashion-mnist-classifier"


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return NoiseConditionalClassifier(8, 1, 3, block_out_channels=(8, 16), layers_per_block=1)


def images(n=3, seed=0):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_mean_square_of_the_difference_of_directions(classifier):
    a, b = images(), images(seed=1)
    expected = 0
    for of_a, of_b in zip(*(classifier.feature_maps(x, 0.01) for x in (a, b)), strict=True):
        angles = torch.nn.functional.cosine_similarity(of_a, of_b)  # |u - v|^2 = 2 - 2 <u, v>
        expected = expected + (2 - 2 * angles).mean((1, 2)) / 2
    torch.testing.assert_close(PerceptualDistance(classifier)(a, b), expected, rtol=1e-4, atol=1e-6)
    assert expected.min() > 0


def test_it_is_of_each_image_in_any_range_and_learns_nothing(classifier):
    a, b = images(), images(seed=1)
    distance = PerceptualDistance(classifier)
    both = distance(a, b)
    torch.testing.assert_close(distance(a[1:2], b[1:2]), both[1:2])
    torch.testing.assert_close(distance(b, a), both)
    torch.testing.assert_close(PerceptualDistance(classifier, (-1.0, 1.0))(2 * a - 1, 2 * b - 1), both)
    assert distance(a, a).abs().max() == 0
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(distance(a, b), both)
    a.requires_grad_()
    distance(a, b).sum().backward()
    assert a.grad.abs().amax((1, 2, 3)).min() > 0 and all(p.grad is None for p in classifier.parameters())


def test_a_last_map_is_what_the_logits_are_made_of(classifier):
    x = images()
    last = classifier.feature_maps(x, 0.5)[-1]
    pooled = torch.nn.functional.silu(classifier.norm_out(last)).mean((2, 3))
    torch.testing.assert_close(classifier(x, 0.5), classifier.head(pooled))


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the classifier is not in this checkout")
def test_a_blend_looks_less_like_an_image_than_its_sharp_neighbour_does():
    """At the same distance in pixels: a blur is further from a garment than one that is a little brighter."""
    data = load_images("fashion_mnist", "test", max_images=16)
    sharp = data.images.float() / 255
    blend = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
    away = (blend - sharp).square().mean((1, 2, 3)).sqrt()
    brighter = sharp * (1 + (away / sharp.square().mean((1, 2, 3)).sqrt())[:, None, None, None])
    distance = PerceptualDistance(NoiseConditionalClassifier.from_pretrained(SHIPPED))
    torch.testing.assert_close((brighter - sharp).square().mean((1, 2, 3)).sqrt(), away)
    assert distance(sharp, blend).mean() > 1.8 * distance(sharp, brighter).mean()
