"""Configurations drawn at random sample the right variance, or say why not; likelihoods of as many are the ODE's own.

Right means two things, for one Gaussian and its exact network. In any number of steps the sampler does to the variance
what its equations say, written down once more in `exact_variance`, to 1e-6: whatever network, SDE, time input, end and
grid. And with more steps these equations tend to the variance of the reverse SDE or ODE itself, in closed form.

`SDE_DRAWS=2000 SDE_LIKELIHOODS=300 pytest tests/test_right_variance.py -s` draws as many as that.
"""

import collections
import math
import os
import random

import pytest
import torch
from exact_scores import Gaussian, as_images
from exact_variance import (
    chain_variance,
    drawn_variance,
    exponential_variance,
    flow_variance,
    limit,
    sampled_variance,
)
from test_likelihood import exact_pipeline, flow_logp_of_gaussian, nats

from sde_diffusers import (
    ScoreSdeExponentialScheduler,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
)
from sde_diffusers.likelihood import likelihood_start
from sde_diffusers.parameterization import PREDICTION_TYPES, PURE_NOISE, SDE_NAMES
from sde_diffusers.schedulers.scheduling_exponential import HOLDS_WITHIN

DRAWS = int(os.environ.get("SDE_DRAWS", "100"))
LIKELIHOODS = int(os.environ.get("SDE_LIKELIHOODS", "20"))
GRIDS = (None, "uniform", "quadratic", "log_snr", "karras", "noise_share")
TIME_INPUTS = (None, "sigma", "999t", "1000t", "t", "index")
SDE_OPTIONS = {
    "ve": {"sigma_min": (0.002, 0.01, 0.05), "sigma_max": (2.0, 10.0, 50.0)},
    "vp": {"beta_min": (0.1, 1.0), "beta_max": (5.0, 20.0, 80.0, 1e4)},
    "sub_vp": {"beta_min": (0.1, 1.0), "beta_max": (5.0, 20.0)},
    "ve_exponential": {"sigma": (5.0, 25.0)},
    "cosine_vp": {"s": (0.008, 0.02)},
    "flow": {"shift": (1.0, 3.0)},
    "vp_discrete": {},
}
SAMPLERS = {
    ScoreSdeProbabilityFlowScheduler: {"method": ("euler", "heun")},
    ScoreSdeExponentialScheduler: {
        "solver_order": (1, 2, 3),
        "eta": (0.0, 0.0, 0.3, 1.0, 2.0, 5.0, 100.0),
        "algorithm": ("data", "noise"),
    },
    ScoreSdePredictorCorrectorScheduler: {
        "predictor": ("reverse_diffusion", "euler_maruyama", "ancestral", "none"),
        "corrector": ("none", "ald", "langevin"),
        "snr": (0.05, 0.1, 0.16),
        "corrector_steps": (1, 2),
    },
}
REFERENCE = {
    ScoreSdeProbabilityFlowScheduler: flow_variance,
    ScoreSdeExponentialScheduler: exponential_variance,
    ScoreSdePredictorCorrectorScheduler: chain_variance,
}


def one_of_each(draw, options):
    return {key: draw.choice(values) for key, values in options.items()}


def drawn_model(draw):
    """SDE, sampling SDE and how the network is asked and answers."""
    sde, sampling_sde = draw.choice(SDE_NAMES), draw.choice([None, *SDE_NAMES])
    options = {"sde": sde, "sde_parameters": one_of_each(draw, SDE_OPTIONS[sde])}
    if sampling_sde is not None:
        options["sampling_sde"] = sampling_sde
        options["sampling_sde_parameters"] = one_of_each(draw, SDE_OPTIONS[sampling_sde])
    return options | {"prediction_type": draw.choice(PREDICTION_TYPES), "time_input": draw.choice(TIME_INPUTS)}


def drawn_sampler(seed):
    """A scheduler's class and configuration, a number of steps and the data's variance."""
    draw = random.Random(seed)
    cls = draw.choice(list(SAMPLERS))
    options = drawn_model(draw) | one_of_each(draw, SAMPLERS[cls])
    options["sampling_eps"] = draw.choice([None, None, 1e-5, 1e-3, 0.01, 0.05, 0.1, 0.3, 0.9])
    options |= {"time_grid": draw.choice(GRIDS), "final_denoise": draw.choice([None, False])}
    return cls, options, draw.choice([1, 2, 3, 5, 8, 13, 20, 35, 60, 100]), draw.choice([0.02, 0.06, 0.25])


