"""Restoration: methods against the exact posterior of Gaussian images, and the pipeline's promises."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from gaussian_images import GaussianImages
from module_names import module_at
from PIL import Image
from test_guidance import MixtureClassifier, MixtureNetwork
from warm_python import run_python

from sde_diffusers import (
    NCSNppUNet2DModel,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
    ScoreSdeRestorationPipeline,
)
from sde_diffusers.guidance import Guidance
from sde_diffusers.operators import (
    JPEG,
    Bands,
    Convolution,
    Downsampling,
    Gamma,
    GaussianBlur,
    Grayscale,
    Mask,
    Quantization,
    Saturation,
    box_mask,
    random_mask,
)
from sde_diffusers.parameterization import PREDICTION_TYPES, SDE_NAMES
from sde_diffusers.posteriors import (
    DPS,
    MMPS,
    Measurement,
    PiGDM,
    Projection,
    conjugate_gradients,
    poisson_noise_std,
    posterior_output,
)

ROOT = Path(__file__).resolve().parents[1]
SIZE = 4
OPERATORS = {
    "box": Mask(box_mask(SIZE, SIZE, (1, 1, 3, 4))),
    "random": Mask(random_mask((SIZE, SIZE), 0.75, torch.Generator().manual_seed(0))),
    "grayscale": Grayscale(),
    "downsampling": Downsampling(2),
    "blur": GaussianBlur(0.7),
}
METHODS = ("projection", "dps", "pigdm", "mmps")
EXACT = MMPS(steps=30, damping=0.0)
SAMPLERS = {
    "ancestral": (ScoreSdeExponentialScheduler, {"solver_order": 1, "eta": 1.0}),
    "exponential": (ScoreSdeExponentialScheduler, {}),
    "heun": (ScoreSdeProbabilityFlowScheduler, {}),
    "heun with churn": (ScoreSdeProbabilityFlowScheduler, {"s_churn": 5.0}),
    "predictor-corrector": (ScoreSdePredictorCorrectorScheduler, {"snr": 0.02, "time_grid": "noise_share"}),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian_pipe(sampler="ancestral", network=None, **config):
    cls, options = SAMPLERS[sampler]
    config = {"sde": "ve", "sigma_max": 20.0, "sigma_min": 1e-3, "prediction_type": "sample", **config}
    config.setdefault("image_range", (-1.0, 1.0))
    scheduler = cls(**options, **config)
    unet = GaussianImages(**{"sample_size": SIZE, "std": 0.2, **(network or {})}).answers(scheduler)
    return quiet(ScoreSdeRestorationPipeline(unet=unet, scheduler=scheduler))


def small_unet(channels=1, classes=None):
    torch.manual_seed(1)
    return NCSNppUNet2DModel(
        sample_size=8,
        in_channels=channels,
        block_out_channels=(8,),
        layers_per_block=1,
        attention_resolutions=(),
        preconditioning="edm",
        scale_by_sigma=False,
        image_range=(-1.0, 1.0),
        num_class_embeds=classes,
        fourier_scale=1.0,  # smooth in the noise level, as trained networks are
        init_scale=0.3,
    ).eval()


def unet_pipe(channels=1, classes=None, cls=ScoreSdeRestorationPipeline):
    config = {"sde": "ve", "sigma_max": 20.0, "prediction_type": "sample", "image_range": (-1.0, 1.0)}
    scheduler = ScoreSdeExponentialScheduler(solver_order=1, eta=1.0, **config)
    return quiet(cls(unet=small_unet(channels, classes), scheduler=scheduler))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure(operator, images, noise_std=0.0, seed=5):
    y = operator(images)
    noise = torch.randn(y.shape, generator=seeded(seed), dtype=y.dtype)
    return y + noise_std * (operator(noise) if isinstance(operator, Mask) else noise)


# The methods.


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("sampling_sde", [None, "vp"])
@pytest.mark.parametrize("sde", SDE_NAMES)
def test_the_answer_denoises_to_the_posterior_mean(sde, sampling_sde, prediction_type):
    """E[x_0 | x_t, y] in closed form: x_t and y are two independent measurements of x_0."""
    config = {"sigma_max": 20.0, "sigma_min": 0.01} if sde == "ve" else {"sigma_min": None, "sigma_max": None}
    pipe = gaussian_pipe(sde=sde, sampling_sde=sampling_sde, prediction_type=prediction_type, **config)
    scheduler, network, noise_std, operator = pipe.scheduler, pipe.unet, 0.1, OPERATORS["blur"]
    images = network.draw(3, seeded(1))
    scheduler.set_timesteps(5)
    t = scheduler.start_late(3)
    alpha, sigma = scheduler.sde.alpha(t), scheduler.sde.sigma(t)
    x = alpha * images + sigma * torch.randn(images.shape, generator=seeded(2), dtype=images.dtype)
    y = measure(operator, images, noise_std)
    problem = Measurement(operator, y, noise_std, 1.0)
    answer = posterior_output(Guidance(pipe, len(x)), scheduler, EXACT, problem, x)
    _, denoised = scheduler.noise_and_denoised(answer, x, t)
    d = len(network.mean)
    a = operator(torch.eye(d).double().view(d, *images.shape[1:])).flatten(1).T
    precision = torch.linalg.inv(network.covariance) + a.T @ a / noise_std**2 + alpha**2 / sigma**2 * torch.eye(d)
    information = torch.linalg.solve(network.covariance, network.mean)[:, None]
    information = information + a.T @ y.flatten(1).T / noise_std**2 + alpha / sigma**2 * x.flatten(1).T
    expected = torch.linalg.solve(precision, information).T
    torch.testing.assert_close(denoised.flatten(1), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("noise_std", [0.0, 0.05])
@pytest.mark.parametrize("name", OPERATORS)
def test_posterior_samples(name, noise_std):
    """Mean and covariance of many samples of MMPS with enough steps, against the exact posterior."""
    if name == "blur" and noise_std == 0:
        pytest.skip("an exact measurement of all details leaves nothing to draw")
    pipe, operator, k = gaussian_pipe(), OPERATORS[name], 500
    image = (pipe.unet.draw(1, seeded(1)) + 1) / 2
    y = measure(operator, image, noise_std)
    out = pipe(y, operator, noise_std, EXACT, k, 40, generator=seeded(), output_type="pt").images.double()
    low = operator(torch.full_like(image, -1.0))
    mean, covariance = pipe.unet.posterior(operator, low + 2 * y, 2 * noise_std)
    samples = (2 * out - 1).flatten(1)
    deviation = covariance.diagonal().mean().sqrt()
    assert (samples.mean(0) - mean).square().mean().sqrt() < 0.1 * deviation
    floor = ((covariance.trace() ** 2 / covariance.square().sum() + 1) / k).sqrt()
    assert (samples.T.cov() - covariance).norm() / covariance.norm() < 1.5 * floor + 0.05


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("sampling_sde", [None, "vp"])
def test_every_sampler(sampler, sampling_sde):
    """The posterior's mean and deviation, whichever scheduler and SDE samples it."""
    pipe = gaussian_pipe(sampler, sampling_sde=sampling_sde)
    operator, noise_std = OPERATORS["downsampling"], 0.02
    image = (pipe.unet.draw(1, seeded(1)) + 1) / 2
    y = measure(operator, image, noise_std)
    out = pipe(y, operator, noise_std, MMPS(steps=12, damping=0.0), 200, 50, generator=seeded(), output_type="pt")
    low = operator(torch.full_like(image, -1.0))
    mean, covariance = pipe.unet.posterior(operator, low + 2 * y, 2 * noise_std)
    deviation = covariance.diagonal().sqrt()
    error = (2 * out.mean.double() - 1).flatten() - mean
    assert error.square().mean().sqrt() < 0.15 * deviation.mean()
    torch.testing.assert_close((2 * out.std.double()).flatten(), deviation, rtol=0.2, atol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("method", METHODS)
def test_observed_pixels_are_exact_and_no_noise_is_left(method, sampler):
    """With images that are all but constant, painted pixels must be that constant: any noise would show."""
    pipe = gaussian_pipe(sampler, network={"std": 1e-4, "mean": 0.25}, sampling_sde="vp")
    image = torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=seeded(1), dtype=torch.uint8) / 255
    image[1] = 0.625  # the constant
    mask = box_mask(SIZE, SIZE, (1, 1, 3, 3))
    out = pipe.inpaint(image, mask, method=method, num_inference_steps=15, generator=seeded(), output_type="pt").images
    assert torch.equal(out[..., ~mask], image[..., ~mask])
    assert torch.equal((out * 255).round()[..., ~mask], (image * 255).round()[..., ~mask])
    assert (out[1][..., mask] - 0.625).abs().max() < 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OPERATORS)
