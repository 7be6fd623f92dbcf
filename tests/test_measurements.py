"""Any measurement: operators of one's own, noise of every kind, images of other sizes, through the methods."""

import io

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from gaussian_images import GaussianImages
from PIL import Image
from test_restoration import EXACT, METHODS, SIZE, gaussian_pipe, quiet, seeded, unet_pipe
from torch.nn.functional import interpolate

from sde_diffusers import ScoreSdePipeline, ScoreSdeProbabilityFlowScheduler, ScoreSdeRestorationPipeline
from sde_diffusers.guidance import Guidance
from sde_diffusers.operators import (
    JPEG,
    Bands,
    Bicubic,
    Convolution,
    Downsampling,
    FourierMagnitude,
    Gamma,
    GaussianBlur,
    LinearOperator,
    Mask,
    MaskedFourier,
    Operator,
    Quantization,
    Radon,
    Saturation,
    box_mask,
    random_mask,
)
from sde_diffusers.posteriors import DAPS, MMPS, TMPD, DiffPIR, Measurement, PiGDM, poisson_noise_std, posterior_output
from sde_diffusers.posteriors.measurement import in_model_range, read_noise_std


class OwnBicubic(LinearOperator):
    """Neither its adjoint nor the shape of its measurements is said; these have three dimensions."""

    def __call__(self, x):
        return interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True).flatten(2)


def dense(operator, network):
    d, size = len(network.mean), network.config.sample_size
    return operator(torch.eye(d).double().view(d, network.config.in_channels, size, size)).flatten(1).T


def smooth(w):
    """A covariance on measurements: every value has something to do with its neighbours."""
    return 0.02 * w + 0.005 * (w.roll(1, -1) + w.roll(-1, -1))


NOISE = {
    "of each image": lambda y: torch.tensor([0.05, 0.0, 0.3]).reshape(-1, *[1] * (y.ndim - 1)),
    "of each value": lambda y: 0.05 + 0.3 * torch.rand(y.shape, generator=seeded(7)),
    "of some values": lambda y: 0.2 * torch.rand(y.shape[1:], generator=seeded(7)).round()[None],
    "a covariance": lambda y: smooth,
}


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("name", ["function", "convolution"])
def test_the_denoiser_of_any_noise(name, kind):
    """E[x_0 | x_t, y] in closed form, one image at a time."""
    pipe = gaussian_pipe(sampling_sde="vp")
    scheduler, network = pipe.scheduler, pipe.unet
    operator = OwnBicubic() if name == "function" else Convolution(torch.rand(2, 3, generator=seeded()), "valid")
    images = network.draw(3, seeded(1))
    operator = operator.for_images(images.shape)
    y = operator(images) + 0.1 * torch.randn(operator.measurement_shape(images.shape), generator=seeded(2)).double()
    noise = NOISE[kind](y)
    std, covariance = (0.0, noise) if callable(noise) else (noise.double(), None)
    scheduler.set_timesteps(5)
    t = scheduler.start_late(3)
    alpha, sigma = scheduler.sde.alpha(t), scheduler.sde.sigma(t)
    x = alpha * images + sigma * torch.randn(images.shape, generator=seeded(3), dtype=images.dtype)
    problem = Measurement(operator, y, std, 1.0, covariance)
    answer = posterior_output(Guidance(pipe, len(x)), scheduler, EXACT, problem, x)
    _, found = scheduler.noise_and_denoised(answer, x, t)

    a, d, prior = dense(operator, network), len(network.mean), network.covariance
    given = prior - alpha**2 * prior @ torch.linalg.solve(alpha**2 * prior + sigma**2 * torch.eye(d), prior)  # x_t
    units = torch.eye(len(a)).double().view(len(a), *y.shape[1:])
    for i in range(3):
        c = smooth(units).flatten(1) if covariance else torch.diag((std.expand_as(y)[i] ** 2).flatten())
        gain = alpha * torch.linalg.solve(alpha**2 * prior + sigma**2 * torch.eye(d), prior)
        denoised = network.mean + (x[i].flatten() - alpha * network.mean) @ gain
        weight = torch.linalg.solve(a @ given @ a.T + c, y[i].flatten() - a @ denoised)
        torch.testing.assert_close(found[i].flatten(), denoised + given @ a.T @ weight, rtol=0, atol=3e-4)


HOLES = random_mask((2, 1, 4, 4), 0.4, seeded(8))
WITH_MISSING_VALUES = {
    "mask": Mask(HOLES),
    "mask of a blur": Mask(HOLES) @ GaussianBlur(0.6),
    "channels of a mask": Bands([2, 0]) @ Mask(HOLES),
    "Fourier samples": MaskedFourier(~HOLES),
    "function": LinearOperator.from_function(lambda x: x.masked_fill(HOLES[0, 0], 0), (3, 4, 4)),
}


