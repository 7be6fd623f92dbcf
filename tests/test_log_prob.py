"""Log-probabilities, their gradients, and bounds for integers, against closed forms and sums over all integers."""

import math

import numpy as np
import pytest
import torch
from exact_scores import Gaussian, Mixture, as_images
from test_likelihood import exact_pipeline, flow_logp_of_gaussian, nats, small_pipeline

from sde_diffusers.guidance import Guidance
from sde_diffusers.images import PixelFormat
from sde_diffusers.likelihood import likelihood_start
from sde_diffusers.likelihood.density_gradient import LogDensity, prior_logp
from sde_diffusers.likelihood.ode import STAGE_TIMES, STAGE_WEIGHTS
from sde_diffusers.likelihood.probability_flow import ProbabilityFlow

FLOATS = PixelFormat.of("float32", (-3.0, 5.0))
TIGHT = {"probes": "exact", "rtol": 1e-6, "atol": 1e-6}


def floating(data, d, **config):
    """A pipeline of data in FLOATS, whose network knows them scaled to its range."""
    pipe = exact_pipeline(data, d, **config)
    vars(pipe.unet.config).update(value_dtype=FLOATS.dtype, value_range=(FLOATS.low, FLOATS.high))
    return pipe


def in_model_range(pipe, x):
    return pipe.scheduler.parameterization.to_model_range(FLOATS.to_unit(x, torch.float64))


@pytest.mark.parametrize("sde", ["ve", "vp", "sub_vp", "flow"])
def test_log_prob_of_a_gaussian_and_its_score_are_in_the_units_of_the_data(sde):
    torch.manual_seed(0)
    root = 0.3 * torch.randn(3, 3).double()
    data = Gaussian([0.1, 0.5, 0.3], root @ root.T + 0.01 * torch.eye(3))
    pipe = floating(data, 3, sde=sde, image_range=(0.0, 1.0))
    x = as_images(4 * torch.rand(5, 3).double() - 1).requires_grad_()
    output = pipe.log_prob(x, **TIGHT)

    p = pipe.scheduler
    start = likelihood_start(p, 1e-5)
    points = in_model_range(pipe, x)[:, :, 0, 0]
    expected = flow_logp_of_gaussian(data, p.sde, points, start, p.start_time)[0] - 3 * math.log(8.0)
    assert torch.allclose(output.log_prob, expected, atol=3e-6)
    (score,) = torch.autograd.grad(output.log_prob.sum(), x, retain_graph=True)
    (expected_score,) = torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(score, expected_score, atol=1e-5 * expected_score.abs().max().item())


def test_the_gradient_is_that_of_the_estimate():
    """A random network, probes: against differences of the estimate along a direction."""
    pipe = small_pipeline(torch.float64)
    generator = torch.Generator().manual_seed(2)
    x = 255 * torch.rand(1, 1, 8, 8, generator=generator).double()
    direction = 32 * torch.randn(x.shape, generator=generator).double()
    probes = torch.randn(2, *x.shape, generator=generator).sign()
    given = {"class_labels": 1, "rtol": 1e-5, "atol": 1e-5}
    there = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pipe.log_prob(there, probes=probes, **given).log_prob.sum(), there)
    h = 3e-2
    both = torch.cat([x + h * direction, x - h * direction])
    up, down = pipe.log_prob(both, probes=probes.repeat(1, 2, 1, 1, 1), **given).log_prob
    assert (gradient * direction).sum().item() == pytest.approx((up - down).item() / (2 * h), rel=2e-3)