def test_noiseless_measurements_are_reproduced(name, method):
    pipe, operator = gaussian_pipe(network={"std": 0.1}), OPERATORS[name]
    y = operator((pipe.unet.draw(2, seeded(1)).float() + 1) / 2)
    out = pipe(y, operator, method=method, num_inference_steps=10, generator=seeded(), output_type="pt").images
    torch.testing.assert_close(operator(out), y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_values_at_missing_pixels_do_not_matter(method):
    pipe, operator = gaussian_pipe(), OPERATORS["box"]
    y = torch.rand(1, 3, SIZE, SIZE, generator=seeded(1))
    outs = [
        pipe(v, operator, 0.1, method, num_inference_steps=3, generator=seeded(), output_type="pt").images
        for v in (y, operator(y))
    ]
    assert torch.equal(*outs)


@pytest.mark.parametrize("noise_std", [0.0, 0.05, [0.05, 0.1]])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "projection"])  # it refuses noisy blurs
def test_what_no_image_can_measure_does_not_matter(method, noise_std):
    """White noise has a share there that tells nothing of the image, and would cost MMPS its few steps."""
    pipe, operator = unet_pipe(), GaussianBlur(3.0)
    images = torch.rand(2, 1, 8, 8, generator=seeded())
    y, noise = measure(operator, images), torch.randn(2, 1, 8, 8, generator=seeded(1))
    beyond = noise - operator.attainable(noise)
    assert beyond.norm() > 0.3 * noise.norm()
    first, second = (
        pipe(values, operator, noise_std, method, num_inference_steps=4, generator=seeded(2), output_type="pt").images
        for values in (y, y + 0.1 * beyond)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=1e-3)


