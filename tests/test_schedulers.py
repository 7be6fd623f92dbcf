"""What every scheduler promises: counting, configuration, conversion, and the interface of diffusers."""

import contextlib
import math
import pickle

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from exact_scores import Gaussian, Mixture, as_images, exact_output, sample, sampled_moments

from sde_diffusers import (
    NCSNppUNet2DModel,
    ScoreSdeConsistencyScheduler,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
)
from sde_diffusers.network_fit import say_once
from sde_diffusers.schedulers import late_start
from sde_diffusers.schedulers.fitted_steps import settings_digest

SDES = ("ve", "vp", "sub_vp", "ve_exponential", "vp_discrete", "cosine_vp", "flow")
PREDICTION_TYPES = ("score", "epsilon", "sample", "v_prediction", "velocity")
SCORE_SAMPLERS = (
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
    ScoreSdeExponentialScheduler,
)
SCHEDULERS = (*SCORE_SAMPLERS, ScoreSdeConsistencyScheduler)
DATA = Gaussian([0.4, -0.3], [[0.09, 0.03], [0.03, 0.05]])


def start(scheduler, n, dtype=torch.float64):
    noise = torch.randn(n, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return noise * scheduler.init_noise_sigma


@pytest.mark.parametrize("cls", SCORE_SAMPLERS)
@pytest.mark.parametrize("sde", SDES)
def test_constructors_work_with_the_sde_alone(cls, sde):
    scheduler = cls(sde=sde)
    scheduler.set_timesteps(12)
    assert len(scheduler.timesteps) == len(scheduler.times)
    assert scheduler.times[0] == 1
    assert scheduler.times[-1].item() == pytest.approx(scheduler.sampling_eps)
    assert torch.isfinite(sample(scheduler, DATA, start(scheduler, 3), 30)).all()


@pytest.mark.parametrize("cls", SCHEDULERS)
@pytest.mark.parametrize("sde", SDES)
def test_the_prediction_type_does_not_matter(cls, sde):
    """The same perfect network, in five languages, draws the same samples."""
    samples = []
    for prediction_type in PREDICTION_TYPES if sde != "flow" else PREDICTION_TYPES[2:]:
        scheduler = cls(sde=sde, prediction_type=prediction_type)
        generator = torch.Generator().manual_seed(1)
        samples.append(sample(scheduler, DATA, start(scheduler, 4), 15, generator))
    for other in samples[1:]:
        torch.testing.assert_close(other, samples[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "scheduler, calls, grid_points",
    [
        (ScoreSdePredictorCorrectorScheduler(), 10, "0101010101"),
        (ScoreSdePredictorCorrectorScheduler(corrector_steps=2), 15, "001" * 5),
        (ScoreSdePredictorCorrectorScheduler(corrector="none"), 5, "11111"),
        (ScoreSdePredictorCorrectorScheduler(predictor="none"), 5, "11111"),
        (ScoreSdeProbabilityFlowScheduler(method="euler"), 5, "11111"),
        (ScoreSdeProbabilityFlowScheduler(method="euler", final_denoise=False), 5, "11111"),
        (ScoreSdeProbabilityFlowScheduler(), 9, "010101011"),
        (ScoreSdeProbabilityFlowScheduler(final_denoise=False), 10, "0101010101"),
        (ScoreSdeExponentialScheduler(), 5, "11111"),
        (ScoreSdeExponentialScheduler(final_denoise=False), 5, "11111"),
    ],
)
def test_counting(scheduler, calls, grid_points):
    """One entry of `timesteps` for each evaluation; the flag is up where a call ends at a grid point."""
    scheduler.set_timesteps(5)
    assert len(scheduler.timesteps) == calls and scheduler.num_inference_steps == 5
    assert not scheduler.at_grid_point
    x, seen = torch.zeros(2, 1, 2, 2), ""
    for k, t in enumerate(scheduler.timesteps):
        assert scheduler.step_index == k
        x = scheduler.step(x, t, x).prev_sample
        seen += str(int(scheduler.at_grid_point))
    assert seen == grid_points
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(x, t, x)
    scheduler.set_timesteps(5)
    scheduler.step(x, scheduler.timesteps[0], x)


@pytest.mark.parametrize("grid", ["uniform", "quadratic", "log_snr", "karras", "noise_share"])
@pytest.mark.parametrize("sde", SDES)
def test_time_grids(sde, grid):
    scheduler = ScoreSdeProbabilityFlowScheduler(sde=sde, time_grid=grid, method="euler", final_denoise=False)
    scheduler.set_timesteps(16)
    times = torch.cat([scheduler.times, torch.tensor([scheduler.sampling_eps])])
    assert (times.diff() < 0).all() and times[0] == 1
    unit = scheduler.parameterization.noise_unit
    even = {
        "uniform": times,
        "quadratic": times.sqrt(),
        "log_snr": scheduler.sde.half_log_snr(times),
        "karras": (scheduler.sde.sigma(times) / scheduler.sde.alpha(times)) ** (1 / 7),
        "noise_share": (1 + 2 * unit * scheduler.sde.alpha(times) / scheduler.sde.sigma(times)) ** (-1 / 4),
    }[grid]
    if sde == "flow" and grid in ("log_snr", "karras"):  # as if from a noise level of 80
        even[0] = {"log_snr": -math.log(80), "karras": 80 ** (1 / 7)}[grid]
    torch.testing.assert_close(even.diff(), even.diff().mean().expand(16), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("prediction_type", ["score", "epsilon"])
@pytest.mark.parametrize("cls", SCORE_SAMPLERS)
def test_noise_predictions_start_where_they_tell_the_image(cls, prediction_type):
    """At pure noise they say nothing of x_0: a flow of theirs begins where half of float32's digits do."""
    scheduler = cls(sde="flow", prediction_type=prediction_type)
    level = (scheduler.sde.sigma(scheduler.start_time) / scheduler.sde.alpha(scheduler.start_time)).item()
    assert 0.999 < scheduler.start_time < 1 and level == pytest.approx(2**11.5)
    exact = cls(sde="flow", prediction_type="sample")
    x, y = (sample(s, DATA, start(s, 50), 200, torch.Generator().manual_seed(1)) for s in (scheduler, exact))
    torch.testing.assert_close(x, y, rtol=0, atol=0.01)
    assert cls(sde="flow", prediction_type=prediction_type, sampling_sde="vp").start_time == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("cls", SCORE_SAMPLERS)
def test_networks_of_few_bits_from_pure_noise(cls, dtype):
    """Nothing is divided by an alpha of 0: the samples' variance is the data's."""
    data = Gaussian([0.0] * 16, 0.09 * torch.eye(16))
    scheduler = cls(sde="flow")
    scheduler.set_timesteps(100)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 16, 1, 1, generator=generator)
    for t in scheduler.timesteps:
        output = exact_output(scheduler, data, scheduler.scale_model_input(x, t)).to(dtype)
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    assert x.dtype == torch.float32 and x.var().item() / 0.09 == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_nothing_of_a_batch_is_kept(cls):
    scheduler, x = cls(), torch.zeros(8, 3, 32, 32)
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x).prev_sample
    assert len(pickle.dumps(scheduler)) < x.nbytes / 4


def test_what_the_network_is_conditioned_on():
    for sde, expected in [("vp", 999.0), ("ve", 50.0), ("ve_exponential", 1.0), ("vp_discrete", 999.0)]:
        scheduler = ScoreSdePredictorCorrectorScheduler(sde=sde)
        scheduler.set_timesteps(10)
        assert scheduler.timesteps.dtype == torch.float32
        assert scheduler.timesteps[0].item() == pytest.approx(expected)
    descending = ScoreSdePredictorCorrectorScheduler(sde="ve", time_input="index", num_train_timesteps=500)
    descending.set_timesteps(10)
    assert descending.timesteps[0] == 0 and descending.timesteps[-1] == 499


@pytest.mark.parametrize("source", SCHEDULERS)
@pytest.mark.parametrize("target", SCHEDULERS)
def test_swapping_samplers_keeps_sde_and_parameterization(source, target, tmp_path):
    options = {
        "sde": "ve",
        "sigma_max": 12.0,
        "prediction_type": "sample",
        "image_range": (-1, 1),
        "sampling_sde": "sub_vp",
        "beta_max": 15.0,
        "sampling_eps": 2e-3,
        "final_denoise": False,
    }
    scheduler = source(**options)
    scheduler.save_pretrained(tmp_path)
    for swapped in (target.from_config(scheduler.config), target.from_pretrained(tmp_path)):
        assert type(swapped) is target
        assert {key: swapped.config[key] for key in options} == {**options, "image_range": swapped.config.image_range}
        assert swapped.parameterization.image_range == (-1.0, 1.0)
        assert swapped.init_noise_sigma == scheduler.init_noise_sigma
        assert swapped.sampling_eps == scheduler.sampling_eps
    assert set(scheduler.compatibles) == set(SCHEDULERS)


def test_swapping_back_remembers_the_sampler():
    scheduler = ScoreSdePredictorCorrectorScheduler(sde="vp", predictor="ancestral", snr=0.05)
    flow = ScoreSdeProbabilityFlowScheduler.from_config(scheduler.config)
    back = ScoreSdePredictorCorrectorScheduler.from_config(flow.config)
    assert back.config.predictor == "ancestral" and back.config.snr == 0.05


def test_a_beta_table_survives_a_reload(tmp_path):
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="vp_discrete", trained_betas=torch.linspace(1e-3, 0.1, 50))
    scheduler.save_pretrained(tmp_path)
    again = ScoreSdePredictorCorrectorScheduler.from_pretrained(tmp_path)
    t = torch.linspace(0.02, 1, 20, dtype=torch.float64)
    assert torch.equal(again.sde.alpha(t), scheduler.sde.alpha(t))
    assert again.sampling_eps == 0.02