@pytest.mark.parametrize("variable", ["t", "noise_level"])
def test_the_gradient_is_that_of_the_steps_that_were_taken(variable):
    """At loose tolerances, too, where the ODE backwards leads to another image: differences with the same steps."""
    pipe, generator = small_pipeline(torch.float64), torch.Generator().manual_seed(2)
    x = (2 * torch.rand(2, 1, 8, 8, generator=generator) - 1).double().requires_grad_()
    probes = torch.randn(3, *x.shape, generator=generator).sign().double()
    flow = ProbabilityFlow(pipe, x.shape, Guidance(pipe, 2, [0, 2]), variable, probes)
    weights = torch.tensor([[1.0, 2.0, 0.5], [1e-6, 0.0, 3e-6]]).double()
    log_p, _ = LogDensity.apply(x, flow, 1e-3, 1.0, 0.1, 0.1)
    (gradient,) = torch.autograd.grad((weights * log_p).sum(), x)

    path: list = []
    flow.solve(x.detach(), 1e-3, 1.0, 0.1, 0.1, path)
    times = [u for u, _ in path]
    (_, size_0, *_), (_, size_1, *_) = (flow.coefficients(u) for u in (times[0], times[-1]))

    def replayed(x):
        y = torch.cat([x.flatten(1) / size_0, torch.zeros(2, 3).double()], 1)
        for u, following in zip(times, times[1:], strict=False):
            slopes = []
            for time, row in zip((0.0, *STAGE_TIMES), ((), *STAGE_WEIGHTS), strict=True):
                stage = y + (following - u) * sum((a * k for a, k in zip(row, slopes, strict=True)), 0 * y)
                slopes.append(flow(u + time * (following - u), stage))
            y = stage
        return prior_logp(pipe.scheduler, size_1 * y[:, :64].view(x.shape))[:, None] + y[:, 64:]

    direction, h = torch.randn(x.shape, generator=generator).double(), 1e-5
    up, down = (replayed(x.detach() + s * h * direction) for s in (1, -1))
    expected = (weights * (up - down) / (2 * h)).sum(1)
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), expected, rtol=1e-5, atol=1e-11)


def test_the_gradient_is_of_what_was_asked_whatever_came_since():
    pipe, x = small_pipeline(), 255 * torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    there = x.clone().requires_grad_()
    density = pipe.log_prob(there, probes=torch.ones(x.shape), rtol=0.1, atol=0.1).log_prob.sum()
    (gradient,) = torch.autograd.grad(density, there, retain_graph=True)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, sampling_sde="vp")
    pipe(batch_size=1, num_inference_steps=2)
    with torch.inference_mode():
        (again,) = torch.autograd.grad(density, there, retain_graph=True)
    assert torch.equal(gradient, again)
    with torch.no_grad():
        next(pipe.unet.parameters()).mul_(1.5)
    with pytest.raises(RuntimeError, match="weights have changed since `log_prob`"):
        torch.autograd.grad(density, there)


def test_gradients_are_those_that_were_asked_for():
    pipe, x = small_pipeline(), torch.rand(1, 1, 8, 8) * 255
    there = x.clone().requires_grad_()
    with torch.no_grad():
        quiet = pipe.log_prob(there, generator=torch.Generator().manual_seed(0)).log_prob
    assert not quiet.requires_grad
    assert torch.equal(quiet, pipe.log_prob(x, generator=torch.Generator().manual_seed(0)).log_prob)
    with pytest.raises(RuntimeError, match="`log_prob` has no second derivatives"):
        torch.autograd.grad(pipe.log_prob(there, rtol=0.1, atol=0.1).log_prob.sum(), there, create_graph=True)
    unit = (x / 255).requires_grad_()
    with pytest.raises(ValueError, match='`dequantize`="uniform" rounds images to levels'):
        pipe.bits_per_dim(unit)


