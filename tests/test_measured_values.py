"""What a measurement's values are: their units, dtypes and derivatives, and which count, in every method."""

import math

import numpy as np
import pytest
import torch
from test_restoration import EXACT, SIZE, gaussian_pipe, seeded

from sde_diffusers.operators import (
    Bands,
    Bicubic,
    Convolution,
    Downsampling,
    Gamma,
    GaussianBlur,
    Grayscale,
    LinearOperator,
    Mask,
    Operator,
    Radon,
    Saturation,
    box_mask,
    random_mask,
)


@pytest.mark.parametrize("method", ["mmps", "tmpd", "pigdm", "diffpir"])
@pytest.mark.parametrize("unit", [100.0, 1e-4])
@pytest.mark.parametrize("nonlinear", [False, True])
def test_units_of_single_values_do_not_matter(method, unit, nonlinear):
    """A, y and the noise of half of the values in another unit: the posterior is the same, and so are its draws."""
    pipe = gaussian_pipe()
    x = pipe.unet.draw(2, seeded(1)).float() / 2 + 0.5
    noise = 0.05 * torch.randn(x.shape, generator=seeded(2))

    def restored(unit):
        units = torch.ones(SIZE).index_fill(0, torch.tensor([0, 1]), unit)
        kind = Operator if nonlinear else LinearOperator
        operator = kind.from_function(lambda x: x * units, x.shape[1:])
        options = {"num_inference_steps": 6, "generator": seeded(), "output_type": "pt"}
        return pipe(operator(x + noise), operator, (0.05 * units).expand(1, 3, SIZE, SIZE), method, **options).images

    torch.testing.assert_close(restored(unit), restored(1.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["mmps", "pigdm", "diffpir"])
def test_a_dead_value_of_large_noise_takes_nothing_from_the_others(method):
    pipe = gaussian_pipe()
    x = pipe.unet.draw(1, seeded(1)).float() / 2 + 0.5
    dead = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    dead[1, 2] = True
    y = torch.where(dead, -9999.0, x)
    options = {"method": method, "num_inference_steps": 6, "generator": seeded(), "output_type": "pt"}
    found = pipe(y, Mask(torch.zeros_like(dead)), torch.where(dead, 1e6, 0.02)[None, None], **options).images
    options["generator"] = seeded()
    missing = pipe(x, Mask(dead), torch.full((1, 1, SIZE, SIZE), 0.02), **options).images
    torch.testing.assert_close(found, missing, rtol=0, atol=2e-3)


def test_an_image_is_restored_as_it_is_alone_beside_one_of_other_noise():
    pipe, blur = gaussian_pipe(), GaussianBlur(0.7)
    y = blur(pipe.unet.draw(2, seeded(1)).float() / 2 + 0.5)
    mask = Mask(box_mask(SIZE, SIZE, (1, 1, 3, 4)))
    for method, operator, noise in [
        ("mmps", blur, [0.0, 0.1]),
        ("projection", mask, [0.3, 0.01]),
        ("projection", mask, [0.05, 0.01]),
    ]:
        options = {"method": method, "num_inference_steps": 6, "output_type": "pt"}
        both = pipe(y, operator, noise, generator=[seeded(1), seeded(2)], **options).images
        alone = pipe(y[:1], operator, noise[0], generator=[seeded(1)], **options).images
        torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-5)


def test_the_adjoint_that_was_given_is_the_derivative_of_compositions_with_it():
    """0.5 x + 0.5 x.detach() is x, but torch's derivative is half of it."""
    pipe, shape = gaussian_pipe(), (3, SIZE, SIZE)
    own = LinearOperator.from_function(lambda x: 0.5 * x + 0.5 * x.detach(), shape, adjoint=lambda y: y)
    foreign = LinearOperator.from_function(
        lambda x: torch.from_numpy(x.detach().numpy().copy()), shape, adjoint=lambda y: y
    )
    plain = LinearOperator.from_function(lambda x: x.clone(), shape)
    y = (pipe.unet.draw(1, seeded(1)).float() / 2 + 0.5).clamp(0.1, 0.9)
    for compose in (lambda a: Gamma(2.0) @ a, lambda a: a @ Gamma(2.0), lambda a: Saturation(2.0) @ a):
        first, second, third = (
            pipe(compose(a)(y), compose(a), 0.05, EXACT, num_inference_steps=2, generator=seeded(), output_type="pt")
            for a in (plain, own, foreign)
        )
        torch.testing.assert_close(second.images, first.images, rtol=0, atol=1e-5)
        torch.testing.assert_close(third.images, first.images, rtol=0, atol=1e-5)