@pytest.mark.parametrize("outer", [Bands([2, 0]), Grayscale(), Gamma(2.2)], ids=["bands", "grayscale", "gamma"])
@pytest.mark.parametrize("noise_std", [0.0, 0.1])
@pytest.mark.parametrize("method", ["dps", "mmps", "tmpd"])
def test_values_at_missing_pixels_do_not_matter_where_they_are_measured_again(outer, noise_std, method):
    pipe, operator = gaussian_pipe(), outer @ OPERATORS["box"]
    y, hole = operator(torch.rand(1, 3, SIZE, SIZE, generator=seeded(1))), OPERATORS["box"].mask
    outs = [
        pipe(v, operator, noise_std, method, num_inference_steps=3, generator=seeded(), output_type="pt").images
        for v in (y, y.masked_fill(hole, 0.7))
    ]
    assert torch.equal(*outs)


def test_projection_stops_where_the_measurements_noise_takes_over():
    operator, draws = Downsampling(2), []

    def draw():
        draws.append(1)
        return torch.randn(20_000, 1, 2, 2, generator=seeded())

    y = 0.3 + 0.1 * torch.randn(20_000, 1, 1, 1, generator=seeded(1))  # A's rows have length 1/2: 0.2 in the image
    x = torch.zeros(20_000, 1, 2, 2)
    projected = Projection().project(Measurement(operator, y, 0.1, 1.0), x, 0.8, 0.5, draw)
    assert operator(projected).mean().item() == pytest.approx(0.8 * 0.3, abs=0.01)
    assert operator(projected).std().item() == pytest.approx(0.5 / 2, rel=0.02)  # the diffusion's noise, no more
    left = Projection().project(Measurement(operator, y, 0.1, 1.0), x, 1.0, 0.19, draw)
    assert torch.equal(left, x) and len(draws) == 2  # drawn for all the same, so that no image depends on others


def test_methods_agree_for_independent_pixels():
    """For white images of deviation sigma_data, Pi-GDM's variance is right: its shift is MMPS's, times its weight."""
    x, level = torch.randn(2, 3, 4, 4, generator=seeded()), 0.7
    operator, y = OPERATORS["box"], torch.randn(2, 3, 4, 4, generator=seeded(1))
    variance = level**2 * 0.25 / (level**2 + 0.25)
    problem = Measurement(operator, operator(y), 0.1, 1.0)
    mmps = EXACT.shift(problem, x, lambda u: variance * u, level)
    pigdm = PiGDM(0.5).weight(problem, x, level)
    torch.testing.assert_close(variance * pigdm, variance / level**2 * mmps)
    dps = DPS(1.0, 0.5).weight(problem, x, level)
    cosine = torch.nn.functional.cosine_similarity(dps.flatten(1), pigdm.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(2))


def test_conjugate_gradients():
    a = torch.randn(6, 6, generator=seeded(), dtype=torch.float64)
    a, b = a @ a.T + torch.eye(6), torch.randn(3, 6, generator=seeded(1), dtype=torch.float64)
    b[1] = 0
    torch.testing.assert_close(conjugate_gradients(lambda w: w @ a, b, 6, 0.0) @ a, b)
    assert conjugate_gradients(lambda w: -w, b, 6).eq(0).all()  # not positive: nothing is done


# The pipeline's arguments and results.


