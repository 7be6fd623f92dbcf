"""Likelihoods and latent codes against closed forms and the paper's own numbers."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DModel
from exact_scores import Gaussian, Mixture, as_images
from golden import golden_names, load_golden, load_golden_pipeline, relative_error

from sde_diffusers.likelihood import likelihood_start, standard_errors
from sde_diffusers.likelihood.latent_codes import slerp
from sde_diffusers.likelihood.ode import dormand_prince
from sde_diffusers.models.unet_ncsnpp import NCSNppUNet2DModel
from sde_diffusers.parameterization import PREDICTION_TYPES, SDE_NAMES
from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline
from sde_diffusers.schedulers.scheduling_probability_flow import ScoreSdeProbabilityFlowScheduler
from sde_diffusers.sdes.gaussian import GaussianSDE


class ExactNetwork(torch.nn.Module):
    """What a perfect network of the scheduler's parameterization would answer."""

    dtype = torch.float64

    def __init__(self, data, scheduler, d):
        super().__init__()
        self.data, self.scheduler = data, scheduler
        self.config = SimpleNamespace(in_channels=d, sample_size=1, num_class_embeds=None)

    def forward(self, x, network_time, class_labels=None):
        p = self.scheduler.parameterization
        t = p.sde_time(network_time)
        noise = -p.sde.sigma(t) * self.data.score(p.sde, x, t)
        return SimpleNamespace(sample=p.target(self.data.denoised(p.sde, x, t), noise, t))


class ExactPipeline(ScoreSdePipeline):
    """A pipeline whose network is no `UNet2DModel`."""

    def register_modules(self, unet, scheduler, **optional):
        self.unet, self.scheduler = unet, scheduler
        self.set_progress_bar_config(disable=True)

    @property
    def _execution_device(self):
        return torch.device("cpu")

    def maybe_free_model_hooks(self):
        pass


def exact_pipeline(data, d, **config):
    scheduler = ScoreSdeProbabilityFlowScheduler(**config)
    return ExactPipeline(ExactNetwork(data, scheduler, d), scheduler)


