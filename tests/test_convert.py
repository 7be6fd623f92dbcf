"""Models of the paper's own code, converted whole: they must sample and score as the reference did."""

import copy
import json

import pytest
import torch
from golden import golden_names, load_golden, load_golden_pipeline, relative_error

from sde_diffusers import ScoreSdePipeline, ScoreSdePredictorCorrectorScheduler
from sde_diffusers.convert import SCORE_SDE_CONFIGS, from_score_sde, scheduler_config_from_score_sde

CONFIG = {
    "training": {"sde": "vesde", "continuous": True},
    "data": {"centered": False, "image_size": 8, "num_channels": 3},
    "model": {"num_scales": 100, "sigma_min": 0.02, "sigma_max": 90.0, "beta_min": 0.2, "beta_max": 19.0},
    "sampling": {
        "method": "pc",
        "predictor": "reverse_diffusion",
        "corrector": "langevin",
        "n_steps_each": 2,
        "noise_removal": True,
        "probability_flow": False,
        "snr": 0.075,
    },
}


def config(**changes):
    """CONFIG with other values, `section__key=value`."""
    changed = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        section, key = name.split("__")
        changed[section][key] = value
    return changed


def public_config(component):
    """The configuration as it is in JSON, without diffusers' own records."""
    return {key: value for key, value in json.loads(component.to_json_string()).items() if not key.startswith("_")}


def scheduler(**changes):
    return ScoreSdePredictorCorrectorScheduler(**scheduler_config_from_score_sde(config(**changes)))


# Against the reference's numbers.


@pytest.fixture(params=golden_names("model"))
def model(request):
    return request.param.removeprefix("model_")


@pytest.fixture(params=golden_names("pc"))
def recorded(request):
    """A pipeline with the recorded sampler, the recorded tensors and the number of steps."""
    tensors, metadata = load_golden(request.param)
    pipe = load_golden_pipeline(metadata["model"])
    pipe.scheduler = ScoreSdePredictorCorrectorScheduler.from_config(
        pipe.scheduler.config,
        predictor=metadata["predictor"].removesuffix("_sampling"),
        corrector=metadata["corrector"],
        snr=float(metadata["snr"]),
        corrector_steps=int(metadata["corrector_steps"]),
    )
    assert pipe.scheduler.sampling_eps == float(metadata["sampling_eps"])
    return pipe, tensors, int(metadata["num_steps"])


def test_networks_answer_as_the_reference(model):
    tensors, _ = load_golden(f"model_{model}")
    pipe = load_golden_pipeline(model)
    with torch.no_grad():
        assert relative_error(pipe.unet(tensors["x"], tensors["labels"]).sample, tensors["y"]) < 1e-5


def test_scores_are_the_references(model):
    """Its VE networks return the score, its VP ones minus sigma times the score."""
    tensors, metadata = load_golden(f"model_{model}")
    pipe = load_golden_pipeline(model)
    if metadata["config"]["training"]["sde"] == "vesde":
        low, high = metadata["config"]["model"]["sigma_min"], metadata["config"]["model"]["sigma_max"]
        t = (tensors["labels"].double() / low).log() / torch.tensor(high / low, dtype=torch.float64).log()
        expected = tensors["y"]
    else:
        t = tensors["labels"].double() / 999
        sigma = (1 - (-9.95 * t**2 - 0.1 * t).exp()).sqrt()  # beta from 0.1 to 20
        expected = -tensors["y"] / sigma.float()[:, None, None, None]
    assert ((t > 0) & (t <= 1)).all()
    for image in range(len(t)):  # each on its own scale; sinusoids of labels near 1000 carry float32 rounding
        score = pipe.score(tensors["x"][image : image + 1], t[image : image + 1])
        assert relative_error(score, expected[image : image + 1]) < 5e-5


@torch.no_grad()
def test_steps_are_the_references(recorded):
    pipe, tensors, n = recorded
    pipe.scheduler.set_timesteps(n)
    assert len(pipe.scheduler.timesteps) == len(tensors["noise"])
    x = tensors["prior"] * pipe.scheduler.init_noise_sigma
    for t, noise in zip(pipe.scheduler.timesteps, tensors["noise"], strict=True):
        output = pipe.unet(pipe.scheduler.scale_model_input(x, t), t).sample
        x = pipe.scheduler.step(output, t, x, variance_noise=noise).prev_sample
    samples = pipe.scheduler.parameterization.to_unit_range(x)
    assert relative_error(samples, tensors["samples"]) < 1e-5


