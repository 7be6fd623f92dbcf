"""Guidance against data whose classes, scores and classifier are known in closed form."""

import json
import os
from itertools import cycle

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from exact_scores import Gaussian, exact_output
from module_names import module_at
from torch import nn
from warm_python import run_python

from sde_diffusers import (
    NCSNppUNet2DModel,
    NoiseConditionalClassifier,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
    ScoreSdeRestorationPipeline,
)
from sde_diffusers.guidance import Guidance
from sde_diffusers.parameterization import PREDICTION_TYPES, SDE_NAMES, expand_like

# Points of two classes of two modes each, as images of one pixel and two channels.
MEANS = torch.tensor([[-0.5, -0.5], [0.5, 0.6], [-0.6, 0.5], [0.4, -0.5]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.4, 0.2, 0.1, 0.3], dtype=torch.float64)
CLASS = torch.tensor([0, 0, 1, 1])
STD = 0.15


def log_joint(x, alpha, sigma, std=STD):
    """(N, modes) log p(mode, x) of points x = alpha x_0 + sigma noise, up to a constant; alpha and sigma are (N,)."""
    variance = (alpha * std) ** 2 + sigma.double() ** 2
    squares = (x.double()[:, None] - alpha[:, None, None] * MEANS).square().sum(2)
    return WEIGHTS.log() - squares / (2 * variance[:, None])


class MixtureNetwork(ModelMixin, ConfigMixin):
    """The exact answer for the mixture or, given a class, for its modes; records the labels of every call."""

    accepts_float32_input = True

    @register_to_config
    def __init__(self, sample_size=1, in_channels=2, num_class_embeds=None, std=STD):
        super().__init__()
        self.no_weight = nn.Parameter(torch.zeros(1))
        self.calls = []

    def answers(self, scheduler):
        self.parameterization = scheduler.parameterization
        return self

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        assert class_labels is None or self.config.num_class_embeds
        p, x = self.parameterization, sample.double()
        t = p.sde_time(torch.as_tensor(timestep).cpu()).expand(len(x))
        alpha, sigma = p.sde.alpha(t), p.sde.sigma(t)
        self.calls.append((None if class_labels is None else class_labels.tolist(), (sigma / alpha)[0].item()))
        points, std = x[:, :, 0, 0], self.config.std
        logits = log_joint(points, alpha, sigma, std)
        if class_labels is not None:
            logits = logits.masked_fill((class_labels[:, None] >= 0) & (CLASS != class_labels[:, None]), -torch.inf)
        nearest = logits.softmax(1) @ MEANS
        a, s = alpha[:, None], sigma[:, None]
        x_0 = ((a * std**2 * points + s**2 * nearest) / ((a * std) ** 2 + s**2))[:, :, None, None]
        noise = (x - expand_like(alpha, x) * x_0) / expand_like(sigma, x)
        return UNet2DOutput(sample=p.target(x_0, noise, t).to(sample.dtype))


class GaussianNetwork(ModelMixin, ConfigMixin):
    """The exact answer for data N(0, covariance) of `exact_scores.Gaussian`; it counts its calls."""

    accepts_float32_input = True

    @register_to_config
    def __init__(self, deviations=(1.0, 1.0), sample_size=1, in_channels=2, num_class_embeds=None):
        super().__init__()
        self.no_weight = nn.Parameter(torch.zeros(1))
        self.data = Gaussian(torch.zeros(2), torch.diag(torch.tensor(deviations) ** 2))
        self.calls = 0

    def answers(self, scheduler):
        self.scheduler = scheduler
        return self

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        self.calls += 1
        return UNet2DOutput(sample=exact_output(self.scheduler, self.data, sample))


class MixtureClassifier(ModelMixin, ConfigMixin):
    """The exact p(class | noisy image), of images in [0, 1] plus noise, for a network of the range (low, high)."""

    @register_to_config
    def __init__(self, sample_size=1, in_channels=2, num_classes=2, low=-1.0, high=1.0):
        super().__init__()
        self.no_weight = nn.Parameter(torch.zeros(1))

    def forward(self, sample, noise_level):
        low, width = self.config.low, self.config.high - self.config.low
        points = low + width * sample[:, :, 0, 0].double()
        logits = log_joint(points, torch.ones(len(points)), width * noise_level)
        return torch.stack([logits[:, k == CLASS].logsumexp(1) for k in (0, 1)], 1)


SAMPLERS = {
    "predictor-corrector": lambda **c: ScoreSdePredictorCorrectorScheduler(snr=0.1, **c),
    "ancestral": lambda **c: ScoreSdePredictorCorrectorScheduler(predictor="ancestral", corrector="none", **c),
    "ald": lambda **c: ScoreSdePredictorCorrectorScheduler(predictor="euler_maruyama", corrector="ald", **c),
    "heun": lambda **c: ScoreSdeProbabilityFlowScheduler(**c),
    "euler, churn": lambda **c: ScoreSdeProbabilityFlowScheduler(method="euler", s_churn=5.0, **c),
    "exponential": lambda **c: ScoreSdeExponentialScheduler(**c),
    "exponential, noise": lambda **c: ScoreSdeExponentialScheduler(algorithm="noise", solver_order=2, **c),
    "exponential SDE": lambda **c: ScoreSdeExponentialScheduler(eta=1.0, **c),
}