@pytest.mark.parametrize(
    "options, name",
    [
        ({"sde": "vpx"}, "sde"),
        ({"sde": "vp", "sampling_sde": "x"}, "sampling_sde"),
        ({"prediction_type": "noise"}, "prediction_type"),
        ({"time_input": "x"}, "time_input"),
        ({"time_grid": "linear"}, "time_grid"),
        ({"image_range": (1, 1)}, "image_range"),
        ({"sampling_eps": 0.0}, "sampling_eps"),
        ({"sampling_eps": 1.5}, "sampling_eps"),
        ({"sde": "vp_discrete", "sampling_eps": 1e-5}, "sampling_eps"),
        ({"sde": "ve", "sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min"),
        ({"beta_min": -1.0}, "beta_min"),
        ({"sde": "vp_discrete", "trained_betas": [0.1, 1.0]}, "betas"),
    ],
)
@pytest.mark.parametrize("cls", SCHEDULERS)
def test_bad_configurations_are_refused_by_name(cls, options, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        cls(**options)


@pytest.mark.parametrize(
    "cls, options, name",
    [
        (SCHEDULERS[0], {"predictor": "euler"}, "predictor"),
        (SCHEDULERS[0], {"corrector": "hmc"}, "corrector"),
        (SCHEDULERS[0], {"snr": 0.0}, "snr"),
        (SCHEDULERS[0], {"corrector_steps": -1}, "corrector_steps"),
        (SCHEDULERS[0], {"predictor": "none", "corrector": "none"}, "predictor"),
        (SCHEDULERS[1], {"method": "rk4"}, "method"),
        (SCHEDULERS[2], {"solver_order": 2.0}, "solver_order"),
        (SCHEDULERS[2], {"solver_order": True}, "solver_order"),
    ],
)
def test_bad_sampler_options_are_refused_by_name(cls, options, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        cls(**options)


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_misuse_is_refused(cls):
    scheduler, x = cls(), torch.zeros(2, 1, 2, 2)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(x, 1.0, x)
    for n in (0, -3, 2.5, None):
        with pytest.raises(ValueError, match="num_inference_steps"):
            scheduler.set_timesteps(n)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="model_output"):
        scheduler.step(torch.zeros(2, 2, 2, 2), scheduler.timesteps[0], x)


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_state_is_float32_or_better(cls):
    scheduler = cls()
    scheduler.set_timesteps(4)
    x = torch.randn(2, 1, 4, 4)
    half = scheduler.step(x.half(), scheduler.timesteps[0], x).prev_sample
    assert half.dtype == torch.float32
    scheduler.set_timesteps(4)
    assert scheduler.step(x, scheduler.timesteps[0], x.double()).prev_sample.dtype == torch.float64
    scheduler.set_timesteps(4)
    as_tuple = scheduler.step(x, scheduler.timesteps[0], x, return_dict=False)
    assert isinstance(as_tuple, tuple) and as_tuple[0].shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cls", SCHEDULERS)
def test_a_loop_over_16_bit_samples_keeps_a_float32_state(cls, dtype):
    """The states of both loops differ by one rounding, however many steps were taken; a changed sample is obeyed."""
    ends, output = [], torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    for kind in (torch.float32, dtype):
        scheduler, generator = cls(sde="vp"), torch.Generator().manual_seed(0)
        scheduler.set_timesteps(30)
        x = start(scheduler, 4, torch.float32).to(dtype).to(kind)
        for t in scheduler.timesteps:
            x = scheduler.step(0.3 * output, t, x, generator=generator).prev_sample
            assert x.dtype == kind
        ends.append(x)
    assert torch.equal(ends[0].to(dtype), ends[1])
    scheduler.set_timesteps(30)
    x = start(scheduler, 4, dtype)
    for change in (0.0, 1.0):
        states = torch.Generator().manual_seed(0)
        x = scheduler.step(output, scheduler.timesteps[0], x, generator=states).prev_sample + change
    assert scheduler._unrounded(x, torch.float32).equal(x.float())


@pytest.mark.parametrize("steps", [1000, 100])
def test_ancestral_noise_through_a_table(steps):
    """Through the whole table sqrt(beta), as in the paper's code; through a part, that of the exact posterior."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler = ScoreSdePredictorCorrectorScheduler(sde="vp_discrete", predictor="ancestral", corrector="none")
    scheduler.set_timesteps(steps)
    zero, ones = torch.zeros(1, 1, 2, 2).double(), torch.ones(1, 1, 2, 2).double()
    output = scheduler.step(zero, None, zero, variance_noise=ones)
    noise = (output.prev_sample - output.prev_sample_mean)[0, 0, 0, 0].item()
    sde, (t, s) = scheduler.sde, scheduler.times[:2]
    a, b = sde.transition(s, t)
    posterior = (b * sde.sigma(s) / sde.sigma(t)).item()
    assert noise == pytest.approx(betas[-1].sqrt().item() if steps == 1000 else posterior, rel=1e-9)


@pytest.mark.parametrize("corrector", ["none", "ald"])
def test_one_generator_for_each_image(corrector):
    """Image i depends on its own seed alone (except under Langevin, whose step size is averaged over the batch)."""

    def draw(seeds):
        scheduler = ScoreSdePredictorCorrectorScheduler(sde="vp", corrector=corrector)
        return sample(scheduler, DATA, torch.ones(len(seeds), 2, 1, 1), 20, [*map(seeded, seeds)])

    def seeded(seed):
        return torch.Generator().manual_seed(seed)

    together = draw([3, 4, 5])
    torch.testing.assert_close(together[1:2], draw([4]))
    assert not torch.allclose(together[0], together[1])


def test_a_table_of_noise_begins_at_its_first_entry():
    scheduler, x = ScoreSdeProbabilityFlowScheduler(sde="vp_discrete"), torch.zeros(1, 1, 2, 2)
    for k in (-1, 1000):
        with pytest.raises(ValueError, match="`timesteps` must stand for times"):
            scheduler.add_noise(x, x, torch.tensor([k]))
    assert scheduler.add_noise(x, x + 1, torch.tensor([0])).mean().item() == pytest.approx(1e-4**0.5)


@pytest.mark.parametrize("beta_max", [20.0, 100.0, 150.0, 300.0])
@pytest.mark.parametrize("sde", ["vp", "sub_vp"])
def test_a_network_is_not_asked_beyond_its_end(sde, beta_max):
    """Where a flow has pure noise, and the SDE of the training as good as that."""
    scheduler = ScoreSdeProbabilityFlowScheduler(
        sde=sde, beta_max=beta_max, prediction_type="v_prediction", sampling_sde="flow"
    )
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.max() <= 999 and scheduler.timesteps.diff().max() <= 0


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"sde": "vp", "image_range": (0.0, 255.0)}, True),
        ({"sde": "ve", "image_range": (0.0, 255.0)}, True),
        ({"sde": "ve", "sigma_max": 0.5}, True),
        ({"sde": "vp", "beta_max": 1.0}, True),
        ({"sde": "vp_discrete", "trained_betas": [0.02] * 20}, True),
        ({"sde": "vp", "sampling_sde": "ve_exponential", "image_range": (0.0, 255.0)}, True),
        *(({"sde": sde}, False) for sde in SDES),
        ({"sde": "ve", "sigma_max": 80.0, "image_range": (-1.0, 1.0)}, False),
        ({"sde": "ve", "sigma_max": 5000.0, "image_range": (0.0, 255.0)}, False),
    ],
)
def test_noise_that_leaves_images_seen_is_told(config, told, caplog):
    say_once.cache_clear()
    ScoreSdeProbabilityFlowScheduler(**config)
    assert ("samples come out too near to 0" in caplog.text) == told


def test_noise_that_single_precision_has_no_number_for_is_refused():
    with pytest.raises(ValueError, match="has noise from .* but single precision has numbers for 1.18e-38 to"):
        ScoreSdeProbabilityFlowScheduler(sde="ve", sigma_min=1e-150, sigma_max=50.0)
    ScoreSdeProbabilityFlowScheduler(sde="ve", sigma_min=1e-30, sigma_max=1e30)


@pytest.mark.parametrize("sde", SDES)
def test_add_noise_is_the_perturbation_kernel(sde):
    scheduler = ScoreSdePredictorCorrectorScheduler(sde=sde)
    scheduler.set_timesteps(9)
    x_0, noise = torch.randn(9, 1, 4, 4), torch.randn(9, 1, 4, 4)
    noisy = scheduler.add_noise(x_0, noise, scheduler.timesteps[:: len(scheduler.timesteps) // 9])
    t = scheduler.times[:: len(scheduler.times) // 9]
    alpha, sigma = (v.float().reshape(-1, 1, 1, 1) for v in (scheduler.sde.alpha(t), scheduler.sde.sigma(t)))
    torch.testing.assert_close(noisy, alpha * x_0 + sigma * noise, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trained", SDES)
@pytest.mark.parametrize("sampled", SDES)
def test_the_ode_is_the_same_under_any_sde(trained, sampled):
    """At equal signal-to-noise ratios x / alpha follows the same path whatever SDE it is solved under."""
    noise_levels = torch.tensor([9.0, 0.05], dtype=torch.float64)  # sigma / alpha, within the range of all of them
    results = []
    for sampling_sde in (None, sampled):
        scheduler = ScoreSdeProbabilityFlowScheduler(sde=trained, sampling_sde=sampling_sde, time_grid="log_snr")
        ends = scheduler.sde.inverse_half_log_snr(-noise_levels.log())
        scheduler.start_time, scheduler.sampling_eps = ends.tolist()
        y = 9 * torch.randn(5, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        results.append(sample(scheduler, DATA, y * scheduler.sde.alpha(ends[0]), 12))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cls", SCORE_SAMPLERS)
@pytest.mark.parametrize("sampled", SDES)
def test_sampling_with_another_sde_draws_the_data(cls, sampled):
    """A network trained with VP, sampled under each SDE, with each sampler's defaults from the prior."""
    scheduler = cls(sde="vp", sampling_sde=sampled)
    if cls is ScoreSdePredictorCorrectorScheduler:  # Langevin steps depend on the batch: by drawing
        x = sample(scheduler, DATA, start(scheduler, 4000), 150, torch.Generator().manual_seed(0))[:, :, 0, 0]
        mean, covariance, most = x.mean(0), x.T.cov(), 0.08
    else:
        prior = torch.zeros(2).double(), torch.eye(2).double() * scheduler.init_noise_sigma**2
        (mean, covariance), most = sampled_moments(scheduler, DATA, 100, start=prior), 0.05
    assert (mean - DATA.mean).abs().max() < 0.015
    assert (covariance - DATA.covariance).abs().max() < most * 0.09


# Grids that are not the paper's, and grids that are none.


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral"])
@pytest.mark.parametrize(
    "config",
    [
        {"sde": "ve", "sampling_eps": 0.05},
        {"sde": "ve", "sampling_eps": 0.2},
        {"sde": "vp", "sampling_eps": 0.05},
        {"sde": "sub_vp", "sampling_eps": 0.1},
        {"sde": "ve_exponential", "sampling_eps": 0.1},
        {"sde": "vp_discrete", "sampling_sde": "ve", "sigma_min": 0.001},
        {"sde": "vp", "sampling_sde": "sub_vp", "sampling_eps": 0.05},
    ],
)
def test_a_uniform_grid_that_ends_elsewhere_takes_exact_transitions(config, predictor):
    """The paper's chain would walk to sigma(0) while the network is told sigma(eps): the deviation came out 2.63 times
    too large for VE with eps = 0.1, and 12 times for a table sampled as VE. What is right is E[x_0 | x_eps]."""
    scheduler = ScoreSdePredictorCorrectorScheduler(predictor=predictor, corrector="none", **config)
    _, covariance = sampled_moments(scheduler, DATA, 350)
    end = scheduler.times[-1]
    assert end > scheduler.sde.sampling_eps * (1 + 1e-6)
    alpha, (_, noisy) = scheduler.sde.alpha(end), DATA.moments(scheduler.sde, end)
    expected = alpha**2 * DATA.covariance @ torch.linalg.solve(noisy, DATA.covariance)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=0.05 * 0.09)


def test_euler_maruyamas_steps_are_the_grids_gaps():
    """And not 1 / N, unless the grid is the paper's."""
    for eps, paper in ((1e-3, True), (0.05, False)):
        scheduler = ScoreSdePredictorCorrectorScheduler(sde="vp", predictor="euler_maruyama", sampling_eps=eps)
        scheduler.set_timesteps(100)
        times = scheduler.times[::2]
        expected = torch.full_like(times, 0.01) if paper else torch.cat([-times.diff(), times[-1:]])
        torch.testing.assert_close(scheduler._dt, expected)


@pytest.mark.parametrize("sde", ["ve", "vp", "sub_vp"])
def test_the_papers_chain_is_kept_on_its_own_grid(sde):
    scheduler = ScoreSdePredictorCorrectorScheduler(sde=sde)
    scheduler.set_timesteps(200)
    paper = scheduler.sde.paper_chain(scheduler.times[::2])
    assert torch.equal(scheduler._chain.a, paper.a) and torch.equal(scheduler._chain.b, paper.b)
    assert not torch.allclose(paper.b, scheduler.sde.chain(scheduler.times[::2]).b, rtol=1e-5)
    other = ScoreSdePredictorCorrectorScheduler(sde=sde, sampling_eps=0.01)
    other.set_timesteps(200)
    assert torch.equal(other._chain.b, other.sde.chain(other.times[::2]).b)


@pytest.mark.parametrize(
    "config, numbers",
    [
        # begins at the network's noise level 2, which VP has before t = 0.5
        ({"sde": "ve", "sampling_sde": "vp", "sigma_max": 2.0, "sampling_eps": 0.5}, r"t = 0\.3972 .*end at 0\.5"),
        # the least noise that is sampled by default is more than the network's most
        (
            {"sde": "ve", "sampling_sde": "ve_exponential", "sigma_min": 1e-4, "sigma_max": 0.02},
            r"t = 0\.0003995 .*end at 0\.001.*from 0\.0001 to 0\.02",
        ),
        # no noise level in common
        (
            {"sde": "ve_exponential", "sampling_sde": "ve", "sigma": 1.0001, "sigma_min": 5.0},
            r"t = -0\.6989 .*end at 1e-05.*from 0 to 1",
        ),
    ],
)
@pytest.mark.parametrize("cls", SCHEDULERS)
def test_an_empty_range_of_noise_is_refused(cls, config, numbers):
    with pytest.raises(ValueError, match=f"`sampling_eps`.*{numbers}"):
        cls(**config)


@pytest.mark.parametrize("cls", SCORE_SAMPLERS)
@pytest.mark.parametrize("beta_max", [80.0, 1e3, 1e5])
def test_vp_sdes_that_end_in_pure_noise(cls, beta_max):
    """exp(-beta_max / 4) is nothing in float32, or in float64 as well."""
    for prediction_type in ("epsilon", "sample", "velocity"):
        settings = {"prediction_type": prediction_type, "time_grid": "noise_share", "sampling_eps": 1e-5}
        scheduler = cls(sde="vp", beta_max=beta_max, **settings)
        x = sample(scheduler, DATA, start(scheduler, 4000).float(), 100, torch.Generator().manual_seed(1))[:, :, 0, 0]
        assert (x.mean(0) - DATA.mean).abs().max() < 0.02
        assert (x.T.cov() - DATA.covariance).abs().max() < 0.15 * 0.09


# Under and beside diffusers.


def tiny_unet(**options):
    torch.manual_seed(0)
    return NCSNppUNet2DModel(
        sample_size=8,
        in_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        attention_resolutions=(),
        time_embedding_type="positional",
        scale_by_sigma=False,
        image_range=(-1, 1),
        **options,
    ).eval()


@pytest.mark.parametrize("cls", SCHEDULERS)
@pytest.mark.parametrize("sde", ["vp", "sub_vp", "vp_discrete"])
def test_ddpm_pipeline_runs_schedulers_with_a_unit_prior(cls, sde):
    diffusers_unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    for unet in (tiny_unet(), diffusers_unet):
        pipe = DDPMPipeline(unet=unet, scheduler=cls(sde=sde))
        pipe.set_progress_bar_config(disable=True)
        images = pipe(batch_size=2, num_inference_steps=10, output_type="np").images
        assert images.shape == (2, 8, 8, 1) and not np.isnan(images).any()


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DPMSolverMultistepScheduler()])
def test_our_network_runs_under_diffusers_schedulers(scheduler):
    pipe = DDPMPipeline(unet=tiny_unet(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    x = torch.randn(2, 1, 8, 8)
    scheduler.set_timesteps(10)
    for t in scheduler.timesteps:
        x = scheduler.step(pipe.unet(x, t).sample, t, x).prev_sample
    assert x.shape == (2, 1, 8, 8) and torch.isfinite(x).all()


BOUNDS = [{"clip_denoised": True}, {"clip_denoised": 0.5}, {"dynamic_thresholding_ratio": 0.5, "sample_max_value": 4}]


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("sampling_sde", [None, "ve", "flow"])
@pytest.mark.parametrize("cls", SCHEDULERS)
def test_bounds_on_x_0(cls, sampling_sde, bounds):
    """Where x_0 is in the range they change nothing; where it is not, it is brought there, and the noise fits it."""
    options = {"sde": "vp", "sampling_sde": sampling_sde, "prediction_type": "sample"}
    free, bounded = cls(**options), cls(**options, **bounds)
    for scheduler in (free, bounded):
        scheduler.set_timesteps(6)
    x, noise = start(free, 4), torch.zeros(4, 2, 1, 1).double()
    within = torch.full_like(x, 0.4)
    for k in range(len(free.times)):
        arguments = {"timestep": free.timesteps[k], "sample": x, "variance_noise": noise}
        output = bounded.step(within, **arguments)
        torch.testing.assert_close(
            output.prev_sample, free.step(within, **arguments).prev_sample, rtol=1e-9, atol=1e-9
        )
    beyond = torch.tensor([3.0, -1.0]).double().reshape(1, 2, 1, 1).expand_as(x)
    width = bounds.get("clip_denoised", 1)
    expected = beyond / 2 if "sample_max_value" in bounds else beyond.clamp(-width, width)
    if "sample_max_value" in bounds:  # the median is 2
        expected = expected.clamp(-1, 1)
    for scheduler in (free, bounded):
        scheduler.set_timesteps(6)
    for k in range(len(free.times)):
        arguments = {"timestep": free.timesteps[k], "sample": x, "variance_noise": noise}
        output = bounded.step(beyond, **arguments)
        torch.testing.assert_close(output.pred_original_sample, expected, rtol=1e-9, atol=1e-9)
        fitting = free.step(expected, **arguments).prev_sample
        torch.testing.assert_close(output.prev_sample, fitting, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "options, name",
    [
        ({"clip_denoised": -1.0}, "clip_denoised"),
        ({"clip_denoised": "yes"}, "clip_denoised"),
        ({"dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio"),
        ({"dynamic_thresholding_ratio": True}, "dynamic_thresholding_ratio"),
        ({"dynamic_thresholding_ratio": 0.9, "sample_max_value": 0.5}, "sample_max_value"),
        ({"sample_max_value": 2.0}, "sample_max_value"),
    ],
)
def test_bad_bounds_are_refused(options, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        ScoreSdeExponentialScheduler(**options)


def test_euler_is_ddim():
    """On a DDPM table our Euler steps are diffusers' DDIM steps, network labels included."""
    ddim = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    ddim.set_timesteps(10)
    ours = ScoreSdeProbabilityFlowScheduler(
        sde="vp_discrete",
        trained_betas=ddim.betas.double().tolist(),
        method="euler",
        time_grid="uniform",
        sampling_eps=0.1,
    )
    ours.set_timesteps(10)
    torch.testing.assert_close(ours.timesteps, ddim.timesteps.float())
    unet = tiny_unet(init_scale=1.0)
    x = y = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for t_ours, t_ddim in zip(ours.timesteps, ddim.timesteps, strict=True):
            x = ours.step(unet(x, t_ours).sample, t_ours, x).prev_sample
            y = ddim.step(unet(y, t_ddim).sample, t_ddim, y).prev_sample
    torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)


def test_mixture_score_is_the_gradient_of_its_density():
    """The yardstick itself, checked against autograd."""
    data = Mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], 0.2)
    sde = ScoreSdePredictorCorrectorScheduler(sde="sub_vp").sde
    points = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    variance = sde.alpha(0.4) ** 2 * 0.04 + sde.sigma(0.4) ** 2
    distance = torch.cdist(points, sde.alpha(0.4) * data.means) ** 2
    density = (data.weights.log() - distance / (2 * variance)).logsumexp(1)
    (gradient,) = torch.autograd.grad(density.sum(), points)
    torch.testing.assert_close(data.score(sde, as_images(points.detach()), 0.4)[:, :, 0, 0], gradient)


@pytest.mark.parametrize("sde", ["ve", "vp", "sub_vp", "cosine_vp"])
def test_heun_forgives_a_small_error_at_the_noisiest_level(sde):
    """Small steps there: 25 times too wide, where one led from 20,000 to 12 (cosine schedule, uniform grid)."""
    scheduler = ScoreSdeProbabilityFlowScheduler(sde=sde, prediction_type="epsilon", image_range=(-1, 1))
    scheduler.set_timesteps(20)
    x = torch.full((1, 1, 1, 1), scheduler.init_noise_sigma, dtype=torch.float64)
    for t in scheduler.timesteps:
        output = exact_output(scheduler, Gaussian([0.0], [[0.25]]), x)
        x = scheduler.step(1.01 * output if scheduler.step_index == 0 else output, t, x).prev_sample
    assert x.item() == pytest.approx(0.5, rel=0.1)


def test_what_would_be_broadcast_or_extrapolated_is_refused():
    scheduler, x = ScoreSdePredictorCorrectorScheduler(sde="vp"), torch.zeros(2, 1, 4, 4)
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="`variance_noise` must have the shape"):
        scheduler.step(x, scheduler.timesteps[0], x, variance_noise=x[:1])
    for t in (1500.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`timesteps` must stand for times in"):
            scheduler.add_noise(x, x, torch.tensor([999.0, t]))
    with pytest.raises(ValueError, match="`beta_min` must be a finite number above 0, but is nan"):
        ScoreSdePredictorCorrectorScheduler(sde="vp", beta_min=math.nan)
    with pytest.raises(ValueError, match="`betas` must hold numbers"):
        ScoreSdePredictorCorrectorScheduler(sde="vp_discrete", trained_betas=["0.1"])


LATE = [
    ScoreSdeExponentialScheduler(sde="vp"),
    ScoreSdeExponentialScheduler(sde="vp", sampling_sde="ve"),
    ScoreSdeProbabilityFlowScheduler(sde="ve"),
    ScoreSdePredictorCorrectorScheduler(sde="vp"),
]


@pytest.mark.parametrize(
    "as_given", [lambda t: t, lambda t: t.item(), lambda t: t.clone()], ids=["view", "number", "copy"]
)
@pytest.mark.parametrize("scheduler", LATE, ids=lambda scheduler: type(scheduler).__name__[8:])
def test_a_loop_over_the_last_timesteps_starts_late(scheduler, as_given):
    """As diffusers' pipelines from image to image do: the same as after `start_late`."""
    results = []
    for told in (False, True):
        scheduler.set_timesteps(12)
        scheduler.start_late(5)
        first = scheduler.step_index
        if not told:
            scheduler.set_timesteps(12)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(500, 2, 1, 1, generator=generator, dtype=torch.float64)
        x = scheduler.add_noise(as_images(DATA.mean.expand(500, 2)), x, scheduler.timesteps[first])
        for t in scheduler.timesteps[first:]:
            asked = scheduler.scale_model_input(x, as_given(t))
            answer = exact_output(scheduler, DATA, asked)
            x = scheduler.step(answer, as_given(t), x, generator=generator).prev_sample
        assert scheduler.step_index == len(scheduler.times)
        results.append(x)
    assert torch.equal(*results)
    assert results[0].mean().item() == pytest.approx(DATA.mean.mean().item(), abs=0.1)


def test_entries_are_known_without_a_look_at_their_value(monkeypatch):
    """Which a GPU would wait for, at the first step of every loop."""
    monkeypatch.setattr(late_start, "real_number", None)
    scheduler, x = ScoreSdeExponentialScheduler(sde="vp"), torch.zeros(1, 1, 2, 2)
    for first in (0, 3):
        scheduler.set_timesteps(5)
        scheduler.step(x, scheduler.timesteps[first:][0], x)
        assert scheduler.step_index == first + 1


def test_no_loop_starts_within_a_time_step():
    heun = ScoreSdeProbabilityFlowScheduler(sde="vp")
    heun.set_timesteps(6)
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="entry 3 of `timesteps`, within a time step"):
        heun.step(x, heun.timesteps[3], x)
    assert heun.step_index == 0