def test_samples_mean_and_deviation():
    pipe = unet_pipe()
    image, mask = torch.rand(3, 1, 8, 8, generator=seeded()), random_mask((3, 1, 8, 8), 0.5, seeded())
    arguments = {"num_samples": 4, "num_inference_steps": 3}
    out = pipe.inpaint(image, mask, generator=seeded(), output_type="pt", **arguments)
    samples = out.images.view(3, 4, 1, 8, 8)
    torch.testing.assert_close(out.mean, samples.mean(1))
    torch.testing.assert_close(out.std, samples.std(1))
    assert (samples[:, 0] - samples[:, 1]).abs().max() > 0.01
    for i in range(3):  # each image has its own mask
        assert torch.equal(samples[i, :, :, ~mask[i, 0]], image[i, :, ~mask[i, 0]].expand(4, -1, -1))
    assert (out.nfe, out.products) == (3, 3 * MMPS().products)
    pil = pipe.inpaint(image, mask, generator=seeded(), **arguments)
    assert len(pil.images) == 12 and len(pil.mean) == len(pil.std) == 3
    deviation = np.asarray(pil.std[1], dtype=float)
    np.testing.assert_allclose(deviation, (255 * 2 * out.std[1, 0]).clamp(max=255).numpy(), atol=0.51)
    one = pipe.inpaint(image, mask, num_inference_steps=3, output_type="np", return_dict=False)
    assert len(one) == 5 and one[0].shape == one[1].shape == (3, 8, 8, 1) and one[2] is None


def test_a_list_of_generators_makes_each_sample_its_own():
    pipe, image, mask = unet_pipe(), torch.rand(2, 1, 8, 8), box_mask(8, 8, (2, 2, 6, 6))
    arguments = {"num_inference_steps": 3, "output_type": "pt", "method": "projection"}
    both = pipe.inpaint(image, mask, generator=[seeded(7), seeded(8)], **arguments).images
    second = pipe.inpaint(image[1:], mask, generator=[seeded(8)], **arguments).images
    torch.testing.assert_close(both[1:], second, rtol=0, atol=1e-5)


def test_the_networks_weights_get_no_gradients_and_keep_asking_for_them():
    pipe = unet_pipe()
    pipe.inpaint(torch.rand(1, 1, 8, 8), box_mask(8, 8, (2, 2, 6, 6)), num_inference_steps=2)
    assert all(p.grad is None and p.requires_grad for p in pipe.unet.parameters())


def test_classes_and_guidance_reach_the_network():
    pipe = unet_pipe(classes=3)
    image, mask = torch.rand(1, 1, 8, 8, generator=seeded()), box_mask(8, 8, (0, 0, 8, 6))

    def draw(**arguments):
        return pipe.inpaint(
            image, mask, num_inference_steps=3, generator=seeded(), output_type="pt", num_samples=2, **arguments
        )

    outs = [draw(), draw(class_labels=1), draw(class_labels=[1]), draw(class_labels=1, guidance_scale=2.0)]
    assert torch.equal(outs[1].images, outs[2].images) and outs[3].nfe == 6
    assert not torch.equal(outs[0].images, outs[1].images) and not torch.equal(outs[1].images, outs[3].images)


def test_guided_networks_are_the_prior():
    """D + V A' (A V A' + noise_std^2)^-1 (y - A D) of the autoguided D, with V = sigma^2 / alpha dD / dx."""
    pipe = gaussian_pipe(sde="vp", sigma_max=None, sigma_min=None)
    scheduler, operator, noise_std, v = pipe.scheduler, OPERATORS["blur"], 0.1, 1.5
    pipe.guide = GaussianImages(sample_size=SIZE, std=0.3, mean=0.2, length=2.0).answers(scheduler)
    images = pipe.unet.draw(2, seeded(1))
    scheduler.set_timesteps(5)
    t = scheduler.start_late(3)
    alpha, sigma = scheduler.sde.alpha(t), scheduler.sde.sigma(t)
    x = alpha * images + sigma * torch.randn(images.shape, generator=seeded(2), dtype=images.dtype)
    y = measure(operator, images, noise_std)
    guidance = Guidance(pipe, 2, guide_scale=v)
    answer = posterior_output(guidance, scheduler, EXACT, Measurement(operator, y, noise_std, 1.0), x)
    _, found = scheduler.noise_and_denoised(answer, x, t)

    d, slopes, denoised = len(pipe.unet.mean), 0, 0
    for weight, network in ((v, pipe.unet), (1 - v, pipe.guide)):
        total = alpha**2 * network.covariance + sigma**2 * torch.eye(d)
        gain = alpha * torch.linalg.solve(total, network.covariance)
        denoised = denoised + weight * (network.mean + (x.flatten(1) - alpha * network.mean) @ gain)
        slopes = slopes + weight * gain
    covariance = sigma**2 / alpha * slopes
    a = operator(torch.eye(d).double().view(d, *images.shape[1:])).flatten(1).T
    total = a @ covariance @ a.T + noise_std**2 * torch.eye(d)
    residual = y.flatten(1) - denoised @ a.T
    expected = denoised + torch.linalg.solve(total, residual.T).T @ a @ covariance
    torch.testing.assert_close(found.flatten(1), expected, rtol=0, atol=2e-4)