def mixture_pipe(sampler="heun", classes=2, image_range=(-1.0, 1.0), **config):
    scheduler = SAMPLERS[sampler](image_range=image_range, **config)
    unet = MixtureNetwork(num_class_embeds=classes).answers(scheduler)
    classifier = MixtureClassifier(low=image_range[0], high=image_range[1])
    return quiet(ScoreSdePipeline(unet, scheduler, classifier))


def gaussian_pipe(sampler="heun", main=(0.4, 0.4), weak=(0.6, 0.9), **config):
    """Exact networks of two centred Gaussians, the guide's wider."""
    scheduler = SAMPLERS[sampler](image_range=(-1.0, 1.0), **config)
    unet, guide = (GaussianNetwork(deviations).answers(scheduler) for deviations in (main, weak))
    return quiet(ScoreSdePipeline(unet, scheduler, guide=guide))


def small_network(seed=0, width=8, classes=3, **config):
    torch.manual_seed(seed)
    return NCSNppUNet2DModel(
        **{
            "sample_size": 8,
            "in_channels": 1,
            "block_out_channels": (width,),
            "layers_per_block": 1,
            "attention_resolutions": (),
            "num_class_embeds": classes,
            "scale_by_sigma": False,
            "init_scale": 1.0,
            "image_range": (-1.0, 1.0),
            **config,
        }
    ).eval()


def small_pipe(classes=3, **options):
    """Networks with random weights."""
    unet = small_network(classes=classes)
    classifier = NoiseConditionalClassifier(8, 1, num_classes=3, block_out_channels=(8, 8), layers_per_block=1)
    nn.init.normal_(classifier.head.weight)
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="vp", prediction_type="sample")
    return quiet(ScoreSdePipeline(unet.eval(), scheduler, classifier.eval(), **options))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, n=4, batch_size=3, **arguments):
    generator = torch.Generator().manual_seed(0)
    arguments = {"generator": generator, "output_type": "latent", **arguments}
    return pipe(batch_size=batch_size, num_inference_steps=n, **arguments).images


# Classifier guidance.


