"""Consistency models: their sampler, their training, and what is refused; judged by a Gaussian, whose consistency
function is known."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline

import sde_diffusers
from sde_diffusers import (
    VESDE,
    ConsistencyTuning,
    DenoisingScoreMatching,
    NCSNppUNet2DModel,
    Parameterization,
    ScoreSdeConsistencyScheduler,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdeRestorationPipeline,
)
from sde_diffusers.operators import Mask
from sde_diffusers.sdes.gaussian import GaussianSDE

MEAN, STD = 0.4, 0.5
SDES = ("ve", "vp", "sub_vp", "ve_exponential", "vp_discrete", "cosine_vp", "flow")


class GaussianNetwork:
    """Of data N(MEAN, STD^2), each pixel by itself: the consistency function, or the denoiser, in `sample` form.

    Attributes:
        change: a factor, and what is added, by which the answer differs from the exact one.
    """

    def __init__(self, scheduler, consistent=True):
        self.parameterization, self.consistent = scheduler.parameterization, consistent
        self.change = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def __call__(self, x, network_time, class_labels=None):
        t = self.parameterization.sde_time(network_time.double())
        sde = self.parameterization.sde
        alpha, sigma = sde.alpha(t).reshape(-1, 1, 1, 1), sde.sigma(t).reshape(-1, 1, 1, 1)
        y, s = x / alpha, sigma / alpha
        gain = STD / torch.hypot(torch.as_tensor(STD), s)
        answer = MEAN + (y - MEAN) * (gain if self.consistent else gain**2)
        return SimpleNamespace(sample=answer + self.change[0] * (y - MEAN) * gain + self.change[1])


def signs(n):
    """All (2^n) combinations of n signs: n independent variables of mean 0 and variance 1."""
    points = torch.tensor([*itertools.product((-1.0, 1.0), repeat=n)], dtype=torch.float64)
    return points.T.reshape(n, -1, 1, 1, 1)


# ---- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sde", "sampling_sde"), [*((sde, None) for sde in SDES), ("ve", "vp"), ("flow", "vp")])
def test_the_exact_consistency_function_samples_exactly(sde, sampling_sde):
    """At every number of evaluations, from x_1 as it is distributed; moments over all signs are exact."""
    time_input = "t" if sde in ("vp_discrete", "vp", "sub_vp", "cosine_vp") else None  # exact in float64
    scheduler = ScoreSdeConsistencyScheduler(
        sde=sde, prediction_type="sample", time_input=time_input, sampling_sde=sampling_sde, sampling_eps=1e-3
    )
    network = GaussianNetwork(scheduler)
    for n in (1, 2, 3):
        scheduler.set_timesteps(n)
        assert len(scheduler.timesteps) == n
        x_0, z, *others = signs(n + 1)
        t = scheduler.times[0].clamp(max=1 - 1e-9)  # pure noise of a flow would ask for x / 0
        scheduler.times[0] = t
        x = scheduler.sde.alpha(t) * (MEAN + STD * x_0) + scheduler.sde.sigma(t) * z
        for time, noise in zip(scheduler.times, [*others, None], strict=True):
            asked = scheduler.network_time(time)
            answer = network(scheduler.network_input(x, time), asked).sample.detach()
            x = scheduler.step(answer, asked, x, variance_noise=noise).prev_sample
        assert x.mean().item() == pytest.approx(MEAN, abs=2e-5)
        assert x.std(correction=0).item() == pytest.approx(STD, abs=2e-5)


def test_levels_of_the_configuration_are_taken(tmp_path):
    """For the numbers of steps that it has; they survive saving, and the way through another sampler."""
    options = {"sde": "ve", "sigma_min": 0.002, "sigma_max": 80.0, "prediction_type": "sample"}
    scheduler = ScoreSdeConsistencyScheduler(**options, levels={1: (40.0,), "2": [80.0, 0.8]})
    scheduler.save_pretrained(tmp_path)
    other = ScoreSdeExponentialScheduler.from_config(scheduler.config)
    for again in (
        ScoreSdeConsistencyScheduler.from_pretrained(tmp_path),
        ScoreSdeConsistencyScheduler.from_config(other.config),
    ):
        assert again.config.levels == scheduler.config.levels == {"1": [40.0], "2": [80.0, 0.8]}
        for n, expected in ((1, [40.0]), (2, [80.0, 0.8]), (4, [80 / 40000 ** (k / 4) for k in range(4)])):
            again.set_timesteps(n)
            torch.testing.assert_close(again.timesteps, torch.tensor(expected), rtol=1e-3, atol=0)
            assert again.init_noise_sigma == pytest.approx(expected[0])


@pytest.mark.parametrize(
    "levels", [[80.0], {"2": [80.0]}, {"2": [0.8, 80.0]}, {"1": [90.0]}, {"1": [1e-4]}, {"0": []}, {"1": ["x"]}]
)
def test_refuses_levels_that_are_none(levels):
    with pytest.raises(ValueError, match="`levels`"):
        ScoreSdeConsistencyScheduler(sde="ve", sigma_min=0.002, sigma_max=80.0, levels=levels)


# ---- training ------------------------------------------------------------------------------------------------------


def gaussian_objective(sde="ve", consistent=True, **options):
    """The objective, a network, and x_0, noise and times that stand for all: (network, x_0, noise, t)."""
    scheduler = ScoreSdeConsistencyScheduler(sde=sde, prediction_type="sample", time_input="t")
    objective = ConsistencyTuning(scheduler.parameterization, **options)
    objective.denoiser = GaussianNetwork(scheduler, consistent=False)
    levels = torch.logspace(-1, 1, 9, dtype=torch.float64)
    x_0, z = (values.repeat(len(levels), 1, 1, 1) for values in signs(2))
    t = scheduler.sde.inverse_half_log_snr(-levels.repeat_interleave(4).log())
    return objective, (GaussianNetwork(scheduler, consistent), MEAN + STD * x_0, z, t)


@pytest.mark.parametrize("sde", ["ve", "vp", "cosine_vp", "flow"])
def test_the_exact_function_is_where_training_leads_as_the_levels_draw_together(sde):
    """Its gradient vanishes with the distance of the two levels; the denoiser's, from which it starts, doesn't."""

    def gradient(stages, consistent=True):
        objective, examples = gaussian_objective(sde, consistent, stages=stages, k=0.0, huber=1e3)  # nearly squares
        objective(*examples).mean().backward()
        return 1e3 * examples[0].change.grad.abs().max().item()

    errors = [gradient(stages) for stages in (4, 6, 8)]  # r / s = 1 - 2^-stages
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2) and errors[1] / errors[2] == pytest.approx(4, rel=0.1)
    assert errors[2] < 0.01 * gradient(8, consistent=False)


@pytest.mark.parametrize("q", [1.0, 2.0])
@pytest.mark.parametrize("sde", ["ve", "vp", "flow"])
def test_distilled_from_the_exact_denoiser_the_exact_function_has_no_loss(sde, q):
    def loss(steps, consistent=True):
        objective, examples = gaussian_objective(sde, consistent, stages=2, q=q, k=0.0, solver_steps=steps)
        with torch.no_grad():
            return objective(*examples).mean().item()

    errors = [loss(steps) for steps in (8, 16, 32)]
    assert errors[0] / errors[2] > 10  # second order
    assert errors[2] < 0.005 and loss(32, consistent=False) > 0.05


def test_examples_that_are_solved_once_have_the_loss_that_they_had():
    objective, (network, *examples) = gaussian_objective("vp", False, stages=1, q=1.0, k=0.0, solver_steps=8)
    unsolved = objective(network, *examples)
    x_0, noise = objective.solved(*examples)
    objective.given_solutions, objective.denoiser = True, None
    torch.testing.assert_close(objective(network, x_0, noise, *examples[2:]), unsolved)
    objective, (_, *examples) = gaussian_objective("vp", False, stages=1, q=2.0, k=0.0, solver_steps=8)
    with pytest.raises(ValueError, match="`solver_steps` above 0 and `q`=1, but they are 8 and 2"):
        objective.solved(*examples)


@pytest.mark.parametrize("sde", ["ve", "vp"])
def test_given_levels_are_drawn_equally_often_and_no_others(sde):
    given = [0.5, 2.0, 40.0]
    objective = gaussian_objective(sde, levels=given, solver_steps=1)[0]
    levels = objective.level(objective.draw_times(3000, torch.Generator().manual_seed(0)))
    nearest = (levels[:, None] / torch.tensor(given)).log().abs().min(1)
    assert nearest.values.max() < 1e-6
    assert nearest.indices.bincount().tolist() == pytest.approx([1000] * 3, abs=120)


@pytest.mark.parametrize("levels", [[], 2.0, "a", [0.0], [-1.0], [float("nan")], ["a"], [80.0], [40.0, 1e-6]])
def test_levels_that_the_sde_has_not_are_refused(levels):
    with pytest.raises(ValueError, match="`levels` must be a list of numbers above 0.01 and at most 50"):
        gaussian_objective(levels=levels)


def test_the_perceptual_distance_is_added_to_the_norm():
    """Weighed, for each image, and with a gradient; of what looks the same there is none."""
    plain, (network, *examples) = gaussian_objective("ve", solver_steps=1, q=1.0, huber=0.03)
    both, _ = gaussian_objective("ve", solver_steps=1, q=1.0, huber=0.03, perceptual_weight=0.5)
    both.denoiser = plain.denoiser
    with pytest.raises(ValueError, match="`perceptual`, the distance .* has to be set before"):
        both(network, *examples)
    network.change.data += torch.tensor([0.1, 0.2])
    t, seen = examples[2], []
    both.perceptual = lambda a, b: seen.append((a, b)) or (a - b).abs().flatten(1).mean(1)
    losses = both(network, *examples)
    answer, other = seen[0]
    added = 0.5 * (answer - other).abs().flatten(1).mean(1) * (1 / both.level(t) + 1)
    torch.testing.assert_close(losses, plain(network, *examples) + added)
    assert added.min() > 1e-4 and torch.autograd.grad(losses.sum(), network.change)[0].abs().min() > 0


def test_levels_draw_together_stage_by_stage():
    """r / s = 1 - n(s) / q^a; where there is none, the other side is x_0, and the loss that of the denoiser."""
    objective, (network, x_0, z, t) = gaussian_objective(stages=4, q=2.0, k=8.0, b=1.0)
    s = torch.tensor([0.05, 1.0, 100.0], dtype=torch.float64)
    n = 1 + 8 * torch.sigmoid(-s)
    for share, stage in ((0.0, 1), (0.24, 1), (0.25, 2), (0.76, 4), (1.0, 4)):
        expected = ((1 - n / 2**stage) * s).clamp(min=0)
        torch.testing.assert_close(objective.at(share).lower_level(s), expected)
    assert (objective.at(0.0).lower_level(objective.level(t))[:4] == 0).all()
    distance = (network(x_0 + 0.1 * z, t).sample[:4] - x_0[:4]).detach().abs().flatten(1).mean(1)
    with torch.no_grad():
        torch.testing.assert_close(objective.at(0.0)(network, x_0, z, t)[:4], distance / 0.1, rtol=1e-2, atol=1e-3)


def edm_network(**options):
    torch.manual_seed(0)
    small = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8,), "layers_per_block": 1, "fir": False}
    edm = {"preconditioning": "edm", "scale_by_sigma": False, "image_range": (-1, 1), "consistency": True}
    network = NCSNppUNet2DModel(**{**small, **edm, "num_class_embeds": 3, "init_scale": 1.0, **options})
    return network.eval().requires_grad_(False)


def edm_scheduler(cls=ScoreSdeConsistencyScheduler, **options):
    return cls(
        sde="ve", sigma_min=0.002, sigma_max=80.0, prediction_type="sample", time_input="sigma", image_range=(-1, 1),
        **options,
    )  # fmt: skip


def test_without_noise_the_network_answers_the_image():
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(edm_network()(x, 1e-6).sample, x)


def test_both_sides_have_the_same_dropout_and_half_precision_stays_finite():
    network = edm_network(dropout=0.5).train().requires_grad_(True)
    answers = []

    def recorded(*arguments):
        answers.append(network(*arguments))
        return answers[-1]

    x_0, z = torch.randn(2, 4, 1, 8, 8)
    t = VESDE(0.002, 80.0).inverse_half_log_snr(-torch.tensor([0.5, 1.0, 2.0, 80.0], dtype=torch.float64).log())
    objective = ConsistencyTuning(edm_scheduler().parameterization, stages=40, k=0.0)  # r = s but for 1e-12
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(recorded, x_0, z, t)
    other, own = (answer.sample for answer in answers)
    assert torch.equal(other, own) and not other.requires_grad and own.requires_grad
    with torch.no_grad():
        assert not torch.equal(network(x_0, 1.0).sample, network(x_0, 1.0).sample)  # which dropout it is differs
    assert losses.dtype == torch.float32
    losses.mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction_type": "epsilon"}, "`prediction_type`='epsilon' with VESDE.*80 times as large"),
        ({"time_input": "index"}, "`time_input`='index' knows the noise levels of a table alone"),
        ({"stages": 0}, "`stages`"),
        ({"q": 0.5}, "`q`"),
        ({"k": -1.0}, "`k`"),
        ({"huber": 0.0}, "`huber`"),
        ({"solver_steps": 1.5}, "`solver_steps`"),
        ({"log_sigma_mean": "x"}, "`log_sigma_mean`"),
        ({"eps": 0.0}, "`eps`"),
        ({"objective": "edm"}, "`objective`"),
    ],
)
def test_refuses_what_cannot_be_tuned(options, message):
    asked = {key: options.pop(key) for key in ("prediction_type", "time_input") if key in options}
    parameterization = Parameterization(
        VESDE(0.002, 80.0), **{"prediction_type": "sample", "time_input": "sigma", "image_range": (-1, 1), **asked}
    )
    with pytest.raises(ValueError, match=message):
        ConsistencyTuning(parameterization, **options)


def test_objectives_and_networks_have_to_fit():
    x_0, z, t = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 8, 8), torch.tensor([0.5], dtype=torch.float64)
    parameterization = edm_scheduler().parameterization
    with pytest.raises(ValueError, match="no consistency model"):
        ConsistencyTuning(parameterization)(edm_network(consistency=False), x_0, z, t)
    with pytest.raises(ValueError, match="is a consistency model"):
        DenoisingScoreMatching(parameterization)(edm_network(), x_0, z, t)
    with pytest.raises(ValueError, match="answers x itself where there is no noise"):
        ConsistencyTuning(parameterization)(edm_network(preconditioning=None), x_0, z, t)


# ---- pipelines -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    pipe = ScoreSdePipeline(unet=edm_network(), scheduler=edm_scheduler(levels={"2": [80.0, 0.8]}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **options):
    generator = torch.Generator().manual_seed(0)
    return pipe(2, class_labels=[0, 2], generator=generator, output_type="pt", **options)


def test_it_samples_by_class_and_is_saved_with_its_code(pipe, tmp_path):
    one, two = draw(pipe, num_inference_steps=1), draw(pipe)
    assert (one.nfe, two.nfe) == (1, 2) and not torch.equal(one.images, two.images)
    assert pipe.scheduler.timesteps.tolist() == pytest.approx([80.0, 0.8])
    pipe.save_pretrained(tmp_path)
    for loaded in (
        ScoreSdePipeline.from_pretrained(tmp_path),
        DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        loaded.set_progress_bar_config(disable=True)
        assert loaded.unet.config.consistency is True
        assert torch.equal(draw(loaded).images, two.images)
    later = draw(pipe, image=torch.zeros(1, 8, 8), strength=0.5)  # from the second level on
    assert later.nfe == 1 and later.images.isfinite().all()


IMAGES = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    "ask",
    [
        lambda pipe: pipe.score(IMAGES, 0.5),
        lambda pipe: pipe.denoise(IMAGES, 0.5),
        lambda pipe: pipe.encode(IMAGES),
        lambda pipe: pipe.decode(IMAGES),
        lambda pipe: pipe.interpolate(IMAGES, IMAGES, 3),
        lambda pipe: pipe.bits_per_dim(IMAGES),
        lambda pipe: pipe.log_prob(IMAGES.byte()),
        lambda pipe: pipe.class_log_prob(IMAGES.byte()),
        lambda pipe: sde_diffusers.fit_sampler(pipe, (2,)),
        lambda pipe: ScoreSdeRestorationPipeline(**pipe.components)(IMAGES, Mask(torch.ones(8, 8).bool())),
        lambda pipe: draw(ScoreSdePipeline(unet=pipe.unet, scheduler=edm_scheduler(ScoreSdeExponentialScheduler))),
    ],
    ids="score denoise encode decode interpolate bits log_prob class_log_prob fit restore other_sampler".split(),
)
@pytest.mark.parametrize("swapped", [False, True])
def test_what_needs_a_score_is_refused_by_name(pipe, ask, swapped):
    """Also where the sampler was swapped, since it is the network's configuration that says what it is."""
    scheduler = ScoreSdeExponentialScheduler.from_config(pipe.scheduler.config) if swapped else pipe.scheduler
    asked = ScoreSdePipeline(unet=pipe.unet, scheduler=scheduler)
    asked.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="is a consistency model .* has no score"):
        ask(asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": 2.0}, "`guidance_scale` must be 0 or 1 with a consistency model, but is 2.0"),
        ({"guide_scale": 2.0}, "`guide_scale` must be 1 with a consistency model, but is 2.0"),
    ],
)
def test_guidance_would_mix_finished_images(pipe, options, message):
    asked = ScoreSdePipeline(unet=pipe.unet, scheduler=pipe.scheduler, guide=pipe.unet)
    with pytest.raises(ValueError, match=message):
        draw(asked, **options)
    assert draw(pipe, guidance_scale=0.0).nfe == 2  # without the class