@pytest.mark.parametrize("name", WITH_MISSING_VALUES)
def test_correlated_noise_of_missing_values_tells_nothing(name):
    """V A'(A V A' + C)^-1 (y - A D) of the measured values alone, in closed form, one image at a time."""
    network, operator = gaussian_pipe().unet, WITH_MISSING_VALUES[name]
    x, d = network.draw(2, seeded(1)), len(network.mean)
    operator = operator.for_images(x.shape)
    y = operator(x) + 0.1 * torch.randn(operator.measurement_shape(x.shape), generator=seeded(2))
    seen = ~(HOLES[:1] if name == "function" else HOLES).expand_as(y) & (operator.measured(torch.ones_like(y)) != 0)
    y = torch.where(seen, y, 0)
    problem = Measurement(operator, y, 0.0, 1.0, lambda w: 0.01 * w + 0.0048 * (w.roll(1, -1) + w.roll(-1, -1)))

    def covariance(u):
        return (u.flatten(1) @ network.covariance).view(u.shape)

    found = MMPS(60, 0.0).shift(problem, network.draw(2, seeded(3)), covariance, 1.0).flatten(1)
    units = torch.eye(d).double().view(d, 1, *x.shape[1:]).expand(-1, 2, -1, -1, -1)
    columns = torch.stack([operator(u) for u in units])
    noise = problem.noise_covariance(torch.eye(y[0].numel()).double().view(-1, *y.shape[1:])).flatten(1)
    residual = y - operator(network.draw(2, seeded(3)))
    for i in range(2):
        kept = seen[i].flatten()
        a, c = columns[:, i].flatten(1).T[kept], noise[kept][:, kept]
        weight = torch.linalg.solve(a @ network.covariance @ a.T + c, residual[i].flatten()[kept])
        torch.testing.assert_close(found[i], network.covariance @ a.T @ weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("noise_std", [0.0, 0.05])
@pytest.mark.parametrize("method", ["mmps", "pigdm", "dps"])
def test_units_of_the_measurement_do_not_matter(method, noise_std, scale):
    pipe = gaussian_pipe(network={"in_channels": 1})
    image = (pipe.unet.draw(1, seeded(1)).float() + 1) / 2
    arguments = {"num_inference_steps": 5, "output_type": "pt"}
    outs = []
    for s in (1.0, scale):
        operator = LinearOperator.from_function(lambda x, s=s: s * x.cumsum(3)[..., 1::2], image.shape[1:])
        y = operator(image)
        outs.append(pipe(y, operator, s * noise_std, method, generator=seeded(), **arguments).images)
    torch.testing.assert_close(*outs, rtol=0, atol=1e-3)


OTHERS = ("tmpd", "diffpir", "daps")
OPERATORS = {
    "own": OwnBicubic(),
    "function": LinearOperator.from_function(lambda x: x.cumsum(3) / 4, (1, 8, 8)),
    "bicubic": Bicubic(2),
    "Fourier samples": MaskedFourier(random_mask((2, 1, 8, 8), 0.5, seeded())),
    "Radon": Radon(5),
    "composition": Mask(box_mask(4, 4, (0, 0, 2, 2))) @ Downsampling(2),
    **{f"{b} convolution": Convolution(torch.rand(3, 3, generator=seeded()) / 4.5, b) for b in ("reflect", "valid")},
    "valid Gaussian": GaussianBlur(0.6, "valid"),
}


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, method) for name in OPERATORS for method in METHODS]
    + [(name, method) for name in ("own", "valid Gaussian") for method in OTHERS]
    + [("Fourier samples", "diffpir"), ("Fourier samples", "daps"), ("Radon", "tmpd")],
)
def test_every_method_runs_with_every_operator(name, method):
    """With noise or without, of which the images reproduce the measurement up to the operator's tolerance."""
    pipe, operator = unet_pipe(), OPERATORS[name]
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, time_grid="noise_share")  # to the end
    image = 0.3 + 0.4 * torch.rand(2, 1, 8, 8, generator=seeded())
    y = operator.for_images(image.shape)(image)
    arguments = {"method": method, "num_inference_steps": 3, "generator": seeded(), "output_type": "pt"}
    if method != "projection":
        assert pipe(y, operator, 0.05, **arguments).images.isfinite().all()
    out = pipe(y, operator, num_samples=8, **arguments).images
    inside = ((out > 0) & (out < 1)).flatten(1).all(1)  # else clipped
    measured = operator.repeat(8).for_images(out.shape)(out)
    off = (measured - y.repeat_interleave(8, 0))[inside].abs()
    assert (inside.any() or method in OTHERS) and not (off > 1e-3 * y.abs().max()).any()


@pytest.mark.parametrize("operator", [MaskedFourier(~random_mask((8, 8), 0.4, seeded())), Convolution([[1.0, -1.0]])])
def test_row_sums_that_cancel_are_refused(operator):
    """TMPD takes them for variances; what it drew was black and white."""
    pipe = unet_pipe()
    y = operator(torch.rand(1, 1, 8, 8, generator=seeded()))
    with pytest.raises(
        ValueError, match=f'`method`="tmpd" .* cancel for .*`operator` .*{type(operator).__name__} measures'
    ):
        pipe(y, operator, 0.01, "tmpd", num_inference_steps=2)