def test_a_guide_and_an_interval_reach_the_network():
    pipe = unet_pipe(classes=3)
    pipe.guide = small_unet(classes=3)
    torch.nn.init.normal_(pipe.guide.conv_out.weight, std=0.3)
    image, mask = torch.rand(1, 1, 8, 8, generator=seeded()), box_mask(8, 8, (0, 0, 8, 6))

    def draw(**arguments):
        arguments = {"num_inference_steps": 3, "output_type": "pt", "class_labels": 1, **arguments}
        return pipe.inpaint(image, mask, generator=seeded(), **arguments)

    plain, guided, both = draw(), draw(guide_scale=2.0), draw(guide_scale=2.0, guidance_scale=2.0)
    assert (plain.nfe, guided.nfe, both.nfe) == (3, 6, 9)
    assert not torch.equal(plain.images, guided.images) and not torch.equal(guided.images, both.images)
    nowhere = draw(guide_scale=2.0, guidance_scale=2.0, guidance_interval=(1e8, 1e9))
    assert nowhere.nfe == 3 and torch.equal(nowhere.images, plain.images)


def test_the_classifier_restores_as_the_conditional_network_does():
    """With the exact classifier, whose second derivatives are in the posterior's covariance, the prior is p(x | y)."""
    scheduler = ScoreSdeExponentialScheduler(sde="vp", prediction_type="sample", image_range=(-1.0, 1.0))
    unet = MixtureNetwork(num_class_embeds=2).answers(scheduler)
    pipe = quiet(ScoreSdeRestorationPipeline(unet, scheduler, MixtureClassifier()))
    measurement = torch.tensor([[0.6, 0.0], [0.2, 0.0]]).view(2, 2, 1, 1)
    mask = Mask(torch.tensor([False, True]).view(2, 1, 1))  # the second channel is missing
    arguments = {"num_samples": 3, "num_inference_steps": 15, "output_type": "pt", "class_labels": [0, 1]}
    outs = [
        pipe(measurement, mask, 0.05, generator=seeded(), **arguments, **guidance).images
        for guidance in ({}, {"guidance_scale": 0.0, "classifier_scale": 1.0})
    ]
    torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=1e-3)


def test_callbacks_see_replace_and_stop():
    pipe, image, mask = unet_pipe(), torch.rand(1, 1, 8, 8, generator=seeded()), box_mask(8, 8, (2, 2, 6, 6))
    seen = []

    def draw(callback):
        seen.clear()
        return pipe.inpaint(
            image,
            mask,
            noise_std=0.1,
            num_inference_steps=5,
            generator=seeded(),
            output_type="pt",
            callback_on_step_end=callback,
        )

    def watch(pipeline, k, timestep, values):
        seen.append(values["latents"].clone())

    plain = draw(watch)
    unit = pipe.scheduler.parameterization.to_unit_range(seen[-1]).clamp(0, 1)
    assert len(seen) == 5 and torch.equal(plain.images, unit)
    assert torch.equal(plain.images, draw(None).images)

    def replace(pipeline, k, timestep, values):
        return {"latents": torch.zeros_like(values["latents"])} if k == 2 else {}

    assert not torch.equal(draw(replace).images, plain.images)

    def stop(pipeline, k, timestep, values):
        watch(pipeline, k, timestep, values)
        pipeline._interrupt = k == 1

    stopped = draw(stop)
    assert len(seen) == stopped.nfe == 2 and stopped.products == 2 * MMPS().products
    assert torch.equal(stopped.images, pipe.scheduler.parameterization.to_unit_range(seen[-1]).clamp(0, 1))
    with pytest.raises(ValueError, match="`callback_on_step_end_tensor_inputs`"):
        pipe.inpaint(image, mask, callback_on_step_end_tensor_inputs=["noise"])


@pytest.mark.parametrize("method", METHODS)
def test_networks_in_training_mode_and_inference_mode(method):
    pipe, image, mask = unet_pipe(), torch.rand(1, 1, 8, 8, generator=seeded()), box_mask(8, 8, (2, 2, 6, 6))

    def draw(image, mask):
        return pipe.inpaint(
            image, mask, method=method, num_inference_steps=3, generator=seeded(), output_type="pt"
        ).images

    expected = draw(image, mask)
    pipe.unet.train()
    with torch.inference_mode():
        found = draw(image.clone(), mask.clone())
    assert torch.equal(found, expected) and pipe.unet.training