def small_pipeline(dtype=torch.float32, seed=0, **config):
    """A random network that answers like a denoiser."""
    torch.manual_seed(seed)
    unet = NCSNppUNet2DModel(
        sample_size=8,
        in_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_resolutions=(),
        fourier_scale=1.0,
        fir=False,
        scale_by_sigma=False,
        image_range=(-1.0, 1.0),
        preconditioning="edm",
        num_class_embeds=3,
        norm_num_groups=4,
    )
    for parameter in unet.parameters():  # output layers start at zero
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5 / math.sqrt(parameter[0].numel()))
    config = {"sde": "ve", "prediction_type": "sample", "time_input": "sigma", "image_range": (-1.0, 1.0)} | config
    pipe = ScoreSdePipeline(unet=unet.eval().to(dtype), scheduler=ScoreSdeProbabilityFlowScheduler(**config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(n, *shape, seed=1):
    return torch.randint(256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def nats(output, pipe, levels=256):
    """log p of the images in the model's range."""
    low, high = pipe.scheduler.parameterization.image_range
    d = output.latents[0].numel()
    return -d * (output.bits_per_dim * math.log(2) + math.log((high - low) / levels))


# ---- closed forms


def flow_logp_of_gaussian(data, sde, x, eps, end=1.0):
    """log p of x under the ODE of Gaussian data with the prior N(0, prior_sigma^2), in closed form.

    The flow is affine along the eigenvectors of the covariance: deviations from the mean scale as the marginals'
    standard deviations do.
    """
    variances, vectors = torch.linalg.eigh(data.covariance)

    def marginal(t):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return alpha * data.mean, (alpha**2 * variances + sigma**2).sqrt()

    (mean_eps, std_eps), (mean_1, std_1) = marginal(eps), marginal(end)
    scale = std_1 / std_eps
    z = mean_1 + ((x - mean_eps) @ vectors * scale) @ vectors.T
    return sde.prior_logp(z) + scale.log().sum(), z


@pytest.mark.parametrize("sde", SDE_NAMES)
@pytest.mark.parametrize("d, variable", [(2, None), (2, "noise_level"), (16, None)])
def test_likelihood_of_gaussians(sde, d, variable):
    g = torch.Generator().manual_seed(0)
    factor = torch.randn(d, d, generator=g, dtype=torch.float64) / math.sqrt(d)
    data = Gaussian(0.2 * torch.randn(d, generator=g), 0.05 * factor @ factor.T + 0.01 * torch.eye(d))
    pipe = exact_pipeline(data, d, sde=sde, image_range=(-1.0, 1.0))
    points = data.mean + torch.randn(3, d, generator=g).double() @ torch.linalg.cholesky(data.covariance).T
    unit = ((points + 1) / 2).clamp(0, 1)
    output = pipe.bits_per_dim(as_images(unit), dequantize=False, probes="exact", variable=variable)
    eps = max(1e-5, pipe.scheduler.sde.smallest_time)
    truth, z = flow_logp_of_gaussian(data, pipe.scheduler.sde, 2 * unit - 1, eps)
    torch.testing.assert_close(nats(output, pipe), truth, atol=1e-3, rtol=0)
    torch.testing.assert_close(output.latents[:, :, 0, 0].double(), z, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "sde, sampling_sde, prediction_type",
    [
        *(("flow", None, prediction_type) for prediction_type in PREDICTION_TYPES),
        ("cosine_vp", None, "epsilon"),
        ("cosine_vp", None, "sample"),
        ("flow", "vp", "score"),
        ("flow", "vp", "velocity"),
        ("vp", "flow", "epsilon"),
        ("vp", "flow", "v_prediction"),
    ],
)
def test_likelihood_to_and_from_pure_noise(sde, sampling_sde, prediction_type):
    """Whatever the network answers and the solver steps in, from the time on at which the answer tells x_0."""
    data = Gaussian([0.1, -0.2], [[0.05, 0.01], [0.01, 0.03]])
    unit = torch.tensor([[0.3, 0.6], [0.6, 0.4]], dtype=torch.float64)
    config = {"sde": sde, "sampling_sde": sampling_sde, "prediction_type": prediction_type}
    pipe = exact_pipeline(data, 2, image_range=(-1.0, 1.0), **config)
    scheduler = pipe.scheduler
    truth, z = flow_logp_of_gaussian(data, scheduler.sde, 2 * unit - 1, 1e-5, scheduler.start_time)
    std = scheduler.init_noise_sigma
    truth += (
        -0.5 * (z / std).square().sum(1) - 2 * math.log(std) + 0.5 * z.square().sum(1)
    )  # for a prior of deviation 1
    for variable in ("t", "noise_level"):
        output = pipe.bits_per_dim(as_images(unit), dequantize=False, probes="exact", variable=variable)
        torch.testing.assert_close(nats(output, pipe), truth, atol=1e-3, rtol=0)
        torch.testing.assert_close(output.latents[:, :, 0, 0].double(), z, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        {"sde": "vp", "sampling_sde": "vp_discrete"},
        {"sde": "ve", "sampling_sde": "vp_discrete", "image_range": (-1.0, 1.0)},
        {"sde": "vp_discrete", "time_input": "999t"},
        {"sde": "vp_discrete"},
        {"sde": "ve", "time_input": "index", "image_range": (-1.0, 1.0), "prediction_type": "epsilon"},
    ],
)
def test_a_table_is_solved_in_the_noise_level(config):
    """In t, where its drift jumps a thousand times, the solver took 368 evaluations and was wrong by 3e-3 bits; and
    3,000, wrong by 1e-2, where a VE network was asked the nearest entry of its table."""
    pipe = exact_pipeline(data := Gaussian(torch.zeros(4), 0.09 * torch.eye(4)), 4, **config)
    unit = torch.rand(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    output = pipe.bits_per_dim(as_images(unit), dequantize=False, probes="exact")
    scheduler = pipe.scheduler
    start = likelihood_start(scheduler, 1e-5)
    truth, z = flow_logp_of_gaussian(data, scheduler.sde, 2 * unit - 1, start, scheduler.start_time)
    std = scheduler.init_noise_sigma
    prior = scheduler.sde.prior_sigma
    truth += 0.5 * ((z / prior).square() - (z / std).square()).sum(1) - 4 * math.log(std / prior)
    torch.testing.assert_close(nats(output, pipe), truth, atol=1e-4, rtol=0)
    assert output.nfe < 100
    score = pipe.score(as_images(points := 2 * unit - 1), 0.3333)
    torch.testing.assert_close(score, data.score(scheduler.sde, as_images(points), 0.3333), rtol=1e-6, atol=1e-9)
    if scheduler.sde.smooth:
        return
    with pytest.raises(ValueError, match='`variable`="t" does not suit DiscreteVPSDE'):
        pipe.encode(as_images(unit), variable="t")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("sde", ["flow", "cosine_vp"])
def test_encode_where_gradients_are_off(sde, mode):
    data = Gaussian([0.1, -0.2], [[0.05, 0.01], [0.01, 0.03]])
    pipe = exact_pipeline(data, 2, sde=sde)
    unit = as_images(torch.tensor([[0.3, 0.6]], dtype=torch.float64))
    with mode():
        codes = pipe.encode(unit, variable="t")
    assert torch.equal(codes, pipe.encode(unit, variable="t"))


class PriorOfMixture:
    """The SDE with the exact marginal p_1 of a mixture as its prior."""

    def __init__(self, sde, data):
        self.sde, self.data = sde, data

    def __getattr__(self, name):
        return getattr(self.sde, name)

    def prior_logp(self, z):
        return mixture_logp(self.data, self.sde, z[:, :, 0, 0], 1.0)


def mixture_logp(data, sde, points, t):
    """log p_t of a mixture."""
    alpha, variance = sde.alpha(t), (sde.alpha(t) * data.std) ** 2 + sde.sigma(t) ** 2
    distance = torch.cdist(points, alpha * data.means) ** 2
    log_normalizer = points.shape[1] / 2 * torch.log(2 * math.pi * variance)
    return torch.logsumexp(data.weights.log() - distance / (2 * variance), dim=1) - log_normalizer


@pytest.mark.parametrize("variable", [None, "noise_level"])
@pytest.mark.parametrize("sde", SDE_NAMES)
def test_likelihood_of_a_mixture_with_its_exact_prior(sde, variable):
    data = Mixture([0.3, 0.7], [[-0.4, 0.2], [0.3, -0.1]], 0.15)
    pipe = exact_pipeline(data, 2, sde=sde, image_range=(-1.0, 1.0))
    true_sde = pipe.scheduler.sde
    pipe.scheduler.sde = pipe.scheduler.training_sde = PriorOfMixture(true_sde, data)
    unit = torch.tensor([[0.3, 0.6], [0.6, 0.4], [0.5, 0.5]], dtype=torch.float64)
    output = pipe.bits_per_dim(as_images(unit), dequantize=False, probes="exact", variable=variable)
    truth = mixture_logp(data, true_sde, 2 * unit - 1, max(1e-5, true_sde.smallest_time))
    torch.testing.assert_close(nats(output, pipe), truth, atol=1e-3, rtol=0)


@pytest.mark.parametrize("variable", [None, "noise_level"])
@pytest.mark.parametrize("sde, sampling_sde", [*((sde, None) for sde in SDE_NAMES), ("sub_vp", "vp"), ("vp", "flow")])
def test_encode_and_decode_are_inverse(sde, sampling_sde, variable):
    data = Mixture([0.3, 0.7], [[-0.4, 0.2], [0.3, -0.1]], 0.15)
    pipe = exact_pipeline(data, 2, sde=sde, sampling_sde=sampling_sde)
    unit = as_images(torch.tensor([[0.3, 0.6], [0.6, 0.4], [0.5, 0.5]], dtype=torch.float64))
    back = pipe.decode(pipe.encode(unit, variable=variable), variable=variable)
    torch.testing.assert_close(back.double(), unit, atol=1e-3, rtol=0)


def test_likelihood_with_another_sde():
    data = Gaussian([0.1, -0.2], [[0.05, 0.01], [0.01, 0.03]])
    pipe = exact_pipeline(data, 2, sde="ve", sigma_min=1e-4, image_range=(-1.0, 1.0), sampling_sde="vp")
    scheduler = pipe.scheduler
    unit = torch.tensor([[0.3, 0.6], [0.6, 0.4]], dtype=torch.float64)
    output = pipe.bits_per_dim(as_images(unit), dequantize=False, probes="exact")
    assert 0 < scheduler.start_time < 1  # a VE network does not know the whole of the VP SDE's noise
    truth, z = flow_logp_of_gaussian(data, scheduler.sde, 2 * unit - 1, 1e-5, scheduler.start_time)
    std = scheduler.init_noise_sigma
    truth += -0.5 * (z / std).square().sum(1) - 2 * math.log(std) + 0.5 * z.square().sum(1)
    torch.testing.assert_close(nats(output, pipe), truth, atol=1e-3, rtol=0)


# ---- the paper's own numbers


@pytest.mark.parametrize("name", golden_names("ode"))
def test_decodes_as_the_reference(name):
    tensors, metadata = load_golden(name)
    pipe = load_golden_pipeline(metadata["model"])
    output = pipe.decode(tensors["latents"], return_dict=True)
    assert relative_error(output.sample, tensors["samples"]) < 2e-3
    assert output.nfe <= 1.15 * int(metadata["reference_nfe"])


@pytest.mark.parametrize("name", golden_names("bpd"))
def test_likelihoods_are_the_references(name):
    tensors, metadata = load_golden(name)
    pipe = load_golden_pipeline(metadata["model"])
    output = pipe.bits_per_dim(tensors["images01"], dequantize=False, probes=tensors["rademacher"])
    assert (output.bits_per_dim - tensors["bpd"]).abs().max() < 1e-3
    assert relative_error(output.latents, tensors["latents"]) < 2e-3
    assert output.nfe <= 1.15 * int(metadata["reference_nfe"])


# ---- the solver


def test_solver_takes_the_steps_of_scipys():
    integrate = pytest.importorskip("scipy.integrate")
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -50.0]], dtype=torch.float64)
    f = lambda t, y: math.cos(9.0 * t) * y @ matrix.T  # noqa: E731
    y = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    theirs = integrate.solve_ivp(
        lambda t, y: f(t, torch.from_numpy(y)[None])[0].numpy(), (2.0, 0.5), y[0].numpy(), rtol=1e-5, atol=1e-5
    )
    ours = list(dormand_prince(f, 2.0, 0.5, y, 1e-5, 1e-5))
    assert len(ours) == len(theirs.t) - 1
    torch.testing.assert_close(
        torch.tensor([t for t, _ in ours]).double(), torch.tensor(theirs.t[1:]), rtol=1e-6, atol=0
    )


