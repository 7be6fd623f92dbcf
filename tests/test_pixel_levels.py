"""Networks that know the grey levels of their data, against sums over all levels."""

import math

import pytest
import torch

from sde_diffusers import NCSNppUNet2DModel
from sde_diffusers.models.pixel_levels import LOWEST_AT_FIRST, level_features, towards_levels, with_levels

LEVELS = 256
SPACING = 2 / (LEVELS - 1)
SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "block_out_channels": (8,),
    "layers_per_block": 1,
    "attention_resolutions": (),
    "patch_size": 2,
    "fir": False,
    "scale_by_sigma": False,
    "image_range": (-1.0, 1.0),
    "preconditioning": "edm",
}


@pytest.mark.parametrize("s", [0.02, 1 / 6, 0.4, 0.99])
def test_rounding_is_the_mean_over_all_levels(s):
    x = torch.linspace(-0.2, 0.2, 1001, dtype=torch.float64).view(1, 1, 1, -1)
    sigma = torch.full((1, 1, 1, 1), s * SPACING, dtype=torch.float64)
    values = torch.linspace(-1, 1, LEVELS, dtype=torch.float64)
    weights = (-((x[..., None] - values) ** 2) / (2 * sigma[..., None] ** 2)).softmax(-1)
    expected = (weights * values).sum(-1)
    torch.testing.assert_close(x + towards_levels(x, sigma, LEVELS), expected, rtol=0, atol=1e-8 * SPACING)


def test_rounding_fades_before_it_ends():
    x = torch.linspace(-0.1, 0.1, 1001, dtype=torch.float64).view(1, 1, 1, -1)
    below, above = (torch.full((1, 1, 1, 1), s * SPACING, dtype=torch.float64) for s in (1 - 1e-9, 1.0))
    assert not towards_levels(x, above, LEVELS).any()
    assert towards_levels(x, below, LEVELS).abs().max() < 1e-6 * SPACING


def test_features_are_faded_by_their_mean_over_the_noise():
    """E[phase feature of x_0 + sigma noise] = fading * feature of x_0, where the network's own are faded once more."""
    x_0, s = torch.tensor([[[[3.3 * SPACING - 1]]]], dtype=torch.float64), 0.15 * SPACING
    noise = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weights = torch.exp(-(noise**2) / 2) / torch.exp(-(noise**2) / 2).sum()
    none, sigma = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (0.0, s))
    mean = (level_features(x_0 + s * noise, none, LEVELS) * weights).sum(-1, keepdim=True)
    torch.testing.assert_close(mean, level_features(x_0, sigma, LEVELS), rtol=1e-9, atol=1e-12)


def test_black_has_the_share_that_bayes_gives_it():
    """Pixels that are black with probability 0.3, and else any level alike."""
    s, black = 0.4 * SPACING, 0.3
    x = torch.linspace(-1 - 3 * s, -1 + 6 * s, 501, dtype=torch.float64).view(1, 1, 1, -1)
    teeth = -1 + SPACING * torch.arange(-100, 101, dtype=torch.float64)
    comb = torch.exp(-((x[..., None] - teeth) ** 2) / (2 * s**2))
    others, at_black = (1 - black) * comb / len(teeth), black * torch.exp(-((x + 1) ** 2) / (2 * s**2))
    expected = ((others * teeth).sum(-1) - at_black) / (others.sum(-1) + at_black)
    sigma = torch.full((1, 1, 1, 1), s, dtype=torch.float64)
    lowest = math.log(black) - others.sum(-1).log()
    torch.testing.assert_close(with_levels(x, x, sigma, LEVELS, lowest), expected, rtol=0, atol=1e-9 * SPACING)


def test_new_layers_leave_a_network_as_it_was_but_for_rounding():
    """So that a network trained without levels can start one: see training/configs/fashion_mnist_likelihood.yaml."""
    torch.manual_seed(0)
    plain, told = NCSNppUNet2DModel(**SMALL), NCSNppUNet2DModel(**SMALL, pixel_levels=LEVELS)
    missing = told.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {name.split(".")[0] for name in missing} == {"levels_in", "levels_out"}
    x, sigma = torch.rand(3, 1, 8, 8) * 2 - 1, torch.tensor([0.2, 1.0, 5.0]) * SPACING
    expected = with_levels(
        plain(x, sigma).sample, x, sigma[:, None, None, None], LEVELS, torch.tensor(LOWEST_AT_FIRST)
    )
    torch.testing.assert_close(told(x, sigma).sample, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"pixel_levels": 200},
        {"value_dtype": "float32", "value_range": [0, 1]},
        {"preconditioning": None},
        {"progressive": "output_skip"},
    ],
    ids=str,
)
def test_levels_that_mean_nothing_are_refused(change):
    with pytest.raises(ValueError, match="`pixel_levels` must be None"):
        NCSNppUNet2DModel(**{**SMALL, "pixel_levels": 256, **change})
