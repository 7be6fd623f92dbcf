"""The loss by noise level: groups that are drawn equally often, and the mean of each."""

import pytest
import torch

from run.noise_levels import NoiseLevels
from sde_diffusers import VESDE, VPSDE, DenoisingScoreMatching, Parameterization

OBJECTIVES = {
    "edm": DenoisingScoreMatching(Parameterization(VESDE(0.002, 80.0), "sample", "sigma", (-1, 1)), "edm"),
    "vp": DenoisingScoreMatching(Parameterization(VPSDE(), "epsilon", "999t", (-1, 1))),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_groups_are_drawn_equally_often(name):
    objective = OBJECTIVES[name]
    levels = NoiseLevels(objective, 8)
    times = objective.draw_times(8000, torch.Generator().manual_seed(1))
    share = levels.spread(torch.zeros(8000), times).mean(0)[8:]
    torch.testing.assert_close(share, torch.full((8,), 1 / 8), rtol=0, atol=0.02)
    assert levels.levels == sorted(levels.levels)


def test_edm_levels_are_those_of_the_log_normal():
    levels = torch.tensor(NoiseLevels(OBJECTIVES["edm"], 2).levels).log()
    half_normal = 1.2 * (2 / torch.pi) ** 0.5  # mean of |log s - mean|
    torch.testing.assert_close(levels, torch.tensor([-1.2 - half_normal, -1.2 + half_normal]), rtol=0, atol=0.03)


def test_each_group_has_the_mean_of_its_own_losses():
    objective = OBJECTIVES["edm"]
    levels = NoiseLevels(objective, 4)
    times = objective.draw_times(400, torch.Generator().manual_seed(2))
    losses = levels.log_s(times)  # known, and rising with the level
    spread = levels.spread(losses, times).mean(0)
    means = levels.means(spread.tolist())
    for mean, level in zip(means, levels.levels, strict=True):
        assert mean == pytest.approx(torch.tensor(level).log().item(), abs=0.2)
    assert (spread[4:] * torch.tensor(means)).sum().item() == pytest.approx(losses.mean().item())
    lowest = times[levels.log_s(times) < -2.5]
    assert levels.means(levels.spread(torch.ones(len(lowest)), lowest).mean(0).tolist()) == [1.0, None, None, None]