@pytest.mark.parametrize("cls", SCORE_SAMPLERS)
def test_integers_are_refused(cls):
    scheduler = cls(sde="vp")
    scheduler.set_timesteps(3)
    floats, integers = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.int64)
    t = scheduler.timesteps[0]
    for arguments, name in (((integers, t, floats), "model_output"), ((floats, t, integers), "sample")):
        with pytest.raises(ValueError, match=f"`{name}` must be floating point, but is int64"):
            scheduler.step(*arguments)
    for arguments, name in (((integers, floats, t), "original_samples"), ((floats, integers, t), "noise")):
        with pytest.raises(ValueError, match=f"`{name}` must be floating point, but is int64"):
            scheduler.add_noise(*arguments)


@pytest.mark.parametrize("cls", SCORE_SAMPLERS)
def test_the_length_of_a_table_is_one(cls):
    with pytest.raises(
        ValueError, match="`num_train_timesteps` is 500, but the table of 'vp_discrete' has 1000 betas"
    ):
        cls(sde="vp_discrete", num_train_timesteps=500)
    scheduler = cls(sde="vp_discrete", trained_betas=[1e-3] * 40)
    assert len(scheduler) == scheduler.parameterization.table_length == 40
    assert len(cls(sde="vp_discrete", trained_betas=[1e-3] * 40, num_train_timesteps=40)) == 40
    if cls is ScoreSdePredictorCorrectorScheduler:
        assert scheduler.default_num_inference_steps == 40