def test_solver_names_what_is_not_finite():
    with pytest.raises(RuntimeError, match="not finite"):
        list(dormand_prince(lambda t, y: y * math.inf, 0.0, 1.0, torch.ones(1, 1).double(), 1e-5, 1e-5))


# ---- draws, batches, shapes


def test_probes_and_passes():
    x, g = images(2, 8, 1, 1), torch.Generator().manual_seed(0)
    factor = torch.randn(8, 8, generator=g, dtype=torch.float64)
    pipe = exact_pipeline(Gaussian(torch.zeros(8), 0.02 * factor @ factor.T + 0.1 * torch.eye(8)), 8, sde="vp")
    exact = pipe.bits_per_dim(x, dequantize=2, probes="exact", generator=g.manual_seed(0))
    assert exact.estimates.shape == (2, 1, 2) and exact.standard_error["probe"] == 0
    many = pipe.bits_per_dim(x, probes=40, generator=g.manual_seed(0))
    first_pass = exact.estimates[0, 0]
    assert many.estimates.shape == (1, 40, 2)
    torch.testing.assert_close(many.bits_per_dim, first_pass, atol=5 * many.standard_error["probe"] * 2**0.5, rtol=0)
    gaussian = pipe.bits_per_dim(x, probes=40, probe_distribution="gaussian", generator=g.manual_seed(0))
    assert gaussian.standard_error["probe"] > many.standard_error["probe"]
    torch.testing.assert_close(
        gaussian.bits_per_dim, first_pass, atol=5 * gaussian.standard_error["probe"] * 2**0.5, rtol=0
    )


