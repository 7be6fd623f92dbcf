"""Samplers against distributions with exact scores: what they draw tends to the data as steps grow.

For Gaussian data mean and covariance of the samples are followed exactly (`sampled_moments`), so that most of these
tests hold no random number. Errors are relative to the largest variance of the data.
"""

import math

import pytest
import torch
from exact_scores import Gaussian, Mixture, as_images, sample, sampled_moments

from sde_diffusers import (
    ScoreSdeExponentialScheduler,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
)

SDES = ("ve", "vp", "sub_vp", "ve_exponential", "vp_discrete", "cosine_vp", "flow")
PREDICTORS = ("reverse_diffusion", "euler_maruyama", "ancestral")
DATA = Gaussian([0.4, -0.3], [[0.09, 0.03], [0.03, 0.05]])
MIXTURE = Mixture([0.3, 0.7], [[-0.5], [0.5]], 0.1)


def smallest_eps(sde):
    """So small that what is left below it can be neglected here."""
    return 1e-3 if sde == "vp_discrete" else 1e-4


def errors(scheduler, steps, truth=DATA, start=None):
    """Largest errors of mean and covariance, relative to the largest deviation and variance."""
    mean, covariance = sampled_moments(scheduler, DATA, steps, start)
    variance = DATA.covariance.max().item()
    mean_error = (mean - truth.mean).abs().max().item() / math.sqrt(variance)
    return mean_error, (covariance - truth.covariance).abs().max().item() / variance


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize(
    "sde, grid",
    [(sde, "log_snr") for sde in SDES] + [(sde, "uniform") for sde in ("ve", "vp", "sub_vp")],  # the paper's chains
)
def test_predictors_converge(sde, grid, predictor):
    scheduler = ScoreSdePredictorCorrectorScheduler(
        sde=sde, predictor=predictor, corrector="none", time_grid=grid, sampling_eps=smallest_eps(sde)
    )
    coarse, fine = errors(scheduler, 100), errors(scheduler, 400)
    for before, after in zip(coarse, fine, strict=True):
        assert after < 0.05
        assert after < 0.3 * before or after < 0.004  # first order: a quarter, down to what eps leaves


@pytest.mark.parametrize("grid", ["uniform", "quadratic", "log_snr", "karras", "noise_share"])
@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("sde", SDES)
def test_probability_flow_converges(sde, method, grid):
    scheduler = ScoreSdeProbabilityFlowScheduler(
        sde=sde, method=method, time_grid=grid, sampling_eps=smallest_eps(sde)
    )
    mean_error, covariance_error = errors(scheduler, 100)
    assert mean_error < 1e-6  # the ODE's map is exact on the mean, whatever the step
    assert covariance_error < (0.14 if method == "euler" else 0.01)


@pytest.mark.parametrize("method, order", [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("sde", SDES)
def test_order_of_convergence(sde, method, order):
    """Against the exact solution at eps, halving the step divides the error by 2 to the order."""
    scheduler = ScoreSdeProbabilityFlowScheduler(
        sde=sde, method=method, time_grid="log_snr", sampling_eps=1e-3, final_denoise=False
    )
    truth = Gaussian(*DATA.moments(scheduler.sde, 1e-3))
    coarse, fine = (errors(scheduler, n, truth)[1] for n in (40, 80))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("sde", SDES)
def test_from_the_prior(sde):
    """The prior N(0, prior_sigma^2) is not p_1 exactly; what that costs is the tail of the data beneath it."""
    scheduler = ScoreSdeProbabilityFlowScheduler(sde=sde, sampling_eps=smallest_eps(sde))
    prior = torch.zeros(2).double(), torch.eye(2).double() * scheduler.init_noise_sigma**2
    mean_error, covariance_error = errors(scheduler, 80, start=prior)
    assert mean_error < 0.05 and covariance_error < 0.013


@pytest.mark.parametrize(
    "cls, options, steps, tolerance",
    [
        (ScoreSdeProbabilityFlowScheduler, {}, 25, 0.08),
        (ScoreSdeProbabilityFlowScheduler, {"method": "euler"}, 50, 0.13),
        (ScoreSdePredictorCorrectorScheduler, {"corrector": "none", "predictor": "euler_maruyama"}, 50, 0.03),
        (ScoreSdePredictorCorrectorScheduler, {"corrector": "none", "predictor": "reverse_diffusion"}, 50, 0.12),
        (ScoreSdePredictorCorrectorScheduler, {"corrector": "none", "predictor": "ancestral"}, 50, 0.2),
    ],
)
@pytest.mark.parametrize("sde", ["flow", "cosine_vp"])
def test_the_default_grid_in_fifty_evaluations(sde, cls, options, steps, tolerance):
    """Of first order, but for Heun's: what is left are the errors of steps of this size, as VP and VE have them."""
    scheduler = cls(sde=sde, **options)
    prior = torch.zeros(2).double(), torch.eye(2).double() * scheduler.init_noise_sigma**2
    mean_error, covariance_error = errors(scheduler, steps, start=prior)
    assert len(scheduler.times) <= 50 and mean_error < 0.02 and covariance_error < tolerance


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("sde", ["flow", "cosine_vp"])
def test_predictor_and_corrector_in_fifty_evaluations(sde, predictor):
    data = Gaussian([0.0] * 16, torch.eye(16) * 0.09)
    scheduler = ScoreSdePredictorCorrectorScheduler(sde=sde, predictor=predictor)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 16, 1, 1, generator=generator, dtype=torch.float64)
    x = sample(scheduler, data, x, 25, generator)
    assert len(scheduler.times) == 50 and x.var().item() / 0.09 == pytest.approx(1, abs=0.22)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("sde", SDES)
def test_predictors_find_the_modes(sde, predictor):
    """Weights, means and deviations of both modes, from 10,000 samples: within 4 standard errors plus the bias of
    the steps."""
    scheduler = ScoreSdePredictorCorrectorScheduler(
        sde=sde, predictor=predictor, corrector="none", time_grid="log_snr", sampling_eps=smallest_eps(sde)
    )
    generator = torch.Generator().manual_seed(0)
    n = 10_000
    x = torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64) * scheduler.init_noise_sigma
    check_modes(sample(scheduler, MIXTURE, x, 125, generator), 4 / math.sqrt(n))