@pytest.mark.parametrize("cls", SCORE_SAMPLERS)
def test_a_network_with_a_table_is_asked_within_it(cls):
    scheduler = cls(sde="vp", time_input="index", num_train_timesteps=100)
    scheduler.set_timesteps(30)
    assert scheduler.sampling_eps == 0.01 and scheduler.timesteps.min() >= -1e-4 and scheduler.timesteps.max() <= 99
    with pytest.raises(ValueError, match=r"`sampling_eps` must lie in \[0.01, 1\), but is 0.001"):
        cls(sde="vp", time_input="index", num_train_timesteps=100, sampling_eps=1e-3)


# ---- states that callers change, buffers that they use again -----------------------------------------------------


class Multiple(torch.nn.Module):
    """Predicts a tenth of the state as its noise."""

    def forward(self, x, t):
        return 0.1 * x


MULTISTEP = [
    ScoreSdeProbabilityFlowScheduler(sde="vp"),
    ScoreSdeExponentialScheduler(sde="vp", solver_order=2, algorithm="noise"),
    ScoreSdeExponentialScheduler(sde="vp", unified_corrector=True),
    ScoreSdeExponentialScheduler(sde="vp", solver_order=4),
]


def walked(scheduler, change, steps=6, at=None):
    """The end of a loop in which `change` acts on the state after evaluation `at` (None: after each)."""
    scheduler.set_timesteps(steps)
    x = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(Multiple()(x, t), t, x).prev_sample
        if at in (None, k):
            x = change(x)
    return x