def test_images_and_masks_of_all_kinds():
    """The same picture and mask as PIL, numpy and tensor give the same result."""
    pipe = unet_pipe(channels=3)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mask = box_mask(8, 8, (2, 2, 6, 7)).numpy()
    painted = np.zeros((8, 8, 4), np.uint8)
    painted[mask] = (200, 30, 30, 255)  # a red brush on a transparent layer
    soft = np.where(mask, 200, 30).astype(np.uint8)  # an edge that was smoothed
    images = [Image.fromarray(pixels), pixels, torch.from_numpy(pixels).permute(2, 0, 1), (pixels / 255)]
    masks = [mask, torch.from_numpy(mask), mask.astype(np.uint8) * 255, mask.astype(np.float32)[..., None]]
    masks += [Image.fromarray(mask), Image.fromarray(soft), Image.fromarray(painted), [Image.fromarray(soft)]]
    masks += [Image.fromarray(soft).convert("RGB"), Image.fromarray(soft).convert("RGBA")]

    def draw(image, mask):
        return pipe.inpaint(image, mask, num_inference_steps=2, generator=seeded(), output_type="pt").images

    expected = draw(images[0], masks[0])
    for image in images:
        torch.testing.assert_close(draw(image, masks[0]), expected, rtol=0, atol=1e-6)
    for kind in masks:
        assert torch.equal(draw(images[0], kind), expected)


def test_thin_calls_are_the_operators():
    """Each call, with an image that the operator made, is the general call."""
    image = torch.rand(1, 3, 8, 8, generator=seeded())
    pipe, kernel = unet_pipe(channels=3), torch.rand(3, 3, generator=seeded()) / 4.5
    arguments = {"num_inference_steps": 2, "output_type": "pt"}
    luma = (0.299, 0.587, 0.114)
    calls = [
        (Grayscale(), lambda y: pipe.colorize(y, generator=seeded(), **arguments)),
        (Grayscale(luma), lambda y: pipe.colorize(y, luma, generator=seeded(), **arguments)),
        (Downsampling(4), lambda y: pipe.super_resolve(y, 4, generator=seeded(), **arguments)),
        (GaussianBlur(1.0), lambda y: pipe.deblur(y, 1.0, 0.0, generator=seeded(), **arguments)),
        (Convolution(kernel), lambda y: pipe.deblur(y, kernel, 0.0, generator=seeded(), **arguments)),
    ]
    for operator, call in calls:
        y = operator(image).clamp(0, 1)
        assert torch.equal(call(y).images, pipe(y, operator, generator=seeded(), **arguments).images)
    gray = Image.new("L", (8, 8), 100)
    out = pipe.colorize(gray, num_inference_steps=2, generator=seeded())
    assert np.abs(np.asarray(out.images[0], dtype=float).mean(-1) - 100).max() < 40  # clipped, not more


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda p, x, m: p.inpaint(x, m, method="magic"), "method"),
        (lambda p, x, m: p.inpaint(x, m, method=7), "method"),
        (lambda p, x, m: p.inpaint(x, m, method=MMPS), "method"),
        (lambda p, x, m: p(x, Mask), "operator"),
        (lambda p, x, m: p(x, GaussianBlur(1.0), 0.1, image_size=8.0), "image_size"),
        (lambda p, x, m: p(x, GaussianBlur(1.0), 0.1, image_size=(8, 8.0)), "image_size"),
        (lambda p, x, m: p.deblur(x, torch.ones(3, 3) * (1 + 1j)), "kernel"),
        (lambda p, x, m: p.inpaint(x, m, num_samples=0), "num_samples"),
        (lambda p, x, m: p.inpaint(x, m, noise_std=-0.1), "noise_std"),
        (lambda p, x, m: p.inpaint(x, m, noise_std=float("nan")), "noise_std"),
        (lambda p, x, m: p.inpaint(x, m, class_labels=3), "class_labels"),
        (lambda p, x, m: p.inpaint(x, m, class_labels=[0, 1]), "class_labels"),
        (lambda p, x, m: p.inpaint(x, m, guidance_scale=2.0), "guidance_scale"),
        (lambda p, x, m: p.inpaint(x, m, generator=[seeded()] * 3), "generator"),
        (lambda p, x, m: p.inpaint(x, m, output_type="jpg"), "output_type"),
        (lambda p, x, m: p.inpaint(x, m, num_inference_steps=0), "num_inference_steps"),
        (lambda p, x, m: p.inpaint(x[..., :4], m), "mask"),
        (lambda p, x, m: p(x[..., :4], Mask(m)), "measurement"),
        (lambda p, x, m: p.inpaint(x.expand(1, 3, 8, 8), m), "image"),
        (lambda p, x, m: p.inpaint(2 * x + 1, m), "image"),
        (lambda p, x, m: p.inpaint("cat.png", m), "image"),
        (lambda p, x, m: p.inpaint(x, 0.5 * m), "mask"),
        (lambda p, x, m: p.inpaint(x, torch.zeros(8, 8)), "mask"),
        (lambda p, x, m: p.inpaint(x.expand(2, 1, 8, 8), m.expand(3, 1, 8, 8)), "mask"),
        (lambda p, x, m: p.inpaint(x, Image.new("L", (9, 8), 255)), "mask"),
        (lambda p, x, m: p.colorize(x), "weights"),
        (lambda p, x, m: p(x, Downsampling(2), image_size=(16, 15)), "factor"),
        (lambda p, x, m: p(x, Downsampling(2), image_size=-16), "image_size"),
        (lambda p, x, m: p(x, Downsampling(2), image_size=10**9), "image_size"),  # no memory is asked for
        (lambda p, x, m: p.inpaint(x, m, num_inference_steps=10**12), "num_inference_steps"),
        (lambda p, x, m: p.super_resolve(x, 10**7), "factor"),
        (lambda p, x, m: p.super_resolve(torch.rand(1, 1, 80, 80), 1024), "image"),
        (lambda p, x, m: p.deblur(x, 1e9), "std"),
        (lambda p, x, m: p.super_resolve(x, 2, "lanczos"), "resample"),
        (lambda p, x, m: p.deblur(x, -1.0), "std"),
        (lambda p, x, m: p.deblur(x, 1.0, method="projection"), "method"),
        (lambda p, x, m: p(x[0], Mask(m)), "measurement"),
        (lambda p, x, m: p(x / 0, Mask(m)), "measurement"),
        (lambda p, x, m: p(x, Downsampling(2)), "measurement"),
    ],
)
def test_errors_name_the_argument_before_anything_is_drawn(call, name):
    pipe = unet_pipe(classes=3)
    pipe.unet.forward = None  # the network must not be asked
    with pytest.raises(ValueError, match=f"`{name}`"):
        call(pipe, torch.rand(1, 1, 8, 8), box_mask(8, 8, (2, 2, 6, 6)))


