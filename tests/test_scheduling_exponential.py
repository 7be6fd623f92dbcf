"""The exponential solvers' order and limits, stochastic sampling by churn, and both in few steps and low precision."""

import importlib.util
import math
import sys

import pytest
import torch
from exact_scores import Gaussian, Mixture, as_images, exact_output, sample
from exact_variance import sampled_variance

from sde_diffusers import (
    ScoreSdeExponentialScheduler,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
)
from sde_diffusers.saved_folders.single_file import source_of
from sde_diffusers.schedulers.scheduling_exponential import lagrange_integrals

SDES = ("ve", "vp", "sub_vp", "ve_exponential", "vp_discrete", "cosine_vp", "flow")
FORMS = ("data", "noise")
DATA = Gaussian([0.4, -0.3], [[0.09, 0.03], [0.03, 0.05]])
MIXTURE = Mixture([0.3, 0.7], [[-0.5], [0.5]], 0.1)


def start(scheduler, n, d=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, 1, 1, generator=generator, dtype=torch.float64) * scheduler.init_noise_sigma


def smallest_eps(sde):
    """So small that what is left below it can be neglected here."""
    return 1e-3 if sde == "vp_discrete" else 1e-4


def moments_after(scheduler, data, steps):
    """Exact moments of what a sampler with memory draws from Gaussian data: an affine map of the start and of the
    noise of every step, each of which one row carries through all steps."""
    d = len(data.mean)
    scheduler.set_timesteps(steps)
    config = scheduler.config
    calls = len(scheduler.times) if config.get("eta", 0) or config.get("s_churn", 0) else 0
    mean, covariance = data.moments(scheduler.sde, scheduler.times[0])
    x = torch.zeros(1 + d + calls * d, d, dtype=torch.float64)
    x[1 : d + 1] = torch.eye(d)
    x = as_images(x)
    for k, t in enumerate(scheduler.timesteps):
        z = torch.zeros_like(x)
        if calls:
            z[1 + d + k * d :][:d] = as_images(torch.eye(d).double())
        output = exact_output(scheduler, data, scheduler.scale_model_input(x, t))
        x = scheduler.step(output, t, x, variance_noise=z).prev_sample
    x = x[:, :, 0, 0]
    response = (x[1:] - x[0]).T
    a, b = response[:, :d], response[:, d:]
    return a @ mean + x[0], a @ covariance @ a.T + b @ b.T


def errors(scheduler, steps, truth=DATA):
    """Largest errors of mean and covariance, relative to the largest deviation and variance of the data."""
    mean, covariance = moments_after(scheduler, DATA, steps)
    return (mean - truth.mean).abs().max().item() / 0.3, (covariance - truth.covariance).abs().max().item() / 0.09


# The exponential solvers.


def test_weights_are_the_integrals_of_lagrange_polynomials():
    """Against closed forms: int e^w w^j dw, recovered from the values of w^j at the nodes."""
    nodes = [0.3, 0.9, 1.4]
    weights = lagrange_integrals(nodes, 1.4, 2.0, lambda w: math.e**w, lambda w: w)
    antiderivatives = [lambda w: 1, lambda w: w - 1, lambda w: w**2 - 2 * w + 2]
    for j, f in enumerate(antiderivatives):
        integral = math.exp(2.0) * f(2.0) - math.exp(1.4) * f(1.4)
        assert sum(c * node**j for c, node in zip(weights, nodes, strict=True)) == pytest.approx(integral, rel=1e-12)


@pytest.mark.parametrize("algorithm", FORMS)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("sde", SDES)
def test_order_of_the_ode_solver(sde, order, algorithm):
    """Against the exact solution at eps, halving the step divides the error by 2 to the order; a start of lower order
    does not spoil it."""
    scheduler = ScoreSdeExponentialScheduler(
        sde=sde,
        algorithm=algorithm,
        solver_order=order,
        time_grid="log_snr",
        sampling_eps=1e-3,
        final_denoise=False,
    )
    truth = Gaussian(*DATA.moments(scheduler.sde, 1e-3))
    (_, coarse), (mean, fine) = (errors(scheduler, n, truth) for n in (64, 128))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.3)
    assert fine < {1: 0.06, 2: 5e-3, 3: 6e-4, 4: 1e-4}[order] and mean < 1e-6