@pytest.mark.parametrize("scheduler", MULTISTEP, ids=lambda s: f"{type(s).__name__} {s.config.get('solver_order')}")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_state_may_be_changed_in_place(scheduler, mode):
    """As if a new one had been given, after any evaluation."""
    half = torch.tensor([True, False]).repeat(8).reshape(1, 1, 4, 4)
    with mode():
        scheduler.set_timesteps(6)
        for at in range(len(scheduler.times)):
            in_place = walked(scheduler, lambda x: x.masked_fill_(half, 0.5), at=at)
            anew = walked(scheduler, lambda x: x.masked_fill(half, 0.5), at=at)
            assert torch.equal(in_place, anew)
            zeros = walked(scheduler, torch.zeros_like, at=at)  # from there all that follows is 0
            assert not zeros.any(), at


@pytest.mark.parametrize("scheduler", MULTISTEP, ids=lambda s: f"{type(s).__name__} {s.config.get('solver_order')}")
def test_one_buffer_may_hold_all_states_and_answers(scheduler):
    expected = walked(scheduler, lambda x: x)
    scheduler.set_timesteps(6)
    x = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    answer = torch.empty_like(x)
    for t in scheduler.timesteps:
        answer.copy_(Multiple()(x, t))
        x.copy_(scheduler.step(answer, t, x).prev_sample)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("scheduler", MULTISTEP, ids=lambda s: f"{type(s).__name__} {s.config.get('solver_order')}")