def test_what_is_missing_does_not_count():
    """For DPS, whose step grows with the number of values, also where no `Mask` says what is missing."""
    missing = random_mask((SIZE, SIZE), 0.75, seeded())
    function = LinearOperator.from_function(lambda x: torch.where(missing, 0, x), (3, SIZE, SIZE))
    for operator in (Mask(missing), function, Gamma(2.2) @ Mask(missing), Gamma(2.2) @ function):
        assert operator.count((2, 3, SIZE, SIZE)).tolist() in ([12, 12], [12])
    pipe = gaussian_pipe()
    y = function(pipe.unet.draw(1, seeded(1)).float() / 2 + 0.5)
    by_mask, by_function = (
        pipe(y, a, 0.05, "dps", num_inference_steps=4, generator=seeded(), output_type="pt").images
        for a in (Mask(missing), function)
    )
    torch.testing.assert_close(by_function, by_mask, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "operator",
    [
        Grayscale(),
        Downsampling(2),
        Bicubic(2),
        GaussianBlur(1.0),
        Convolution(torch.ones(3, 3) / 9),
        Convolution(torch.ones(3, 3) / 9, "zero").for_images((1, 3, 4, 4)),
        Radon([30.0]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integers_are_no_images_for_weights(operator, dtype):
    channels = 1 if isinstance(operator, Radon) else 3
    with pytest.raises(ValueError, match=f"floating point images in .0, 1., but they are {dtype}"):
        operator(torch.full((1, channels, 4, 4), 200, dtype=dtype))


@pytest.mark.parametrize(
    "operator", [GaussianBlur(1.0), Convolution([[0.5, 0.5]]), Radon(3), Bands([0]), Gamma(2.2) @ GaussianBlur(1.0)]
)
def test_operators_used_in_inference_mode_can_be_differentiated_later(operator):
    with torch.inference_mode():
        operator(torch.rand(1, 1, 5, 5))
    x = torch.rand(1, 1, 5, 5, requires_grad=True)
    operator(x).sum().backward()
    assert x.grad.any()


def test_one_pixel_and_one_angle():
    assert Radon(3)(torch.full((1, 1, 1, 1), 0.7)).sum(2).tolist() == [[pytest.approx(0.7)] * 3]
    for angles in ([30], np.array([30]), torch.tensor([30])):
        assert len(Radon(angles).angles) == 1
    pipe = gaussian_pipe()
    x = pipe.unet.draw(1, seeded(1)).float() / 2 + 0.5
    for kernel in ([[1.0]], np.array([[1.0]]), torch.tensor([[1.0]])):
        images = pipe.deblur(x, kernel, 0.0, num_inference_steps=2, output_type="pt").images
        torch.testing.assert_close(images, x.clamp(0, 1), rtol=0, atol=1e-5)


class Soft(Convolution):
    """A subclass: "circular" is its boundary, too."""


def test_subclasses_of_a_convolution():
    x, kernel = torch.rand(1, 1, 6, 6, generator=seeded()), [[0.3, 0.7]]
    torch.testing.assert_close(Soft(kernel, "circular")(x), Convolution(kernel, "circular")(x))


def test_missing_values_may_be_nan_and_others_not():
    pipe, mask = gaussian_pipe(), box_mask(SIZE, SIZE, (1, 1, 3, 4))
    y = pipe.unet.draw(1, seeded(1)).float() / 2 + 0.5
    options = {"num_inference_steps": 2, "output_type": "pt"}
    for values in (math.nan, 1e39):
        holed = torch.where(mask, values, y.double())
        same = [pipe(z, Mask(mask), generator=seeded(), **options).images for z in (holed, y)]
        assert torch.equal(*same)
        with pytest.raises(ValueError, match="`measurement` must be finite in float32"):
            pipe(holed, Mask(~mask), **options)


def test_one_step_from_pure_noise_is_refused():
    pipe = gaussian_pipe(sde="flow", sigma_max=None, sigma_min=None, prediction_type="velocity")
    y = torch.full((1, 3, SIZE, SIZE), 0.5)
    with pytest.raises(ValueError, match="`num_inference_steps` must be at least 2"):
        pipe(y, GaussianBlur(0.7), 0.1, num_inference_steps=1)
    pipe(y, GaussianBlur(0.7), 0.1, num_inference_steps=2)


@pytest.mark.parametrize("method", ["dps", "mmps"])
@pytest.mark.parametrize("curve", [Gamma(0.1), Saturation(1.0, 0.45, 0.9)], ids=["gamma", "saturation"])
def test_missing_values_of_a_curve_do_not_count(method, curve):
    """Whatever it makes of 0, which stands where nothing is measured."""
    pipe, mask = gaussian_pipe(), Mask(random_mask((SIZE, SIZE), 0.5, seeded()))
    x = pipe.unet.draw(2, seeded(1)).float() / 2 + 0.5
    found = []
    for operator in (curve @ mask, mask @ curve):
        options = {"method": method, "num_inference_steps": 6, "generator": seeded(), "output_type": "pt"}
        found.append(pipe(operator(x), operator, noise_std=0.02, **options).images)
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
