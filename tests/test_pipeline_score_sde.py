"""The pipeline: what it returns and refuses, and its score against the exact one of Gaussian images."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, DDPMScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from PIL import Image
from torch import nn

from sde_diffusers import (
    NCSNppUNet2DModel,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
)
from sde_diffusers.parameterization import PREDICTION_TYPES, SDE_NAMES

M, C = 0.4, 0.5  # the images' mean (of "no class") and deviation


class GaussianNetwork(ModelMixin, ConfigMixin):
    """The exact answer for images N(mean, C^2 I): `mean` without a class, 0.1 (k + 1) more for class k.

    It works in any dtype and records every call.
    """

    @register_to_config
    def __init__(self, sample_size=4, in_channels=3, num_class_embeds=None, mean=M):
        super().__init__()
        self.no_weight = nn.Parameter(torch.zeros(1))
        self.calls = []

    def answers(self, scheduler):
        self.parameterization = scheduler.parameterization
        return self

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        self.calls.append((sample, timestep, class_labels))
        network = self.parameterization
        t = network.sde_time(timestep).expand(len(sample))
        alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in (network.sde.alpha(t), network.sde.sigma(t)))
        mean = torch.full((len(sample),), self.config.mean)
        if class_labels is not None:
            mean = mean + 0.1 * (class_labels + 1.0)
        x, mean = sample.double(), mean.double().reshape(-1, 1, 1, 1)
        total = alpha**2 * C**2 + sigma**2
        noise = sigma * (x - alpha * mean) / total
        x_0 = mean + alpha * C**2 * (x - alpha * mean) / total  # also where alpha = 0
        output = network.target(x_0, noise, t)
        return UNet2DOutput(sample=output.to(sample.dtype))


SCHEDULERS = {  # a scheduler, and the number of evaluations that n steps take
    "reverse diffusion": (ScoreSdePredictorCorrectorScheduler, {"corrector": "none"}, lambda n: n),
    "ancestral": (ScoreSdePredictorCorrectorScheduler, {"predictor": "ancestral", "corrector": "none"}, lambda n: n),
    "langevin": (ScoreSdePredictorCorrectorScheduler, {"corrector_steps": 2}, lambda n: 3 * n),
    "ald": (ScoreSdePredictorCorrectorScheduler, {"predictor": "none", "corrector": "ald"}, lambda n: n),
    "euler": (ScoreSdeProbabilityFlowScheduler, {"method": "euler"}, lambda n: n),
    "heun": (ScoreSdeProbabilityFlowScheduler, {"method": "heun"}, lambda n: 2 * n - 1),
    "heun to eps": (ScoreSdeProbabilityFlowScheduler, {"final_denoise": False}, lambda n: 2 * n),
}


def gaussian_pipe(sampler="heun", network=None, **scheduler_config):
    cls, config, _ = SCHEDULERS[sampler]
    scheduler = cls(**config, **scheduler_config)
    network = GaussianNetwork(**(network or {})).answers(scheduler)
    return quiet(ScoreSdePipeline(unet=network, scheduler=scheduler))


def unet_pipe(channels=3, sample_size=8, seed=0, dtype=torch.float32, scheduler=None, **config):
    """A network with random weights, for all that is not about numbers; it returns x_0, so images are not extreme."""
    torch.manual_seed(seed)
    unet = NCSNppUNet2DModel(
        sample_size=sample_size,
        in_channels=channels,
        block_out_channels=(8,),
        layers_per_block=1,
        attention_resolutions=(),
        scale_by_sigma=False,
        time_embedding_type="positional",
        image_range=(-1.0, 1.0),
        init_scale=1.0,
        **config,
    )
    return quiet(
        ScoreSdePipeline(
            unet=unet.eval().to(dtype),
            scheduler=scheduler or ScoreSdeProbabilityFlowScheduler(prediction_type="sample"),
        )
    )


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(generators) > 1 else generators[0]


def draw(pipe, n=4, seed=0, **arguments):
    arguments = {"generator": seeded(seed), "output_type": "pt", **arguments}
    return pipe(num_inference_steps=n, **arguments).images


# What comes out.


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_output_types(channels, mode):
    pipe = unet_pipe(channels, sample_size=(8, 12))
    images = {kind: draw(pipe, batch_size=2, output_type=kind) for kind in ("pil", "np", "pt")}
    assert images["pt"].shape == (2, channels, 8, 12) and images["pt"].dtype == torch.float32
    assert images["pt"].min() >= 0 and images["pt"].max() <= 1
    assert isinstance(images["np"], np.ndarray) and images["np"].shape == (2, 8, 12, channels)
    np.testing.assert_array_equal(images["np"], images["pt"].permute(0, 2, 3, 1).numpy())
    assert len(images["pil"]) == 2
    for image, array in zip(images["pil"], images["np"], strict=True):
        assert isinstance(image, Image.Image) and image.mode == mode and image.size == (12, 8)
        np.testing.assert_array_equal(np.asarray(image).reshape(array.shape), (array * 255).round().astype(np.uint8))


def test_images_are_in_the_unit_range_whatever_the_networks():
    """Images N(M, C^2) in the network's range end in [0, 1], at the mean's place in that range."""
    for image_range in ((-1.0, 1.0), (0.0, 1.0), (-3.0, 3.0)):
        pipe = gaussian_pipe(network={"sample_size": 32}, sde="vp", image_range=image_range)
        images = draw(pipe, n=40, batch_size=4)
        low, high = image_range
        expected = ((M + C * torch.randn(100_000, generator=seeded(0))) - low).div(high - low).clamp(0, 1)
        assert images.mean().item() == pytest.approx(expected.mean().item(), abs=0.02)
        assert images.std().item() == pytest.approx(expected.std().item(), abs=0.02)


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_nfe_counts_the_networks_evaluations(sampler):
    pipe = gaussian_pipe(sampler)
    for n in (1, 5):
        pipe.unet.calls.clear()
        output = pipe(num_inference_steps=n, generator=seeded(0), output_type="pt")
        assert output.nfe == len(pipe.unet.calls) == SCHEDULERS[sampler][2](n)


def test_return_dict():
    pipe = gaussian_pipe()
    images, nfe = pipe(num_inference_steps=3, generator=seeded(0), output_type="pt", return_dict=False)
    assert torch.equal(images, draw(pipe, n=3)) and nfe == 5


def test_default_number_of_steps_is_the_schedulers():
    pipe = gaussian_pipe("heun")
    assert pipe(output_type="pt").nfe == 2 * pipe.scheduler.default_num_inference_steps - 1


# Where its randomness comes from.


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_images_are_the_generators(sampler):
    pipe = gaussian_pipe(sampler)
    assert torch.equal(draw(pipe, seed=1), draw(pipe, seed=1))
    assert not torch.equal(draw(pipe, seed=1), draw(pipe, seed=2))
    torch.manual_seed(3)
    first = draw(pipe, generator=None)
    torch.manual_seed(3)
    assert torch.equal(first, draw(pipe, generator=None))


@pytest.mark.parametrize("sampler", ["reverse diffusion", "ancestral", "ald", "euler", "heun"])
@pytest.mark.parametrize("sde", SDE_NAMES)
def test_each_image_has_its_own_generator(sampler, sde):
    """Alone or in a batch, in whatever company: the same image. (Langevin step sizes are the batch's.)"""
    pipe = gaussian_pipe(sampler, sde=sde)
    together = draw(pipe, batch_size=3, generator=seeded(5, 6, 7))
    for image, seed in enumerate((5, 6, 7)):
        torch.testing.assert_close(together[image : image + 1], draw(pipe, seed=seed), rtol=0, atol=1e-5)
    other_company = draw(pipe, batch_size=3, generator=seeded(8, 6, 9))
    assert torch.equal(other_company[1], together[1]) and not torch.equal(other_company[0], together[0])


def test_latents_are_the_standard_normal_start():
    pipe = gaussian_pipe("heun", sde="ve")
    latents = torch.randn(2, 3, 4, 4, generator=seeded(4))
    images = draw(pipe, batch_size=2, latents=latents)
    assert torch.equal(images, draw(pipe, batch_size=2, seed=4))
    torch.testing.assert_close(pipe.unet.calls[0][0], 50 * latents)
    # the probability flow of Gaussian images is linear: latents of 0 end near the mean
    x = draw(pipe, n=30, batch_size=1, latents=torch.zeros(1, 3, 4, 4))
    torch.testing.assert_close(x, torch.full_like(x, M * (1 - C / (50**2 + C**2) ** 0.5)), rtol=0, atol=5e-3)


# Classes and guidance.


def test_classes_reach_the_network():
    pipe = gaussian_pipe(network={"num_class_embeds": 4})
    for given, expected in [(2, [2, 2, 2]), ([0, 3, 1], [0, 3, 1]), (torch.tensor([1, 1, 0]), [1, 1, 0])]:
        pipe.unet.calls.clear()
        draw(pipe, batch_size=3, class_labels=given)
        assert all(labels.tolist() == expected for _, _, labels in pipe.unet.calls)
    pipe.unet.calls.clear()
    draw(pipe, batch_size=3)
    assert all(labels is None for _, _, labels in pipe.unet.calls)


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_guidance_extrapolates_linearly(sampler):
    """(1 - w) unconditional + w conditional: as if the class's mean were M + w 0.1 (k + 1), here of class 1."""
    pipe = gaussian_pipe(sampler, network={"num_class_embeds": 2})
    conditional = draw(pipe, class_labels=1)
    pipe.unet.calls.clear()
    assert torch.equal(draw(pipe, class_labels=1, guidance_scale=1), conditional)
    assert len(pipe.unet.calls) == SCHEDULERS[sampler][2](4)
    none = draw(pipe, class_labels=1, guidance_scale=0.0)
    torch.testing.assert_close(none, draw(pipe), rtol=0, atol=1e-5)
    scale = 1.5
    guided = pipe(num_inference_steps=4, class_labels=1, guidance_scale=scale, generator=seeded(0), output_type="pt")
    assert guided.nfe == 2 * SCHEDULERS[sampler][2](4)

    def shifted(sample, timestep, class_labels=None):
        labels = torch.full((len(sample),), scale * 2 - 1)  # the mean of this "class" is M + scale 0.1 * 2
        return GaussianNetwork.forward(pipe.unet, sample, timestep, labels)

    pipe.unet.forward = shifted
    torch.testing.assert_close(guided.images, draw(pipe), rtol=0, atol=1e-4)


def test_guidance_with_a_real_network():
    pipe = unet_pipe(num_class_embeds=3)
    plain, guided = (draw(pipe, class_labels=[0, 2], batch_size=2, guidance_scale=w) for w in (1.0, 3.0))
    assert guided.isfinite().all() and not torch.equal(plain, guided)


# Watching and steering.


def test_callback_sees_every_evaluation():
    pipe = gaussian_pipe("langevin")
    seen = []

    def callback(pipeline, k, timestep, values):
        assert pipeline is pipe and list(values) == ["latents"]
        seen.append((k, timestep.item(), values["latents"].clone()))

    images = draw(pipe, callback_on_step_end=callback)
    assert [k for k, _, _ in seen] == list(range(12))
    assert [timestep for _, timestep, _ in seen] == pipe.scheduler.timesteps.tolist()
    torch.testing.assert_close(images, pipe.scheduler.parameterization.to_unit_range(seen[-1][2]).clamp(0, 1))
    assert torch.equal(images, draw(pipe))  # and changes nothing


def test_callback_may_replace_the_state():
    pipe = gaussian_pipe()
    replaced = torch.full((1, 3, 4, 4), 0.25)

    def callback(pipeline, k, timestep, values):
        return {"latents": replaced} if k == 2 else {}

    draw(pipe, callback_on_step_end=callback)
    assert torch.equal(pipe.unet.calls[3][0], replaced)
    assert not torch.equal(pipe.unet.calls[2][0], replaced)


@pytest.mark.parametrize("sampler", ["euler", "heun", "heun to eps", "heun with churn"])
def test_a_replaced_state_is_gone_on_from_at_every_evaluation(sampler):
    """Replaced by 0 while images are N(0, C^2), whose score is 0 there, the state stays 0 unless noise is added."""
    pipe = gaussian_pipe("heun", sde="vp", image_range=(-1.0, 1.0))
    if sampler == "heun with churn":
        pipe.scheduler = ScoreSdeProbabilityFlowScheduler.from_config(pipe.scheduler.config, s_churn=5.0, s_noise=0.0)
    else:
        cls, config, _ = SCHEDULERS[sampler]
        pipe.scheduler = cls.from_config(pipe.scheduler.config, **config)
    pipe.unet.answers(pipe.scheduler).register_to_config(mean=0.0)
    n = 4
    for replaced in range(2 * n - 2 if "heun" in sampler else n - 1):

        def callback(pipeline, k, timestep, values, replaced=replaced):
            return {"latents": torch.zeros_like(values["latents"])} if k == replaced else {}

        images = draw(pipe, n=n, output_type="latent", callback_on_step_end=callback)
        assert torch.equal(images, torch.zeros_like(images)), replaced


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_a_callback_that_gives_a_copy_changes_nothing(sampler):
    pipe = gaussian_pipe(sampler)

    def callback(pipeline, k, timestep, values):
        return {"latents": values["latents"].clone()}

    assert torch.equal(draw(pipe, callback_on_step_end=callback), draw(pipe))


def test_a_callback_knows_where_time_steps_end():
    pipe, ends = gaussian_pipe("heun"), []
    draw(pipe, callback_on_step_end=lambda pipe, k, t, values: ends.append(pipe.scheduler.at_grid_point))
    assert ends == [False, True] * 3 + [True]  # Heun's two stages, and the last step, which has one


@pytest.mark.parametrize("stop", [0, 1, 4, 6])
def test_a_callback_may_stop_the_sampling(stop):
    pipe, states = gaussian_pipe("heun"), []

    def callback(pipeline, k, timestep, values):
        states.append(values["latents"].clone())
        pipeline._interrupt = k >= stop

    output = pipe(num_inference_steps=4, generator=seeded(0), output_type="latent", callback_on_step_end=callback)
    assert len(states) == output.nfe == len(pipe.unet.calls) == stop + 1
    assert torch.equal(output.images, states[-1])
    assert pipe.interrupt and draw(pipe).isfinite().all() and not pipe.interrupt  # the next call starts afresh


@pytest.mark.parametrize("name", ["guidance_scale", "_guidance_scale"])
def test_a_callback_may_change_the_guidance_scale(name):
    """By our name and by that of diffusers' own pipelines."""
    pipe = gaussian_pipe("euler", network={"num_class_embeds": 2})

    def callback(pipeline, k, timestep, values):
        assert pipeline.guidance_scale == 1.0 + k
        setattr(pipeline, name, getattr(pipeline, name) + 1.0)

    output = pipe(num_inference_steps=3, class_labels=1, output_type="pt", callback_on_step_end=callback)
    assert [labels.tolist() for _, _, labels in pipe.unet.calls] == [[1], [-1, 1], [-1, 1]]
    assert output.nfe == 5 and pipe.guidance_scale == 4.0
    for labels, value, message in ((None, 2.0, "needs `class_labels`"), (1, -1.0, "must be a finite number")):
        with pytest.raises(ValueError, match=f"`guidance_scale`.* {message}"):
            pipe(
                class_labels=labels,
                num_inference_steps=3,
                callback_on_step_end=lambda pipe, k, t, values, value=value: setattr(pipe, name, value),
            )


def test_networks_in_training_mode_do_not_drop_out():
    """They are asked in evaluation mode, and left as they were."""
    pipe = unet_pipe(channels=1, dropout=0.5, num_class_embeds=2)
    image = torch.rand(2, 1, 8, 8, generator=seeded(1))
    x, solver = torch.randn(2, 1, 8, 8, generator=seeded(2), requires_grad=True), {"rtol": 1e-2, "atol": 1e-2}
    calls = {
        "sample": lambda: draw(pipe, class_labels=1, guidance_scale=2.0),
        "score": lambda: pipe.score(x, 0.5),
        "gradient": lambda: torch.autograd.grad(pipe.denoise(x, 0.5).sum(), x)[0],
        "encode": lambda: pipe.encode(image, **solver),
        "bits_per_dim": lambda: pipe.bits_per_dim(image, generator=seeded(0), **solver).bits_per_dim,
    }
    expected = {name: call() for name, call in calls.items()}
    pipe.unet.train()
    pipe.unet.conv_in.eval()  # a part that someone holds still
    for name, call in calls.items():
        assert torch.equal(call(), expected[name]), name
    still = [name for name, module in pipe.unet.named_modules() if not module.training]
    assert still == ["conv_in"] and all(weight.requires_grad for weight in pipe.unet.parameters())


def test_inference_mode(tmp_path):
    """Calls that need gradients of the network leave it, whatever was made inside."""
    pipe = unet_pipe(channels=1)
    pipe.save_pretrained(tmp_path)
    pipe = quiet(ScoreSdePipeline.from_pretrained(tmp_path))
    image, solver = torch.rand(2, 1, 8, 8, generator=seeded(1)), {"rtol": 1e-1, "atol": 1e-1}

    def calls(pipe, image):
        return [
            draw(pipe, latents=torch.randn(1, 1, 8, 8, generator=seeded(0))),
            pipe.bits_per_dim(image, generator=seeded(0), **solver).bits_per_dim,
            pipe.bits_per_dim(image, probes=image - 0.5, dequantize=False, **solver).bits_per_dim,
            pipe.decode(pipe.encode(image, **solver), **solver),
            pipe.interpolate(image[:1], image[1:], 3, **solver),
            pipe.score(image, 0.5),
        ]

    expected = calls(pipe, image)
    with torch.inference_mode():
        loaded_inside = quiet(ScoreSdePipeline.from_pretrained(tmp_path))
        found = [calls(pipe, image.clone()), calls(loaded_inside, image.clone())]
    for one, other in zip(found[0] + found[1], expected + expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_progress_bar(capsys):
    pipe = gaussian_pipe()
    draw(pipe)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(desc="drawing")
    draw(pipe)
    assert "drawing" in capsys.readouterr().err


# The score.


@pytest.mark.parametrize("sampling_sde", [None, *SDE_NAMES])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("sde", SDE_NAMES)
def test_score_and_denoise_are_exact(sde, prediction_type, sampling_sde):
    """p_t of Gaussian images is N(alpha M, alpha^2 C^2 + sigma^2), under the SDE that is sampled."""
    pipe = gaussian_pipe(sde=sde, prediction_type=prediction_type, sampling_sde=sampling_sde)
    pipe.unet.double()
    t = torch.tensor([0.05, 0.3, 0.6], dtype=torch.float64)
    alpha, sigma = (v(t).reshape(-1, 1, 1, 1) for v in (pipe.scheduler.sde.alpha, pipe.scheduler.sde.sigma))
    variance = alpha**2 * C**2 + sigma**2
    x = alpha * M + variance.sqrt() * torch.randn(3, 3, 4, 4, dtype=torch.float64, generator=seeded(0))
    score = -(x - alpha * M) / variance
    close = {"rtol": 0, "atol": 1e-4 * score.abs().max().item()}  # the network is asked in float32
    torch.testing.assert_close(pipe.score(x, t), score, **close)
    torch.testing.assert_close(pipe.denoise(x, t), M + alpha * C**2 * (x - alpha * M) / variance, rtol=0, atol=1e-4)
    for image in range(3):  # one time for all
        torch.testing.assert_close(
            pipe.score(x[image : image + 1], t[image].item()), score[image : image + 1], **close
        )


@pytest.mark.parametrize("sampling_sde", [None, *SDE_NAMES])
@pytest.mark.parametrize("sde", SDE_NAMES)
def test_samples_are_gaussian_images_under_every_sde(sde, sampling_sde):
    """The probability flow takes x at noise level s to M + (x - M) C / sqrt(C^2 + s^2), and starts from N(0, s^2)."""
    pipe = gaussian_pipe("heun", sde=sde, sampling_sde=sampling_sde, image_range=(-3, 3), network={"sample_size": 32})
    x = 6 * draw(pipe, n=40, batch_size=4) - 3
    start = pipe.scheduler.times[0]
    alpha, sigma = pipe.scheduler.sde.alpha(start).item(), pipe.scheduler.sde.sigma(start).item()
    shrink = C / (alpha**2 * C**2 + sigma**2) ** 0.5
    assert x.mean().item() == pytest.approx(M * (1 - alpha * shrink), abs=4 * C / x.numel() ** 0.5)
    assert x.std().item() == pytest.approx(sigma * shrink, abs=0.02)


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("sde", SDE_NAMES)
def test_naming_the_training_sde_changes_nothing(sde, sampler):
    same = gaussian_pipe(sampler, sde=sde, sampling_sde=sde)
    assert torch.equal(draw(same, n=10), draw(gaussian_pipe(sampler, sde=sde), n=10))


def test_score_of_a_class():
    pipe = gaussian_pipe(sde="ve", network={"num_class_embeds": 4})
    x, sigma = torch.zeros(2, 3, 4, 4), pipe.scheduler.sde.sigma(0.5).item()
    expected = torch.tensor([M + 0.1, M + 0.4])[:, None, None, None].expand_as(x) / (C**2 + sigma**2)
    torch.testing.assert_close(pipe.score(x, 0.5, class_labels=[0, 3]), expected)


@pytest.mark.parametrize("sampling_sde", [None, "ve"])
def test_gradients_flow_through_the_score(sampling_sde):
    """d score / dx = -1 / (alpha^2 C^2 + sigma^2)."""
    pipe = gaussian_pipe(sde="vp", sampling_sde=sampling_sde)
    x = torch.randn(2, 3, 4, 4, generator=seeded(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(pipe.score(x, 0.3).sum(), x)
    alpha, sigma = pipe.scheduler.sde.alpha(0.3).item(), pipe.scheduler.sde.sigma(0.3).item()
    torch.testing.assert_close(gradient, torch.full_like(x, -1 / (alpha**2 * C**2 + sigma**2)), rtol=1e-4, atol=0)
    assert not pipe.score(x.detach(), 0.3).requires_grad
    with torch.no_grad():
        assert not pipe.denoise(x, 0.3).requires_grad


@pytest.mark.parametrize("t", [0.0, -0.1, 1.01, float("nan"), [0.5, 0.5, 0.5], [[0.5, 0.5]]])
def test_bad_times_are_refused(t):
    pipe = gaussian_pipe()
    for method in (pipe.score, pipe.denoise):
        with pytest.raises(ValueError, match="`t`"):
            method(torch.zeros(2, 3, 4, 4), t)
    assert not pipe.unet.calls


# Half precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sampler", ["langevin", "heun"])
def test_half_precision_networks(dtype, sampler):
    cls, config, _ = SCHEDULERS[sampler]
    pipe = unet_pipe(dtype=dtype, scheduler=cls(**config, prediction_type="sample"))
    states = []
    images = draw(pipe, callback_on_step_end=lambda pipe, k, t, values: states.append(values["latents"]))
    assert images.isfinite().all() and images.dtype == torch.float32
    assert {state.dtype for state in states} == {torch.float32}
    # not merely float32 in name: the state holds more than the half precision type can
    assert not torch.equal(states[0], states[0].to(dtype).float())


def test_half_precision_follows_the_single_precision_network():
    single, half = unet_pipe(), unet_pipe()
    half.to(torch.bfloat16)
    assert half.unet.dtype == torch.bfloat16
    torch.testing.assert_close(draw(half), draw(single), rtol=0, atol=0.05)
    x = torch.randn(2, 3, 8, 8, generator=seeded(0))
    for dtype in (torch.float32, torch.bfloat16):
        assert half.score(x.to(dtype), 0.5).dtype == torch.float32  # at least


def test_to_float16():
    pipe = unet_pipe().to(torch.float16)
    assert pipe.unet.dtype == torch.float16 and draw(pipe).isfinite().all()


# What it refuses, before the network is asked.


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 10**12}, "num_inference_steps"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"guidance_scale": float("nan"), "class_labels": 1}, "guidance_scale"),
        ({"guidance_scale": "2", "class_labels": 1}, "guidance_scale"),
        ({"guidance_scale": 2.0}, "guidance_scale"),  # without classes
        ({"output_type": "jpg"}, "output_type"),
        ({"batch_size": 3, "generator": [torch.Generator()] * 2}, "generator"),
        ({"latents": torch.zeros(2, 3, 4, 4)}, "latents"),
        ({"latents": torch.zeros(1, 1, 4, 4)}, "latents"),
        ({"latents": torch.zeros(1, 3, 16)}, "latents"),
        ({"latents": torch.zeros(1)}, "latents"),
        ({"latents": torch.tensor(0.0)}, "latents"),
        ({"class_labels": 4}, "class_labels"),
        ({"class_labels": -2}, "class_labels"),
        ({"class_labels": [0, 1]}, "class_labels"),
        ({"class_labels": [[0]]}, "class_labels"),
        ({"class_labels": 10**30}, "class_labels"),
        ({"class_labels": -1, "guidance_scale": 2.0}, "guidance_scale"),  # no class to guide to
        ({"latents": torch.full((1, 3, 4, 4), float("nan"))}, "latents"),
        ({"latents": torch.zeros(1, 3, 4, 4, dtype=torch.complex64)}, "latents"),
        ({"strength": 0.3}, "strength"),  # of no image
        ({"data_units": "yes", "output_type": "np"}, "data_units"),
        ({"data_units": True, "output_type": "latent"}, "data_units"),
        ({"callback_on_step_end": 5}, "callback_on_step_end"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback_on_step_end_tensor_inputs"),
        ({"callback_on_step_end_tensor_inputs": None}, "callback_on_step_end_tensor_inputs"),
        ({"callback_on_step_end_tensor_inputs": [["latents"]]}, "callback_on_step_end_tensor_inputs"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    pipe = gaussian_pipe(network={"num_class_embeds": 4})
    with pytest.raises(ValueError, match=f"`{named}`"):
        pipe(**arguments)
    assert not pipe.unet.calls


def test_classes_of_an_unconditional_network_are_refused():
    pipe = gaussian_pipe()
    with pytest.raises(ValueError, match="`class_labels`"):
        pipe(class_labels=0)
    assert not pipe.unet.calls


def test_foreign_schedulers_are_refused():
    with pytest.raises(ValueError, match="`scheduler`"):
        ScoreSdePipeline(unet=GaussianNetwork(), scheduler=DDPMScheduler())


# Saving and loading.


def test_saved_pipelines_draw_the_same_images(tmp_path):
    pipe = unet_pipe(
        num_class_embeds=2,
        scheduler=ScoreSdePredictorCorrectorScheduler(predictor="ancestral", prediction_type="sample"),
    )
    pipe.save_pretrained(tmp_path)
    again = quiet(ScoreSdePipeline.from_pretrained(tmp_path))
    assert type(again) is ScoreSdePipeline
    assert type(again.unet) is NCSNppUNet2DModel and not again.unet.training
    assert type(again.scheduler) is ScoreSdePredictorCorrectorScheduler
    # Not bit for bit: weights from a file lie elsewhere in memory, and the CPU's kernels round as they are aligned.
    torch.testing.assert_close(draw(again, class_labels=1), draw(pipe, class_labels=1), rtol=0, atol=1e-5)
    for key, value in again.unet.state_dict().items():
        assert torch.equal(value, pipe.unet.state_dict()[key]), key


def test_components_may_be_given_on_load(tmp_path):
    pipe = unet_pipe()
    pipe.save_pretrained(tmp_path)
    scheduler = ScoreSdePredictorCorrectorScheduler()
    again = ScoreSdePipeline.from_pretrained(tmp_path, scheduler=scheduler)
    assert again.scheduler is scheduler


def test_torch_dtype_on_load(tmp_path):
    unet_pipe().save_pretrained(tmp_path)
    pipe = quiet(ScoreSdePipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16))
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.bfloat16}
    assert draw(pipe).isfinite().all()


def test_variants(tmp_path):
    """A folder may hold weights in several precisions."""
    pipe = unet_pipe()
    pipe.save_pretrained(tmp_path)
    half = copy.deepcopy(pipe.unet).half()
    quiet(ScoreSdePipeline(unet=half, scheduler=pipe.scheduler)).save_pretrained(tmp_path, variant="fp16")
    names = {path.name for path in (tmp_path / "unet").glob("*.safetensors")}
    assert names == {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"}
    full = quiet(ScoreSdePipeline.from_pretrained(tmp_path))
    torch.testing.assert_close(draw(full), draw(pipe), rtol=0, atol=1e-5)
    loaded = ScoreSdePipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    for key, value in loaded.unet.state_dict().items():
        assert torch.equal(value, half.state_dict()[key]), key


@pytest.mark.parametrize(
    "missing",
    ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler"],
)
def test_missing_files_are_errors(tmp_path, missing):
    unet_pipe().save_pretrained(tmp_path)
    for path in sorted(tmp_path.glob(f"{missing}*/*")) or [tmp_path / missing]:
        path.unlink()
    with pytest.raises((OSError, ValueError)):
        ScoreSdePipeline.from_pretrained(tmp_path)


def test_diffusers_own_network():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="vp_discrete")
    images = draw(quiet(ScoreSdePipeline(unet=unet.eval(), scheduler=scheduler)), batch_size=2)
    assert images.shape == (2, 3, 8, 8) and images.isfinite().all()


def test_no_class_is_refused_for_networks_that_do_not_know_it():
    """diffusers' own U-Net would look up the embedding of entry -1."""
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=3,
    )
    pipe = ScoreSdePipeline(unet=unet, scheduler=ScoreSdePredictorCorrectorScheduler(sde="vp"))
    with pytest.raises(ValueError, match="`guidance_scale`=2"):
        pipe(class_labels=1, guidance_scale=2.0)
    with pytest.raises(ValueError, match="`class_labels` holds -1"):
        pipe(class_labels=-1)
    with pytest.raises(ValueError, match="`class_labels` must be integers"):
        pipe(class_labels=[0.7])