def test_a_score_network_is_no_consistency_model(pipe):
    with pytest.raises(ValueError, match="no consistency model"):
        draw(ScoreSdePipeline(unet=edm_network(consistency=False), scheduler=pipe.scheduler))
    with pytest.raises(ValueError, match="can't express `consistency`=True"):
        unconditional = edm_network(num_class_embeds=None)
        scheduler = ScoreSdeConsistencyScheduler(sde="vp", prediction_type="sample")
        sde_diffusers.convert.to_diffusers(ScoreSdePipeline(unet=unconditional, scheduler=scheduler), "nowhere")


assert {*SDES} <= GaussianSDE.registered.keys()


def test_the_denoiser_is_held_still():
    unet = NCSNppUNet2DModel(
        sample_size=8,
        in_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        dropout=0.5,
        init_scale=1.0,
        image_range=(-1, 1),
        scale_by_sigma=False,
        preconditioning="edm",
    )
    objective = ConsistencyTuning(
        Parameterization(VESDE(0.002, 80.0), "sample", "sigma", (-1, 1)), stages=1, q=1.0, solver_steps=2
    )
    objective.denoiser = unet.train()
    x, noise = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = objective.draw_times(4, torch.Generator().manual_seed(0))
    first, again = (objective.solved(x, noise, t)[0] for _ in range(2))
    assert torch.equal(first, again) and unet.training