@pytest.mark.parametrize("sde", SDES)
def test_the_corrector_adds_an_order(sde):
    """At no further evaluation: steps of order 3 err as those of order 4, and far less than without."""
    options = {"sde": sde, "solver_order": 3, "time_grid": "log_snr", "sampling_eps": 1e-3, "final_denoise": False}
    scheduler = ScoreSdeExponentialScheduler(**options, unified_corrector=True)
    truth = Gaussian(*DATA.moments(scheduler.sde, 1e-3))
    coarse, fine = (errors(scheduler, n, truth)[1] for n in (64, 128))
    assert len(scheduler.times) == 128 and math.log2(coarse / fine) == pytest.approx(4, abs=0.3)
    assert fine < 0.1 * errors(ScoreSdeExponentialScheduler(**options), 128, truth)[1]


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("data", [DATA, MIXTURE], ids=["gaussian", "mixture"])
def test_few_steps_stop_where_they_tell_most(data, sde):
    """From 2 to 4 evaluations the default grid errs less than the one to eps, and from 9 on it is that one."""
    scheduler = ScoreSdeExponentialScheduler(sde=sde)
    x = start(scheduler, 256, data.means.shape[1] if data is MIXTURE else 2)
    exact = sample(scheduler, data, x, 200)

    def error(grid, steps):
        drawn = sample(ScoreSdeExponentialScheduler(sde=sde, time_grid=grid), data, x, steps)
        return (drawn - exact).square().mean().sqrt().item()

    for steps, better in {2: 0.8, 3: 0.8, 4: 0.9}.items():
        assert error(None, steps) < better * error("noise_share", steps)
    grids = [ScoreSdeExponentialScheduler(sde=sde, time_grid=grid) for grid in (None, "noise_share")]
    for scheduler in grids:
        scheduler.set_timesteps(9)
    assert torch.equal(grids[0].times, grids[1].times)


@pytest.mark.parametrize("grid", ["uniform", "quadratic", "log_snr", "karras", "noise_share"])
@pytest.mark.parametrize("algorithm", FORMS)
@pytest.mark.parametrize("sde", SDES)
def test_the_default_solver_ends_at_the_data(sde, algorithm, grid):
    """20 evaluations, and what is left at the end is not the noise of eps."""
    scheduler = ScoreSdeExponentialScheduler(sde=sde, algorithm=algorithm, time_grid=grid)
    steps = 20 if grid == "noise_share" else 60
    mean, covariance = errors(scheduler, steps)
    assert mean < 1e-6 and covariance < (0.04 if grid == "uniform" else 0.02)
    assert len(scheduler.times) == steps and scheduler.times[-1].item() == pytest.approx(scheduler.sampling_eps)


@pytest.mark.parametrize("eta, algorithm", [(0.0, "data"), (0.0, "noise"), (1.0, "data")])
@pytest.mark.parametrize("sde", ["flow", "cosine_vp"])
def test_the_default_grid_in_fifty_evaluations(sde, eta, algorithm):
    mean, covariance = errors(ScoreSdeExponentialScheduler(sde=sde, eta=eta, algorithm=algorithm), 50)
    assert mean < 1e-6 and covariance < 0.005