@pytest.mark.parametrize("sampling_sde", [None, "ve", "vp"])
@pytest.mark.parametrize(("sde", "prediction_type"), [*zip(SDE_NAMES, cycle(PREDICTION_TYPES))])
def test_with_the_exact_classifier_the_answer_is_the_conditional_networks(sde, prediction_type, sampling_sde):
    image_range = (-1.0, 1.0) if sampling_sde else (0.0, 1.0)
    config = {"sde": sde, "sampling_sde": sampling_sde, "image_range": image_range}
    pipe = mixture_pipe(prediction_type=prediction_type, **config)
    scheduler, labels = pipe.scheduler, torch.tensor([0, 1, 1])
    scheduler.set_timesteps(4)
    z = torch.randn(3, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for k, t in enumerate(scheduler.timesteps):
        time = scheduler.times[k]
        x = scheduler.sde.alpha(time) * 0.1 + (scheduler.sde.sigma(time) + 0.3) * z
        plain, guided, twice = (
            Guidance(pipe, 3, labels, guidance_scale=0.0, classifier_scale=scale)(x) for scale in (0.0, 1.0, 2.0)
        )
        expected = pipe.unet(scheduler.scale_model_input(x), t, labels).sample
        if scheduler.sde.alpha(time) == 0:  # pure noise, of which the classifier sees no image
            assert torch.equal(guided, plain)
            scheduler.step(expected, t, x)
            continue
        torch.testing.assert_close(guided, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
        torch.testing.assert_close(twice - plain, 2 * (guided - plain))
        scheduler.step(expected, t, x)


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guided_samples_are_the_classs(sampler, conditional):
    """With the same noise the guided unconditional network follows the conditional one, and draws its modes."""
    config = {"sde": "ve", "sigma_max": 10.0, "prediction_type": "sample", "time_input": "sigma"}
    options = {"n": 25, "batch_size": 500, "class_labels": 1}
    expected = draw(mixture_pipe(sampler, **config), **options)
    pipe = mixture_pipe(sampler, classes=2 if conditional else None, **config)
    images = draw(pipe, guidance_scale=0.0 if conditional else 1.0, classifier_scale=1.0, **options)
    assert all(labels in (None, [-1] * 500) for labels, _ in pipe.unet.calls)
    # Float32 arithmetic may send a point between two modes to either one.
    assert ((images - expected).abs().amax((1, 2, 3)) < 1e-2).float().mean() > 0.99
    distance = torch.cdist(images[:, :, 0, 0].double(), MEANS)
    nearest = distance.argmin(1)
    assert (CLASS[nearest] == 1).float().mean() > 0.98
    share = (nearest == 3).double().mean().item()  # of the heavier mode: 0.3 / (0.3 + 0.1)
    assert share == pytest.approx(0.75, abs=0.08)


def test_higher_scales_are_more_certain():
    """p(x) p(y | x)^v goes from all images (class 1 has the weight 0.4) to those of the class."""
    pipe = mixture_pipe(sde="vp", classes=None)
    certainty = []
    for scale in (0.0, 0.3, 1.0):
        labels = None if scale == 0 else 1
        points = draw(pipe, n=20, batch_size=500, class_labels=labels, classifier_scale=scale)[:, :, 0, 0]
        modes = log_joint(points, torch.ones(500), torch.zeros(500)).softmax(1)
        certainty.append(modes[:, CLASS == 1].sum(1).mean().item())
    assert certainty[0] == pytest.approx(0.4, abs=0.07)
    assert certainty[0] + 0.1 < certainty[1] < certainty[2] - 0.1 and certainty[2] > 0.97


def test_a_classifier_that_was_assigned_is_saved(tmp_path):
    pipe = small_pipe()
    plain = ScoreSdePipeline(pipe.unet, pipe.scheduler)
    plain.classifier = pipe.classifier
    plain.save_pretrained(tmp_path)
    loaded = ScoreSdePipeline.from_pretrained(tmp_path)
    for name, weight in pipe.classifier.state_dict().items():
        assert torch.equal(loaded.classifier.state_dict()[name], weight)


def test_the_classifiers_evaluations_do_not_count_and_weights_keep_their_gradients():
    pipe = small_pipe()
    arguments = {"num_inference_steps": 3, "class_labels": 1, "output_type": "pt"}
    assert pipe(**arguments, guidance_scale=0.0, classifier_scale=1.0).nfe == 5
    assert pipe(**arguments, guidance_scale=2.0, classifier_scale=1.0).nfe == 10
    assert all(weight.requires_grad and weight.grad is None for weight in pipe.classifier.parameters())


def test_each_image_is_guided_by_its_own_class():
    pipe = small_pipe()
    latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"guidance_scale": 0.0, "classifier_scale": 5.0}
    together = draw(pipe, batch_size=2, class_labels=[0, 2], latents=latents, **options)
    alone = [
        draw(pipe, batch_size=1, class_labels=k, latents=latents[i : i + 1], **options) for i, k in ((0, 0), (1, 2))
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)
    other = draw(pipe, batch_size=2, class_labels=[0, 1], latents=latents, **options)
    assert (other - together)[1].abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    images = draw(small_pipe().to(dtype), class_labels=1, guidance_scale=2.0, classifier_scale=2.0)
    assert images.dtype == torch.float32 and images.isfinite().all()


# Classifier-free guidance.

RECORDED = {  # what the code of version 0.1.0, whose guidance was spread over the pipeline, drew
    ("heun", "vp", None): {
        "free": [1.655284, 1.496348, -3.564054, 3.52761, 1.142171, -1.401094],
        "none": [2.078366, -0.551617, -2.970905, 0.122775, -1.795981, -2.125101],
        "interval": [0.673701, 2.799767, -2.906284, 5.059874, 3.587431, -1.236912],
        "none, interval": [2.502582, -0.426691, -3.574275, 0.551584, -2.170534, -1.939634],
        "classifier": [1.655292, 1.496356, -3.564029, 3.527618, 1.142159, -1.401097],
        "both": [1.452449, 1.641123, -3.342438, 3.568934, 1.451273, -1.420163],
    },
    ("exponential SDE", "ve", "vp"): {
        "free": [0.413898, 0.714523, 0.425777, -0.391004, 0.403011, -0.384828],
        "none": [0.338235, 0.581305, -0.631887, -0.490896, -0.533016, -0.395498],
        "interval": [0.38571, 0.87543, 0.702408, -0.237571, 0.621285, -0.248037],
        "none, interval": [0.354249, 0.572892, -0.453232, -0.120587, -0.456307, 0.08399],
        "classifier": [0.413898, 0.714523, 0.425777, -0.391004, 0.403012, -0.384827],
        "both": [0.394442, 0.744596, 0.43431, -0.358367, 0.413873, -0.342912],
    },
}
KINDS = {
    "free": {"guidance_scale": 2.0},
    "none": {"guidance_scale": 0.0},
    "interval": {"guidance_scale": 3.0, "guidance_interval": (0.2, 3.0)},
    "none, interval": {"guidance_scale": 0.0, "guidance_interval": (0.2, 3.0)},
    "classifier": {"guidance_scale": 0.0, "classifier_scale": 2.0},
    "both": {"guidance_scale": 1.5, "classifier_scale": 0.5, "guidance_interval": (0.1, 2.0)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sampler", "sde", "sampling_sde"), RECORDED)
def test_images_are_those_of_version_0_1_0(sampler, sde, sampling_sde, kind):
    config = {"sigma_max": 10.0} if sde == "ve" else {}
    if sampler.startswith("exponential"):  # whose default grid was that one then
        config["time_grid"] = "noise_share"
    pipe = mixture_pipe(sampler, sde=sde, sampling_sde=sampling_sde, **config)
    images = draw(pipe, class_labels=[0, 1, 1], **KINDS[kind])
    expected = torch.tensor(RECORDED[sampler, sde, sampling_sde][kind])
    torch.testing.assert_close(images.flatten(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_interval_holds_in_the_noise_level(sampler):
    """Between its ends the network is asked twice, elsewhere once, with the class, whatever the SDE."""
    interval = (0.2, 3.0)
    for sde in ("ve", "vp"):
        pipe = mixture_pipe(sampler, sde=sde, prediction_type="sample", sampling_eps=1e-3)
        options = {"num_inference_steps": 12, "class_labels": 1, "guidance_scale": 3.0, "output_type": "pt"}
        output = pipe(**options, guidance_interval=interval, generator=torch.Generator().manual_seed(0))
        levels = (-pipe.scheduler.sde.half_log_snr(pipe.scheduler.times)).exp()
        inside = (levels >= interval[0]) & (levels <= interval[1])
        assert inside.any() and not inside.all()
        assert [labels for labels, _ in pipe.unet.calls] == [[-1, 1] if twice else [1] for twice in inside]
        assert output.nfe == len(levels) + inside.sum()


def test_scale_one_is_the_conditional_network_bit_for_bit():
    pipe = small_pipe()
    conditional = draw(pipe, class_labels=[0, 1, 2])
    unguided = {"guidance_scale": 1.0, "guidance_interval": (0.1, 2.0), "classifier_scale": 0.0}
    assert torch.equal(draw(pipe, class_labels=[0, 1, 2], **unguided), conditional)
    nowhere = {"guidance_scale": 3.0, "guidance_interval": (1e8, float("inf"))}
    assert torch.equal(draw(pipe, class_labels=[0, 1, 2], **nowhere), conditional)
    everywhere = {"guidance_scale": 3.0, "guidance_interval": (0, float("inf"))}
    guided = draw(pipe, class_labels=[0, 1, 2], guidance_scale=3.0)
    assert torch.equal(draw(pipe, class_labels=[0, 1, 2], **everywhere), guided)
    assert not torch.equal(guided, conditional)


def test_scale_zero_is_the_unconditional_network_asked_once():
    pipe = small_pipe()
    output = pipe(num_inference_steps=3, class_labels=1, guidance_scale=0.0, output_type="pt")
    assert output.nfe == 5
    assert torch.equal(draw(pipe, class_labels=1, guidance_scale=0), draw(pipe))


# Autoguidance.


@pytest.mark.parametrize("sampling_sde", [None, "ve", "vp"])
@pytest.mark.parametrize(("sde", "prediction_type"), [*zip(SDE_NAMES, cycle(PREDICTION_TYPES))])
def test_the_autoguided_answer_is_the_combined_score(sde, prediction_type, sampling_sde):
    """v grad log p_t(x) + (1 - v) grad log g_t(x), whatever the networks answer and whichever SDE is sampled."""
    pipe = gaussian_pipe(sde=sde, prediction_type=prediction_type, sampling_sde=sampling_sde)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(5)
    for k, t in enumerate(scheduler.timesteps):
        time = scheduler.times[k]
        x = scheduler.sde.sigma(time) * torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(k)).double()
        of_main, of_guide = (network.data.score(scheduler.sde, x, time) for network in (pipe.unet, pipe.guide))
        for scale in (0.0, 0.5, 2.5):
            answer = Guidance(pipe, 3, guide_scale=scale)(x)
            noise, _ = scheduler.noise_and_denoised(answer, x, time)
            expected = scale * of_main + (1 - scale) * of_guide
            tolerance = 1e-6 * of_main.abs().max().item()
            torch.testing.assert_close(-noise / scheduler.sde.sigma(time), expected, rtol=1e-6, atol=tolerance)
        scheduler.step(answer, t, x)


@pytest.mark.parametrize(("sampler", "n"), [("heun", 60), ("exponential", 60), ("exponential, noise", 200)])
@pytest.mark.parametrize("sde", ["ve", "vp"])
def test_autoguided_samples_are_those_of_the_combined_score(sde, sampler, n):
    """x / alpha follows dx / ds = (v / (C^2 + s^2) + (1 - v) / (G^2 + s^2)) s x in the noise level s.

    So it moves along sqrt(C^2 + s^2)^v sqrt(G^2 + s^2)^(1 - v): narrower than the data, away from the wider guide.
    """
    main, weak, v = (0.4, 0.5), (0.6, 0.9), 2.0
    config = {"prediction_type": "sample", "sampling_eps": 1e-3, "time_grid": "noise_share"}
    config |= {"sigma_max": 20.0} if sde == "ve" else {}
    pipe = gaussian_pipe(sampler, main, weak, sde=sde, **config)
    latents = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    images = draw(pipe, n=n, batch_size=4, latents=latents, guide_scale=v)
    t = pipe.scheduler.times[0]
    s = (pipe.scheduler.sde.sigma(t) / pipe.scheduler.sde.alpha(t)).item()
    start = latents * pipe.scheduler.init_noise_sigma / pipe.scheduler.sde.alpha(t).item()
    data, guide = torch.tensor(main).view(2, 1, 1), torch.tensor(weak).view(2, 1, 1)
    width = data**v * guide ** (1 - v)
    start_width = (data**2 + s**2).sqrt() ** v * (guide**2 + s**2).sqrt() ** (1 - v)
    torch.testing.assert_close(images, start * width / start_width, rtol=5e-3, atol=1e-4)


def test_the_kinds_of_guidance_add_up():
    """score(y) + (w - 1) (score(y) - score) + (v - 1) (score(y) - guide(y)) + s grad log p_t(y | x)."""
    pipe = mixture_pipe(sde="vp", prediction_type="epsilon")
    scheduler, labels, w, v, s = pipe.scheduler, torch.tensor([0, 1, 1]), 1.7, 2.5, 0.6
    pipe.guide = MixtureNetwork(num_class_embeds=2, std=0.5).answers(scheduler)
    scheduler.set_timesteps(4)
    for k, t in enumerate(scheduler.timesteps):
        x = torch.randn(3, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(k))

        def scores(network, given, x=x, t=t, time=scheduler.times[k]):
            return -network(x, t, given).sample / scheduler.sde.sigma(time)

        with_class, without, weak, weak_without = (
            scores(network, given) for network in (pipe.unet, pipe.guide) for given in (labels, None)
        )
        by_classifier = with_class - without  # Bayes' rule

        def guided(w, v, s, x=x, time=scheduler.times[k]):
            answer = Guidance(pipe, 3, labels, guidance_scale=w, classifier_scale=s, guide_scale=v)(x)
            return -answer / scheduler.sde.sigma(time)

        own = with_class + (w - 1) * (with_class - without) + (v - 1) * (with_class - weak)
        torch.testing.assert_close(guided(w, v, s), own + s * by_classifier, rtol=1e-5, atol=1e-5)
        # w = 0 asks both networks without the class.
        own = without + (v - 1) * (without - weak_without)
        torch.testing.assert_close(guided(0.0, v, s), own + s * by_classifier, rtol=1e-5, atol=1e-5)
        scheduler.step(own.to(x), t, x)


@pytest.mark.parametrize("guide_classes", [2, None])
def test_evaluations_of_both_networks_count(guide_classes):
    """The guide is asked once where it acts, given the class if it knows any."""
    pipe = mixture_pipe(sde="vp", prediction_type="epsilon")
    pipe.guide = MixtureNetwork(num_class_embeds=guide_classes, std=0.5).answers(pipe.scheduler)

    def calls(**arguments):
        pipe.unet.calls.clear(), pipe.guide.calls.clear()
        nfe = pipe(num_inference_steps=3, output_type="pt", **arguments).nfe  # 5 times
        return nfe, [labels for labels, _ in pipe.unet.calls], [labels for labels, _ in pipe.guide.calls]

    given, none = ([[1]] * 5, [[-1]] * 5) if guide_classes else ([None] * 5, [None] * 5)
    assert calls(class_labels=1) == (5, [[1]] * 5, [])
    assert calls(class_labels=1, guide_scale=2.0) == (10, [[1]] * 5, given)
    assert calls(guide_scale=0.5) == (10, [None] * 5, [None] * 5)
    assert calls(class_labels=1, guidance_scale=3.0, guide_scale=2.0) == (15, [[-1, 1]] * 5, given)
    assert calls(class_labels=1, guidance_scale=0.0, guide_scale=2.0) == (10, [[-1]] * 5, none)
    interval = (0.2, 8.0)
    nfe, of_unet, of_guide = calls(class_labels=1, guidance_scale=3.0, guide_scale=2.0, guidance_interval=interval)
    levels = (-pipe.scheduler.sde.half_log_snr(pipe.scheduler.times)).exp()
    inside = (levels >= interval[0]) & (levels <= interval[1])
    assert 0 < inside.sum() < 5 and of_unet == [[-1, 1] if twice else [1] for twice in inside]
    assert of_guide == given[: inside.sum()] and nfe == 5 + 2 * inside.sum()


def test_guide_scale_one_is_the_network_and_zero_the_guide():
    pipe = small_pipe(guide=small_network(seed=1, width=4))
    plain, guided = draw(pipe, class_labels=1), draw(pipe, class_labels=1, guide_scale=1.0)
    assert torch.equal(plain, guided)
    nowhere = {"guide_scale": 3.0, "guidance_interval": (1e8, float("inf"))}
    assert torch.equal(draw(pipe, class_labels=1, **nowhere), plain)
    weak = quiet(ScoreSdePipeline(pipe.guide, pipe.scheduler))
    expected = draw(weak, class_labels=1)
    tolerance = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(draw(pipe, class_labels=1, guide_scale=0.0), expected, rtol=0, atol=tolerance)
    assert (draw(pipe, class_labels=1, guide_scale=2.0) - plain).abs().max() > 1e-3
    assert all(weight.requires_grad and weight.grad is None for weight in pipe.guide.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autoguidance_in_half_precision(dtype):
    pipe = small_pipe(guide=small_network(seed=1, width=4))
    single = draw(pipe, class_labels=1, guide_scale=1.5)
    half = draw(pipe.to(dtype), class_labels=1, guide_scale=1.5)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, single, rtol=0, atol=0.1 * single.abs().max().item())


# What is refused, before a network is asked.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_scale": -0.5}, "`guidance_scale` must be a finite number of at least 0, but is -0.5"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` must be"),
        ({"classifier_scale": -1.0}, "`classifier_scale` must be a finite number of at least 0, but is -1.0"),
        ({"classifier_scale": float("nan")}, "`classifier_scale` must be"),
        ({"classifier_scale": float("inf")}, "`classifier_scale` must be"),
        ({"classifier_scale": "2"}, "`classifier_scale` must be"),
        ({"guide_scale": -1.0}, "`guide_scale` must be a finite number of at least 0, but is -1.0"),
        ({"guide_scale": float("nan")}, "`guide_scale` must be"),
        ({"guide_scale": "2"}, "`guide_scale` must be"),
        ({"guide_scale": None}, "`guide_scale` must be"),
        ({"guide_scale": 2.0}, "`guide_scale`=2.0 needs a `guide`, but the pipeline has none"),
        ({"guidance_interval": 0.5}, "`guidance_interval` must be None or noise levels"),
        ({"guidance_interval": (0.5,)}, "`guidance_interval`"),
        ({"guidance_interval": (2.0, 1.0)}, "`guidance_interval`"),
        ({"guidance_interval": (-1.0, 1.0)}, "`guidance_interval`"),
        ({"guidance_interval": (0.1, float("nan"))}, "`guidance_interval`"),
        ({"guidance_interval": ("0", "1")}, "`guidance_interval`"),
        ({"classifier_scale": 1.0, "class_labels": None}, "needs `class_labels`"),
        ({"classifier_scale": 1.0, "class_labels": 2}, "`class_labels` must lie in"),
        ({"classifier_scale": 1.0, "class_labels": -1}, "needs a class for each image"),
        ({"classifier_scale": 1.0, "class_labels": [0, 1]}, "`class_labels` must be one class or 1"),
        ({"classifier_scale": 1.0, "class_labels": 0.5}, "`class_labels` must be integers"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    pipe = mixture_pipe()
    with pytest.raises(ValueError, match=message):
        pipe(**{"class_labels": 1, **arguments})
    assert not pipe.unet.calls


@pytest.mark.parametrize(
    ("classifier", "classes", "message"),
    [
        (None, 2, "needs a `classifier`, but the pipeline has none"),
        ({"in_channels": 3}, 2, r"`classifier` is for images \(3, 1, 1\), but the network's are \(2, 1, 1\)"),
        ({"sample_size": 4}, 2, r"`classifier` is for images \(2, 4, 4\)"),
        ({"num_classes": 5}, 2, "`classifier` knows 5 classes, but the network 2"),
    ],
)
def test_classifiers_that_do_not_fit_are_refused(classifier, classes, message):
    pipe = mixture_pipe(classes=classes)
    pipe.classifier = None if classifier is None else MixtureClassifier(**classifier)
    with pytest.raises(ValueError, match=message):
        pipe(class_labels=1, classifier_scale=1.0)
    assert not pipe.unet.calls


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        ({"sample_size": 4}, r"`guide` is for images \(1, 4, 4\), but the network's are \(1, 8, 8\)"),
        ({"in_channels": 3}, r"`guide` is for images \(3, 8, 8\)"),
        ({"out_channels": 2}, "`guide` answers with 2 channels, but the network with 1"),
        ({"num_class_embeds": 5}, "`guide` knows 5 classes, but the network 3"),
        ({"preconditioning": "edm"}, "its preconditioning is 'edm' and the network's None"),
        ({"scale_by_sigma": True}, "its scale_by_sigma is True and the network's False"),
        ({"time_embedding_type": "positional"}, "its time_embedding_type is 'positional' and the network's 'fourier'"),
        ({"image_range": (0.0, 1.0)}, r"its image_range is \(0.0, 1.0\) and the network's \(-1.0, 1.0\)"),
    ],
)
def test_guides_that_are_asked_otherwise_are_refused(guide, message):
    pipe = small_pipe(guide=small_network(**guide))
    pipe.unet.forward = pipe.guide.forward = None  # not to be asked
    with pytest.raises(ValueError, match=message):
        pipe(class_labels=1, guide_scale=2.0)


def test_guides_of_unknown_classes_are_refused():
    """An unconditional network has no labels for its guide."""
    pipe = small_pipe(classes=None, guide=small_network())
    with pytest.raises(ValueError, match="`guide` knows 3 classes, but the network none"):
        pipe(guide_scale=2.0)


def test_diffusers_networks_are_not_asked_without_a_class():
    """Neither as the network nor as the guide; compiled or not."""
    config = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "norm_num_groups": 4, "num_class_embeds": 3}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(**config, **blocks, layers_per_block=1).eval()
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="vp")
    own = small_network(time_embedding_type="positional")
    for pipe, role in (
        (ScoreSdePipeline(unet, scheduler), "network"),
        (ScoreSdePipeline(torch.compile(unet), scheduler), "network"),
        (ScoreSdePipeline(own, scheduler, guide=unet), "guide"),
    ):
        scale = {} if role == "network" else {"guide_scale": 2.0}
        if type(pipe.unet) in (UNet2DModel, NCSNppUNet2DModel):  # compiling takes long
            assert draw(quiet(pipe), n=2, class_labels=[0, 1, 2], **scale).isfinite().all()
        for labels in (None, -1):
            with pytest.raises(ValueError, match=f"`class_labels` .* takes a {role} .* but UNet2DModel can't"):
                pipe(class_labels=labels, **scale)
        with pytest.raises(ValueError, match=f"`guidance_scale`=2.0 takes a {role}"):
            pipe(class_labels=1, guidance_scale=2.0, **scale)


def test_no_class_that_was_not_learnt(caplog):
    """Guidance by it is refused; label-free calls say so; a network of which it is not known is asked."""
    calls = {
        "sample": lambda pipe, labels: draw(pipe, n=2, class_labels=labels),
        "score": lambda pipe, labels: pipe.score(torch.zeros(3, 1, 8, 8), 0.5, labels),
        "likelihood": lambda pipe, labels: pipe.encode(torch.zeros(3, 1, 8, 8), labels, rtol=0.1, atol=0.1),
    }
    for learnt in (None, 0.0, 0.1):
        pipe = small_pipe(guide=small_network(label_dropout=0.1))
        pipe.unet.register_to_config(label_dropout=learnt)
        for name, call in calls.items():
            for labels in (None, [0, -1, 1], [0, 2, 1]):
                caplog.clear()
                assert call(pipe, labels).isfinite().all()
                expected = learnt == 0 and labels != [0, 2, 1]
                assert ["network without a class" in text for text in caplog.messages] == [True] * expected, name
        for scale in (0.0, 2.0):
            if learnt == 0:
                with pytest.raises(ValueError, match=f"`guidance_scale`={scale} asks the network without a class"):
                    pipe(class_labels=1, guidance_scale=scale)
            else:
                draw(pipe, n=2, class_labels=1, guidance_scale=scale)
    pipe.guide.register_to_config(label_dropout=0.0)
    assert draw(pipe, n=2, class_labels=1, guidance_scale=2.0).isfinite().all()  # the guide is not asked
    with pytest.raises(ValueError, match="asks the guide without a class"):
        pipe(class_labels=1, guidance_scale=2.0, guide_scale=2.0)


def test_unconditional_networks_take_classes_for_the_classifier_only():
    pipe = mixture_pipe(classes=None)
    for arguments in ({}, {"guidance_scale": 2.0, "classifier_scale": 1.0}):
        with pytest.raises(ValueError, match="the network is not conditional on classes"):
            pipe(class_labels=1, **arguments)
    assert not pipe.unet.calls


class UnconditionalNetwork(ModelMixin, ConfigMixin):
    """A network of one's own whose configuration says nothing of classes."""

    @register_to_config
    def __init__(self, sample_size: int = 8, in_channels: int = 1, out_channels: int = 1):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 1)

    def forward(self, sample, timestep, class_labels=None):
        assert class_labels is None
        return UNet2DOutput(sample=self.layer(sample))