def test_a_late_loop_begins_where_its_timestep_says(scheduler):
    def late(convert):
        scheduler.set_timesteps(8)
        x, first = torch.full((2, 1, 2, 2), 0.3), scheduler._starts()[3]
        for t in scheduler.timesteps[first:]:
            x = scheduler.step(Multiple()(x, t), convert(t), x).prev_sample
        return x

    expected = late(lambda t: t)
    for convert in (torch.Tensor.item, torch.Tensor.double, torch.Tensor.half, torch.Tensor.bfloat16, int):
        assert torch.equal(late(convert), expected), convert
    assert torch.equal(late(lambda t: t.repeat(2)), expected)
    for other in (str, lambda t: t + torch.tensor([0.0, 1.0])):
        with pytest.raises(ValueError, match="`timestep` must be one of `timesteps`"):
            late(other)


@pytest.mark.parametrize("interrupted", [True, False])
@pytest.mark.parametrize(
    "scheduler",
    [ScoreSdeProbabilityFlowScheduler(sde="ve"), ScoreSdeExponentialScheduler(sde="ve", unified_corrector=True)],
)
def test_nothing_of_a_batch_is_kept_when_sampling_is_stopped(scheduler, interrupted):
    unet = NCSNppUNet2DModel(sample_size=8, in_channels=1, block_out_channels=(8,), layers_per_block=1)

    def stop(pipe, k, t, tensors):
        if not interrupted and k == 2:
            raise KeyboardInterrupt
        pipe._interrupt = interrupted and k == 2
        return tensors

    pipe = ScoreSdePipeline(unet=unet, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    with contextlib.suppress(KeyboardInterrupt):
        pipe(64, 6, callback_on_step_end=stop, output_type="latent")
    assert len(pickle.dumps(pipe.scheduler)) < 64 * 64 * 4


@pytest.mark.parametrize("snr", [1, 1.5, 1e200, float("nan")])
def test_langevin_steps_that_diverge_are_refused(snr):
    with pytest.raises(ValueError, match="`snr` must be a number above 0 and below 1"):
        ScoreSdePredictorCorrectorScheduler(sde="ve", snr=snr)


def test_noise_is_added_in_the_better_precision_and_to_each_image():
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="vp")
    x, noise = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64).unbind()
    t = torch.tensor([1.0, 200.0, 500.0, 900.0])
    exact = scheduler.add_noise(x, noise, t)
    rounded = scheduler.add_noise(x, noise.half(), t)
    assert rounded.dtype == torch.float64
    torch.testing.assert_close(rounded, exact + scheduler.add_noise(0 * x, noise.half().double() - noise, t))
    for other in (noise[:1], noise[:, :, :1, :1]):
        with pytest.raises(ValueError, match="`noise` must have the shape"):
            scheduler.add_noise(x, other, t)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="`variance_noise` must be floating point"):
        scheduler.step(x, scheduler.timesteps[0], x, variance_noise=noise.long())


