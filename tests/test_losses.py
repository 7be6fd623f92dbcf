"""The objectives against closed forms: for Gaussian data the best possible loss is known at every time.

Data x_0 ~ N(m, c^2): given x_t the noise has the variance V = c^2 / (c^2 + s^2) with s = sigma / alpha, and no network
can have a smaller squared error.
"""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from sde_diffusers import (
    VESDE,
    VPSDE,
    ConsistencyTuning,
    CosineVPSDE,
    DenoisingScoreMatching,
    DiscreteVPSDE,
    ExponentialVESDE,
    FlowSDE,
    NCSNppUNet2DModel,
    Parameterization,
    SubVPSDE,
)
from sde_diffusers.losses import OBJECTIVES
from sde_diffusers.parameterization import PREDICTION_TYPES

M, C = 0.3, 0.6  # mean and deviation of the data
EPS = 1e-5
BETAS = torch.linspace(1e-3, 0.2, 100, dtype=torch.float64)
SDES = {
    "ve": VESDE(),
    "vp": VPSDE(),
    "sub_vp": SubVPSDE(),
    "ve_exponential": ExponentialVESDE(),
    "vp_discrete": DiscreteVPSDE(BETAS),
    "cosine_vp": CosineVPSDE(),
    "flow": FlowSDE(),
}


@pytest.fixture(params=SDES)
def sde(request):
    return SDES[request.param]


def objective(sde, name, prediction_type="epsilon", **options):
    time_input = "index" if name == "discrete" else "t"
    parameterization = Parameterization(sde, prediction_type, time_input, (-1, 1), num_train_timesteps=100)
    return DenoisingScoreMatching(parameterization, name, **options)


def answer(prediction_type, noise, x_0, alpha, sigma, slopes):
    return {
        "epsilon": noise,
        "sample": x_0,
        "score": -noise / sigma,
        "v_prediction": alpha * noise - sigma * x_0,
        "velocity": slopes[0] * x_0 + slopes[1] * noise,
    }[prediction_type]


def slopes(sde, t, h=1e-7):
    """d alpha / dt and d sigma / dt by differences."""
    before, after = t - torch.minimum(t / 2, torch.tensor(h).double()), torch.minimum(t + h, torch.ones_like(t))
    return [(f(after) - f(before)) / (after - before) for f in (sde.alpha, sde.sigma)]


def column(values):
    return values.reshape(-1, 1, 1, 1)


class ExactNetwork:
    """E[. | x_t] for data N(M, C^2), in every prediction type, in float64; with an error added to the noise (less of
    one where there is little of x_0, which x_t then hardly tells)."""

    def __init__(self, loss, noise_error=0.0):
        self.loss, self.noise_error = loss, noise_error

    def __call__(self, x, network_time, class_labels=None):
        parameterization = self.loss.parameterization
        t = parameterization.sde_time(network_time)
        alpha, sigma = column(self.loss.sde.alpha(t)), column(self.loss.sde.sigma(t))
        variance, error = alpha**2 * C**2 + sigma**2, self.noise_error / (alpha + sigma)
        noise = sigma * (x - alpha * M) / variance + alpha * error
        x_0 = (M * sigma**2 + alpha * C**2 * x) / variance - sigma * error
        of_time = [column(slope) for slope in self.loss.sde.derivatives(t)]
        kind = parameterization.prediction_type
        return SimpleNamespace(sample=answer(kind, noise, x_0, alpha, sigma, of_time).float())