def test_the_pipelines_own_loop_is_the_references(recorded, monkeypatch):
    """With the recorded draws in the generator's place; the last predictor draws nothing, for its noise is unused."""
    pipe, tensors, n = recorded
    draws = iter(tensors["noise"])
    module = "sde_diffusers.schedulers.scheduling_score_sde"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *args, **kwargs: next(draws))
    latents = []
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        batch_size=2,
        num_inference_steps=n,
        latents=tensors["prior"],
        output_type="pt",
        callback_on_step_end=lambda pipe, k, t, values: latents.append(values["latents"]),
    ).images
    samples = pipe.scheduler.parameterization.to_unit_range(latents[-1])
    assert relative_error(samples, tensors["samples"]) < 1e-5
    assert torch.equal(images, samples.clamp(0, 1))


def test_converted_pipelines_survive_saving(model, tmp_path):
    pipe = load_golden_pipeline(model)
    pipe.save_pretrained(tmp_path)
    again = ScoreSdePipeline.from_pretrained(tmp_path)
    for ours, theirs in ((again.unet, pipe.unet), (again.scheduler, pipe.scheduler)):
        assert public_config(ours) == public_config(theirs)
    for key, value in pipe.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[key], value), key


def test_wrong_state_dicts_are_refused(model):
    tensors, metadata = load_golden(f"model_{model}")
    state = {key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")}
    missing = max(key for key in state if key.endswith(".weight"))
    with pytest.raises(ValueError, match=f"{missing}: missing"):
        from_score_sde({key: value for key, value in state.items() if key != missing}, metadata["config"])
    with pytest.raises(ValueError, match="more.weight: unexpected"):
        from_score_sde({**state, "more.weight": torch.zeros(1)}, metadata["config"])


# The mapping of the configuration.


def test_continuous_ve():
    s = scheduler()
    assert (s.config.sde, s.parameterization.prediction_type, s.parameterization.time_input) == (
        "ve",
        "score",
        "sigma",
    )
    assert s.parameterization.image_range == (0, 1)
    assert (s.sde.sigma(0), s.sde.sigma(1)) == (pytest.approx(0.02), pytest.approx(90.0))
    assert s.sampling_eps == 1e-5


@pytest.mark.parametrize(("theirs", "ours"), [("vpsde", "vp"), ("subvpsde", "sub_vp")])
def test_continuous_vp(theirs, ours):
    s = scheduler(training__sde=theirs, data__centered=True)
    assert (s.config.sde, s.parameterization.prediction_type, s.parameterization.time_input) == (
        ours,
        "epsilon",
        "999t",
    )
    assert s.parameterization.image_range == (-1, 1)
    assert (s.sde.drift(0), s.sde.drift(1)) == (pytest.approx(-0.1), pytest.approx(-9.5))
    assert s.sampling_eps == 1e-3


def test_discrete_sub_vp_is_continuous():
    """The reference conditions sub-VP networks on 999 t however they were trained."""
    assert scheduler(training__sde="subvpsde", training__continuous=False).parameterization.time_input == "999t"


def test_discrete_ve_is_asked_for_entries_of_a_descending_table():
    s = scheduler(training__continuous=False)
    assert s.parameterization.time_input == "index" and s.parameterization.prediction_type == "score"
    s.set_timesteps(100)
    assert s.timesteps[:: s.corrections + s.predictions].tolist() == list(range(100))
    table = [90 * (0.02 / 90) ** (i / 99) for i in range(100)]
    sigmas = s.training_sde.sigma(s.parameterization.sde_time(torch.arange(100)))
    torch.testing.assert_close(sigmas, torch.tensor(table, dtype=torch.float64), rtol=1e-9, atol=0)


def test_discrete_vp_is_the_ddpm_chain():
    s = scheduler(training__sde="vpsde", training__continuous=False, data__centered=True)
    assert s.config.sde == "vp_discrete" and s.parameterization.time_input == "index"
    assert s.parameterization.prediction_type == "epsilon"
    s.set_timesteps(100)
    torch.testing.assert_close(s.timesteps[::3], torch.arange(99.0, -1, -1), rtol=0, atol=1e-4)
    betas = torch.tensor([(0.2 + (19.0 - 0.2) * i / 99) / 100 for i in range(100)], dtype=torch.float64)
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    torch.testing.assert_close(s.sde.alpha(t) ** 2, (1 - betas).cumprod(0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "euler_maruyama", "ancestral_sampling", "none"])
@pytest.mark.parametrize("corrector", ["langevin", "ald"])
def test_samplers(predictor, corrector):
    s = scheduler(sampling__predictor=predictor, sampling__corrector=corrector, sampling__noise_removal=False)
    assert s.config.predictor == predictor.removesuffix("_sampling") and s.config.corrector == corrector
    assert s.config.snr == 0.075 and s.corrections == 2 and not s.final_denoise
    assert scheduler().final_denoise


def test_sampling_section_is_optional():
    without = config()
    del without["sampling"]
    s = ScoreSdePredictorCorrectorScheduler(**scheduler_config_from_score_sde(without))
    assert s.config.sde == "ve" and s.sde.sigma_max == 90.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training__sde": "edm"}, "training.sde"),
        ({"sampling__predictor": "rk45"}, "sampling.predictor"),
        ({"sampling__corrector": "hmc"}, "sampling.corrector"),
        ({"sampling__probability_flow": True}, "sampling.probability_flow"),
        ({"data__centered": "no"}, r"data.centered must be one of \(True, False\) to be converted, got 'no'"),
        ({"training__continuous": "false"}, "training.continuous"),
        ({"sampling__noise_removal": "true"}, "sampling.noise_removal"),
        ({"sampling__n_steps_each": 1.5}, "sampling.n_steps_each must be an integer of at least 1, but is 1.5"),
        ({"model__sigma_max": "50"}, "model.sigma_max must be a finite number, but is '50'"),
    ],
)
def test_what_cannot_be_expressed_is_named(changes, named):
    with pytest.raises(ValueError, match=named):
        scheduler(**changes)