@pytest.mark.parametrize("sigma", [100.0, 1e-3, 0.0, -1.0, math.nan])
def test_noise_that_the_sde_never_has_is_not_added(sigma):
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="ve")  # 0.01 to 50
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="timesteps"):
        scheduler.add_noise(x, x, torch.tensor([sigma]))
    with pytest.raises(ValueError, match="timesteps"):
        ScoreSdeProbabilityFlowScheduler(sde="vp", time_input="sigma").add_noise(x, x, torch.tensor([3.0]))
    ends = scheduler.add_noise(torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2), torch.tensor([50.0, 0.01]).half())
    torch.testing.assert_close(ends[:, 0, 0, 0], torch.tensor([50.0, 0.01]), rtol=2e-3, atol=0)


def test_training_loops_draw_from_the_whole_table():
    """They read its length in the configuration."""
    scheduler = ScoreSdeExponentialScheduler(sde="vp_discrete", trained_betas=[0.02] * 40)
    assert scheduler.config.num_train_timesteps == len(scheduler) == 40
    for again in (scheduler, ScoreSdePredictorCorrectorScheduler.from_config(scheduler.config)):
        assert again.config.num_train_timesteps == 40
    other = ScoreSdeExponentialScheduler.from_config(scheduler.config, trained_betas=[0.02] * 30)
    assert other.config.num_train_timesteps == len(other) == 30
    index = ScoreSdeExponentialScheduler(sde="ve", time_input="index", num_train_timesteps=500)
    assert len(ScoreSdeExponentialScheduler.from_config(index.config, trained_betas=None)) == 500


