"""Power-function averages: the weights that they should have, and averages of other widths made of them."""

import numpy as np
import pytest
import torch
from torch import nn

from run.power_averages import (
    PowerAverages,
    average_of_any_width,
    drop_snapshots,
    fit_profile,
    gamma_of,
    list_snapshots,
    overlap,
    save_snapshot,
)

STEPS, EVERY, WIDTHS = 400, 25, (0.05, 0.1)


def exact_average(sequence, sigma_rel):
    """The average of a sequence with the power function as its profile, by its definition."""
    steps, exponent = np.arange(1, len(sequence) + 1), gamma_of(sigma_rel) + 1
    weights = (steps**exponent - (steps - 1) ** exponent) / len(sequence) ** exponent
    return weights @ sequence


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose two parameters went through known sequences, and these sequences."""
    folder = tmp_path_factory.mktemp("run")
    walk = np.random.default_rng(0).standard_normal((2, STEPS)).cumsum(1)
    network = nn.Linear(1, 1)
    averages = PowerAverages(network, WIDTHS)
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            network.weight.fill_(walk[0, step - 1])
            network.bias.fill_(walk[1, step - 1])
        averages.update(step)
        if step % EVERY == 0:
            save_snapshot(folder, step, averages.state_dict())
    return folder, walk


def test_gamma_gives_the_width_and_the_mean_of_all_is_the_widest():
    for sigma_rel in (0.01, 0.05, 0.1, 0.2, 0.28):
        gamma = gamma_of(sigma_rel)
        assert (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5) == pytest.approx(sigma_rel)
    assert gamma_of(12**-0.5) == pytest.approx(0, abs=1e-6)
    assert [round(gamma_of(width), 2) for width in WIDTHS] == [16.97, 6.94]  # as the paper has it
    for wrong in (0, -0.1, 0.3, float("nan")):
        with pytest.raises(ValueError, match=r"sigma_rel must be above 0 and at most 0\.2887, but is"):
            gamma_of(wrong)


def test_the_overlap_of_two_profiles_is_their_integral():
    tau = np.linspace(0, 7, 700_001)

    def profile(time, gamma):
        return np.where(tau <= time, (gamma + 1) * tau**gamma / time ** (gamma + 1), 0)

    for a, b in (((7.0, 3.0), (4.0, 1.5)), ((4.0, 1.5), (7.0, 3.0)), ((5.0, 2.0), (5.0, 6.0))):
        numeric = np.trapezoid(profile(*a) * profile(*b), tau)
        assert overlap(*map(torch.tensor, (*a, *b))).item() == pytest.approx(numeric, rel=1e-4)


@pytest.mark.parametrize("width", WIDTHS)
def test_running_averages_weigh_each_step_as_the_power_function_does(run, width):
    folder, walk = run
    parameters, fit, step = average_of_any_width(folder, width)
    assert step == STEPS and fit.error < 1e-6
    assert parameters["weight"].item() == pytest.approx(exact_average(walk[0], width), rel=1e-5)
    assert parameters["bias"].item() == pytest.approx(exact_average(walk[1], width), rel=1e-5)


@pytest.mark.parametrize("width, error", [(0.07, 0.004), (0.15, 0.01), (0.2, 0.03)])
def test_other_widths_come_from_the_two_that_were_kept(run, width, error):
    folder, walk = run
    parameters, fit, _ = average_of_any_width(folder, width)
    assert 0 < fit.error < error and fit.coefficients.sum().item() == pytest.approx(1)
    exact = exact_average(walk[0], width)
    assert abs(parameters["weight"].item() - exact) < 2 * error * walk[0].std()
    earlier, _, step = average_of_any_width(folder, width, step=200)
    assert step == 200
    assert abs(earlier["weight"].item() - exact_average(walk[0, :200], width)) < 2 * error * walk[0].std()


def test_an_average_of_equal_weights_is_these_weights():
    fit = fit_profile([100, 100, 200, 200], [0.05, 0.1] * 2, 200, 0.13)
    assert fit.coefficients.sum().item() == pytest.approx(1)


def test_a_resumed_average_goes_on_bit_for_bit():
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    one, saved = PowerAverages(network, WIDTHS), None
    for step in range(1, 9):
        with torch.no_grad():
            network.weight.normal_()
        if step == 5:
            saved = {name: tensor.clone() for name, tensor in one.state_dict().items()}
            other = PowerAverages(nn.Linear(3, 2), WIDTHS)
            other.load_state_dict(saved)
            other._parameters = one._parameters
        one.update(step)
        if step >= 5:
            other.update(step)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    with pytest.raises(ValueError, match="of other widths: .*0.05"):
        PowerAverages(network, [0.2]).load_state_dict(saved)


def test_what_was_not_kept_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"has kept no averages: train with power_averages\.snapshot_every"):
        average_of_any_width(tmp_path, 0.1)
    with pytest.raises(ValueError, match="step must be one of 25, 50, .* but is 30"):
        average_of_any_width(run[0], 0.1, step=30)


def test_later_snapshots_go_when_a_run_goes_back(tmp_path):
    for step in (10, 20, 30):
        save_snapshot(tmp_path, step, {"0.05/w": torch.zeros(1)})
    drop_snapshots(tmp_path, after=20)
    assert list(list_snapshots(tmp_path)) == [10, 20]
