"""Augmentation: labels of 0 change nothing, and each label does to an image what it says."""

import math

import pytest
import torch

from images.augmentation import LABELS, affine_maps, augmented, draw_augmentations
from run.draws import draw_augmented

SIDE = 64
BLOB = 4.0  # deviation, pixels


def labels(**values):
    """One row of labels: mirrored, upside_down, scale, cos, sin, a, b, x, y."""
    names = ["mirrored", "upside_down", "scale", "cos", "sin", "a", "b", "x", "y"]
    row = torch.zeros(1, LABELS)
    for name, value in values.items():
        row[0, names.index(name)] = value
    return row


def blob(x, y, stretch_x=1.0, height=SIDE, width=SIDE):
    """A Gaussian centred at (x, y), in pixels from the image's centre."""
    rows = torch.arange(height) - (height - 1) / 2 - y
    columns = torch.arange(width) - (width - 1) / 2 - x
    return torch.exp(-(rows[:, None] ** 2 + (columns / stretch_x) ** 2) / (2 * BLOB**2))[None, None]


def moments(image):
    """Centre and covariance (xx, yy, xy) of an image's brightness, in pixels."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij"
    )
    share = image[0, 0] / image.sum()
    mean_x, mean_y = (share * x).sum(), (share * y).sum()
    x, y = x - mean_x, y - mean_y
    covariance = [(share * x * x).sum(), (share * y * y).sum(), (share * x * y).sum()]
    return [value.item() for value in (mean_x, mean_y, *covariance)]


def test_labels_of_zero_change_nothing():
    images = torch.rand(5, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augmented(images, torch.zeros(5, LABELS)), images)


def test_an_image_is_the_same_whatever_happens_to_others():
    generator = torch.Generator().manual_seed(0)
    images, drawn = torch.rand(40, 1, 8, 8, generator=generator), draw_augmentations(40, 0.5, generator)
    whole = augmented(images, drawn)
    untouched = (drawn == 0).all(1)
    assert 0 < untouched.sum() < 40 and torch.equal(whole[untouched], images[untouched])
    torch.testing.assert_close(torch.cat([augmented(images[k : k + 1], drawn[k : k + 1]) for k in range(40)]), whole)


def test_mirrors_are_exact():
    images = torch.rand(1, 3, 5, 6)
    assert torch.equal(augmented(images, labels(mirrored=1)), images.flip(-1))
    assert torch.equal(augmented(images, labels(upside_down=1)), images.flip(-2))
    assert torch.equal(augmented(images, labels(mirrored=1, upside_down=1)), images.flip(-1, -2))


def test_a_quarter_turn_is_that_of_rot90():
    images = torch.rand(1, 3, 8, 8)
    turned = augmented(images, labels(cos=-1, sin=1))
    torch.testing.assert_close(turned, torch.rot90(images, -1, (2, 3)), rtol=0, atol=1e-5)  # x towards y: clockwise


@pytest.mark.parametrize("height, width", [(SIDE, SIDE), (96, 128)])
def test_each_label_moves_turns_and_stretches_as_it_says(height, width):
    image = blob(8, 0, height=height, width=width)
    variance = BLOB**2

    def after(**values):
        return moments(augmented(image, labels(**values)))

    near = {"rel": 0.02, "abs": 0.15}
    x, y, xx, yy, xy = after(x=0.5, y=-0.4)
    assert (x, y) == pytest.approx((8 + 0.125 * 0.5 * width, -0.125 * 0.4 * height), **near)
    assert (xx, yy, xy) == pytest.approx((variance, variance, 0), **near)

    x, y, xx, yy, xy = after(scale=1.5)
    factor = 2 ** (0.2 * 1.5)
    assert (x, y, xx, yy, xy) == pytest.approx((8 * factor, 0, variance * factor**2, variance * factor**2, 0), **near)

    angle = 0.7
    x, y, xx, yy, xy = after(cos=math.cos(angle) - 1, sin=math.sin(angle))
    assert (x, y, xx) == pytest.approx((8 * math.cos(angle), 8 * math.sin(angle), variance), **near)

    for w, direction in ((1.2, 0.0), (-1.2, 0.0), (1.2, 0.6)):
        x, y, xx, yy, xy = after(a=w * math.cos(2 * direction), b=w * math.sin(2 * direction))
        along, across = 2 ** (0.4 * w) * variance, 2 ** (-0.4 * w) * variance  # variances: octaves count twice
        cos, sin = math.cos(direction), math.sin(direction)
        assert xx == pytest.approx(along * cos**2 + across * sin**2, **near)
        assert yy == pytest.approx(along * sin**2 + across * cos**2, **near)
        assert xy == pytest.approx((along - across) * sin * cos, **near)


def test_two_descriptions_of_a_stretch_have_the_same_labels():
    w, r = 0.8, 0.3
    one = labels(a=w * math.cos(2 * r), b=w * math.sin(2 * r))
    other = labels(a=-w * math.cos(2 * r + math.pi), b=-w * math.sin(2 * r + math.pi))
    torch.testing.assert_close(one, other)
    assert not torch.allclose(affine_maps(one, 4, 4), affine_maps(-one, 4, 4))


def test_draws_have_the_shares_and_widths_they_should():
    drawn = draw_augmentations(20_000, 0.12, torch.Generator().manual_seed(0)).double()
    shares = (drawn != 0).double().mean(0)
    expected = torch.tensor([0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12], dtype=torch.float64)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.012)
    for column in (2, 7, 8):
        assert drawn[drawn[:, column] != 0, column].std() == pytest.approx(1, abs=0.06)
    turned = drawn[drawn[:, 4] != 0]
    radii = torch.hypot(turned[:, 3] + 1, turned[:, 4])
    torch.testing.assert_close(radii, torch.ones_like(radii))
    assert turned[:, 4].mean().abs() < 0.06 and (turned[:, 3] + 1).mean().abs() < 0.06  # all angles


def test_processes_share_the_draws_of_one():
    images = torch.randint(256, (8, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, drawn = draw_augmented(images, 0.5, (3, 5))
    halves = [draw_augmented(images[r * 4 : r * 4 + 4], 0.5, (3, 5), rank=r, world_size=2) for r in (0, 1)]
    assert torch.equal(torch.cat([labels for _, labels in halves]), drawn)
    torch.testing.assert_close(torch.cat([part for part, _ in halves]), whole)
    assert 0 <= whole.min() and whole.max() <= 255
    assert not torch.equal(draw_augmented(images, 0.5, (3, 6))[1], drawn)