@pytest.mark.parametrize("algorithm", FORMS)
@pytest.mark.parametrize("sde", SDES)
def test_order_one_is_ddim(sde, algorithm):
    options = {"sde": sde, "time_grid": "log_snr"}
    exponential = ScoreSdeExponentialScheduler(solver_order=1, algorithm=algorithm, **options)
    ddim = ScoreSdeProbabilityFlowScheduler(method="euler", **options)
    x = start(ddim, 8)
    torch.testing.assert_close(sample(exponential, DATA, x, 10), sample(ddim, DATA, x, 10), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sde", SDES)
def test_order_one_of_the_sde_is_ancestral_sampling(sde):
    options = {"sde": sde, "time_grid": "log_snr"}
    exponential = ScoreSdeExponentialScheduler(solver_order=1, eta=1.0, **options)
    ancestral = ScoreSdePredictorCorrectorScheduler(predictor="ancestral", corrector="none", **options)
    noise = [torch.Generator().manual_seed(1) for _ in range(2)]
    x = start(ancestral, 8)
    a, b = sample(exponential, DATA, x, 10, noise[0]), sample(ancestral, DATA, x, 10, noise[1])
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "eta, algorithm, order, tolerance",
    [(0.5, "data", 3, 0.01), (1.0, "data", 1, 0.14), (1.0, "data", 3, 0.01), (1.0, "noise", 3, 0.03)],
)
@pytest.mark.parametrize("sde", SDES)
def test_the_sde_solver_converges_to_the_moments(sde, eta, algorithm, order, tolerance):
    scheduler = ScoreSdeExponentialScheduler(
        sde=sde,
        eta=eta,
        algorithm=algorithm,
        solver_order=order,
        time_grid="log_snr",
        sampling_eps=smallest_eps(sde),
    )
    (_, coarse), (mean, fine) = (errors(scheduler, n) for n in (60, 120))
    assert mean < 1e-5 and fine < tolerance and fine < 0.7 * coarse + 2e-3


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_many_steps_from_pure_noise(eta):
    """Estimates at u = 1, where alpha is 0 in float64 for several steps, do not count twice."""
    scheduler = ScoreSdeExponentialScheduler(
        sde="vp", beta_max=1e5, prediction_type="sample", time_grid="uniform", eta=eta, sampling_eps=1e-4
    )
    scheduler.set_timesteps(2000)
    assert (scheduler.sde.alpha(scheduler.times) == 0).sum() > 10
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for t in scheduler.timesteps:  # data of one value: the state's mean is alpha times that
        x = scheduler.step(torch.ones_like(x), t, x, variance_noise=torch.zeros_like(x)).prev_sample
        if scheduler.step_index < len(scheduler.times):
            alpha = scheduler.sde.alpha(scheduler.times[scheduler.step_index])
            assert x.item() == pytest.approx(alpha.item(), rel=1e-3, abs=1e-6)


# sde, algorithm, solver_order, eta, steps, whether it can be done
MUCH_NOISE = [
    ("vp", "data", 3, 3.0, 20, False),  # came out 1.56 times as wide
    ("ve", "data", 3, 30.0, 500, False),  # 1,501 times
    ("sub_vp", "data", 1, 100.0, 50, False),  # collapsed
    ("vp", "noise", 1, 0.5, 20, False),  # 2.1 times
    ("flow", "noise", 3, 3.0, 10, False),
    ("vp", "data", 3, 2.0, 10, False),  # 1.2 times
    ("vp", "data", 3, 2.0, 15, True),  # in order 2
    ("flow", "data", 3, 3.0, 100, True),
    ("ve", "noise", 3, 2.0, 20, False),  # 17 times where images hardly vary
    ("ve", "noise", 3, 2.0, 40, True),  # in order 1
    ("cosine_vp", "data", 2, 10.0, 2000, True),
]


@pytest.mark.parametrize("sde, algorithm, order, eta, steps, possible", MUCH_NOISE)
def test_much_noise_is_sampled_right_or_refused(sde, algorithm, order, eta, steps, possible):
    scheduler = ScoreSdeExponentialScheduler(sde=sde, algorithm=algorithm, solver_order=order, eta=eta)
    if possible:
        scheduler.set_timesteps(steps)
        assert 1 <= scheduler.held_order <= order
        width = (scheduler.parameterization.image_range[1] - scheduler.parameterization.image_range[0]) / 4
        assert scheduler._widths_left(steps, scheduler.held_order, eta, width) == pytest.approx(width, rel=0.15)
    else:
        with pytest.raises(ValueError, match="`eta`.*steps"):
            scheduler.set_timesteps(steps)