def best_loss(sde, name, sigma_data, eps):
    """Expectation of the best loss per dimension, by quadrature or in closed form."""
    noise_level = lambda t: (sde.sigma(t) / sde.alpha(t)).numpy()  # noqa: E731
    best = lambda s: C**2 / (C**2 + s**2)  # noqa: E731
    start = max(eps, 1 / len(BETAS)) if isinstance(sde, DiscreteVPSDE) else eps
    if name == "sigma2":  # the mean over [start, 1]
        t = torch.linspace(start, 1, 200_001, dtype=torch.float64)
        return np.trapezoid(best(noise_level(t)), t.numpy()) / (1 - start)
    if name == "likelihood":  # g^2 / sigma^2 dt = 2 d log s, so the integral is that of 2 C^2 / (C^2 + s^2) / s ds
        low, high = noise_level(torch.tensor([start, 1.0], dtype=torch.float64))
        primitive = lambda s: -math.log1p(C**2 / s**2)  # noqa: E731
        return (primitive(high) - primitive(low)) / (1 - start)
    if name == "edm":  # log s normal, the weight on |noise error|^2 being (s^2 + sigma_data^2) / sigma_data^2
        z = np.linspace(-8, 8, 20_001)
        ends = noise_level(torch.tensor([start, 1.0], dtype=torch.float64))
        s = np.clip(np.exp(-1.2 + 1.2 * z), *ends)
        density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        return np.trapezoid(density * (s**2 + sigma_data**2) / sigma_data**2 * best(s), z)
    if name == "velocity":  # the mean over [start, 1] of (alpha s')^2 C^2 / (C^2 + s^2), evenly in log t
        log_t = torch.linspace(math.log(start), 0, 200_001, dtype=torch.float64)
        t = log_t.exp()
        alpha, sigma, (d_alpha, d_sigma) = sde.alpha(t), sde.sigma(t), slopes(sde, t)
        best = (alpha * d_sigma - sigma * d_alpha) ** 2 * C**2 / (alpha**2 * C**2 + sigma**2)
        return np.trapezoid((best * t).numpy(), log_t.numpy()) / (1 - start)
    if isinstance(sde, VESDE):
        t = torch.linspace(0, 1, 100, dtype=torch.float64)
    else:
        t = torch.arange(1, 101, dtype=torch.float64) / 100
    return best(noise_level(t)).mean()


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_exact_score_has_the_best_loss(sde, name, prediction_type):
    """...and a network that is off by 0.3 in every noise estimate has a larger one, by what its weights say."""
    n, eps = 20_000, 0.01 if name == "velocity" else EPS  # sigma' of a VP SDE grows without bound towards t = 0
    loss = objective(sde, name, prediction_type, eps=eps, sigma_data=0.8)
    generator = torch.Generator().manual_seed(0)
    t = loss.draw_times(n, generator)
    x_0, noise = torch.randn(2, n, 1, 2, 2, generator=generator)
    values = loss(ExactNetwork(loss), M + C * x_0, noise, t)
    assert values.shape == (n,) and values.dtype == torch.float32
    if name == "discrete" and isinstance(sde, FlowSDE) and prediction_type in ("score", "epsilon"):
        t = t.clamp(max=0.99)  # at pure noise, the table's last entry, they say nothing of x_0
    expected = best_loss(sde, name, sigma_data=0.8, eps=eps)
    standard_error = values.double().std().item() / math.sqrt(n)
    assert standard_error < 0.05 * expected  # the estimate says something
    assert values.double().mean().item() == pytest.approx(expected, abs=4 * standard_error)
    worse = loss(ExactNetwork(loss, noise_error=0.3), M + C * x_0, noise, t)
    assert worse.double().mean() > values.double().mean() + 4 * standard_error


def test_edm_loss_of_gaussian_data_is_one(sde):
    """Its weights make the best loss 1 at every noise level if sigma_data is the data's deviation."""
    loss = objective(sde, "edm", "sample", sigma_data=C)
    generator = torch.Generator().manual_seed(1)
    t = loss.draw_times(20_000, generator)
    x_0, noise = torch.randn(2, 20_000, 1, 2, 2, generator=generator)
    values = loss(ExactNetwork(loss), M + C * x_0, noise, t)
    for level in t.argsort().chunk(4):  # from clean to noisy; a chi^2 of 4 has deviation sqrt(2 / 4)
        assert values[level].mean().item() == pytest.approx(1, abs=4 * math.sqrt(0.5 / 5000))