def test_two_channels_of_a_mixture():
    """4 x 4 pixels of two channels, float32 and float64, against a solution by other means (see the docstring).

    Pixels are independent, two channels each, so that the ODE splits into 16 of two dimensions, whose densities follow
    from their flow and its Jacobian, by differentiating a plain Runge-Kutta solution.
    """
    mixture = Mixture([0.3, 0.7], [[0.2, 0.7], [0.6, 0.4]], 0.1)

    class Pixels:
        """The mixture at each pixel of images (N, 2, 4, 4)."""

        def __init__(self):
            self.dtype = torch.float64

        def each(self, ask, sde, x, t):
            points = x.permute(0, 2, 3, 1).reshape(-1, 2)
            return ask(sde, as_images(points), t)[:, :, 0, 0].reshape(len(x), 4, 4, 2).permute(0, 3, 1, 2)

        def score(self, sde, x, t):
            return self.each(mixture.score, sde, x, t)

        def denoised(self, sde, x, t):
            return self.each(mixture.denoised, sde, x, t)

    pipe = floating(Pixels(), 2, sde="vp", image_range=(0.0, 1.0))
    x = FLOATS.low + 8 * torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    sde, start = pipe.scheduler.sde, likelihood_start(pipe.scheduler, 1e-5)

    def slope(y, t):
        f, g = sde.drift(t), sde.diffusion(t)
        return f * y - g**2 / 2 * mixture.score(sde, as_images(y), t)[:, :, 0, 0]

    def code(y):
        for s, t in zip(times, times[1:], strict=False):
            h, middle = t - s, (s + t) / 2
            k_1 = slope(y, s)
            k_2 = slope(y + h / 2 * k_1, middle)
            k_3 = slope(y + h / 2 * k_2, middle)
            y = y + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + slope(y + h * k_3, t))
        return y

    times = start + (1 - start) * torch.linspace(0, 1, 151).double() ** 2
    points = in_model_range(pipe, x).permute(0, 2, 3, 1).reshape(-1, 2)
    points.requires_grad_()
    z = code(points)
    jacobians = torch.stack([torch.autograd.grad(z[:, k].sum(), points, create_graph=True)[0] for k in (0, 1)], 1)
    logdet = torch.linalg.slogdet(jacobians).logabsdet.sum()
    expected = sde.prior_logp(z.reshape(1, -1)) + logdet - 32 * math.log(8.0)
    assert abs(pipe.log_prob(x, **TIGHT).log_prob - expected).item() < 32e-6
    there = x.float().requires_grad_()
    loose = pipe.log_prob(there, probes="exact").log_prob
    assert abs(loose - expected).item() < 32e-3
    (score,) = torch.autograd.grad(loose.sum(), there)
    (expected_score,) = torch.autograd.grad(expected.sum(), points)
    expected_score = expected_score.view(1, 4, 4, 2).permute(0, 3, 1, 2) / 8.0  # per unit of the data
    assert torch.allclose(score.double(), expected_score, rtol=0, atol=1e-4 * expected_score.abs().max().item())


@pytest.mark.parametrize("sde", ["ve", "vp"])
@pytest.mark.parametrize("kind", ["uniform", "truncated_normal"])
def test_bounds_of_integers_lie_below_the_probability_of_the_bin(sde, kind):
    """Gaussian data of one channel and 8 levels: the sum of exp(bound) over all levels is at most 1, each bound at
    most the bin's mass, and more passes, weighted by importance, come closer."""
    data = Gaussian([0.4], [[0.04]])
    pipe = exact_pipeline(data, 1, sde=sde, image_range=(0.0, 1.0))
    levels, copies = 8, 400
    x = torch.arange(levels).repeat_interleave(copies)[:, None, None, None]
    generator = torch.Generator().manual_seed(0)
    solver = {"probes": "exact", "rtol": 1e-4, "atol": 1e-4}
    output = pipe.log_prob(
        x, levels=levels, dequantize=kind, passes=4, importance_weighted=True, generator=generator, **solver
    )
    weighted = output.log_prob.view(levels, copies)
    plain = (output.log_prob - output.importance_gap).view(levels, copies)

    p = pipe.scheduler
    eps = likelihood_start(p, 1e-5)
    width, first = 1 / levels, 0.0
    if kind == "truncated_normal":
        half = 1 / (levels - 1) / 2
        eps = p.sde.inverse_half_log_snr(-torch.tensor(half / 3, dtype=torch.float64).log()).item()
        width, first = 2 * half, -half
    edges = first + width * torch.arange(levels + 1)
    alpha = p.sde.alpha(eps).item() if kind == "truncated_normal" else 1.0
    fine = (edges[:-1, None] + width * (torch.arange(400) + 0.5) / 400).double()
    density = flow_logp_of_gaussian(data, p.sde, alpha * fine.reshape(-1, 1), eps, p.start_time)[0].exp() * alpha
    mass = (density.view(levels, 400).mean(1) * width).log()
    error = plain.std(1) / math.sqrt(copies)
    assert (plain.mean(1) < mass + 3 * error + 1e-3).all() and plain.mean(1).exp().sum() < 1
    assert ((weighted.mean(1) < mass + 3 * error + 1e-3) & (weighted.mean(1) > plain.mean(1))).all()
    assert (mass - weighted.mean(1) < 0.6 * (mass - plain.mean(1)) + 3 * error).all()