@pytest.mark.parametrize(
    "algorithm, order, eta", [("data", 3, 0.0), ("data", 3, 1.0), ("data", 2, 2.0), ("noise", 3, 1)]
)
@pytest.mark.parametrize("sde", ["ve", "flow"])
def test_the_width_is_known_before_the_steps_are_taken(sde, algorithm, order, eta):
    """What the recursion says beforehand is what the steps themselves do."""
    scheduler = ScoreSdeExponentialScheduler(sde=sde, algorithm=algorithm, solver_order=order, eta=eta)
    variance = sampled_variance(scheduler, 0.3**2, 40)
    expected = scheduler._widths_left(40, scheduler.held_order, eta, 0.3)
    assert math.sqrt(variance) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize(
    "cls, options",
    [
        (ScoreSdeExponentialScheduler, {"eta": 1.0}),
        (ScoreSdeExponentialScheduler, {"eta": 0.0}),
        (ScoreSdeProbabilityFlowScheduler, {"s_churn": 20.0, "time_grid": "noise_share"}),
    ],
)
def test_weights_of_the_modes(sde, cls, options):
    """From 10,000 samples: weights, means and deviations within 4 standard errors plus the bias of the steps."""
    scheduler = cls(sde=sde, sampling_eps=smallest_eps(sde), **options)
    n = 10_000
    points = sample(scheduler, MIXTURE, start(scheduler, n, 1), 60, torch.Generator().manual_seed(1))[:, 0, 0, 0]
    second = points > 0
    assert second.double().mean().item() == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / n) + 0.025)
    for mode, center in ((points[~second], -0.5), (points[second], 0.5)):
        assert mode.mean().item() == pytest.approx(center, abs=0.02)
        assert mode.std().item() == pytest.approx(0.1, rel=0.06)


# Churn.


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("sde", SDES)
def test_churn_converges(sde, method):
    """Whatever amount of noise is added, the moments tend to the data's."""
    scheduler = ScoreSdeProbabilityFlowScheduler(
        sde=sde, method=method, s_churn=10.0, time_grid="log_snr", sampling_eps=smallest_eps(sde)
    )
    (_, coarse), (mean, fine) = (errors(scheduler, n) for n in (50, 100))
    assert mean < 1e-6
    assert fine < (0.18 if method == "euler" else 0.02) and fine < 0.6 * coarse + 2e-3