# Saving and loading.


def test_folders_and_components_are_shared_with_the_other_pipeline(tmp_path):
    plain = unet_pipe(cls=ScoreSdePipeline)
    image, mask = torch.rand(1, 1, 8, 8, generator=seeded()), box_mask(8, 8, (2, 2, 6, 6))

    def draw(pipe):
        return quiet(pipe).inpaint(image, mask, num_inference_steps=2, generator=seeded(), output_type="pt").images

    shared = ScoreSdeRestorationPipeline.from_pipe(plain)
    assert shared.unet is plain.unet and shared.scheduler is plain.scheduler
    expected = draw(shared)
    plain.save_pretrained(tmp_path / "plain")
    loaded = ScoreSdeRestorationPipeline.from_pretrained(tmp_path / "plain")
    assert type(loaded) is ScoreSdeRestorationPipeline and torch.equal(draw(loaded), expected)
    loaded.save_pretrained(tmp_path / "restoration")
    index = json.loads((tmp_path / "restoration" / "model_index.json").read_text())
    assert module_at(tmp_path / "restoration", "pipeline_score_sde_restoration.py").stem == index["_class_name"][0]
    assert index["_class_name"][1] == "ScoreSdeRestorationPipeline"
    assert torch.equal(draw(ScoreSdeRestorationPipeline.from_pretrained(tmp_path / "restoration")), expected)
    assert type(ScoreSdePipeline.from_pretrained(tmp_path / "restoration")) is ScoreSdePipeline
    assert ScoreSdePipeline.from_pipe(loaded).unet is loaded.unet


WITHOUT_THE_PACKAGE = """
import sys

import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
image, mask = torch.full((1, 1, 8, 8), 0.5), torch.eye(8)
out = pipe.inpaint(image, mask, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
torch.save(out.images, sys.argv[2])
"""


def test_a_saved_folder_restores_without_the_package(tmp_path):
    pipe = unet_pipe()
    pipe.save_pretrained(tmp_path / "saved")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    arguments = ["-c", WITHOUT_THE_PACKAGE, tmp_path / "saved", tmp_path / "images.pt"]
    done = run_python(arguments, environment, without=["sde_diffusers"])
    assert done.returncode == 0, done.stderr
    pipe = quiet(ScoreSdeRestorationPipeline.from_pretrained(tmp_path / "saved"))
    arguments = {"num_inference_steps": 2, "generator": seeded(), "output_type": "pt"}
    expected = pipe.inpaint(torch.full((1, 1, 8, 8), 0.5), torch.eye(8), **arguments).images
    assert torch.equal(torch.load(tmp_path / "images.pt"), expected)