def test_truncated_normal_asks_what_training_taught():
    """Data on a grid, of which a perfect network knows only the noisy versions: uniform noise falls between them."""
    levels = torch.arange(4) / 3
    pipe = exact_pipeline(Mixture([0.1, 0.2, 0.3, 0.4], levels[:, None], 0.0), 1, sde="vp", image_range=(0.0, 1.0))
    x = torch.arange(4).repeat_interleave(50)[:, None, None, None]
    given = {"levels": 4, "generator": torch.Generator().manual_seed(0), "probes": "exact"}
    bound = pipe.log_prob(x, dequantize="truncated_normal", **given).log_prob.view(4, 50).mean(1)
    assert torch.allclose(bound.exp(), torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), rtol=0.02)


def test_a_network_that_knows_no_noise_so_small_is_asked_at_its_least():
    pipe = small_pipeline(sigma_min=0.01)
    assert likelihood_start(pipe.scheduler, None, "truncated_normal", 256) == pytest.approx(0, abs=1e-12)
    assert likelihood_start(pipe.scheduler, None, "truncated_normal", 16) > 0


def test_new_probes_on_the_way_err_less():
    """The deviation of the estimates of an image, at a few more evaluations."""
    pipe = small_pipeline()
    x = torch.randint(256, (1, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x, generator = x.expand(32, -1, -1, -1), torch.Generator().manual_seed(1)
    noise = torch.rand(x.shape[1:], generator=generator)
    dequantized = ((x + noise) / 256).double()
    given = {"dequantize": False, "rtol": 1e-2, "atol": 1e-2, "class_labels": 0}
    fixed = pipe.bits_per_dim(dequantized, probes=torch.randn(8, *x.shape, generator=generator).sign(), **given)
    fresh = pipe.bits_per_dim(dequantized, probes=8, generator=generator, **given)
    assert fresh.estimates.std() < 0.7 * fixed.estimates.std() and fresh.nfe < 1.4 * fixed.nfe
    error = (fresh.estimates.var() / 256 + fixed.estimates.var() / 256).sqrt()
    assert abs(fresh.estimates.mean() - fixed.estimates.mean()) < 4 * error


def test_class_log_prob_is_bayes_rule():
    pipe = small_pipeline()
    x = torch.randint(256, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    given = {"rtol": 1e-3, "atol": 1e-3}
    priors = torch.tensor([0.5, 0.3, 0.2]).double()
    result = pipe.class_log_prob(x, priors, torch.Generator().manual_seed(3), **given)
    joint = torch.stack(
        [
            pipe.log_prob(x, class_labels=k, generator=torch.Generator().manual_seed(3), **given).log_prob
            + priors[k].log()
            for k in range(3)
        ],
        dim=1,
    )
    assert torch.allclose(result, joint - joint.logsumexp(1, keepdim=True))
    assert torch.allclose(result.exp().sum(1), torch.ones(2).double())


def test_integers_are_bits_per_dim_in_nats():
    pipe = small_pipeline()
    x = torch.randint(256, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    given = {"rtol": 1e-3, "atol": 1e-3, "class_labels": 2}
    bits = pipe.bits_per_dim(x, torch.Generator().manual_seed(3), **given)
    output = pipe.log_prob(x, generator=torch.Generator().manual_seed(3), **given)
    assert torch.allclose(output.log_prob, nats(bits, pipe) - 64 * math.log(256 / 2) + 0 * bits.bits_per_dim)
    floats = pipe.log_prob(np.asarray(x.permute(0, 2, 3, 1)) + 0.25, probes=1, **given)
    assert floats.log_prob.shape == (2,) and set(floats.standard_errors) == {
        "probe",
        "dequantization",
        "images",
        "total",
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"x": torch.rand(1, 1, 8, 8)}, "`x` lies in [0, 1], but must be in the data's own units, 0 to 255"),
        ({"x": torch.full((1, 1, 8, 8), math.nan)}, "`x` must be finite"),
        ({"levels": 16, "x": 9 * torch.rand(1, 1, 8, 8)}, "`levels` is for integers"),
        ({"dequantize": "normal"}, "`dequantize` must be one of 'uniform', 'truncated_normal', but is 'normal'"),
        ({"dequantize": False, "passes": 3}, "`passes`=3 and `dequantize`=False contradict"),
        ({"dequantize": 2, "passes": 3}, "`passes`=3 and `dequantize`=2 contradict"),
        ({"passes": 0}, "`passes` must be a positive integer, but is 0"),
        ({"importance_weighted": True, "passes": 3}, "`importance_weighted` needs"),
        ({"importance_weighted": "no"}, "`importance_weighted` must be True or False, but is 'no'"),
        ({"levels": 10**30}, "`levels` must be an integer from 2 to 2^32, but is 1000000"),
        ({"probes": torch.full((1, 1, 8, 8), math.nan)}, "`probes` must be finite real numbers"),
        ({"probes": torch.ones(1, 1, 8, 8, dtype=torch.complex64)}, "`probes` must be finite real numbers"),
        ({"x": np.full((1, 8, 8, 1), "a")}, "`x` must hold numbers, but is an array of <U1"),
        ({"x": torch.zeros(1, 1, 8, 8, dtype=torch.complex64)}, "`x` must be real, but is torch.complex64"),
    ],
)
def test_what_has_no_density_is_refused(arguments, message):
    arguments = {"x": torch.zeros(1, 1, 8, 8, dtype=torch.uint8)} | arguments
    with pytest.raises(ValueError) as error:
        small_pipeline().log_prob(**arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "priors",
    [[0.5, 0.5], [0.5, 0.6, -0.1], [0.5, 0.3, 0.1], "even", {0: 1.0}, [[0.5], [0.3, 0.2]], [0.5, 0.5, math.nan]],
)
def test_priors_that_are_none(priors):
    with pytest.raises(ValueError, match="`class_priors` must be 3 positive probabilities"):
        small_pipeline().class_log_prob(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), priors)