def test_churn_draws_fresh_noise_and_none_without():
    for s_churn, alike in ((0.0, True), (10.0, False)):
        scheduler = ScoreSdeProbabilityFlowScheduler(s_churn=s_churn)
        x = start(scheduler, 4)
        draws = [sample(scheduler, DATA, x, 10, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
        assert torch.equal(*draws) == alike


@pytest.mark.parametrize("sde", SDES)
def test_the_network_is_asked_at_the_raised_time(sde):
    """Levels between s_min and s_max are raised by 1 + gamma (algorithm 2), but not above the start."""
    options = {"sde": sde, "time_grid": "log_snr", "method": "euler"}
    churned = ScoreSdeProbabilityFlowScheduler(s_churn=4.0, s_min=0.1, s_max=1.0, **options)
    plain = ScoreSdeProbabilityFlowScheduler(**options)
    for scheduler in (churned, plain):
        scheduler.set_timesteps(20)
    raised, level = ((-s.sde.half_log_snr(s.times)).exp() for s in (churned, plain))
    within = (level >= 0.1) & (level <= 1.0)
    assert 0 < within.sum() < 20
    torch.testing.assert_close(raised, torch.where(within, 1.2 * level, level), rtol=1e-6, atol=0)
    torch.testing.assert_close(churned.timesteps, churned.network_time(churned.times).float())

    capped = ScoreSdeProbabilityFlowScheduler(s_churn=1e6, **options)
    capped.set_timesteps(60)
    raised = (-capped.sde.half_log_snr(capped.times)).exp()
    assert raised[1:].max() <= raised[0] * (1 + 1e-9) and capped.times.max() <= 1 + 1e-9


@pytest.mark.parametrize("sampling_sde", [None, "sub_vp"])
def test_the_state_is_as_noisy_as_its_raised_time_says(sampling_sde):
    """Data without spread: what a step leaves is N(alpha x_0, sigma^2) at the coming time."""
    data = Gaussian([0.3], [[1e-12]])
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="ve", sampling_sde=sampling_sde, s_churn=5.0, s_noise=1.0)
    scheduler.set_timesteps(8)
    x, generator = start(scheduler, 20_000, 1), torch.Generator().manual_seed(1)
    for k, t in enumerate(scheduler.timesteps[:-1]):
        output = exact_output(scheduler, data, scheduler.scale_model_input(x, t))
        x = scheduler.step(output, t, x, generator=generator).prev_sample
        coming = scheduler.times[k + 1]
        if scheduler.at_grid_point:
            assert x.std().item() == pytest.approx(scheduler.sde.sigma(coming).item(), rel=0.03)


# Both, at the edges.

SAMPLERS = [
    (ScoreSdeExponentialScheduler, {}),
    (ScoreSdeExponentialScheduler, {"algorithm": "noise", "solver_order": 2}),
    (ScoreSdeExponentialScheduler, {"eta": 1.0}),
    (ScoreSdeExponentialScheduler, {"final_denoise": False}),
    (ScoreSdeProbabilityFlowScheduler, {"s_churn": 3.0}),
]


@pytest.mark.parametrize("cls, options", SAMPLERS)
@pytest.mark.parametrize("sde", SDES)
def test_very_few_steps(sde, cls, options):
    for steps in (1, 2, 3):
        scheduler = cls(sde=sde, **options)
        x = sample(scheduler, DATA, start(scheduler, 50), steps, torch.Generator().manual_seed(0))
        assert torch.isfinite(x).all()
        if steps == 1 and scheduler.final_denoise:  # E[x_0 | x_1]: almost the mean
            torch.testing.assert_close(x.mean(0)[:, 0, 0], DATA.mean, rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cls, options", SAMPLERS)
@pytest.mark.parametrize("sde", SDES)
def test_networks_in_16_bits(sde, cls, options, dtype):
    scheduler = cls(sde=sde, **options)
    scheduler.set_timesteps(15)
    x = start(scheduler, 500).float()
    for t in scheduler.timesteps:
        output = exact_output(scheduler, DATA, scheduler.scale_model_input(x, t).to(dtype)).to(dtype)
        x = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
    assert x.dtype == torch.float32 and torch.isfinite(x).all() and x.abs().max() < 10


@pytest.mark.parametrize("trained", SDES)
@pytest.mark.parametrize("sampled", SDES)
def test_one_path_under_any_sde(trained, sampled):
    """x / alpha follows the same path whatever SDE the ODE is solved under, step by step."""
    noise_levels, results = torch.tensor([9.0, 0.05], dtype=torch.float64), []
    for sampling_sde in (None, sampled):
        scheduler = ScoreSdeExponentialScheduler(sde=trained, sampling_sde=sampling_sde)
        ends = scheduler.sde.inverse_half_log_snr(-noise_levels.log())
        scheduler.start_time, scheduler.sampling_eps = ends.tolist()
        y = 9 * torch.randn(5, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        results.append(sample(scheduler, DATA, y * scheduler.sde.alpha(ends[0]), 12))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "cls, options, name",
    [
        (ScoreSdeExponentialScheduler, {"solver_order": 5}, "solver_order"),
        (ScoreSdeExponentialScheduler, {"unified_corrector": True, "eta": 1.0}, "unified_corrector"),
        (ScoreSdeExponentialScheduler, {"algorithm": "dpmsolver++"}, "algorithm"),
        (ScoreSdeExponentialScheduler, {"eta": -0.1}, "eta"),
        (ScoreSdeExponentialScheduler, {"eta": math.nan}, "eta"),
        (ScoreSdeProbabilityFlowScheduler, {"s_churn": -1.0}, "s_churn"),
        (ScoreSdeProbabilityFlowScheduler, {"s_min": math.inf}, "s_min"),
        (ScoreSdeProbabilityFlowScheduler, {"s_min": 2.0, "s_max": 1.0}, "s_max"),
        (ScoreSdeProbabilityFlowScheduler, {"s_noise": -1.0}, "s_noise"),
    ],
)
def test_bad_options_are_refused_by_name(cls, options, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        cls(**options)


def test_options_survive_swapping_and_reloading(tmp_path):
    scheduler = ScoreSdeExponentialScheduler(sde="ve", solver_order=2, eta=0.5, algorithm="noise", sigma_max=20.0)
    flow = ScoreSdeProbabilityFlowScheduler.from_config(scheduler.config, s_churn=3.0, s_max=1.5)
    assert flow.sde.sigma_max == 20.0
    flow.save_pretrained(tmp_path)
    for config in (flow.config, ScoreSdePredictorCorrectorScheduler.from_pretrained(tmp_path).config):
        back = ScoreSdeExponentialScheduler.from_config(config)
        assert back.sde.sigma_max == 20.0 and back.parameterization.prediction_type == "score"
        assert back.parameterization.time_input == "sigma"
    back = ScoreSdeExponentialScheduler.from_config(flow.config)
    assert (back.config.solver_order, back.config.eta, back.config.algorithm) == (2, 0.5, "noise")
    flow = ScoreSdeProbabilityFlowScheduler.from_pretrained(tmp_path)
    assert (flow.config.s_churn, flow.config.s_max) == (3.0, 1.5)


def test_the_generated_single_file_samples_alike(tmp_path):
    path = tmp_path / "scheduling_score_sde.py"
    path.write_text(source_of(ScoreSdeExponentialScheduler), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("generated_scheduling", path)
    module = sys.modules["generated_scheduling"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ours, generated = ScoreSdeExponentialScheduler(), module.ScoreSdeExponentialScheduler()
    x = start(ours, 4)
    assert torch.equal(sample(generated, DATA, x, 6), sample(ours, DATA, x, 6))
    assert "ScoreSdeExponentialScheduler" in [
        c.__name__ for c in module.ScoreSdeProbabilityFlowScheduler().compatibles
    ]


@pytest.mark.parametrize("options", [{}, {"algorithm": "noise"}, {"time_grid": "log_snr"}, {"eta": 1.0}])
@pytest.mark.parametrize("steps", [3, 12])
def test_units_of_the_images_do_not_matter(steps, options):
    """The same images in [-1, 1], [0, 255] and [0, 65535], of a network that knows all of them to be N(0.2, 0.3^2)."""
    found = []
    for low, high in ((-1.0, 1.0), (0.0, 255.0), (0.0, 65535.0)):
        half = (high - low) / 2
        scheduler = ScoreSdeExponentialScheduler(
            sde="ve",
            sigma_min=0.002 * half,
            sigma_max=80 * half,
            image_range=(low, high),
            prediction_type="sample",
            time_input="sigma",
            **options,
        )
        scheduler.set_timesteps(steps)
        mean, variance = low + 1.2 * half, (0.3 * half) ** 2
        z = torch.randn(steps + 1, 4, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x = low + half + z[-1] * scheduler.init_noise_sigma
        for noise, t in zip(z, scheduler.timesteps.double(), strict=False):
            output = mean + variance / (variance + t**2) * (x - mean)
            x = scheduler.step(output, t, x, variance_noise=noise).prev_sample
        found.append((x - low) / half - 1)
    torch.testing.assert_close(found[1:], found[:1] * 2, rtol=0, atol=1e-5)


def test_order_four_from_an_image():
    """A start that has no estimates behind it does not spoil the order, wherever it is."""
    options = {"sde": "vp", "time_grid": "log_snr", "final_denoise": False, "sampling_eps": 0.02}
    scheduler = ScoreSdeExponentialScheduler(solver_order=4, **options)
    data, found = Gaussian([0.0], [[0.09]]), []
    for n in (80, 160):
        scheduler.set_timesteps(n)
        began = scheduler.start_late(n // 2)
        variances = [data.moments(scheduler.sde, t)[1].item() for t in (began, 0.02)]
        x = as_images(torch.ones(1, 1, dtype=torch.float64))
        for t in scheduler.timesteps[n // 2 :]:
            x = scheduler.step(exact_output(scheduler, data, x), t, x).prev_sample
        found.append(abs(x.item() - math.sqrt(variances[1] / variances[0])))
    assert math.log2(found[0] / found[1]) == pytest.approx(4, abs=0.4) and found[1] < 1e-6