def test_a_configuration_without_classes_means_none():
    pipe = ScoreSdePipeline(UnconditionalNetwork().eval(), ScoreSdeExponentialScheduler(sde="ve"))
    pipe.set_progress_bar_config(disable=True)
    assert pipe(1, 2, output_type="pt").images.isfinite().all()
    with pytest.raises(ValueError, match="the network is not conditional on classes"):
        pipe(1, 2, class_labels=1)
    with pytest.raises(ValueError, match="`class_log_prob` needs a network that is conditional on classes"):
        pipe.class_log_prob(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


# Saving and loading.

WITHOUT_THE_PACKAGE = """
import sys

import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
options = {"class_labels": 1, "guidance_scale": 0.0, "classifier_scale": 3.0, "guide_scale": 2.0}
out = pipe(generator=torch.Generator().manual_seed(0), output_type="latent", num_inference_steps=3, **options)
torch.save(out.images, sys.argv[2])
pipe.save_pretrained(sys.argv[3])
"""


def test_classifier_and_guide_are_saved_with_the_pipeline(tmp_path):
    pipe = small_pipe(guide=small_network(seed=1, width=4))
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    modules = [
        module_at(tmp_path / "saved", name).stem for name in ("classifier/classifier.py", "guide/unet_ncsnpp.py")
    ]
    assert index["classifier"] == [modules[0], "NoiseConditionalClassifier"]
    assert index["guide"] == [modules[1], "NCSNppUNet2DModel"]
    options = {"n": 3, "batch_size": 1, "class_labels": 1, "guidance_scale": 0.0, "classifier_scale": 3.0}
    options["guide_scale"] = 2.0
    loaded = quiet(ScoreSdePipeline.from_pretrained(tmp_path / "saved"))
    assert type(loaded.classifier) is NoiseConditionalClassifier and not loaded.classifier.training
    expected = draw(loaded, **options)
    torch.testing.assert_close(expected, draw(pipe, **options), rtol=0, atol=1e-5)
    assert type(loaded.guide) is NCSNppUNet2DModel and loaded.guide.config.block_out_channels == [4]
    shared = ScoreSdeRestorationPipeline.from_pipe(loaded)
    assert shared.classifier is loaded.classifier and shared.guide is loaded.guide

    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    arguments = ["-c", WITHOUT_THE_PACKAGE, *(tmp_path / name for name in ("saved", "images.pt", "again"))]
    done = run_python(arguments, environment, without=["sde_diffusers"])
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "images.pt"), expected, rtol=0, atol=1e-5)
    again = quiet(ScoreSdePipeline.from_pretrained(tmp_path / "again"))
    torch.testing.assert_close(draw(again, **options), expected, rtol=0, atol=1e-5)