@pytest.mark.parametrize(
    ("section", "key"), [("training", "sde"), ("model", "sigma_max"), ("data", "centered"), ("sampling", "snr")]
)
def test_what_is_missing_is_named(section, key):
    incomplete = config()
    del incomplete[section][key]
    with pytest.raises(ValueError, match=f"{section}.{key}"):
        scheduler_config_from_score_sde(incomplete)
    if section != "sampling":
        del incomplete[section]
        with pytest.raises(ValueError, match=section):
            scheduler_config_from_score_sde(incomplete)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "name", "ncsnv2"),
        ("model", "nonlinearity", "elu"),
        ("model", "conditional", False),
        ("model", "nf", "128"),
        ("model", "ch_mult", 2),
        ("model", "attn_resolutions", 16),
        ("model", "resamp_with_conv", "no"),
        ("data", "image_size", None),
    ],
)
def test_networks_that_cannot_be_expressed_are_named(model, section, key, value):
    _, metadata = load_golden(f"model_{model}")
    metadata["config"][section][key] = value
    with pytest.raises(ValueError, match=f"{section}.{key}"):
        from_score_sde({}, metadata["config"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("fir_kernel", 3), ("fir", "yes"), ("resblock_type", 3), ("progressive", None), ("init_scale", "small")],
)
def test_settings_of_ncsnpp_that_are_none_are_named(key, value):
    wrong = copy.deepcopy(SCORE_SDE_CONFIGS["ve/cifar10_ncsnpp"])
    wrong["model"][key] = value
    with pytest.raises(ValueError, match=rf"model\.{key} must be"):
        from_score_sde({}, wrong)


@pytest.mark.parametrize("wrong", [None, 3, "ve/nothing", {"model": None}, {"model": [1], "data": {}}])
def test_what_is_no_configuration(wrong):
    with pytest.raises(ValueError, match="`config` must be a dictionary|lacks the section|section 'model' must be"):
        from_score_sde({}, wrong)