SMOOTHED = torch.tensor([[0.1, 0.15, 0.1], [0.05, 0.3, 0.1], [0.05, 0.1, 0.05]])
OWN_BLUR = LinearOperator.from_function(Convolution(SMOOTHED, "zero"), (1, 8, 8))
PROJECTIONS = torch.randn(40, 64, generator=seeded(7))
OWN_PROJECTIONS = LinearOperator.from_function(lambda x: x.flatten(1) @ PROJECTIONS.T.to(x), (1, 8, 8))
FEW_STEPS = {
    "a little noise beside small singular values": (GaussianBlur(0.7), 1e-3, 3.9, 0.3),
    "a kernel, less noise": (Convolution(torch.tensor([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 8), 1e-5, 4.8, 0.5),
    "an own blur, a little noise": (OWN_BLUR, 1e-3, 3.0, 0.4),
    "noise of each value of a blur": (GaussianBlur(0.7), "each", 1.9, 0.2),
    "noise of each of some projections": (OWN_PROJECTIONS, "each", 1.3, 0.1),
    "some pixels exact": (Mask(random_mask((8, 8), 0.4, seeded(3))), "some", 0.34, 0.02),
    "some lines exact": (Radon(6), "some", 1.2, 0.1),
    "some samples exact": (MaskedFourier(~random_mask((8, 8), 0.4, seeded(4))), "some", 0.28, 0.1),
}


@pytest.mark.parametrize("name", FEW_STEPS)
def test_few_steps_do_for_values_that_are_known_differently(name):
    """Three steps of MMPS near the end of sampling, against the solution, in deviations of the posterior.

    What differs by orders of magnitude because of A or of the noise alone is not for the steps to find.
    """
    operator, std, plain, most = FEW_STEPS[name]
    network, shape, level = GaussianImages(sample_size=8, in_channels=1, std=0.2), (1, 1, 8, 8), 0.1
    operator, mean = operator.for_images(shape), network.mean.view(shape).float()
    y = operator((network.draw(1, seeded(5)).float() + 1) / 2)
    some = torch.where(torch.rand(y.shape, generator=seeded(9)) > 0.5, 0.1, 0.0)
    each = 1e-3 * 10 ** torch.rand(y.shape, generator=seeded(9))
    std = {"some": some, "each": each}[std] if isinstance(std, str) else torch.full_like(y, std)
    y = y + std * operator.measured(torch.randn(y.shape, generator=seeded(6)))
    problem = in_model_range(operator, y, read_noise_std(std, y), None, (-1, 1), shape)

    prior, a = network.covariance, dense(operator, network)
    v = prior - prior @ torch.linalg.solve(prior + level**2 * torch.eye(64, dtype=torch.float64), prior)
    total = a @ v @ a.T + torch.diag(4 * std.flatten().double() ** 2)
    gain = v @ a.T @ torch.linalg.pinv(total, rtol=1e-12, hermitian=True)
    expected = gain @ (2 * y.flatten().double() - a.sum(1) - a @ network.mean)
    deviation = (v - gain @ a @ v).trace().sqrt()

    def error(method):
        shift = method.shift(problem, mean, lambda u: (u.flatten(1).double() @ v).float().view(u.shape), level)
        return ((shift.flatten().double() - expected).norm() / deviation).item()

    assert error(MMPS()) < most and error(MMPS(64)) < 0.02
    assert error(Unpreconditioned()) > 0.8 * plain


class Unpreconditioned(MMPS):
    def preconditioner(self, *arguments):
        return None


def test_ways_to_say_one_measurement_are_one():
    """Noise of each value, the same as a covariance, and values in units of it, in three steps of MMPS."""
    pipe = gaussian_pipe(network={"in_channels": 1})
    std = 5e-4 * 10 ** (3 * torch.rand(1, 1, 4, 4, generator=seeded()))
    y = (pipe.unet.draw(1, seeded(1)).float() + 1) / 2 + std * torch.randn(std.shape, generator=seeded(2))
    own = LinearOperator.from_function(lambda x: x.clone(), (1, 4, 4))
    whitened = LinearOperator.from_function(lambda x: x / std, (1, 4, 4))
    options = {"num_inference_steps": 8, "output_type": "pt"}
    expected = pipe(y, own, std, generator=seeded(3), **options).images
    for found in (
        pipe(y, own, noise_covariance=lambda w: std**2 * w, generator=seeded(3), **options).images,
        pipe(y / std, whitened, 1.0, generator=seeded(3), **options).images,
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_values_in_other_units_hide_nothing_of_the_rest():
    """One pixel, as it is and times 10,000, with noise in the same units, beside a blur; 8 steps of three products."""
    pipe, blur = gaussian_pipe(network={"in_channels": 1}), Convolution(torch.ones(3, 3) / 9, "zero")
    x = (pipe.unet.draw(1, seeded(1)).float() + 1) / 2
    outs = []
    for k in (1.0, 1e4):
        operator = LinearOperator.from_function(
            lambda x, k=k: torch.cat([k * x[..., :1, :1].flatten(1), blur(x).flatten(1)], 1), (1, 4, 4)
        )
        std = torch.full((1, 17), 0.01)
        std[:, 0] *= k
        y = operator(x) + std * torch.randn(std.shape, generator=seeded(2))
        outs.append(pipe(y, operator, std, num_inference_steps=8, generator=seeded(3), output_type="pt").images)
    torch.testing.assert_close(*outs, rtol=0, atol=1e-3)


def test_a_loud_neighbour_hides_no_correlation():
    """Correlated noise in one image, white and loud noise in the other, whose values hid what the former's share."""
    pipe = gaussian_pipe(network={"in_channels": 1})
    operator = Convolution(torch.ones(3, 3) / 9, "zero")
    y = operator((pipe.unet.draw(2, seeded(1)).float() + 1) / 2)
    steps = (torch.arange(4)[:, None] - torch.arange(4)).abs()
    alike = 0.05**2 * 0.95 ** (steps[:, None, :, None] + steps[None, :, None, :]).flatten(2).flatten(0, 1).float()

    def correlated(w):
        return (w.flatten(1) @ alike.to(w)).view(w.shape)

    def of_both(w):
        return torch.cat([correlated(w[:1]), 30.0**2 * w[1:]])

    options = {"num_inference_steps": 8, "output_type": "pt"}
    alone = pipe(y[:1], operator, noise_covariance=correlated, generator=[seeded(3)], **options).images
    both = pipe(y, operator, noise_covariance=of_both, generator=[seeded(3), seeded(4)], **options).images
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-4)


def test_exact_values_that_contradict_each_other_beside_noisy_ones():
    """Their mean is reproduced, as if all were exact; before, an error came after the last step."""
    pipe = gaussian_pipe(network={"in_channels": 1})
    image = (pipe.unet.draw(1, seeded(1)).float() + 1) / 2
    copies = LinearOperator.from_function(lambda x: x.expand(-1, 3, -1, -1) + 0, (1, 4, 4))
    std = torch.tensor([0.0, 0.0, 0.1]).view(1, 3, 1, 1)
    y = copies(image) + torch.tensor([0.0, 0.02, 0.1]).view(1, 3, 1, 1)
    found = pipe(y, copies, std, num_inference_steps=20, generator=seeded(), output_type="pt").images
    torch.testing.assert_close(found, (image + 0.01).clamp(0, 1), rtol=0, atol=1e-4)


def test_noise_of_missing_values_does_not_matter():
    pipe, missing = unet_pipe(), random_mask((1, 1, 8, 8), 0.4, seeded())
    image = torch.rand(1, 1, 8, 8, generator=seeded(1))
    noise = torch.full_like(image, 0.05)
    for method, operator in (("mmps", Mask(missing)), ("dps", Mask(missing)), ("pigdm", Gamma(2.0) @ Mask(missing))):
        expected, *others = (
            pipe(operator(image), operator, std, method, num_inference_steps=3, generator=seeded(2), output_type="pt")
            for std in (noise, noise.masked_fill(missing, torch.nan), noise.masked_fill(missing, 0.0))
        )
        assert all(torch.equal(other.images, expected.images) for other in others)
    counts = image.masked_fill(missing, torch.nan)
    assert pipe(counts, Mask(missing), poisson_noise_std(counts, 100), num_inference_steps=2).images
    with pytest.raises(ValueError, match="`noise_std` must be a number .* but reaches from nan"):
        pipe(image, Mask(~missing), noise.masked_fill(missing, torch.nan))


def test_neighbours_in_a_batch_change_nothing():
    """Four times one image with one seed, some of whose values are exact."""
    pipe, operator = unet_pipe(), Radon(5).for_images((4, 1, 8, 8))
    y = operator(torch.rand(1, 1, 8, 8, generator=seeded()).expand(4, -1, -1, -1))
    some = torch.where(torch.rand(y.shape[1:], generator=seeded(9)) > 0.5, 0.1, 0.0)[None]
    out = pipe(y, operator, some, num_inference_steps=3, generator=[seeded(7) for _ in y], output_type="pt").images
    alone = pipe(y[:1], operator, some, num_inference_steps=3, generator=[seeded(7)], output_type="pt").images
    torch.testing.assert_close(out, alone.expand_as(out), rtol=0, atol=1e-4)


def test_noise_of_each_image_and_of_each_value():
    pipe, operator = unet_pipe(), Downsampling(2)
    y = operator(torch.rand(2, 1, 8, 8, generator=seeded()))

    def draw(noise_std, method="mmps", **more):
        arguments = {"num_samples": 2, "num_inference_steps": 3, "generator": seeded(), "output_type": "pt"}
        return pipe(y, operator, noise_std, method, **arguments, **more).images

    for method in METHODS:
        expected = draw(0.1, method)
        torch.testing.assert_close(draw([0.1, 0.1], method), expected, rtol=0, atol=1e-4)
        mixed, exact = draw(torch.tensor([0.1, 0.0]), method), draw(0.0, method)
        if method == "projection":  # draws no more noise once that of the measurement takes over
            continue
        torch.testing.assert_close(mixed, torch.cat([expected[:2], exact[2:]]), rtol=0, atol=1e-4)
    every = torch.full((1, 4, 4), 0.1)
    for method in ("mmps", "pigdm", "tmpd", "diffpir"):
        if method == "tmpd":
            torch.testing.assert_close(draw(every, method), draw(0.1, method), rtol=0, atol=1e-4)
            continue
        torch.testing.assert_close(draw(every, method), draw(0.1, method), rtol=0, atol=1e-4)
        as_function = draw(0.0, method, noise_covariance=lambda w: 0.01 * w)
        torch.testing.assert_close(as_function, draw(0.1, method), rtol=0, atol=1e-4)
    every[..., 0] = 0
    images = draw(every)
    clipped = (images == 0) | (images == 1)
    off = (operator(images) - y.repeat_interleave(2, 0))[..., 0].abs()
    assert off[~operator(clipped.float())[..., 0].bool()].max() < 1e-4
    for method in ("dps", "projection", "daps"):
        with pytest.raises(ValueError, match="`method`.*each"):
            draw(every, method)
    with pytest.raises(ValueError, match="`method`.*covariance"):
        draw(0.0, "tmpd", noise_covariance=lambda w: w)


def test_simpler_methods_are_right_for_independent_pixels():
    """V = r^2: TMPD's row sums are then A V A' for a mask, and DiffPIR's prior is x_0 given x_t."""
    x, level = torch.randn(2, 3, 4, 4, generator=seeded()), 0.7
    operator, y = Mask(box_mask(4, 4, (1, 1, 3, 4))), torch.randn(2, 3, 4, 4, generator=seeded(1))
    variance = level**2 * 0.25 / (level**2 + 0.25)
    problem = Measurement(operator, operator(y), 0.1, 1.0)
    expected = EXACT.shift(problem, x, lambda u: variance * u, level)
    torch.testing.assert_close(TMPD().shift(problem, x, lambda u: variance * u, level), expected)
    torch.testing.assert_close(DiffPIR(level**2 / variance).shift(problem, x, None, level), expected)


def test_daps_draws_from_the_posterior_of_independent_pixels():
    pipe = gaussian_pipe(network={"in_channels": 1, "length": 0.01, "std": 0.4})
    operator = Downsampling(2)
    y = operator((pipe.unet.draw(1, seeded(1)) + 1) / 2)
    out = pipe(y, operator, 0.05, DAPS(0.4), 400, 10, generator=seeded(), output_type="pt")
    low = operator(torch.full((1, 1, SIZE, SIZE), -1.0))
    mean, covariance = pipe.unet.posterior(operator, low + 2 * y, 0.1)
    deviation = covariance.diagonal().sqrt()
    assert ((2 * out.mean.double() - 1).flatten() - mean).abs().max() < 0.2 * deviation.mean()
    torch.testing.assert_close(2 * out.std.double().flatten(), deviation, rtol=0.15, atol=0)


NONLINEAR = {
    "gamma": (Gamma(2.2), lambda x: 2.2 * x**1.2),
    "saturation": (Saturation(2.0, 0.0, 0.9), lambda x: torch.full_like(x, 2.0)),
    "quantization": (Quantization(8), torch.ones_like),
    "JPEG": (JPEG(50), torch.ones_like),
    "function": (Operator.from_function(lambda x: x.exp(), (1, 8, 8)), torch.exp),
}


@pytest.mark.parametrize("name", NONLINEAR)
def test_jacobians(name):
    operator, slope = NONLINEAR[name]
    x, u = torch.rand(2, 1, 8, 8, generator=seeded()), torch.randn(2, 1, 8, 8, generator=seeded(1))
    jacobian = operator.at(x)
    torch.testing.assert_close(jacobian(u), slope(x) * u)
    torch.testing.assert_close(jacobian.adjoint(u), slope(x) * u)
    near = jacobian @ Convolution(torch.ones(3, 3) / 9)
    assert near.linear and not (operator @ Convolution(torch.ones(3, 3))).linear
    blurred = (operator @ Convolution(torch.ones(3, 3) / 9)).at(x)(u)
    blur = Convolution(torch.ones(3, 3) / 9)
    torch.testing.assert_close(blurred, slope(blur(x)) * blur(u))


def test_nonlinear_measurements_are_what_they_say():
    x = torch.rand(1, 3, 16, 16, generator=seeded())
    file = io.BytesIO()
    Image.fromarray((255 * x[0]).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=30)
    decoded = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    torch.testing.assert_close(JPEG(30)(x)[0], decoded)
    torch.testing.assert_close(Quantization(4)(x), (3 * x).round() / 3)
    torch.testing.assert_close(Saturation(3.0, 0.2, 0.8)(x), (3 * x).clamp(0.2, 0.8))
    torch.testing.assert_close(FourierMagnitude()(x), torch.fft.fft2(x).abs() / 16, rtol=0, atol=1e-5)
    for make, name in (
        (lambda: Gamma(0), "gamma"),
        (lambda: Saturation(1, 1, 1), "low"),
        (lambda: Quantization(1), "levels"),
        (lambda: JPEG(0), "quality"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`"):
            make()


@pytest.mark.parametrize("operator", [Gamma(1 / 2.2), FourierMagnitude()], ids=["gamma", "magnitude"])
def test_mmps_of_nonlinear_measurements_against_integration(operator):
    """A pixel of deviation 0.2 about 0.5: the posterior's mean and deviation are integrals."""
    pipe = gaussian_pipe(network={"sample_size": 1, "in_channels": 1, "std": 0.4})
    y = operator(torch.tensor([0.35, 0.5, 0.8]).view(3, 1, 1, 1))
    out = pipe(y, operator, 0.05, MMPS(1, 0.0), 400, 60, generator=seeded(), output_type="pt")
    x = torch.linspace(-1, 2, 10_001).double()
    seen = operator(x.view(-1, 1, 1, 1)).flatten()
    density = (-0.5 * ((x - 0.5) / 0.2) ** 2 - 0.5 * ((y.double().view(3, 1) - seen) / 0.05) ** 2).exp()
    density /= density.sum(1, keepdim=True)
    mean = (density * x).sum(1)
    deviation = (density * (x - mean[:, None]) ** 2).sum(1).sqrt()
    assert ((out.mean.flatten() - mean).abs() < 0.25 * deviation).all()
    torch.testing.assert_close(out.std.double().flatten(), deviation, rtol=0.15, atol=0)


@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear_measurements_run_or_are_refused(name):
    pipe, operator = unet_pipe(), NONLINEAR[name][0]
    y = operator(torch.rand(1, 1, 8, 8, generator=seeded()))
    arguments = {"num_inference_steps": 2, "output_type": "pt"}
    for method in ("mmps", "dps", "pigdm", "tmpd", "diffpir"):
        assert pipe(y, operator, 0.05, method, **arguments).images.isfinite().all()
    assert pipe(y, operator, **arguments).images.isfinite().all()
    for method, message in (("projection", "linear"), ("daps", "linear"), ("pigdm", "nonlinear.*`noise_std`")):
        with pytest.raises(ValueError, match=f"`method`.*{message}"):
            pipe(y, operator, 0.0, method, **arguments)


@pytest.mark.parametrize("method", ["mmps", "pigdm"])
def test_an_operator_that_fails_in_drawing_is_named(method):
    operator = Operator.from_function(lambda x: (0.51 + x).log(), (1, 8, 8))  # y: of pixels near -0.51
    with pytest.raises(ValueError, match=r"`operator` measures infinite values or NaN of .*images"):
        unet_pipe()(torch.rand(1, 1, 8, 8) - 8, operator, 0.05, method, num_inference_steps=8, generator=seeded())


def test_counts_of_photons():
    """The variance of counts / photons is that of Poisson's law, at least that of one count."""
    counts = torch.poisson(torch.full((20_000,), 40.0), generator=seeded())
    std = poisson_noise_std(counts[None] / 100, 100.0)
    assert (counts / 100).std().item() == pytest.approx(std.square().mean().sqrt().item(), rel=0.03)
    assert poisson_noise_std(torch.zeros(1, 1), 100).item() == pytest.approx(0.01)
    for y, photons, name in (
        (-torch.ones(1, 1), 9, "y"),
        (torch.ones(1, 1) / 0, 9, "y"),
        (torch.ones(1, 1), 0, "photons"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`"):
            poisson_noise_std(y, photons)


def test_images_of_other_sizes():
    pipe, image = unet_pipe(), torch.rand(1, 1, 12, 10, generator=seeded())
    arguments = {"num_inference_steps": 2, "output_type": "pt"}
    kernel = torch.ones(3, 3) / 9
    calls = [
        pipe.inpaint(image, box_mask(12, 10, (2, 2, 6, 6)), **arguments),
        pipe.super_resolve(image[..., :6, :5], 2, **arguments),
        pipe.super_resolve(image[..., :6, :5], 2, "bicubic", **arguments),
        pipe.deblur(image, 1.0, **arguments),
        pipe.deblur(image, kernel, boundary="replicate", **arguments),
        pipe.deblur(image[..., 1:-1, 1:-1], kernel, boundary="valid", **arguments),
        pipe(image[..., 2:, :], Convolution(torch.ones(3, 1) / 3, "valid"), image_size=(12, 10), **arguments),
        pipe(image, Mask(box_mask(12, 10, (0, 0, 3, 3))), **arguments),
        pipe(image, LinearOperator.from_function(lambda x: 2 * x, (1, 12, 10)), 0.1, **arguments),
        ScoreSdePipeline.from_pipe(pipe)(image=image, **arguments),
    ]
    assert all(call.images.shape == image.shape for call in calls)
    assert unet_pipe(3).colorize(image, **arguments).images.shape == (1, 3, 12, 10)


def test_sizes_that_a_network_does_not_take_are_refused():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
    )
    pipe = quiet(ScoreSdeRestorationPipeline(unet.eval(), ScoreSdeProbabilityFlowScheduler(sde="vp")))
    plain, arguments = quiet(ScoreSdePipeline.from_pipe(pipe)), {"num_inference_steps": 2, "output_type": "pt"}
    assert pipe.super_resolve(torch.rand(1, 1, 6, 8), 2, **arguments).images.shape == (1, 1, 12, 16)
    assert plain(image=torch.rand(1, 1, 4, 12), **arguments).images.shape == (1, 1, 4, 12)
    for name, call in {
        "image": lambda: plain(image=torch.rand(1, 1, 8, 10)),
        "image_size": lambda: pipe(torch.rand(1, 1, 10, 8), GaussianBlur(1.0), 0.1, image_size=(10, 8)),
    }.items():
        unet.forward = None
        with pytest.raises(ValueError, match=f"`{name}`.*10.*multiples of 4"):
            call()
    fixed = gaussian_pipe()
    with pytest.raises(ValueError, match=f"none but its own {SIZE} x {SIZE}"):
        fixed.deblur(torch.rand(1, 3, 8, 8), 1.0)


@pytest.mark.parametrize(
    ("noise_std", "name"),
    [
        (-0.1, "noise_std"),
        (True, "noise_std"),
        ([0.1, 0.1, 0.1], "noise_std"),
        ([0.1, -0.1], "noise_std"),
        (torch.ones(3, 8), "noise_std"),
        (torch.ones(2, 1, 8, 8, 1), "noise_std"),
        (torch.tensor([0.1, float("nan")]), "noise_std"),
        ("little", "noise_std"),
        ([True, False], "noise_std"),
        (np.array([True, False]), "noise_std"),
        (["0.1", "0.2"], "noise_std"),
        (np.array([0.1 + 9j, 0.2]), "noise_std"),
        (1e200, "noise_std` must be a number from 0 to 1e.15"),
        ([1e25, 0.1], "noise_std"),
        (lambda w: w.abs(), "noise_covariance"),
        (lambda w: -w, "noise_covariance"),
        (lambda w: w.roll(1, -1), "noise_covariance"),
        (lambda w: w.sum(), "noise_covariance"),
        (lambda w: 0.02 * w + 0.015 * (w.roll(1, -1) + w.roll(-1, -1)), "noise_covariance` must be positive.* -0.01,"),
        (lambda w: w - 0.04 * w.sum((1, 2, 3), keepdim=True), "noise_covariance` must be positive.* -1.56,"),
        (lambda w: w.mul_(0.01), "noise_covariance` .* in place"),
        (lambda w: w @ torch.ones(3, 3), "noise_covariance` does not take measurements"),
        (0.1, "noise_covariance` must be a function"),
        (torch.eye(64), "noise_covariance` must be a function"),
    ],
)
def test_noise_that_is_none_is_refused(noise_std, name):
    pipe = unet_pipe()
    pipe.unet.forward = None  # the network must not be asked
    noise = {name.split("`")[0]: noise_std}
    with pytest.raises(ValueError, match=f"`{name}"):
        pipe(torch.rand(2, 1, 8, 8), Mask(box_mask(8, 8, (2, 2, 6, 6))), **noise)


@pytest.mark.parametrize("size", [(1, 2), (8, 8)])
def test_singular_covariances_are_covariances(size):
    """Of noise that all values share, or values two by two; and of few values."""
    y = torch.rand(2, 1, *size)
    for c in (lambda w: w.mean((1, 2, 3), keepdim=True).expand_as(w), lambda w: w + w.flip(3), lambda w: 0.01 * w):
        unet_pipe()(y, Mask(torch.zeros(size, dtype=torch.bool)), noise_covariance=c, num_inference_steps=1)


class Wrong(LinearOperator):
    """An adjoint that is not one."""

    def __call__(self, x):
        return x[..., ::2]

    def adjoint(self, y):
        return y.repeat_interleave(2, 3)


class WrongGram(LinearOperator):
    """Two values of each pixel, and so A' A = 2."""

    gram = 1.0

    def __call__(self, x):
        return torch.cat([x, x], 1)


class WrongSolution(LinearOperator):
    """As if A A' were 1."""

    direct = True

    def __call__(self, x):
        return x.cumsum(-1)

    def solve(self, y, a, b):
        return y / (a + b)


class IllConditioned(LinearOperator):
    """Singular values from 1 to 1e-4."""

    iterations = 20

    def __call__(self, x):
        return x * torch.logspace(0, -4, 64).view(8, 8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (Wrong(), "<A x, y> = "),
        (WrongGram(), "own systems: A A' y = 1 y, its `gram`, .* difference of 0.5, allowed"),
        (WrongSolution(), "own systems: .* for w = `solve"),
        (IllConditioned(), "`iterations`"),
    ],
)
def test_operators_that_will_not_do_are_refused_before_anything_is_drawn(operator, message, method):
    pipe = unet_pipe()
    pipe.unet.forward = None
    x = torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match=message):
        pipe(operator(x), operator, method=method)


def test_what_is_exact_in_part_is_solved_with_the_operators_own_settings():
    pipe, operator, x = unet_pipe(), IllConditioned(), torch.rand(1, 1, 8, 8, generator=seeded())
    noise_std = torch.zeros(1, 8, 8).index_fill(2, torch.tensor([0]), 0.1)
    arguments = {"num_inference_steps": 2, "output_type": "pt"}
    with pytest.raises(ValueError, match="not found in 10 iterations"):
        pipe(operator(x), operator, noise_std, **arguments)
    operator.tolerance = 0.9
    assert pipe(operator(x), operator, noise_std, **arguments).images.isfinite().all()


@pytest.mark.parametrize(
    ("name", "value"),
    [("iterations", 0), ("iterations", 10.5), ("iterations", "many"), ("tolerance", 0.0), ("tolerance", float("nan"))],
)
def test_settings_out_of_range_are_refused(name, value):
    operator = GaussianBlur(1.0)
    setattr(operator, name, value)
    with pytest.raises(ValueError, match=f"`operator.{name}`"):
        unet_pipe()(torch.rand(1, 1, 8, 8), operator)


def test_steep_curves_with_little_noise_have_weights():
    """Pi-GDM far from the measurement: slopes from 1e-19 to 1e8, in closed form."""
    operator = Gamma(6.0)
    y, denoised = torch.rand(1, 1, 8, 8, generator=seeded()), torch.linspace(-1, 30, 64).view(1, 1, 8, 8)
    found = PiGDM(0.5).weight(Measurement(operator, y, 1e-4, 1.0), denoised, 1.0)
    slope = torch.where(denoised > 1e-4, 6 * denoised.clamp(min=1e-4) ** 5, 6 * 1e-20)
    expected = 0.2 * slope * (y - operator(denoised)) / (0.2 * slope**2 + 1e-8)  # 0.2 = 1 / (1 / 0.5**2 + 1)
    torch.testing.assert_close(found, expected)
    image = torch.rand(2, 1, 8, 8, generator=seeded(2))
    arguments = {"num_samples": 2, "num_inference_steps": 4, "generator": seeded(), "output_type": "pt"}
    assert unet_pipe()(operator(image), operator, 1e-4, "pigdm", **arguments).images.isfinite().all()


def test_the_blur_of_integers_has_the_noise_of_their_rounding():
    """Told by the type of the image, and for the model's own type by its range."""
    eight = torch.randint(256, (1, 1, 8, 8), generator=seeded(), dtype=torch.uint8)
    twelve = unet_pipe()
    twelve.unet.register_to_config(value_dtype="uint16", value_range=[0, 4095])
    signed = unet_pipe()
    signed.unet.register_to_config(value_dtype="int16", value_range=[-1000, 3095])
    for pipe, image, levels in (
        (unet_pipe(), eight, 256),
        (unet_pipe(), (257 * eight.int()).numpy().astype(np.uint16)[0, 0], 65536),
        (unet_pipe(), Image.fromarray(eight[0, 0].numpy()), 256),
        (unet_pipe(), eight / 255, 256),
        (twelve, 16 * eight.int(), 4096),
        (twelve, eight, 256),
        (unet_pipe(), (257 * eight.int()).numpy().astype(">u2")[0, 0], 65536),  # as FITS files have it
        (twelve, (16 * eight.int()).numpy().astype(np.int64)[0, 0], 4096),
        (signed, (16 * eight.int() - 1000).numpy().astype(">i2")[0, 0], 4096),
    ):
        options = {"num_inference_steps": 2, "output_type": "pt"}
        found = pipe.deblur(image, 0.7, generator=seeded(), **options).images
        noise = 1 / ((levels - 1) * 12**0.5)
        assert torch.equal(found, pipe.deblur(image, 0.7, noise, generator=seeded(), **options).images), levels
    told = {"noise_covariance": lambda w: 1e-4 * w, "num_inference_steps": 2, "output_type": "pt"}
    expected = unet_pipe()(eight / 255, GaussianBlur(0.7), generator=seeded(), **told).images
    assert torch.equal(unet_pipe().deblur(eight, 0.7, generator=seeded(), **told).images, expected)
    with pytest.raises(ValueError, match="`image` must be a PIL image, a list of them, an array or a tensor"):
        unet_pipe().deblur("blurred.png", 0.7)
    with pytest.raises(ValueError, match="`image_size` must not be given beside `image`"):
        unet_pipe().deblur(eight, 0.7, image_size=8)


def test_restored_images_in_units_of_the_data():
    pipe = unet_pipe()
    pipe.unet.register_to_config(value_dtype="uint16", value_range=[100, 4195])
    image, mask = torch.rand(1, 8, 8, generator=seeded()), box_mask(8, 8, (2, 2, 6, 6))
    options = {"num_samples": 3, "num_inference_steps": 2}
    unit = pipe.inpaint(image, mask, generator=seeded(), output_type="np", **options)
    found = pipe.inpaint(image, mask, generator=seeded(), output_type="np", data_units=True, **options)
    assert found.images.dtype == found.mean.dtype == np.uint16
    np.testing.assert_array_equal(found.images, (100 + 4095 * unit.images).round())
    np.testing.assert_array_equal(found.mean, (100 + 4095 * unit.mean).round())
    np.testing.assert_allclose(found.std, 4095 * unit.std, rtol=1e-6)
    with pytest.raises(ValueError, match="`data_units` is for `output_type` 'np' and 'pt'"):
        pipe.inpaint(image, mask, data_units=True, **options)


def test_colours_are_not_grey():
    pipe = unet_pipe(3)
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    with pytest.raises(ValueError, match="`gray` must be grey, but has colours"):
        pipe.colorize([red], num_inference_steps=2)
    grey = [red.convert("L"), red.convert("L").convert("RGB")]
    first, second = pipe.colorize(grey, (0.299, 0.587, 0.114), num_inference_steps=2, output_type="pt").images
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    for out in (first, second):
        assert ((out * weights).sum(0) - 76 / 255).abs().median() < 1e-3


@pytest.mark.parametrize("operator", [Downsampling(4), Bicubic(4)])
def test_sizes_that_a_factor_does_not_divide_are_refused(operator):
    with pytest.raises(ValueError, match="`factor` must divide the images' size 30 x 28"):
        operator(torch.rand(1, 1, 30, 28))


INTEGERS = [MaskedFourier(torch.ones(8, 8).bool()), FourierMagnitude(), Convolution(torch.ones(3, 3) / 9, "circular")]


@pytest.mark.parametrize("operator", [*INTEGERS, GaussianBlur(1.0), Bicubic(2), Downsampling(2)])
def test_integers_are_refused_by_what_computes(operator):
    with pytest.raises(ValueError, match="takes floating point images in .0, 1., but they are torch.uint8"):
        operator(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