def test_a_path_that_is_none_is_refused(tmp_path):
    with pytest.raises(OSError, match="neither a folder nor the id of a repository"):
        ScoreSdePipeline.from_pretrained(str(tmp_path / "missing"))


# Networks and schedulers that do not fit.


def test_a_scheduler_of_another_image_range_is_said(caplog):
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="ve", prediction_type="sample", image_range=(0.0, 0.5))
    pipe = unet_pipe(scheduler=scheduler)
    for _ in range(2):
        draw(pipe)
    said = "`image_range` of the network is (-1.0, 1.0), but that of the scheduler (0.0, 0.5): unless the network is"
    assert caplog.text.count(said) == 1
    draw(unet_pipe())
    assert caplog.text.count("`image_range`") == 1


@pytest.mark.parametrize(
    "returned, message",
    [
        ({"latent": 0}, r"must return None or a dictionary of 'latents', but returned \['latent'\]"),
        (torch.zeros(1), "but returned Tensor"),
        ({"latents": None}, "must be a tensor"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, r"must be a tensor \(2, 3, 8, 8\)"),
        ({"latents": torch.zeros(2, 3, 8, 8, dtype=torch.int64)}, "must be a tensor"),
    ],
)
def test_what_a_callback_may_not_return(returned, message):
    with pytest.raises(ValueError, match=message):
        draw(unet_pipe(), batch_size=2, callback_on_step_end=lambda *_: returned)