def test_a_folder_without_a_classifier_takes_one(tmp_path):
    pipe = small_pipe()
    classifier, pipe.classifier = pipe.classifier, None
    pipe.save_pretrained(tmp_path)
    assert not (tmp_path / "classifier").exists()
    assert ScoreSdePipeline.from_pretrained(tmp_path).classifier is None
    assert ScoreSdePipeline.from_pretrained(tmp_path, classifier=classifier).classifier is classifier


def test_a_guide_that_was_assigned_or_given_on_load_is_the_pipelines(tmp_path):
    guide = small_network(seed=1, width=4)
    pipe = quiet(ScoreSdePipeline(small_network(), small_pipe().scheduler))
    pipe.save_pretrained(tmp_path / "without")
    assert not (tmp_path / "without" / "guide").exists()
    given = quiet(ScoreSdePipeline.from_pretrained(tmp_path / "without", guide=guide))
    assert given.guide is guide and ScoreSdePipeline.from_pretrained(tmp_path / "without").guide is None
    pipe.guide = guide
    options = {"n": 3, "class_labels": 1, "guide_scale": 2.0}
    torch.testing.assert_close(draw(given, **options), draw(pipe, **options), rtol=0, atol=1e-5)
    pipe.save_pretrained(tmp_path / "with")
    loaded = quiet(ScoreSdePipeline.from_pretrained(tmp_path / "with"))
    torch.testing.assert_close(draw(loaded, **options), draw(pipe, **options), rtol=0, atol=1e-5)


