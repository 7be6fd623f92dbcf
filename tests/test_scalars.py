"""Numbers of numpy and torch are numbers wherever one is asked for; booleans, text and what is not finite are not."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput

from sde_diffusers import (
    VESDE,
    VPSDE,
    FlowSDE,
    NCSNppUNet2DModel,
    NoiseConditionalClassifier,
    ScoreSdeConsistencyScheduler,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
    ScoreSdeRestorationPipeline,
)
from sde_diffusers.operators import Downsampling, GaussianBlur
from sde_diffusers.pipelines.pipeline_score_sde import StateNotFiniteError
from sde_diffusers.posteriors import DAPS, DPS, MMPS, PiGDM
from sde_diffusers.scalars import real_number, whole_number

KINDS = (np.float32, np.float64, lambda v: np.array(v), lambda v: torch.tensor(v))
QUICK = {"rtol": np.float32(0.1), "atol": torch.tensor(0.1)}


def network(number=int):
    return NCSNppUNet2DModel(
        sample_size=number(8),
        in_channels=number(1),
        block_out_channels=[number(8), number(8)],
        layers_per_block=number(1),
        fir=False,
        attention_resolutions=(),
        scale_by_sigma=False,
    ).eval()


def test_what_is_a_number():
    for kind in KINDS:
        assert real_number(kind(0.5)) == 0.5 and type(real_number(kind(0.5))) is float
        assert math.isnan(whole_number(kind(2.0)))
    for kind in (np.int64, np.uint8, lambda v: np.array(v), lambda v: torch.tensor(v)):
        assert whole_number(kind(2)) == 2 and type(whole_number(kind(2))) is int
    for none in (True, np.True_, torch.tensor(True), "1", None, [1], np.array([1, 2]), torch.ones(2), 1j):
        assert math.isnan(real_number(none)) and math.isnan(whole_number(none))


@pytest.mark.parametrize("kind", KINDS)
def test_sdes_and_schedulers_take_them(kind, tmp_path):
    assert repr(VESDE(sigma_max=kind(32.0))) == repr(VESDE(sigma_max=32.0))
    assert repr(VPSDE(beta_min=kind(0.5), beta_max=kind(8.0))) == repr(VPSDE(0.5, 8.0))
    assert FlowSDE(shift=kind(2.0)).sigma(0.5).item() == FlowSDE(shift=2.0).sigma(0.5).item()
    for cls, options in {
        ScoreSdePredictorCorrectorScheduler: {"snr": 0.125, "sampling_eps": 0.5},
        ScoreSdeProbabilityFlowScheduler: {"s_churn": 2.0, "s_max": 4.0, "s_noise": 1.0},
        ScoreSdeExponentialScheduler: {"eta": 0.5, "beta_max": 8.0},
    }.items():
        scheduler = cls(**{key: kind(value) for key, value in options.items()}, image_range=[kind(-1.0), kind(1.0)])
        scheduler.save_pretrained(tmp_path)  # as JSON has them
        loaded = cls.from_pretrained(tmp_path)
        for key, value in options.items():
            assert scheduler.config[key] == loaded.config[key] == value and type(scheduler.config[key]) is float
        scheduler.set_timesteps(np.int64(3)), loaded.set_timesteps(torch.tensor(3))
        assert torch.equal(scheduler.times, loaded.times)


def test_pipelines_take_them(tmp_path):
    pipe = ScoreSdePipeline(network(np.int64), ScoreSdeProbabilityFlowScheduler(sde="vp"))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    pipe = ScoreSdePipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)

    def draw(whole, real, **options):
        generator = torch.Generator().manual_seed(0)
        return pipe(whole(2), whole(4), generator=generator, output_type="pt", strength=real(0.5), **options).images

    picture = np.arange(64, dtype=np.int64).reshape(8, 8)
    for options in ({}, {"image": picture}):
        assert torch.equal(draw(int, float, **options), draw(np.int64, np.float32, **options))
        assert torch.equal(draw(int, float, **options), draw(torch.tensor, torch.tensor, **options))
    images = torch.zeros(1, 1, 8, 8)
    pipe.bits_per_dim(images, levels=np.int64(4), dequantize=np.int64(1), probes=torch.tensor(1), **QUICK)
    pipe.interpolate(images, images, torch.tensor(2), **QUICK)
    restore = ScoreSdeRestorationPipeline.from_pipe(pipe)
    options = {"num_inference_steps": np.int64(1), "output_type": "pt", "num_samples": np.int64(2)}
    restore.deblur(picture, np.float32(1.0), noise_std=torch.tensor(0.1), **options)
    restore.super_resolve(picture[:4, :4], np.int64(2), method=MMPS(np.int64(1), np.float32(0.5)), **options)
    assert (Downsampling(torch.tensor(2)).factor, GaussianBlur(np.float32(1.5)).std) == (2, 1.5)
    assert DPS(step=np.float32(2)).step == 2


@pytest.mark.parametrize("value", [True, "0.5", math.inf, math.nan, torch.ones(2), -1.0])
@pytest.mark.parametrize(
    "work, name",
    [
        (lambda v: VESDE(sigma_max=v), "sigma_max"),
        (lambda v: ScoreSdePredictorCorrectorScheduler(snr=v), "snr"),
        (lambda v: ScoreSdePredictorCorrectorScheduler(corrector_steps=v), "corrector_steps"),
        (lambda v: ScoreSdePredictorCorrectorScheduler(sampling_eps=v), "sampling_eps"),
        (lambda v: ScoreSdeExponentialScheduler(eta=v), "eta"),
        (lambda v: ScoreSdeProbabilityFlowScheduler(s_churn=v), "s_churn"),
        (lambda v: ScoreSdeProbabilityFlowScheduler().set_timesteps(v), "num_inference_steps"),
        (lambda v: MMPS(damping=v), "damping"),
        (lambda v: NCSNppUNet2DModel(layers_per_block=v), "layers_per_block"),
    ],
)
def test_what_is_none_is_refused(work, name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        work(value)


def test_images_without_a_size_of_their_own():
    """A network whose `sample_size` is None draws images of the size of the latents, or of the given image."""
    net = network()
    net.register_to_config(sample_size=None)
    pipe = ScoreSdePipeline(net, ScoreSdeProbabilityFlowScheduler(sde="vp"))
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "output_type": "pt"}
    assert pipe(latents=torch.randn(1, 1, 12, 16), **options).images.shape == (1, 1, 12, 16)
    assert pipe(image=np.zeros((12, 16), np.uint8), **options).images.shape == (1, 1, 12, 16)
    with pytest.raises(ValueError, match="`sample_size` of the network is None"):
        pipe(**options)
    with pytest.raises(ValueError, match=r"`latents` must have shape \(1, 1, 12, 16\), but have \(1, 1, 8, 8\)"):
        pipe(image=np.zeros((12, 16), np.uint8), latents=torch.randn(1, 1, 8, 8), **options)


def test_integer_images_of_any_type_are_the_models_values():
    pipe = ScoreSdePipeline(network(), ScoreSdeProbabilityFlowScheduler(sde="vp"))
    pipe.set_progress_bar_config(disable=True)
    values = torch.arange(64).reshape(1, 1, 8, 8) * 4
    for dtype in (torch.uint16, torch.int16, torch.int32, torch.uint32, torch.int64):
        white = 257 if dtype == torch.uint16 else 1  # whose white is its own
        images = {"pt": (values * white).to(dtype), "np": (values[0, 0] * white).to(dtype).numpy()}
        expected = pipe._start_image(values.to(torch.uint8))
        for given in images.values():
            torch.testing.assert_close(pipe._start_image(given), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="`image` must lie in"):
        pipe._start_image(values * 2)


@pytest.mark.parametrize(
    "cls, options",
    [
        (ScoreSdeProbabilityFlowScheduler, {"final_denoise": "no"}),
        (ScoreSdePredictorCorrectorScheduler, {"per_image_step": "no"}),
        (ScoreSdeExponentialScheduler, {"solver_order": True}),
    ],
)
def test_words_and_booleans_are_not_taken_for_one_another(cls, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"`{name}` must be one of .*, but is {value!r}"):
        cls(**options)


@pytest.mark.parametrize("options", [{"strength": math.nan}, {"generator": 0}, {"latents": "0"}])
def test_arguments_of_another_kind(options):
    ((name, value),) = options.items()
    pipe = ScoreSdePipeline(network(), ScoreSdeProbabilityFlowScheduler())
    with pytest.raises(ValueError, match=f"`{name}` must"):
        pipe(num_inference_steps=1, **options)


def test_a_state_that_is_not_finite_stops_the_sampler():
    pipe = ScoreSdePipeline(network(), ScoreSdeProbabilityFlowScheduler(method="euler"))
    pipe.set_progress_bar_config(disable=True)
    asked = []

    def spoil(pipe, step, t, inputs):
        asked.append(step)
        return {"latents": inputs["latents"] / (step < 2)}

    with pytest.raises(StateNotFiniteError, match="not finite after evaluation 3 of 6, at t = 0"):
        pipe(num_inference_steps=6, callback_on_step_end=spoil)
    assert asked == [0, 1, 2]


def test_a_scheduler_of_another_kind_is_refused_wherever_it_is_used():
    pipe, x = ScoreSdePipeline(network(), ScoreSdeProbabilityFlowScheduler()), torch.rand(1, 1, 8, 8)
    pipe.scheduler = DDIMScheduler()
    for use in (
        pipe,
        pipe.bits_per_dim,
        pipe.encode,
        pipe.decode,
        lambda x: pipe.score(x, 0.5),
        lambda x: pipe(image=x),
    ):
        with pytest.raises(ValueError, match="`scheduler` must be one of .*DDIMScheduler.*from_config"):
            use(x)


@pytest.mark.parametrize("order", [np.float32(3), np.float16(3), torch.tensor(3.0), np.True_, torch.tensor(True)])
def test_an_order_is_an_integer(order):
    with pytest.raises(ValueError, match="`solver_order` must be one of"):
        ScoreSdeExponentialScheduler(sde="vp", solver_order=order)
    with pytest.raises(ValueError, match="`per_image_step` must be one of"):
        ScoreSdePredictorCorrectorScheduler(sde="vp", per_image_step=np.float32(1))


def test_numbers_are_kept_as_pythons_own():
    """Eight unsigned bits wrap, and sixteen bits of floating point round."""
    assert type(MMPS(steps=np.uint8(7), inner_steps=torch.tensor(3)).steps) is int
    exact = torch.tensor(1.3, dtype=torch.bfloat16).item()
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    blur = GaussianBlur(torch.tensor(1.3, dtype=torch.bfloat16))
    assert torch.equal(blur(image), GaussianBlur(exact)(image))
    for method in (PiGDM, DAPS, DPS):
        assert type(method(sigma_data=torch.tensor(0.3, dtype=torch.bfloat16)).sigma_data) is float


@pytest.mark.parametrize("strength", [np.float32(0.7), torch.tensor(0.7), np.float64(0.7), 0.7])
def test_strength_of_fewer_bits_is_the_same_strength(strength):
    pipe = ScoreSdePipeline(unet=network(), scheduler=ScoreSdeExponentialScheduler(sde="vp"))
    pipe.set_progress_bar_config(disable=True)
    assert pipe(1, 10, image=torch.zeros(1, 1, 8, 8), strength=strength).nfe == 7


def test_scores_of_float64_are_asked_at_times_of_float64():
    class Told(torch.nn.Module):
        config, accepts_float32_input = network().config, True
        dtype, device = torch.float32, torch.device("cpu")

        def forward(self, x, t, class_labels=None):
            assert x.dtype == t.dtype == torch.float64
            return UNet2DOutput(sample=x)

    pipe = ScoreSdePipeline(unet=network(), scheduler=ScoreSdeExponentialScheduler(sde="vp"))
    pipe.register_modules(unet=Told())
    assert pipe.score(torch.zeros(1, 1, 8, 8, dtype=torch.float64), 0.5).dtype == torch.float64
    assert pipe.score(torch.zeros(1, 1, 8, 8, dtype=torch.float64), 0.5).isfinite().all()


@pytest.mark.parametrize(
    "cls, options, message",
    [
        (ScoreSdeExponentialScheduler, {"image_range": 1.0}, "`image_range` must be"),
        (ScoreSdeExponentialScheduler, {"sde_parameters": "abc"}, "`sde_parameters` must be None or a dictionary"),
        (ScoreSdeExponentialScheduler, {"sde": ["ve"]}, "`sde` must be one of"),
        (ScoreSdeExponentialScheduler, {"eta": 1e200}, "`eta` must be a finite number of at least 0"),
        (ScoreSdeConsistencyScheduler, {"sde": "ve", "levels": {"01": [1.0]}}, "`levels` for 01 steps"),
        (ScoreSdeConsistencyScheduler, {"sde": "ve", "levels": {1: [1.0], "1": [2.0]}}, "each number of steps once"),
        (NCSNppUNet2DModel, {"image_range": ("0", "1")}, "`image_range` must be two numbers"),
        (NCSNppUNet2DModel, {"image_range": (True, 5)}, "`image_range` must be two numbers"),
        (NCSNppUNet2DModel, {"class_names": 5}, "`class_names` must be None or a list"),
        (NCSNppUNet2DModel, {"time_embedding_type": "positional", "num_scales": 2.5}, "`num_scales` must be an int"),
        (NoiseConditionalClassifier, {"sample_size": "a"}, "`sample_size` must be a positive integer"),
        (NoiseConditionalClassifier, {"sample_size": (8, 9, 10)}, "`sample_size` must be a positive integer"),
        (NoiseConditionalClassifier, {"block_out_channels": 8}, "`block_out_channels` must be integers"),
    ],
)
def test_values_of_other_kinds_are_named(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)