def test_a_state_in_half_precision_becomes_what_it_was():
    pipe = unet_pipe()
    images = draw(pipe, output_type="np", callback_on_step_end=lambda *a: {"latents": a[3]["latents"].bfloat16()})
    assert images.dtype == np.float32


def diffusers_pipe(cls=UNet2DModel, **config):
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 4}
    unet = cls(sample_size=8, block_out_channels=(8, 8), layers_per_block=1, **blocks, **config).eval()
    return quiet(ScoreSdePipeline(unet, ScoreSdeProbabilityFlowScheduler(time_input="999t")))


def test_latents_of_a_size_that_the_network_does_not_take():
    with pytest.raises(ValueError, match="`latents` means images of 9 x 8 pixels, but the network takes only mult"):
        draw(diffusers_pipe(), latents=torch.randn(1, 3, 9, 8))
    with pytest.raises(ValueError, match="`latents` must hold numbers"):
        draw(unet_pipe(), latents=torch.randn(1, 3, 0, 0))


def test_a_network_made_of_diffusers_own_is_not_asked_without_a_class():
    class Derived(UNet2DModel):
        pass

    pipe = diffusers_pipe(Derived, num_class_embeds=4)
    with pytest.raises(ValueError, match="that can be asked without a class, but Derived can't"):
        draw(pipe, class_labels=1, guidance_scale=2.0)


