"""Guidance against a mixture whose classes, scores and classifier are known in closed form."""

import json
import os
import subprocess
import sys

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

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


def log_joint(y, noise_level):
    """(N, modes) log p(mode, y) of points y = x_0 + noise_level * noise, up to a constant."""
    variance = STD**2 + noise_level.double() ** 2
    squares = torch.cdist(y.double(), MEANS) ** 2
    return WEIGHTS.log() - squares / (2 * variance[:, None])


class MixtureNetwork(ModelMixin, ConfigMixin):
    """The exact answer for the mixture or, given a class, for its modes; records the labels of every call."""

    accepts_float32_input = True

    @register_to_config
    def __init__(self, sample_size=1, in_channels=2, num_class_embeds=None):
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
        y, variance = x[:, :, 0, 0] / alpha[:, None], ((sigma / alpha) ** 2)[:, None]
        logits = log_joint(y, sigma / alpha)
        if class_labels is not None:
            logits = logits.masked_fill((class_labels[:, None] >= 0) & (CLASS != class_labels[:, None]), -torch.inf)
        nearest = logits.softmax(1) @ MEANS
        x_0 = ((STD**2 * y + variance * nearest) / (STD**2 + variance))[:, :, None, None]
        noise = (x - expand_like(alpha, x) * x_0) / expand_like(sigma, x)
        return UNet2DOutput(sample=p.target(x_0, noise, t).to(sample.dtype))


class MixtureClassifier(ModelMixin, ConfigMixin):
    """The exact p(class | noisy image), of images in [0, 1] plus noise, for a network of the range (low, high)."""

    @register_to_config
    def __init__(self, sample_size=1, in_channels=2, num_classes=2, low=-1.0, high=1.0):
        super().__init__()
        self.no_weight = nn.Parameter(torch.zeros(1))

    def forward(self, sample, noise_level):
        low, width = self.config.low, self.config.high - self.config.low
        logits = log_joint(low + width * sample[:, :, 0, 0].double(), width * noise_level)
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


def small_pipe(classes=3, **options):
    """Networks with random weights."""
    torch.manual_seed(0)
    unet = NCSNppUNet2DModel(
        sample_size=8,
        in_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        attention_resolutions=(),
        num_class_embeds=classes,
        scale_by_sigma=False,
        init_scale=1.0,
        image_range=(-1.0, 1.0),
    )
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
@pytest.mark.parametrize(("sde", "prediction_type"), [*zip(SDE_NAMES, [*PREDICTION_TYPES, "sample"], strict=True)])
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
        torch.testing.assert_close(guided, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
        torch.testing.assert_close(twice - plain, 2 * (guided - plain))
        scheduler.step(expected, t, x)


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guided_samples_are_the_classs(sampler, conditional):
    """With the same noise the guided unconditional network follows the conditional one, and draws its modes."""
    config = {"sde": "ve", "sigma_max": 10.0, "prediction_type": "sample", "time_input": "sigma"}
    options = {"n": 60, "batch_size": 1000, "class_labels": 1}
    expected = draw(mixture_pipe(sampler, **config), **options)
    pipe = mixture_pipe(sampler, classes=2 if conditional else None, **config)
    images = draw(pipe, guidance_scale=0.0 if conditional else 1.0, classifier_scale=1.0, **options)
    assert all(labels in (None, [-1] * 1000) for labels, _ in pipe.unet.calls)
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
        certainty.append(log_joint(points, torch.zeros(500)).softmax(1)[:, CLASS == 1].sum(1).mean().item())
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


def test_unconditional_networks_take_classes_for_the_classifier_only():
    pipe = mixture_pipe(classes=None)
    for arguments in ({}, {"guidance_scale": 2.0, "classifier_scale": 1.0}):
        with pytest.raises(ValueError, match="the network is not conditional on classes"):
            pipe(class_labels=1, **arguments)
    assert not pipe.unet.calls


# Saving and loading.

WITHOUT_THE_PACKAGE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sde_diffusers":
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
options = {"class_labels": 1, "guidance_scale": 0.0, "classifier_scale": 3.0, "num_inference_steps": 3}
out = pipe(generator=torch.Generator().manual_seed(0), output_type="latent", **options)
torch.save(out.images, sys.argv[2])
pipe.save_pretrained(sys.argv[3])
"""


def test_the_classifier_is_saved_with_the_pipeline(tmp_path):
    pipe = small_pipe()
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["classifier"] == ["classifier", "NoiseConditionalClassifier"]
    options = {"n": 3, "batch_size": 1, "class_labels": 1, "guidance_scale": 0.0, "classifier_scale": 3.0}
    loaded = quiet(ScoreSdePipeline.from_pretrained(tmp_path / "saved"))
    assert type(loaded.classifier) is NoiseConditionalClassifier and not loaded.classifier.training
    expected = draw(loaded, **options)
    torch.testing.assert_close(expected, draw(pipe, **options), rtol=0, atol=1e-5)
    assert ScoreSdeRestorationPipeline.from_pipe(loaded).classifier is loaded.classifier

    (tmp_path / "script.py").write_text(WITHOUT_THE_PACKAGE)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    paths = [tmp_path / name for name in ("script.py", "saved", "images.pt", "again")]
    done = subprocess.run([sys.executable, "-I", *paths], env=environment, capture_output=True, text=True)
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