def test_fits_of_an_own_table_are_those_of_older_versions():
    """Which did not tell its length in the configuration."""
    scheduler = ScoreSdeExponentialScheduler(sde="vp_discrete", trained_betas=[0.01] * 500)
    assert settings_digest(scheduler) == "56a27d63"


def test_noise_beyond_half_precision_is_told():
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="ve", sigma_max=1e5)
    x, t = torch.zeros(2, 1, 2, 2), torch.tensor([1e5])
    assert scheduler.add_noise(x, x + 1, t)[:, 0, 0, 0].tolist() == [1e5, 1e5]
    for level in (t, torch.tensor([3e4])):  # of which normal noise takes up to six times
        with pytest.raises(ValueError, match="torch.float16 has no numbers for the noise of `timesteps`"):
            scheduler.add_noise(x.half(), x.half(), level)


def test_one_timestep_for_each_image():
    scheduler, x = ScoreSdeProbabilityFlowScheduler(sde="vp"), torch.zeros(2, 1, 2, 2)
    with pytest.raises(ValueError, match="`timesteps` must be one or 2, but have the shape"):
        scheduler.add_noise(x, x, torch.full((3,), 500.0))
    expected = scheduler.add_noise(x, x + 1, torch.tensor([500.0, 100.0]))
    for shape in ((2, 1), (2, 1, 1, 1)):  # as diffusers flattens them
        assert torch.equal(scheduler.add_noise(x, x + 1, torch.tensor([500.0, 100.0]).view(shape)), expected)
    assert torch.equal(scheduler.add_noise(x[:1], x[:1] + 1, torch.tensor([500.0, 100.0])), expected)


def test_times_may_be_rounded():
    """0.01 in float32 lies below the first time of a table of 100."""
    betas = torch.linspace(1e-3, 0.2, 100).tolist()
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="vp_discrete", trained_betas=betas, sampling_eps=np.float32(0.01))
    assert scheduler.sampling_eps == 0.01
    with pytest.raises(ValueError, match="`sampling_eps` must lie in"):
        ScoreSdeProbabilityFlowScheduler(sde="vp_discrete", trained_betas=betas, sampling_eps=0.00999)


@pytest.mark.parametrize("wrong", [UNet2DOutput(sample=torch.zeros(1, 1, 2, 2)), np.zeros((1, 1, 2, 2))])
def test_answers_are_tensors(wrong):
    scheduler, x = ScoreSdeProbabilityFlowScheduler(sde="vp"), torch.zeros(1, 1, 2, 2)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=f"`model_output` must be a tensor, but is {type(wrong).__name__}"):
        scheduler.step(wrong, scheduler.timesteps[0], x)
