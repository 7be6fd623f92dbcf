"""Sampling that starts from given images (SDEdit)."""

import numpy as np
import pytest
import torch
from test_pipeline_score_sde import SCHEDULERS, C, M, gaussian_pipe

SIZE = (3, 4, 4)


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


@pytest.mark.parametrize("sde", ["ve", "vp", "sub_vp"])
@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_the_ode_from_a_noised_image_is_that_of_gaussian_images(sde, strength):
    pipe = gaussian_pipe("heun", sde=sde)
    image, latents = torch.rand(2, *SIZE), torch.randn(2, *SIZE)
    out = pipe(num_inference_steps=200, image=image, strength=strength, latents=latents, output_type="latent").images
    t = pipe.scheduler.times[-pipe.num_timesteps]
    alpha, sigma = pipe.scheduler.sde.alpha(t), pipe.scheduler.sde.sigma(t)
    mean = torch.full(SIZE, M).double()
    x = alpha * pipe.scheduler.parameterization.to_model_range(image).double() + sigma * latents.double()
    expected = mean + C * (x - alpha * mean) / (alpha**2 * C**2 + sigma**2).sqrt()
    assert (out - expected).abs().max() < 5e-3 * expected.abs().max()


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_strength_is_the_share_of_the_steps(sampler):
    pipe = gaussian_pipe(sampler)
    evaluations = SCHEDULERS[sampler][2]
    image = np.full((4, 4, 3), 200, dtype=np.uint8)
    out = pipe(batch_size=3, num_inference_steps=10, image=image, strength=0.35, output_type="pt")
    assert out.images.shape == (3, *SIZE) and out.nfe == evaluations(3)  # rounded down, as in diffusers
    assert pipe(num_inference_steps=10, image=image, strength=1.0).nfe == evaluations(10)
    assert not torch.equal(out.images[0], out.images[1])


@pytest.mark.parametrize(
    ("strength", "steps", "done"), [(0.28, 25, 7), (0.07, 100, 7), (0.5, 5, 2), (0.3, 25, 7), (1.0, 3, 3)]
)
def test_strength_is_rounded_as_in_diffusers(strength, steps, done):
    """Down to whole steps, also where strength * steps is one and has been rounded up."""
    pipe = gaussian_pipe("euler")
    assert done == min(int(steps * strength), steps)  # `get_timesteps` of its image-to-image pipelines
    out = pipe(num_inference_steps=steps, image=torch.rand(1, *SIZE), strength=strength, output_type="pt")
    assert out.nfe == done


def test_little_strength_changes_little():
    pipe = gaussian_pipe("heun", sde="vp")
    image = torch.rand(8, *SIZE) * 0.5 + 0.25
    distances = [
        (pipe(num_inference_steps=50, image=image, strength=s, output_type="pt").images - image).square().mean().sqrt()
        for s in (0.02, 0.3, 1.0)
    ]
    assert distances[0] < 0.05 < distances[1] < distances[2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"strength": 0.0}, r"`strength` must lie in \(0, 1\], but is 0.0"),
        ({"strength": 1.5}, "`strength`.*1.5"),
        ({"strength": None}, "`strength`.*None"),
        ({"strength": 0.2}, "`strength`=0.2 of 4 steps is less than one"),
        ({"image": torch.rand(1, 3, 5, 4)}, r"`image` means images of 5 x 4 pixels.*own 4 x 4"),
        ({"image": torch.rand(1, 1, 4, 4)}, "`image`"),
        ({"image": torch.rand(1, *SIZE) * 300}, "`image`"),
        ({"image": torch.rand(2, *SIZE), "batch_size": 3}, "`image` must be one or `batch_size` = 3"),
    ],
)
def test_refuses(arguments, message):
    pipe = gaussian_pipe()
    with pytest.raises(ValueError, match=message):
        pipe(**{"num_inference_steps": 4, "image": torch.rand(1, *SIZE), **arguments})
    assert not pipe.unet.calls