def test_three_steps_do_for_a_trained_network():
    """Its covariance is not quite symmetric and positive, as conjugate gradients need: with three they got to 17.3 dB,
    with six to 14.1."""
    sheet = torch.from_numpy(np.array(Image.open(ROOT / "space_app" / "fashion_mnist.png"))).float() / 255
    images = sheet[:28].reshape(28, 10, 28).transpose(0, 1)[:, None]
    pipe = quiet(ScoreSdeRestorationPipeline.from_pretrained(ROOT / "pretrained" / "fashion-mnist-ve"))
    pipe.scheduler = ScoreSdeExponentialScheduler.from_config(pipe.scheduler.config, solver_order=1, eta=1.0)
    operator = Mask(random_mask((10, 1, 28, 28), 0.75, seeded()))
    y = operator(images) + 0.05 * torch.randn(images.shape, generator=seeded(1))
    out = pipe(y, operator, 0.05, num_inference_steps=10, generator=seeded(2), output_type="pt").images
    assert -10 * (out - images).square().flatten(1).mean(1).log10().mean() > 19.5


# What would be wrong without a word.


@pytest.mark.parametrize("operator", [JPEG(50), Quantization(8), Saturation(1.5), Gamma(2.2)])
def test_pictures_in_integers_are_not_measured(operator):
    with pytest.raises(ValueError, match=f"{type(operator).__name__} takes floating point images"):
        operator(torch.randint(256, (1, 1, 8, 8), dtype=torch.uint8))


def test_deviations_of_dark_pixels_in_half_precision():
    y = torch.tensor([0.0, 1e-4, 0.01, 1.0])
    torch.testing.assert_close(poisson_noise_std(y.half(), 1e4), poisson_noise_std(y, 1e4), rtol=1e-3, atol=0)
    assert poisson_noise_std(y.double(), 1e4).dtype == torch.float64


@pytest.mark.parametrize("method", ["daps", "diffpir"])
def test_bounds_of_the_denoiser_hold_for_methods_that_take_no_product(method):
    """A network whose answers leave the range of images: what is drawn where nothing is measured stays within."""
    drawn = {}
    for clip in (None, 1.0):
        pipe = gaussian_pipe(network={"mean": 3.0, "std": 0.05}, clip_denoised=clip)
        mask = torch.ones(SIZE, SIZE, dtype=torch.bool)
        mask[0, 0] = False
        y = Mask(mask)(torch.full((1, 3, SIZE, SIZE), 0.5))
        states = []
        pipe(
            y,
            Mask(mask),
            method=method,
            num_inference_steps=10,
            generator=seeded(),
            callback_on_step_end=lambda pipe, k, t, state, to=states: to.append(state["latents"]) or {},
        )
        drawn[clip] = states[-1][..., 1:, 1:].mean().item()
    assert drawn[1.0] < 1.1 and drawn[None] > 2.0


def test_masks_that_may_be_of_images_or_of_channels_are_refused():
    pipe = unet_pipe(channels=3)
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, :2] = masks[1, 2:4] = masks[2, 4:6] = True
    with pytest.raises(ValueError, match="may be one for each image or one for each channel"):
        pipe.inpaint(torch.rand(3, 3, 8, 8), masks, num_inference_steps=2)
    for clear in (masks[:, None], masks[None]):
        pipe.inpaint(torch.rand(3, 3, 8, 8), clear, num_inference_steps=2)
    pipe.inpaint(torch.rand(1, 3, 8, 8), masks, num_inference_steps=2)


def test_dark_measurements_up_to_255_are_warned_of():
    pipe = unet_pipe()
    mask = random_mask((8, 8), 0.5, seeded())
    dark = 0.08 * torch.rand(1, 1, 8, 8, generator=seeded())
    with pytest.warns(UserWarning, match="it must be in units of images"):
        pipe(255 * Mask(mask)(dark), Mask(mask), num_inference_steps=2)


def test_projection_takes_operators_of_another_import():
    """As a pipeline whose code was loaded from its folder takes those of the package."""

    class SameMask:
        def __init__(self, mask):
            self.own = Mask(mask)

        def __getattr__(self, name):
            return getattr(self.own, name)

    Projection().check(SameMask(torch.ones(8, 8, dtype=torch.bool)), 0.0)


def test_products_of_a_half_precision_network_do_not_overflow():
    """Weights of exact measurements are beyond float16 where there is little noise; V takes them in its own units."""
    images = torch.rand(1, 3, SIZE, SIZE, generator=seeded())
    operator = GaussianBlur(0.7)
    drawn = []
    for dtype in (torch.float16, torch.float32):
        pipe = gaussian_pipe()
        pipe.unet.to(dtype)
        y = operator(images)
        drawn.append(pipe(y, operator, 1e-3, num_inference_steps=20, generator=seeded(), output_type="pt").images)
    assert (drawn[0] - drawn[1]).square().mean().sqrt() < 0.02


@pytest.mark.parametrize("share", [0.02, 0.98])
def test_a_share_of_no_pixel_or_of_all_is_refused(share):
    with pytest.raises(ValueError, match=f"`share`={share} of 16 pixels is"):
        random_mask((4, 4), share)