def test_importance_sampling_changes_the_variance_alone(sde):
    """Times from `draw_times` against uniform times with weight g^2 / sigma^2, of the closed-form loss per time."""
    loss = objective(sde, "likelihood", eps=1e-3)
    start = loss.eps

    def uniform_estimate(t):
        s2 = (sde.sigma(t) / sde.alpha(t)) ** 2
        return sde.diffusion(t) ** 2 / sde.sigma(t) ** 2 * C**2 / (C**2 + s2)

    middles = start + (1 - start) * (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    expected = uniform_estimate(middles).mean().item()
    t = loss.draw_times(100_000, torch.Generator().manual_seed(0))
    assert t.dtype == torch.float64 and t.min() >= start and t.max() <= 1
    estimates = loss.output_weight(t) * C**2 / (C**2 + (sde.sigma(t) / sde.alpha(t)) ** 2)
    assert estimates.mean().item() == pytest.approx(expected, abs=4 * estimates.std().item() / math.sqrt(len(t)))
    if isinstance(sde, FlowSDE):  # weights that grow with the noise
        assert estimates.var() < 1.5 * estimates.mean() ** 2
    elif isinstance(sde, VESDE):  # g^2 / sigma^2 is constant: uniform in t is uniform in log sigma
        assert estimates.var().item() == pytest.approx(uniform_estimate(middles).var().item(), rel=0.03)
    else:
        assert estimates.var() < 0.5 * uniform_estimate(middles).var()


def test_likelihood_times_have_the_density_of_the_weight(sde):
    """Their distribution function is the integral of g^2 / sigma^2, by quadrature; for an SDE that ends in pure noise
    of alpha^2 / (alpha^2 + sigma^2) times that."""
    loss = objective(sde, "likelihood", eps=1e-3)
    middles = loss.eps + (1 - loss.eps) * (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    density = (sde.diffusion(middles) / sde.sigma(middles)).square()
    if isinstance(sde, FlowSDE):
        density = density / (1 + torch.exp(-2 * sde.half_log_snr(middles)))
    cumulative = density.cumsum(0)
    t = loss.draw_times(20_000, torch.Generator().manual_seed(0))
    for probability in (0.1, 0.5, 0.9):
        quantile = middles[torch.searchsorted(cumulative, probability * cumulative[-1])]
        assert (t <= quantile).double().mean().item() == pytest.approx(probability, abs=0.015)


@pytest.mark.parametrize("reduce_mean", [True, False])
def test_edm_weight_is_that_of_table_1(sde, reduce_mean):
    """lambda(s) |D - x_0|^2 with lambda = (s^2 + sigma_data^2) / (s sigma_data)^2, for a network that is off by d."""
    loss = objective(sde, "edm", "sample", sigma_data=0.7, reduce_mean=reduce_mean)
    t = torch.tensor([0.05, 0.3, 0.9, 1.0], dtype=torch.float64)
    x_0, noise = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    d = torch.tensor([0.1, -0.2, 0.3, 2.0])
    values = loss(lambda *_: SimpleNamespace(sample=x_0 + column(d)), x_0, noise, t)
    s = sde.sigma(t) / sde.alpha(t)
    expected = (1 / s**2 + 1 / 0.7**2) * d.double() ** 2 * (1 if reduce_mean else 0.5 * 12)
    torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=0)


def test_edm_levels_are_log_normal(sde):
    t = objective(sde, "edm", log_sigma_mean=-0.5, log_sigma_std=0.3).draw_times(
        20_000, torch.Generator().manual_seed(0)
    )
    log_s = (sde.sigma(t) / sde.alpha(t)).log()
    assert log_s.mean().item() == pytest.approx(-0.5, abs=0.01)
    assert log_s.std().item() == pytest.approx(0.3, abs=0.01)
    assert log_s.sub(-0.5).pow(3).mean().item() / 0.3**3 == pytest.approx(0, abs=0.1)  # no skew


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_error_has_one_loss(sde, name):
    """The same wrong network, expressed in each prediction type."""
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 6, 3, 2, 2, generator=generator)
    t = objective(sde, name, eps=0.01).draw_times(6, generator)  # float32 images hide the noise of smaller times
    values = []
    for prediction_type in PREDICTION_TYPES:
        loss = objective(sde, name, prediction_type, eps=0.01)
        values.append(loss(ExactNetwork(loss, noise_error=0.5), M + C * x_0, noise, t))
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_double_precision_passes_through(prediction_type):
    """The loss of float64 images and answers is theirs to the last digits, and so is its gradient."""
    loss = objective(VPSDE(), "edm", prediction_type)
    x_0, noise = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    times = []

    def of_weight(w):
        network = lambda x, time, _: times.append(time) or SimpleNamespace(sample=w * x)  # noqa: E731
        return loss(network, x_0, noise, t).sum()

    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(of_weight, (w,))
    x = loss.parameterization.kernel(x_0, t)
    error = w * (x[0] * x_0 + x[1] * noise) - loss.parameterization.target(x_0, noise, t)
    expected = (error.square().flatten(1).mean(1) * loss.output_weight(t)).sum()
    torch.testing.assert_close(of_weight(w), expected, rtol=1e-12, atol=0)
    assert times[0].dtype == torch.float64