def check(cls, options, n, V, seed=0):
    """ "refused" with its message, or "right"; an `AssertionError` otherwise."""
    try:
        scheduler = cls(**options)
        scheduler.set_timesteps(n)
    except ValueError as error:
        assert "`" in str(error)  # names an argument
        return "refused", str(error)
    expected = REFERENCE[cls](scheduler, V, n)
    if options.get("corrector") == "langevin":  # whose steps depend on the batch: within five standard errors
        pixels = 4000
        found = drawn_variance(scheduler, V, n, pixels, torch.Generator().manual_seed(seed))
        assert found == pytest.approx(expected, rel=5 * math.sqrt(2 / pixels))
    else:
        assert sampled_variance(scheduler, V, n) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    errors = [0.5 * math.log(more / limit(scheduler, V)) for more in refined(scheduler, V, options)]
    if len(errors) < 2 or scheduler.sde.half_log_snr(scheduler.sampling_eps) < math.log(1e-3 / math.sqrt(V)):
        return "right", errors
    bias, rate, eta = 0.01, 0.4, options.get("eta", 0.0)
    if eta > 0 and options["algorithm"] == "noise":  # which is extrapolated across its whole range
        rate = 0.9
        level = (-scheduler.sde.half_log_snr(scheduler.start_time)).exp()
        if level > PURE_NOISE:  # there the first steps halve it however many there are, and little is forgotten
            bias = 0.02
    if options.get("predictor") == "none":  # nothing rescales a state that has come to rest near the end
        bias = 0.02
    if eta**2 * forgetting(scheduler) > 1:  # still in every step: then it is as wide as `set_timesteps` demands,
        bias = 0.05 - math.log(1 - HOLDS_WITHIN)  # by what the ODE does, whose start may lack some of the width
    assert abs(errors[-1]) < max(bias, rate * abs(errors[-2])), errors
    return "right", errors


def forgetting(scheduler):
    """Of the 1,024 steps, each one's mean share of the whole way in lambda."""
    ends = torch.tensor([scheduler.sampling_eps, scheduler.start_time], dtype=torch.float64)
    cleanest, noisiest = scheduler.sde.half_log_snr(ends).clamp(min=-math.log(PURE_NOISE)).tolist()
    return (cleanest - noisiest) / 1024


def refined(scheduler, V, options):
    """The variances in 64, 256 and 1024 steps, by the equations; Langevin dynamics alone takes more to follow."""
    for n in (64, 256, 16384) if options.get("predictor") == "none" else (64, 256, 1024):
        if isinstance(scheduler, ScoreSdeExponentialScheduler):  # which knows it without quadrature
            try:
                scheduler.set_timesteps(n)
            except ValueError:  # as many as that it takes for so much noise, and more
                continue
            yield scheduler._widths_left(n, scheduler.held_order, scheduler.config.eta, math.sqrt(V)) ** 2
        else:
            yield REFERENCE[type(scheduler)](scheduler, V, n)


@pytest.mark.parametrize("part", range(10))
def test_drawn_samplers(part):
    found, wrong = collections.Counter(), []
    for seed in range(part, DRAWS, 10):
        try:
            kind, message = check(*drawn_sampler(seed), seed)
            found[kind] += 1
        except Exception as error:
            wrong.append((seed, *drawn_sampler(seed), str(error)[:500]))
    print(dict(found))
    assert not wrong, "\n".join(map(str, wrong))
    assert found["right"] > 0.6 * sum(found.values())


FOUND = [
    # The paper's chain walked to sigma(0), the network was told sigma(eps): 2.63, 1.53 and 12.1 times the deviation.
    (ScoreSdePredictorCorrectorScheduler, {"sde": "ve", "sampling_eps": 0.1}, 100, "right"),
    (ScoreSdePredictorCorrectorScheduler, {"sde": "vp", "sampling_eps": 0.05}, 100, "right"),
    (
        ScoreSdePredictorCorrectorScheduler,
        {"sde": "vp_discrete", "sampling_sde": "ve", "sigma_min": 0.001, "time_input": "index"},
        100,
        "right",
    ),
    # Extrapolated noise: 1.56 and 1,501 times; collapsed; and noise in the other form, which is the less stable.
    (ScoreSdeExponentialScheduler, {"sde": "vp", "eta": 3.0}, 20, "refused"),
    (ScoreSdeExponentialScheduler, {"sde": "ve", "eta": 30.0}, 500, "refused"),
    (ScoreSdeExponentialScheduler, {"sde": "vp", "eta": 100.0, "solver_order": 1}, 50, "refused"),
    (ScoreSdeExponentialScheduler, {"sde": "vp", "eta": 0.5, "algorithm": "noise"}, 10, "refused"),
    # Grids that ascended, or had no noise in common.
    (
        ScoreSdeProbabilityFlowScheduler,
        {"sde": "ve", "sampling_sde": "vp", "sigma_max": 2.0, "sampling_eps": 0.5},
        5,
        "refused",
    ),
    # From pure noise in one step; almost pure noise; a long way to the data after the last evaluation.
    (ScoreSdeExponentialScheduler, {"sde": "flow", "prediction_type": "sample"}, 1, "right"),
    (ScoreSdeProbabilityFlowScheduler, {"sde": "vp", "beta_max": 1e5}, 20, "right"),
    (ScoreSdeExponentialScheduler, {"sde": "flow", "sampling_sde": "vp", "sampling_eps": 0.1}, 20, "right"),
]