def test_unsigned_class_labels():
    pipe = unet_pipe(num_class_embeds=4)
    expected = draw(pipe, batch_size=2, class_labels=[0, 3])
    for dtype in (torch.uint8, torch.uint16):
        assert torch.equal(draw(pipe, batch_size=2, class_labels=torch.tensor([0, 3], dtype=dtype)), expected)


def test_tiles_go_along_with_the_components():
    pipe = unet_pipe()
    pipe.enable_tiling(8)
    assert ScoreSdePipeline.from_pipe(pipe).tiles == pipe.tiles


def test_optimizing_a_network_that_takes_one_precision():
    pipe = diffusers_pipe()
    pipe.optimize(precision="bfloat16")
    assert draw(pipe).isfinite().all()
    pipe.scheduler = DDPMScheduler()
    with pytest.raises(ValueError, match="`scheduler` must be one of sde_diffusers"):
        pipe.optimize()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "cls, options",
    [
        (ScoreSdeProbabilityFlowScheduler, {}),
        (ScoreSdeExponentialScheduler, {}),
        (ScoreSdeExponentialScheduler, {"solver_order": 4}),
        (ScoreSdeExponentialScheduler, {"unified_corrector": True}),
        (ScoreSdeExponentialScheduler, {"eta": 1.0}),
    ],
)
def test_a_replaced_image_changes_none_of_its_neighbours(cls, options, in_place):
    """Each goes on as it would alone, the one that was replaced and those beside it."""
    pipe = gaussian_pipe("heun", sde="vp", image_range=(-1.0, 1.0))
    pipe.scheduler = cls.from_config(pipe.scheduler.config, **options)
    pipe.unet.answers(pipe.scheduler)
    arguments = {"batch_size": 3, "generator": seeded(1, 2, 3), "output_type": "latent"}
    alone = draw(pipe, n=7, **arguments)
    for replaced in range(len(pipe.scheduler.timesteps) - 1):

        def callback(pipeline, k, timestep, values, which, replaced=replaced):
            if k != replaced:
                return {}
            latents = values["latents"] if in_place else values["latents"].clone()
            latents[which] = 0.25
            return {"latents": latents}

        pictures = []
        for which in ([1], [0, 1, 2]):
            arguments["generator"] = seeded(1, 2, 3)
            pictures.append(draw(pipe, n=7, **arguments, callback_on_step_end=partial(callback, which=which)))
        torch.testing.assert_close(pictures[0][[0, 2]], alone[[0, 2]], rtol=0, atol=1e-6)
        torch.testing.assert_close(pictures[0][1], pictures[1][1], rtol=0, atol=1e-6)
        assert (pictures[0][1] - alone[1]).abs().max() > 1e-3


def test_a_batch_of_another_size_begins_anew():
    """Also where some of its images did before."""
    scheduler = gaussian_pipe("heun", sde="vp", image_range=(-1.0, 1.0)).scheduler
    scheduler = ScoreSdeExponentialScheduler.from_config(scheduler.config)
    found = []
    for replaced in (False, True):
        scheduler.set_timesteps(8)
        x = torch.linspace(-1, 1, 3 * 16).view(3, 1, 4, 4)
        for k, t in enumerate(scheduler.timesteps):
            if k == 3 and replaced:
                x = torch.cat([x[:1], x[1:2] + 0.1, x[2:]])
            if k == 5:
                x = torch.linspace(-1, 1, 6 * 16).view(6, 1, 4, 4)
            x = scheduler.step(0.5 * x, t, x).prev_sample
        found.append(x)
    assert torch.equal(*found) and found[0].abs().max() < 10
