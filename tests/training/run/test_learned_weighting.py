"""Learned weighting: its optimum is the logarithm of the mean loss at each noise level."""

import pytest
import torch

from run.learned_weighting import LearnedWeighting


def mean_loss(log_s):
    """An unequal loss, as objectives have it: from 0.02 to 3."""
    return torch.exp(-1.5 + 2.5 * torch.tanh(log_s / 2))


def falling(step):
    return 0.02 * min(1, (600 - step) / 300)


def learn(weighting, steps, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        log_s = 1.2 * torch.randn(128, generator=generator) - 1.2
        losses = mean_loss(log_s) * torch.rand(128, generator=generator) * 2  # whose mean is 1
        weighting.learn(losses, log_s)
        weighting.update(step + 1)


def test_it_finds_the_logarithm_of_the_mean_loss():
    weighting = LearnedWeighting(falling)
    levels = torch.linspace(-3.0, 0.6, 9)
    assert torch.equal(weighting.weight(levels), torch.ones(9))  # at first all count as the objective says
    learn(weighting, 600)
    torch.testing.assert_close(weighting.log_scale(levels).detach(), mean_loss(levels).log(), rtol=0, atol=0.15)
    torch.testing.assert_close(weighting.weight(levels) * mean_loss(levels), torch.ones(9), rtol=0, atol=0.16)


def test_it_resumes_bit_for_bit():
    one = LearnedWeighting(falling)
    learn(one, 5)
    other = LearnedWeighting(falling)
    other.load_state_dict({name: tensor.clone() for name, tensor in one.state_dict().items()})
    for weighting in (one, other):
        learn(weighting, 5, start=5)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    with pytest.raises(ValueError, match="no learned weighting"):
        other.load_state_dict({})


def test_micro_batches_and_processes_give_the_gradient_of_one():
    seen = []
    whole, parts = (LearnedWeighting(falling, lambda mean: seen.append(mean.clone()) or mean) for _ in range(2))
    log_s = torch.linspace(-2, 1, 8)
    whole.learn(mean_loss(log_s), log_s)
    for part in (slice(0, 4), slice(4, 8)):
        parts.learn(mean_loss(log_s[part]), log_s[part], share=0.5)
    for weighting in (whole, parts):
        weighting.update(1)
    torch.testing.assert_close(seen[0], seen[2])
    torch.testing.assert_close(seen[1], seen[3])


def test_losses_that_are_no_numbers_leave_it_as_it_is():
    weighting = LearnedWeighting(falling)
    weighting.learn(torch.full((4,), float("inf")), torch.zeros(4))
    weighting.update(1)
    assert torch.equal(weighting.weight(torch.zeros(3)), torch.ones(3))