def test_standard_errors_tell_their_sources_apart():
    g = torch.Generator().manual_seed(0)
    deviations = {"images": 3.0, "dequantization": 2.0, "probe": 1.0}
    n, passes, probes = 4000, 4, 5
    shapes = {"images": (1, 1, n), "dequantization": (passes, 1, n), "probe": (passes, probes, n)}
    estimates = sum(s * torch.randn(shapes[k], generator=g, dtype=torch.float64) for k, s in deviations.items())
    errors = standard_errors(estimates)
    draws = {"images": n, "dequantization": n * passes, "probe": n * passes * probes}
    for name, deviation in deviations.items():
        assert errors[name] == pytest.approx(deviation / math.sqrt(draws[name]), rel=0.05)
    assert errors["total"] ** 2 == pytest.approx(sum(errors[name] ** 2 for name in deviations))


@pytest.mark.parametrize(
    "shape, options, unknown",
    [
        ((1, 5, 9), {}, {"dequantization"}),
        ((1, 1, 9), {}, {"dequantization", "probe"}),
        ((4, 1, 9), {}, {"probe"}),
        ((1, 1, 9), {"exact_trace": True}, {"dequantization"}),
        ((4, 1, 9), {"exact_trace": True}, set()),
        ((1, 1, 9), {"exact_trace": True, "dequantized": False}, set()),
        ((1, 5, 9), {"dequantized": False}, set()),
        ((4, 5, 1), {}, {"images", "total"}),
        ((1, 5, 1), {}, {"dequantization", "images", "total"}),
    ],
)
def test_standard_errors_are_nan_where_one_draw_cannot_show_them(shape, options, unknown):
    g = torch.Generator().manual_seed(0)
    estimates, passes, images = (
        torch.randn(size, generator=g, dtype=torch.float64) for size in (shape, (shape[0], 1, 1), (1, 1, shape[2]))
    )
    errors = standard_errors(estimates + passes + 9 * images, **options)
    assert {name for name, error in errors.items() if math.isnan(error)} == unknown
    assert options.get("exact_trace", False) == (errors["probe"] == 0)
    assert options.get("dequantized", True) or errors["dequantization"] == 0
    if "images" not in unknown:  # each part that is not known is in the next one
        known = sum(errors[name] ** 2 for name in ("probe", "dequantization", "images") if name not in unknown)
        assert known == pytest.approx(errors["total"] ** 2)


