"""Networks that answer the truth, in whatever form they answer and are asked, must give back the truth."""

import math

import pytest
import torch

from sde_diffusers import (
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVPSDE,
    ExponentialVESDE,
    FlowSDE,
    GaussianSDE,
    Parameterization,
    SubVPSDE,
)
from sde_diffusers.parameterization import PREDICTION_TYPES, SDE_NAMES, TIME_INPUTS
from sde_diffusers.schedulers.sde_keys import build_sde

SDES = {
    "ve": VESDE(),
    "vp": VPSDE(),
    "sub_vp": SubVPSDE(),
    "ve_exponential": ExponentialVESDE(),
    "vp_discrete": DiscreteVPSDE(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
    "cosine_vp": CosineVPSDE(),
    "flow": FlowSDE(),
}
TIMES = torch.tensor([1.0, 0.7, 0.3, 0.05, 0.002], dtype=torch.float64)


@pytest.fixture(params=SDES)
def sde(request):
    return SDES[request.param]


@pytest.fixture(params=PREDICTION_TYPES)
def prediction_type(request):
    return request.param


def parameterization(sde, prediction_type="epsilon", time_input="t", image_range=(-1, 1), **others):
    return Parameterization(sde, prediction_type, time_input, image_range, **others)


def times(sde, prediction_type):
    """Where noise and x_0 both follow from the answer: not at pure noise, for those that speak of the noise."""
    silent = sde.alpha(1) == 0 and prediction_type in ("score", "epsilon")
    return TIMES[1:] if silent else TIMES


def draw(sde, t):
    """(x_0, noise, x_t, alpha, sigma) in float64, one image for each time."""
    generator = torch.Generator().manual_seed(1)
    x_0, noise = torch.randn(2, len(t), 3, 2, 2, generator=generator, dtype=torch.float64)
    alpha, sigma = sde.alpha(t).reshape(-1, 1, 1, 1), sde.sigma(t).reshape(-1, 1, 1, 1)
    return x_0, noise, alpha * x_0 + sigma * noise, alpha, sigma


def true_output(prediction_type, sde, x_0, noise, t):
    """What a network that knows x_0 and the noise answers; the velocity by differences."""
    alpha, sigma = sde.alpha(t).reshape(-1, 1, 1, 1), sde.sigma(t).reshape(-1, 1, 1, 1)
    d_alpha, d_sigma = ((f(t) - f(t - 1e-8)) / 1e-8 for f in (sde.alpha, sde.sigma))
    return {
        "epsilon": noise,
        "sample": x_0,
        "score": -noise / sigma,
        "v_prediction": alpha * noise - sigma * x_0,
        "velocity": d_alpha.reshape(-1, 1, 1, 1) * x_0 + d_sigma.reshape(-1, 1, 1, 1) * noise,
    }[prediction_type]


def nearness(prediction_type):
    """What rounding of x_t leaves of x_0 and of the noise, where one drowns the other; and the differences' error."""
    tolerance = 1e-4 if prediction_type == "velocity" else 1e-9
    return {"rtol": tolerance, "atol": tolerance}


def test_truth_in_truth_out(sde, prediction_type):
    """Also v off VP, where alpha^2 + sigma^2 is not 1."""
    t = times(sde, prediction_type)
    x_0, noise, x, _, sigma = draw(sde, t)
    network = parameterization(sde, prediction_type)
    output, near = true_output(prediction_type, sde, x_0, noise, t), nearness(prediction_type)
    torch.testing.assert_close(network.noise(output, x, t), noise, **near)
    torch.testing.assert_close(network.denoised(output, x, t), x_0, **near)
    torch.testing.assert_close(network.score(output, x, t) * sigma, -noise, **near)


def test_target_is_the_truth(sde, prediction_type):
    x_0, noise, *_ = draw(sde, TIMES)
    target = parameterization(sde, prediction_type).target(x_0, noise, TIMES)
    near = {"rtol": 1e-5, "atol": 1e-5} if prediction_type == "velocity" else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(target, true_output(prediction_type, sde, x_0, noise, TIMES), **near)


def test_velocity_by_the_formulas():
    """Of flow matching noise - x_0, whatever t; of VE sigma log(sigma_max / sigma_min) noise."""
    x_0, noise, *_ = draw(FlowSDE(), TIMES)
    flow = parameterization(FlowSDE(), "velocity")
    torch.testing.assert_close(flow.target(x_0, noise, TIMES), noise - x_0, rtol=1e-14, atol=1e-14)
    ve, sigma = parameterization(VESDE(), "velocity"), VESDE().sigma(TIMES).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(ve.target(x_0, noise, TIMES), sigma * math.log(5000) * noise)


def test_one_answer_has_one_meaning(sde, prediction_type):
    """For any answer, right or wrong: x = alpha denoised + sigma noise, and score = -noise / sigma."""
    t = times(sde, prediction_type)
    _, output, x, alpha, sigma = draw(sde, t)
    network = parameterization(sde, prediction_type)
    noise, denoised = network.noise(output, x, t), network.denoised(output, x, t)
    torch.testing.assert_close(alpha * denoised + sigma * noise, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network.score(output, x, t) * sigma, -noise, rtol=1e-9, atol=1e-9)


def test_at_pure_noise_the_state_is_the_noise():
    """Whatever the network answers; and what it thinks of x_0 is in its answer alone."""
    t = torch.ones(2, dtype=torch.float64)
    x_0, noise, x, _, _ = draw(FlowSDE(), t)
    for prediction_type in ("sample", "v_prediction", "velocity"):
        network = parameterization(FlowSDE(), prediction_type)
        output = true_output(prediction_type, FlowSDE(), x_0, noise, t)
        torch.testing.assert_close(network.noise(0.5 * output, x, t), noise, **nearness("velocity"))
        torch.testing.assert_close(network.denoised(output, x, t), x_0, **nearness("velocity"))


def test_scalar_time_is_every_images_time(sde, prediction_type):
    t = times(sde, prediction_type)
    _, output, x, _, _ = draw(sde, t)
    network = parameterization(sde, prediction_type)
    for method in (network.noise, network.denoised, network.score, network.target):
        for image in range(len(t)):
            alone = method(output[image : image + 1], x[image : image + 1], t[image])
            together = method(output, x, t)[image : image + 1]
            torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_that_of_the_images(sde, prediction_type, dtype):
    _, output, x, _, _ = draw(sde, TIMES)
    network = parameterization(sde, prediction_type)
    for method in (network.noise, network.denoised, network.score, network.target):
        assert method(output.to(dtype), x.to(dtype), TIMES).dtype == dtype


def test_error_scales_are_the_derivatives(sde, prediction_type):
    """Finite differences of noise and x_0 with respect to the output; linear, so any step is exact."""
    t = times(sde, prediction_type)
    _, output, x, _, _ = draw(sde, t)
    network = parameterization(sde, prediction_type)
    for answer, scale in ((network.noise, "noise_error_scale"), (network.denoised, "denoised_error_scale")):
        change = answer(output + 1.0, x, t) - answer(output, x, t)
        expected = getattr(network, scale)(t)
        torch.testing.assert_close(change.abs().amax((1, 2, 3)), expected, rtol=1e-9, atol=1e-9)
        assert expected.dtype == torch.float64


# How the network is asked.


@pytest.mark.parametrize("time_input", TIME_INPUTS)
def test_network_time_is_inverted(sde, time_input):
    network = parameterization(sde, time_input=time_input)
    t = torch.cat([torch.logspace(-4, -1, 20, dtype=torch.float64), torch.linspace(0.1, 1, 30, dtype=torch.float64)])
    torch.testing.assert_close(network.sde_time(network.network_time(t, between=True)), t, rtol=1e-9, atol=1e-10)
    if time_input == "index" and isinstance(sde, VESDE):  # rounded to whole entries of the table
        t = (t * 999).round() / 999
    asked = network.network_time(t)
    assert asked.shape == t.shape and asked.dtype == torch.float64
    torch.testing.assert_close(network.sde_time(asked), t, rtol=1e-9, atol=1e-10)
    # what a network gets is in float32
    torch.testing.assert_close(network.sde_time(asked.float()), t, rtol=1e-5, atol=1e-3)


def test_network_time_is_what_networks_were_trained_on(sde):
    t = torch.tensor([[1.0, 0.25]], dtype=torch.float64)
    ask = {time_input: parameterization(sde, time_input=time_input).network_time(t) for time_input in TIME_INPUTS}
    assert torch.equal(ask["t"], t)
    assert torch.equal(ask["999t"], torch.tensor([[999.0, 249.75]], dtype=torch.float64))
    assert torch.equal(ask["1000t"], torch.tensor([[1000.0, 250.0]], dtype=torch.float64))
    assert torch.equal(ask["sigma"], sde.sigma(t))
    assert ask["index"].tolist() == [[0.0, 749.0] if isinstance(sde, VESDE) else [999.0, 249.0]]


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve_exponential", "vp_discrete", "cosine_vp", "flow"])
def test_entry_k_of_a_vp_table_is_time_k_plus_1_over_n(name):
    network = parameterization(SDES[name], time_input="index", num_train_timesteps=1000)
    k = torch.arange(1000, dtype=torch.float64)
    t = (k + 1) / 1000
    torch.testing.assert_close(network.network_time(t), k, rtol=0, atol=1e-9)
    torch.testing.assert_close(network.sde_time(k), t, rtol=0, atol=1e-12)


def test_entry_k_of_a_ve_table_descends():
    """The paper's discrete VE models: entry 0 is sigma_max, the last is sigma_min."""
    n = 50
    network = parameterization(VESDE(0.01, 50.0), time_input="index", num_train_timesteps=n)
    k = torch.arange(n, dtype=torch.float64)
    t = network.sde_time(k)
    expected = torch.tensor([50 * (0.01 / 50) ** (i / (n - 1)) for i in range(n)], dtype=torch.float64)
    torch.testing.assert_close(VESDE(0.01, 50.0).sigma(t), expected, rtol=1e-9, atol=0)
    assert torch.equal(network.network_time(t), k)


def test_table_length_is_that_of_the_betas():
    sde = DiscreteVPSDE([0.1, 0.2, 0.3, 0.4])
    assert parameterization(sde, time_input="index").network_time(0.5) == 1


# The range of its images.


@pytest.mark.parametrize("image_range", [(-1, 1), (0, 1), (-0.5, 2.5)])
def test_ranges(image_range):
    network = parameterization(VESDE(), image_range=image_range)
    images = torch.tensor([0.0, 0.25, 1.0])
    low, high = image_range
    assert network.to_model_range(images).tolist() == [low, 0.75 * low + 0.25 * high, high]
    torch.testing.assert_close(network.to_unit_range(network.to_model_range(images)), images)
    assert network.to_unit_range(torch.tensor(high + (high - low))) == 2  # not clipped


# Names.


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"prediction_type": "eps"}, "prediction_type"),
        ({"time_input": "999"}, "time_input"),
        ({"image_range": (1, 1)}, "image_range"),
        ({"image_range": (1, -1)}, "image_range"),
        ({"image_range": (0, 1, 2)}, "image_range"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        parameterization(VESDE(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction_type": "velocty"}, "Did you mean 'velocity'"),
        ({"time_input": "99t"}, "Did you mean '999t'"),
    ],
)
def test_the_nearest_name_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        parameterization(VESDE(), **arguments)


# What a configuration says of the SDE.


def build(name, parameters=None, **keys):
    return build_sde("sde", name, parameters, **keys)


def test_sdes_are_built_by_name():
    assert set(SDE_NAMES) == set(SDES) <= set(GaussianSDE.registered)
    for name, sde in SDES.items():
        built = build(name)  # with the defaults of the class
        assert type(built) is type(sde)
        torch.testing.assert_close(built.sigma(TIMES), sde.sigma(TIMES), rtol=1e-12, atol=0)
    assert build("ve", sigma_min=0.5, sigma_max=7.0).sigma(1) == pytest.approx(7.0)
    assert build("sub_vp", beta_min=1.0, beta_max=3.0).drift(0.5) == pytest.approx(-1.0)
    assert build("ve_exponential", sigma=9.0).diffusion(0.5) == pytest.approx(3.0)
    assert build("vp_discrete", trained_betas=[0.5, 0.5]).alpha(1) == pytest.approx(0.5)


def test_parameters_are_the_constructors_arguments():
    assert build("ve", {"sigma_max": 7.0}, sigma_min=0.5, beta_max=3.0).sigma(1) == pytest.approx(7.0)
    assert build("vp_discrete", {"betas": [0.5, 0.5]}).alpha(1) == pytest.approx(0.5)
    assert build("cosine_vp", {"s": 0.1}).s == 0.1 and build("flow", {"shift": 3.0}).sigma(0.5) == 0.75
    assert build("vp", {"beta_max": 7.0}, beta_max=7.0).beta_max == 7.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vpsde",), "`sde` must be one of .* but is 'vpsde'. Did you mean 'vp'"),
        (("csine_vp",), "Did you mean 'cosine_vp'"),
        (("vp", {"beta_mx": 1.0}), "`sde_parameters` holds 'beta_mx'.* Did you mean 'beta_max'"),
        (("flow", {"sigma_max": 1.0}), "`sde_parameters` holds 'sigma_max'.* There are: shift"),
        (("ve", {"sigma_max": 7.0}, {"sigma_max": 8.0}), "`sigma_max` is 8.0, but `sde_parameters` has sigma_max=7.0"),
        (("ve", {"sigma_min": -1.0}), "`sigma_min`"),
    ],
)
def test_unknown_names_and_parameters_are_named(arguments, message):
    name, parameters, keys = (*arguments, None, None)[:3]
    with pytest.raises(ValueError, match=message):
        build(name, parameters, **(keys or {}))