def test_reduce_mean(sde):
    """The mean over an image's dimensions, or half the sum as in the paper's code."""
    x_0, noise = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    loss, summed = objective(sde, "sigma2"), objective(sde, "sigma2", reduce_mean=False)
    t = loss.draw_times(4, torch.Generator().manual_seed(0))
    network = ExactNetwork(loss)
    torch.testing.assert_close(summed(network, x_0, noise, t), 0.5 * 12 * loss(network, x_0, noise, t))


@pytest.mark.parametrize("reduce_mean", [True, False])
def test_discrete_ve_is_the_papers_smld_loss(reduce_mean):
    """Eq. 1: sigma_i^2 |s(x + sigma_i z, i) + z / sigma_i|^2 over the descending geometric table."""
    n, labels = 100, torch.tensor([0, 1, 50, 98, 99])
    parameterization = Parameterization(VESDE(0.01, 50.0), "score", "index", (0, 1), num_train_timesteps=n)
    loss = DenoisingScoreMatching(parameterization, "discrete", reduce_mean=reduce_mean)
    network = lambda x, labels, _: SimpleNamespace(sample=torch.sin(x) * column(labels + 1))  # noqa: E731
    x_0, z = torch.randn(2, 5, 3, 2, 2, generator=torch.Generator().manual_seed(0))

    sigmas = torch.tensor([50 * (0.01 / 50) ** (i / (n - 1)) for i in range(n)])[labels]
    score = network(x_0 + column(sigmas) * z, labels, None).sample
    error = (score + z / column(sigmas)).square().flatten(1)
    expected = (error.mean(1) if reduce_mean else 0.5 * error.sum(1)) * sigmas**2

    t = 1 - labels.double() / (n - 1)
    torch.testing.assert_close(loss(network, x_0, z, t), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("reduce_mean", [True, False])
def test_discrete_vp_is_the_ddpm_loss(reduce_mean):
    """Eq. 3 in DDPM's simple form: |eps(sqrt(abar_i) x + sqrt(1 - abar_i) z, i) - z|^2."""
    labels = torch.tensor([0, 1, 50, 98, 99])
    parameterization = Parameterization(DiscreteVPSDE(BETAS), "epsilon", "index", (-1, 1))
    loss = DenoisingScoreMatching(parameterization, "discrete", reduce_mean=reduce_mean)
    network = lambda x, labels, _: SimpleNamespace(sample=torch.sin(x) * column(labels + 1))  # noqa: E731
    x_0, z = torch.randn(2, 5, 3, 2, 2, generator=torch.Generator().manual_seed(0))

    products = (1 - BETAS).cumprod(0)[labels].float()
    x = column(products.sqrt()) * x_0 + column((1 - products).sqrt()) * z
    error = (network(x, labels, None).sample - z).square().flatten(1)
    expected = error.mean(1) if reduce_mean else 0.5 * error.sum(1)

    t = (labels.double() + 1) / 100
    torch.testing.assert_close(loss(network, x_0, z, t), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["ve", "vp", "vp_discrete"])
def test_discrete_times_are_the_whole_table(name):
    loss = objective(SDES[name], "discrete")
    asked = loss.parameterization.network_time(loss.draw_times(3000, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(asked, asked.round(), rtol=0, atol=1e-9)
    assert sorted(set(asked.round().long().tolist())) == list(range(100))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_draws_are_the_generators(sde, name):
    loss = objective(sde, name)
    first, again, other = (loss.draw_times(50, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (50,) and first.dtype == torch.float64
    assert first.max() <= 1 and (first.min() >= loss.eps or (name == "discrete" and first.min() >= 0))


class TinyNetwork(nn.Module):
    """Linear in x and in functions of the given time, and with a bias for each class."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(3, 1)
        self.classes = nn.Embedding(2, 1)
        self.seen = []

    def forward(self, x, t, class_labels=None):
        self.seen.append((x.dtype, t.dtype, class_labels))
        t = torch.stack([t, t**2, (1 + t).log()], 1)
        shift = 0 if class_labels is None else column(self.classes(class_labels))
        return SimpleNamespace(sample=column(self.scale(t)) * x + shift)


@pytest.mark.parametrize("name", ["sigma2", "likelihood", "edm", "velocity"])
def test_gradient_steps_reduce_the_loss(sde, name):
    torch.manual_seed(0)
    loss, network = objective(sde, name), TinyNetwork()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    # fixed draws: the loss of one batch must come down, without luck
    x_0, noise = torch.randn(2, 64, 1, 2, 2, generator=generator)
    t, labels = loss.draw_times(64, generator), torch.randint(2, (64,), generator=generator)
    values = []
    for _ in range(30):
        value = loss(network, x_0, noise, t, labels).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.95 * values[0]
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())
    assert network.seen[0][:2] == (torch.float32, torch.float32) and network.seen[0][2] is labels


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"objective": "sigma"}, "objective"),
        ({"objective": "discrete"}, "objective"),  # for a network that is not conditioned on an index
        ({"eps": 0.0}, "eps"),
        ({"eps": 1.0}, "eps"),
        ({"sigma_data": 0.0}, "sigma_data"),
        ({"log_sigma_std": -1.0}, "log_sigma_std"),
    ],
)
def test_bad_arguments_are_named(options, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        DenoisingScoreMatching(Parameterization(VESDE(), "score", "sigma", (0, 1)), **options)


def test_integer_images_are_refused():
    """Their dtype would cut alpha and sigma to 0."""
    objective = DenoisingScoreMatching(Parameterization(VPSDE(), "epsilon", "999t", (-1, 1)))
    floats, integers = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4, dtype=torch.int64)
    for x_0, noise, name in ((integers, floats, "x_0"), (floats, integers, "noise")):
        with pytest.raises(ValueError, match=f"`{name}` must be floating point, but is int64"):
            objective(None, x_0, noise, objective.draw_times(2))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"noise": torch.randn(1, 1, 2, 2)}, r"`noise` must have the shape \(3, 1, 2, 2\) of `x_0`"),
        ({"t": torch.rand(2)}, r"`t` must have shape \(3,\), but has \(2,\)"),
        ({"t": torch.tensor([1, 250, 999])}, r"`t` must hold times in \[0, 1\], but goes from 1 to 999"),
    ],
)
def test_shapes_and_times_of_other_kinds_are_refused(change, message):
    given = {"x_0": torch.randn(3, 1, 2, 2), "noise": torch.randn(3, 1, 2, 2), "t": torch.rand(3)} | change
    edm = Parameterization(VESDE(), "sample", "sigma", (-1.0, 1.0))
    for loss in (objective(VESDE(), "edm"), ConsistencyTuning(edm)):
        with pytest.raises(ValueError, match=message):
            loss(lambda x, *_: UNet2DOutput(sample=x), **given)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_targets_of_images_in_half_precision_are_not_rounded(prediction_type):
    p = Parameterization(VPSDE(), prediction_type, "999t", (-1, 1))
    objective = DenoisingScoreMatching(p)
    x, noise = (torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(k)).bfloat16() for k in (0, 1))
    t = objective.draw_times(64, torch.Generator().manual_seed(0))

    def nothing(x, t, labels):
        return UNet2DOutput(sample=torch.zeros_like(x))

    exact, found = (objective(nothing, *images, t) for images in ((x.float(), noise.float()), (x, noise)))
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=0)


def test_answers_of_another_shape_are_refused():
    objective = DenoisingScoreMatching(Parameterization(VPSDE(), "epsilon", "999t", (-1, 1)))
    x = torch.zeros(4, 3, 8, 8)
    for shape in ((1, 3, 8, 8), (4, 1, 8, 8)):
        with pytest.raises(ValueError, match="`network` must answer in the shape .4, 3, 8, 8."):
            objective(lambda x, t, labels, s=shape: UNet2DOutput(torch.zeros(s)), x, x, objective.draw_times(4))
    with pytest.raises(ValueError, match="`reduce_mean` must be one of"):
        DenoisingScoreMatching(objective.parameterization, reduce_mean="no")


def test_a_wrapped_network_is_known_by_its_configuration():
    """By DistributedDataParallel, or with an argument that is given: what does not fit is refused as without."""
    unet = NCSNppUNet2DModel(sample_size=8, in_channels=1, block_out_channels=(8,), layers_per_block=1)
    objective = DenoisingScoreMatching(Parameterization(VPSDE(), "score", "999t", (-1, 1)))
    x = torch.zeros(2, 1, 8, 8)
    for network in (unet, SimpleNamespace(module=unet), partial(unet, augment_labels=None)):
        with pytest.raises(ValueError, match="divides its output by the value"):
            objective(network, x, x, objective.draw_times(2))


@pytest.mark.parametrize("n", [2.5, -1, "a", True])
def test_only_counts_of_times_are_drawn(n):
    loss = DenoisingScoreMatching(Parameterization(VPSDE(), "epsilon", "999t", (-1, 1)))
    with pytest.raises(ValueError, match="`n` must be a whole number"):
        loss.draw_times(n)