@pytest.mark.parametrize("passes, probes", [(4, 5), (1, 5), (4, 1), (1, 1)])
def test_standard_errors_cover_what_causes_them(passes, probes):
    """By repetition: each part, with what it contains, is within 1.96 standard errors of 0 in 95 % of the draws."""
    g, n, repetitions = torch.Generator().manual_seed(0), 100, 1000
    sources = {"probe": (passes, probes, n), "dequantization": (passes, 1, n), "images": (1, 1, n)}
    covered = dict.fromkeys([*sources, "total"], 0)
    for _ in range(repetitions):
        draws = {name: torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in sources.items()}
        errors, carried = standard_errors(sum(draws.values())), 0.0
        for name, values in draws.items():
            carried += values.mean().item()
            if not math.isnan(errors[name]):
                covered[name] += abs(carried) <= 1.96 * errors[name]
                carried = 0.0
        covered["total"] += abs(sum(values.mean().item() for values in draws.values())) <= 1.96 * errors["total"]
    expected = {name: 0.95 for name in covered if not math.isnan(errors[name])}
    assert {name: covered[name] / repetitions for name in expected} == pytest.approx(expected, abs=0.03)


def test_one_seed_one_value_and_batches_do_not_matter():
    pipe = small_pipeline()
    x = images(3, 1, 11, 9)  # sizes that the network halves with a remainder
    seeds = lambda: [torch.Generator().manual_seed(k) for k in range(3)]  # noqa: E731
    solver = {"rtol": 1e-4, "atol": 1e-4}
    together, again = (pipe.bits_per_dim(x, generator=seeds(), **solver) for _ in range(2))
    assert torch.equal(together.bits_per_dim, again.bits_per_dim)
    alone = [pipe.bits_per_dim(x[k : k + 1], generator=[g], **solver).bits_per_dim for k, g in enumerate(seeds())]
    torch.testing.assert_close(together.bits_per_dim, torch.cat(alone), atol=1e-3, rtol=0)
    loose = {"rtol": 1e-2, "atol": 1e-2}
    one = [pipe.bits_per_dim(x, generator=torch.Generator().manual_seed(5), **loose).bits_per_dim for _ in range(2)]
    assert torch.equal(*one)