def test_folders_that_were_saved_before_there_were_guides_load(tmp_path):
    small_pipe().save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    index = json.loads(path.read_text())
    del index["guide"]
    path.write_text(json.dumps(index))
    pipe = quiet(ScoreSdePipeline.from_pretrained(tmp_path))
    assert pipe.guide is None and pipe.classifier is not None
    pipe.save_pretrained(tmp_path / "again")
    assert draw(ScoreSdePipeline.from_pretrained(tmp_path / "again"), n=2).isfinite().all()


@pytest.mark.parametrize("sigma_max", [50.0, 100.0, 348.0, 80.0])
def test_the_ends_of_the_interval_belong_to_it(sigma_max):
    """The level of the first step, computed by a logarithm, may be the last digit above sigma_max."""
    pipe = mixture_pipe("exponential", sde="ve", prediction_type="sample", sigma_max=sigma_max)
    options = {"num_inference_steps": 3, "class_labels": 1, "guidance_scale": 3.0, "output_type": "pt"}
    whole, inside = (
        pipe(**options, guidance_interval=interval, generator=torch.Generator().manual_seed(0)).nfe
        for interval in (None, (0, sigma_max))
    )
    assert whole == inside == 6


def test_guides_and_classifiers_know_the_same_classes():
    """By number the one would be asked for a cat and the other for a dog."""
    pipe = small_pipe(guide=small_network(class_names=["dog", "cat", "cow"]))
    pipe.unet.register_to_config(class_names=["cat", "dog", "cow"])
    with pytest.raises(
        ValueError, match=r"`guide` knows the classes \['dog', 'cat', 'cow'\], but the network \['cat'"
    ):
        pipe(class_labels=1, guide_scale=2.0)
    pipe.classifier.register_to_config(class_names=["dog", "cat", "cow"])
    with pytest.raises(ValueError, match=r"`classifier` knows the classes \['dog', 'cat', 'cow'\], but the network"):
        pipe(class_labels=1, classifier_scale=2.0)
    for part in (pipe.guide, pipe.classifier):
        part.register_to_config(class_names=["cat", "dog", "cow"])
    images = draw(pipe, class_labels="dog", guide_scale=2.0, classifier_scale=2.0)
    assert torch.equal(images, draw(pipe, class_labels=1, guide_scale=2.0, classifier_scale=2.0))