@pytest.mark.parametrize("cls, options, n, expected", FOUND)
def test_found_samplers(cls, options, n, expected):
    options = {"predictor": "ancestral", "corrector": "none"} | options if "Corrector" in cls.__name__ else options
    assert check(cls, options, n, 0.0625)[0] == expected


@pytest.mark.parametrize("sde, eta, n", [("ve", 1.5, 20), ("sub_vp", 2.0, 50), ("flow", 3.0, 50)])
def test_noise_holds_where_images_hardly_vary(sde, eta, n):
    """Orders that were right for images of deviation 0.5 left those of deviation 0.01 up to 10^6 times as wide."""
    scheduler = ScoreSdeExponentialScheduler(sde=sde, eta=eta, algorithm="noise", image_range=(-1, 1))
    assert 0.007 < sampled_variance(scheduler, 1e-4, n) ** 0.5 < 0.02
    assert scheduler.held_order < 3


# Likelihoods.


@pytest.mark.parametrize("part", range(4))
def test_drawn_likelihoods(part):
    """Within 1e-3 bits/dim of the ODE's own, from the time on that stands for the images, with its prior."""
    found, wrong = collections.Counter(), []
    for seed in range(part, LIKELIHOODS, 4):
        draw = random.Random(seed)
        options, variance = drawn_model(draw), draw.choice([0.003, 0.02, 0.06])
        arguments = {
            "eps": draw.choice([1e-5, 1e-5, 1e-3, 0.01]),
            "variable": draw.choice([None, None, "t", "noise_level"]),
        }
        try:
            error = likelihood_error(options, variance, arguments, draw.choice([1, 3]))
            found[type(error).__name__ if isinstance(error, Exception) else "right"] += 1
            if not isinstance(error, Exception) and not error < 1e-3:
                wrong.append((seed, options, variance, arguments, error))
        except Exception as error:
            wrong.append((seed, options, variance, arguments, repr(error)[:500]))
    print(dict(found))
    assert not wrong, "\n".join(map(str, wrong))
    assert found["right"] > 0.6 * sum(found.values())


def likelihood_error(options, variance, arguments, d):
    """Of bits/dim against the closed form, or the refusal."""
    data = Gaussian([0.1] * d, variance * (torch.eye(d) + 0.4 * (1 - torch.eye(d))))
    try:
        pipe = exact_pipeline(data, d, image_range=(-1.0, 1.0), **options)
        g = torch.Generator().manual_seed(0)
        points = data.mean + torch.randn(2, d, generator=g).double() @ torch.linalg.cholesky(data.covariance).T
        unit = ((points + 1) / 2).clamp(0, 1)
        output = pipe.bits_per_dim(as_images(unit), dequantize=False, probes="exact", **arguments)
    except ValueError as error:
        assert "`" in str(error)
        return error
    scheduler = pipe.scheduler
    start, end = likelihood_start(scheduler, arguments["eps"]), scheduler.start_time
    _, z = flow_logp_of_gaussian(data, scheduler.sde, 2 * unit - 1, start, end)
    scale = flow_scale(data, scheduler.sde, start, end)
    width = scheduler.init_noise_sigma
    truth = -d / 2 * math.log(2 * math.pi * width**2) - z.square().sum(1) / (2 * width**2) + scale.log().sum()
    return ((nats(output, pipe) - truth).abs().max() / d / math.log(2)).item()


def flow_scale(data, sde, start, end):
    """By how much the flow widens each principal axis."""
    variances = torch.linalg.eigvalsh(data.covariance)
    width = [(sde.alpha(t) ** 2 * variances + sde.sigma(t) ** 2).sqrt() for t in (start, end)]
    return width[1] / width[0]