@pytest.mark.parametrize("options", [{"generator": 5}, {"generator": [5]}, {"class_labels": 1}])
def test_class_log_prob_refuses_by_name(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        small_pipeline().class_log_prob(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), **options)


def test_class_log_prob_has_the_options_of_log_prob():
    with pytest.raises(TypeError, match="has no foo, but the options of `log_prob`: .*passes"):
        small_pipeline().class_log_prob(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), foo=1)


def test_levels_that_are_given_count_from_zero():
    """Also as many as the data's own range has, which begins elsewhere."""
    pipe = small_pipeline()
    vars(pipe.unet.config).update(value_dtype="int16", value_range=(-10, 5))
    values = torch.randint(16, (1, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    given = {"probes": torch.ones(1, 1, 8, 8), "dequantize": False}
    counted = pipe.log_prob(values, levels=16, **given).log_prob
    own = pipe.log_prob((values - 10).short(), **given).log_prob
    assert counted.item() == pytest.approx(own.item())


def test_numbers_in_the_other_byte_order():
    """As FITS files hold them."""
    pipe = small_pipeline()
    x = 255 * np.random.default_rng(0).random((1, 8, 8, 1)).astype(np.float32)
    given = {"probes": torch.ones(1, 1, 8, 8)}
    assert torch.equal(pipe.log_prob(x, **given).log_prob, pipe.log_prob(x.astype(">f4"), **given).log_prob)


def test_integers_for_a_model_of_real_numbers():
    pipe = floating(Gaussian([0.1, 0.5], 0.1 * torch.eye(2)), 2, sde="vp", image_range=(0.0, 1.0))
    with pytest.raises(ValueError, match="`x` must be floating point in the data's own units, -3.0 to 5.0, but is"):
        pipe.log_prob(torch.ones(1, 2, 1, 1, dtype=torch.int32))


def test_a_dark_frame_is_in_its_own_units():
    """Only fractions tell that numbers are in [0, 1] in place of the data's units."""
    pipe = small_pipeline()
    pipe.unet.register_to_config(value_dtype="uint16")
    dark = torch.randint(2, (1, *pipe._image_shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        of_floats = pipe.log_prob(dark.float(), generator=torch.Generator().manual_seed(1), rtol=1e-2, atol=1e-2)
    assert of_floats.log_prob.isfinite().all()
    with pytest.raises(ValueError, match="own units"):
        pipe.log_prob(dark.float() / 2)


def test_a_pipeline_that_was_loaded_in_inference_mode(tmp_path):
    """Its weights have no counters of changes, and no gradients pass through them."""
    pipe = small_pipeline()
    pipe.save_pretrained(tmp_path)
    with torch.inference_mode():
        other = type(pipe).from_pretrained(tmp_path)
    x, options = torch.full((1, 1, 8, 8), 100.0), {"rtol": 1e-2, "atol": 1e-2}
    found = [
        p.log_prob(x, generator=torch.Generator().manual_seed(0), **options).log_prob for p in (other, pipe)
    ]  # the other before anything has made its weights ordinary
    assert torch.equal(*found)