def test_guides_answer_with_means_and_as_they_are_asked():
    edm = {"preconditioning": "edm", "fourier_scale": 1.0}
    pipe = small_pipe(guide=small_network(consistency=True, **edm))
    pipe.unet, pipe.scheduler = (
        small_network(**edm),
        ScoreSdeProbabilityFlowScheduler(sde="ve", prediction_type="sample", image_range=(-1.0, 1.0)),
    )
    with pytest.raises(ValueError, match="is a consistency model"):
        pipe(class_labels=1, guide_scale=2.0)
    other = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        time_embedding_type="fourier",
    )
    pipe = small_pipe(classes=None, guide=other)
    with pytest.raises(ValueError, match="its scale_by_sigma is True and the network's False"):
        pipe(guide_scale=2.0)


def test_guides_and_classifiers_of_images_with_other_values_are_refused():
    size = {"sample_size": 8, "block_out_channels": (8, 8)}
    edm = {"preconditioning": "edm", "scale_by_sigma": False, "image_range": (-1.0, 1.0), "attention_resolutions": ()}
    of_16_bits = {"value_dtype": "uint16", "in_channels": 1}
    config = {**size, **edm, "layers_per_block": 1, "num_class_embeds": 4, "in_channels": 1}
    scheduler = ScoreSdeExponentialScheduler(sde="ve", prediction_type="sample", image_range=(-1.0, 1.0))
    classifier = NoiseConditionalClassifier(**size, num_classes=4, value_range=(0, 4095), **of_16_bits)
    network = NCSNppUNet2DModel(**{**config, **of_16_bits})
    pipe = ScoreSdePipeline(network, scheduler, classifier=classifier, guide=NCSNppUNet2DModel(**config))
    for options, name in (({"classifier_scale": 1.0}, "classifier"), ({"guide_scale": 2.0}, "guide")):
        with pytest.raises(ValueError, match=f"`{name}` is for images of PixelFormat.* network's are of PixelFormat"):
            pipe(class_labels=1, num_inference_steps=2, **options)


def test_networks_of_no_size_are_guided_at_any(tmp_path):
    """What is not known of sizes is not compared; channels are."""

    def network(channels=1, size=None):
        torch.manual_seed(0)
        unet = NCSNppUNet2DModel(
            sample_size=8, in_channels=channels, block_out_channels=(8,), layers_per_block=1, scale_by_sigma=False
        )
        unet.register_to_config(sample_size=size)
        return unet

    pipe = ScoreSdePipeline(unet=network(), scheduler=ScoreSdeExponentialScheduler(sde="vp"), guide=network(size=8))
    pipe.set_progress_bar_config(disable=True)
    assert pipe(1, 2, latents=torch.zeros(1, 1, 16, 16), guide_scale=2.0).nfe == 4
    pipe.guide = network(channels=3)
    with pytest.raises(ValueError, match="`guide` is for images"):
        pipe(1, 2, latents=torch.zeros(1, 1, 16, 16), guide_scale=2.0)