def test_class_labels_matter():
    pipe, x = small_pipeline(), images(2, 1, 8, 8)
    given = {"probes": torch.ones(2, 1, 8, 8), "dequantize": False, "rtol": 1e-3, "atol": 1e-3}
    values = [pipe.bits_per_dim(x, class_labels=label, **given).bits_per_dim for label in (None, 0, [0, 1])]
    assert values[1][0] == pytest.approx(values[2][0].item(), abs=1e-2) and (values[0] != values[1]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_and_near(dtype):
    x = images(1, 1, 8, 8)
    settings = {"rtol": 1e-2, "atol": 1e-2, "variable": "noise_level"}
    values = [
        small_pipeline(kind).bits_per_dim(x, generator=torch.Generator().manual_seed(0), **settings).bits_per_dim
        for kind in (torch.float32, dtype)
    ]
    torch.testing.assert_close(*values, atol=0.1, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sampling_sde, variable", [(None, "t"), ("vp", "noise_level"), ("sub_vp", "t")])
def test_half_precision_networks_under_every_sde(sampling_sde, variable, dtype):
    """Codes, images and samples are finite float32, from noise of 50 deviations to that of 1e-5 in time."""
    pipe, x = small_pipeline(dtype, sampling_sde=sampling_sde), images(1, 1, 8, 8)
    settings = {"rtol": 5e-2, "atol": 5e-2, "variable": variable}
    codes = pipe.encode(x, **settings)
    back = pipe.decode(codes, **settings)
    bits = pipe.bits_per_dim(x, generator=torch.Generator().manual_seed(0), **settings)
    assert codes.dtype == back.dtype == torch.float32 and bits.latents.isfinite().all()
    assert codes.isfinite().all() and back.isfinite().all() and bits.bits_per_dim.isfinite().all()
    for cls in type(pipe.scheduler)._get_compatibles():
        if cls.of_consistency_models:
            continue
        pipe.scheduler = cls.from_config(pipe.scheduler.config)
        drawn = pipe(1, 5, generator=torch.Generator().manual_seed(0), output_type="pt").images
        assert drawn.dtype == torch.float32 and drawn.isfinite().all()


@pytest.mark.parametrize("levels", [2, 1024])
def test_any_bit_depth(levels):
    """The density at the dequantized image is the same; only the size of a bin differs."""
    pipe = small_pipeline()
    x = torch.randint(levels, (1, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    settings = {"rtol": 1e-2, "atol": 1e-2, "probes": torch.ones(1, 1, 8, 8)}
    value = pipe.bits_per_dim(x, generator=torch.Generator().manual_seed(0), levels=levels, **settings)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = pipe.bits_per_dim((x + noise) / levels, dequantize=False, **settings)
    expected = given.bits_per_dim - 8 + math.log2(levels)
    torch.testing.assert_close(value.bits_per_dim, expected, atol=1e-9, rtol=0)


def test_interpolation_ends_at_the_images():
    data = Gaussian([0.1, -0.2], [[0.05, 0.01], [0.01, 0.03]])
    pipe = exact_pipeline(data, 2, sde="vp")
    a, b = (as_images(torch.tensor(points, dtype=torch.float64)) for points in ([[0.3, 0.6]], [[0.6, 0.4]]))
    way = pipe.interpolate(a, b, 5)
    assert way.shape == (5, 1, 2, 1, 1)
    torch.testing.assert_close(torch.cat([way[0], way[-1]]).double(), torch.cat([a, b]), atol=1e-3, rtol=0)


def test_slerp():
    a, b = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    middle = slerp(a, b, torch.tensor([0.5]))[0]
    torch.testing.assert_close(middle, torch.tensor([[0.5**0.5, 0.5**0.5], [1.5, 0.0]]))


# ---- refusals


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"images": torch.rand(2, 3, 8, 8)}, "images"),
        ({"images": 2 * torch.ones(1, 1, 8, 8)}, "images"),
        ({"images": torch.full((1, 1, 8, 8), 7), "levels": 4}, "images"),
        ({"images": "cat.png"}, "images"),
        ({"levels": 1}, "levels"),
        ({"eps": 0.0}, "eps"),
        ({"rtol": -1.0}, "rtol"),
        ({"probes": 0}, "probes"),
        ({"probes": "all"}, "probes"),
        ({"probes": torch.ones(1, 1, 4, 4)}, "probes"),
        ({"probe_distribution": "uniform"}, "probe_distribution"),
        ({"dequantize": -1}, "dequantize"),
        ({"variable": "sigma"}, "variable"),
        ({"class_labels": 7}, "class_labels"),
        ({"generator": []}, "generator"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        small_pipeline().bits_per_dim(**({"images": images(1, 1, 8, 8)} | arguments))


def test_bad_latents_and_ways_are_named():
    pipe, x = small_pipeline(), images(1, 1, 8, 8)
    with pytest.raises(ValueError, match="`latents`"):
        pipe.decode(torch.full((1, 1, 8, 8), math.nan))
    with pytest.raises(ValueError, match="`steps`"):
        pipe.interpolate(x, x, 1)
    with pytest.raises(ValueError, match="`b`"):
        pipe.interpolate(x, images(2, 1, 8, 8), 3)


def test_a_last_step_that_was_stretched_too_far_is_cut():
    """A stretch that the error refuses is given up, and the solution is as good as without."""

    def f(t, y):
        return y * math.cos(t)

    start = torch.ones(1, 2, dtype=torch.float64)
    for stretch in (1.0, 1.3, 20.0):
        *_, (t, y) = dormand_prince(f, 0.0, 4.0, start, 1e-6, 1e-6, stretch)
        assert t == 4.0
        torch.testing.assert_close(y, start * math.exp(math.sin(4.0)), rtol=1e-5, atol=0)


# ---- what is asked for


def test_given_probes_are_the_same_in_all_passes():
    """So that passes do not average their error: the spread of means over four images is what is said of them."""
    pipe = exact_pipeline(Gaussian([0.0] * 6, 0.05 * torch.eye(6) + 0.04 * torch.ones(6, 6)), 6, sde="vp")
    pixels = as_images(torch.randint(256, (4, 6), generator=torch.Generator().manual_seed(0)))
    means, generator = 60, torch.Generator().manual_seed(0)
    pixels = pixels.repeat(means, 1, 1, 1)  # as one batch, each image with probes of its own
    probes = torch.randint(2, (4, *pixels.shape), generator=generator).double() * 2 - 1
    output = pipe.bits_per_dim(pixels, generator, passes=8, probes=probes, rtol=1e-2, atol=1e-2)
    said_of_four = output.standard_error["probe"] * math.sqrt(means)
    assert said_of_four == pytest.approx(output.bits_per_dim.view(means, 4).mean(1).std().item(), rel=0.25)


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_integers_have_the_density_of_their_numbers(levels):
    pipe = exact_pipeline(Gaussian([0.1, -0.2], [[0.05, 0.01], [0.01, 0.03]]), 2, sde="vp")
    vars(pipe.unet.config).update(value_dtype="uint8", value_range=(0, levels - 1))
    x = torch.tensor([[levels // 2 - 1, levels - 1]])
    for options in ({}, {"levels": levels}):
        integers = pipe.log_prob(as_images(x), dequantize=False, probes="exact", **options).log_prob
        if levels > 2:  # 0 and 1 as floats might be meant as shares
            floats = pipe.log_prob(as_images(x.double()), probes="exact").log_prob
            torch.testing.assert_close(integers, floats, rtol=1e-9, atol=1e-9)
    # A density per unit of the numbers is that of the model's range times the length of a unit there.
    low, high = pipe.scheduler.parameterization.image_range
    unit = (x.double() / (levels - 1))[..., None, None]
    bits = pipe.bits_per_dim(unit, levels=256, dequantize=False, probes="exact").bits_per_dim
    density = -2 * math.log(2) * bits - 2 * math.log((high - low) / 256)
    assert integers.item() == pytest.approx((density + 2 * math.log((high - low) / (levels - 1))).item(), abs=1e-8)


@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_tolerances_that_float64_cannot_hold_are_refused(name):
    pipe = small_pipeline()
    pipe.unet.forward = None  # not to be asked
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number of at least 1e-13"):
        pipe.bits_per_dim(images(1, 1, 8, 8), **{name: 1e-14})
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number of at least 1e-13"):
        pipe.encode(images(1, 1, 8, 8), **{name: 1e-100})


def test_sizes_and_channels_that_a_network_cannot_take():
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    pipe = ScoreSdePipeline(unet=unet.eval(), scheduler=ScoreSdeProbabilityFlowScheduler(sde="vp_discrete"))
    odd = images(1, 1, 9, 9)
    for ask in (pipe.bits_per_dim, pipe.variational_bound, pipe.encode, lambda x: pipe.interpolate(x, x, 2)):
        with pytest.raises(
            ValueError, match="means images of 9 x 9 pixels, but the network takes only multiples of 2"
        ):
            ask(odd)
    for ask in (pipe.decode, lambda x: pipe.score(x, 0.5), lambda x: pipe.denoise(x, 0.5)):
        with pytest.raises(
            ValueError, match="means images of 9 x 9 pixels, but the network takes only multiples of 2"
        ):
            ask(odd.float() / 255)
    few = NCSNppUNet2DModel(
        sample_size=8, in_channels=3, out_channels=1, block_out_channels=(8,), layers_per_block=1, fir=False
    )
    pipe = ScoreSdePipeline(unet=few.eval(), scheduler=ScoreSdeProbabilityFlowScheduler(sde="ve"))
    for ask in (pipe.bits_per_dim, lambda x: pipe.score(x / 255, 0.5), lambda x: pipe(1, 2)):
        with pytest.raises(ValueError, match="answers with 1 channels .* to images of 3"):
            ask(images(1, 3, 8, 8))


class LateVE(GaussianSDE):
    """Which never knows less noise than 0.1."""

    name, prediction_type, time_input = "test_late_ve", "epsilon", "t"

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return 0.1 + 10 * t


@pytest.mark.parametrize(
    ("config", "earliest"),
    [
        ({"sde": "test_late_ve", "sampling_sde": "ve"}, 0.27),
        ({"sde": "vp_discrete", "sampling_sde": "vp"}, 9.16e-4),
        ({"sde": "vp", "time_input": "index", "num_train_timesteps": 100}, 0.01),
    ],
)
def test_no_network_is_asked_at_less_noise_than_it_knows(config, earliest):
    data = Gaussian([0.1, -0.2], [[0.05, 0.01], [0.01, 0.03]])
    pipe = exact_pipeline(data, 2, **{"image_range": (-1.0, 1.0), **config})
    x = as_images(torch.tensor([[0.15, -0.1]]).double())
    first = pipe.scheduler.earliest_time
    assert first == pytest.approx(earliest, rel=0.02)
    torch.testing.assert_close(
        pipe.score(x, first), data.score(pipe.scheduler.sde, x, torch.tensor(first).double()), rtol=1e-6, atol=1e-6
    )
    for ask in (pipe.score, pipe.denoise):
        with pytest.raises(ValueError, match="`t` must be a time in "):
            ask(x, first / 2)
    asked = []
    forward = pipe.unet.forward
    pipe.unet.forward = lambda x, time, class_labels=None: (
        asked.append(float(time.min())) or forward(x, time, class_labels)
    )
    pipe.bits_per_dim((x + 1) / 2, dequantize=False, probes="exact", rtol=1e-2, atol=1e-2)
    assert min(asked) >= pipe.scheduler.network_time(torch.tensor(first).double(), between=True).item() - 1e-6


@pytest.mark.parametrize("exponent", [16, 28, 32])
def test_fine_levels_of_the_cosine_sde(exponent):
    """The change of the angle from t = 0 keeps its digits where t is 1e-20."""
    data = Gaussian([0.1, -0.2], [[0.05, 0.01], [0.01, 0.03]])
    pixels = as_images(torch.tensor([[2**exponent // 2, 2**exponent // 3]]))
    bits = [
        exact_pipeline(data, 2, sde=sde, image_range=(-1.0, 1.0))
        .bits_per_dim(
            pixels,
            torch.Generator().manual_seed(0),
            levels=2**exponent,
            dequantize="truncated_normal",
            probes="exact",
            rtol=1e-5,
            atol=1e-5,
        )
        .bits_per_dim.item()
        for sde in ("cosine_vp", "vp")
    ]
    assert bits[0] == pytest.approx(bits[1], abs=1e-3)  # that far their priors differ