@pytest.mark.parametrize(
    "cls, options",
    [
        (ScoreSdeProbabilityFlowScheduler, {"method": "euler"}),
        (ScoreSdeProbabilityFlowScheduler, {"method": "heun"}),
        (ScoreSdeExponentialScheduler, {"algorithm": "data"}),
        (ScoreSdeExponentialScheduler, {"algorithm": "noise"}),
    ],
)
@pytest.mark.parametrize("sde", SDES)
def test_probability_flow_finds_the_modes(sde, cls, options):
    """The same for the ODE, from the quantiles of the prior: no random number."""
    scheduler = cls(sde=sde, sampling_eps=smallest_eps(sde), **options)
    quantiles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    x = as_images(math.sqrt(2) * torch.erfinv(2 * quantiles - 1)[:, None]) * scheduler.init_noise_sigma
    check_modes(sample(scheduler, MIXTURE, x, 150), 0.0)


def check_modes(x, noise):
    points = x[:, :, 0, 0]
    in_second = points[:, 0] > 0
    # Prior mismatch moves some weight: the largest, of sigma(1) = 9.9, is about 0.02.
    assert in_second.double().mean().item() == pytest.approx(0.7, abs=0.5 * noise + 0.025)
    for mode, center in ((points[~in_second], -0.5), (points[in_second], 0.5)):
        assert mode.mean().item() == pytest.approx(center, abs=0.1 * 2 * noise + 0.01)
        assert mode.std().item() == pytest.approx(0.1, rel=2 * noise + 0.03)


@pytest.mark.parametrize("corrector", ["langevin", "ald"])
@pytest.mark.parametrize("snr", [0.5, 0.25, 0.125])
def test_bias_of_the_correctors_alone(snr, corrector):
    """At one noise level the unadjusted Langevin chain on a Gaussian of variance v, x - tau x / v + sqrt(2 tau) z, has
    the variance v / (1 - tau / 2v). With Langevin's tau = 2 (snr |z| / |score|)^2 that is v (1 + snr^2) or so."""
    scheduler = ScoreSdePredictorCorrectorScheduler(
        sde="ve", sigma_max=2.0, predictor="none", corrector=corrector, corrector_steps=150, snr=snr
    )
    data = Gaussian([0.0] * 16, torch.eye(16) * 0.09)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 16, 1, 1, generator=generator, dtype=torch.float64)
    x = sample(scheduler, data, x, 1, generator)
    v = chain = 4.09
    for _ in range(100):  # fixed point: |score|^2 = chain / v^2 in each dimension
        tau = 2 * snr**2 * (v**2 / chain if corrector == "langevin" else 4)
        chain = v / (1 - tau / (2 * v))
    assert x.var().item() == pytest.approx(chain, rel=0.03)
    if corrector == "langevin":
        assert chain / v - 1 == pytest.approx(snr**2, rel=0.01)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("sde", ["ve", "sub_vp", "flow"])
def test_langevin_bias_of_the_sampler_falls_with_snr(sde, predictor):
    """Predictor and corrector together: the samples' variance is off by snr^2, whatever the predictor's own error."""
    data = Gaussian([0.0] * 16, torch.eye(16) * 0.09)
    for snr in (0.5, 0.125):
        scheduler = ScoreSdePredictorCorrectorScheduler(
            sde=sde, predictor=predictor, time_grid="log_snr", sampling_eps=smallest_eps(sde), snr=snr
        )
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1000, 16, 1, 1, generator=generator, dtype=torch.float64) * scheduler.init_noise_sigma
        variance = sample(scheduler, data, x, 75, generator).var().item() / 0.09
        assert variance - 1 == pytest.approx(snr**2, abs=0.035)
