"""The SDEs against the paper's formulas in high precision, against finite differences and against each other."""

import math
from decimal import Decimal, getcontext

import mpmath
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from sde_diffusers import VESDE, VPSDE, CosineVPSDE, DiscreteVPSDE, ExponentialVESDE, FlowSDE, SubVPSDE

getcontext().prec = 50
N = 20  # entries of the beta table below
BETAS = torch.linspace(0.01, 0.3, N, dtype=torch.float64)
SDES = {
    "ve": VESDE(),
    "ve_other": VESDE(0.02, 348.0),
    "vp": VPSDE(),
    "vp_constant_beta": VPSDE(5.0, 5.0),
    "sub_vp": SubVPSDE(),
    "ve_exponential": ExponentialVESDE(),
    "vp_discrete": DiscreteVPSDE(BETAS),
    "cosine_vp": CosineVPSDE(),
    "flow": FlowSDE(),
    "flow_shifted": FlowSDE(3.0),
}


@pytest.fixture(params=SDES)
def name(request):
    return request.param


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def exact_kernel(name, t):
    """alpha(t) and sigma(t) to 50 digits, as the papers write them (eq. 29, 31, 32; the tutorial; DDPM's product)."""
    if name == "cosine_vp":
        return exact_cosine_kernel(t)
    t, one = Decimal(t), Decimal(1)
    if name.startswith("flow"):
        sigma = t if name == "flow" else 3 * t / (1 + 2 * t)
        return one - sigma, sigma
    if name.startswith("ve"):
        if name == "ve_exponential":
            return one, ((Decimal(25) ** (2 * t) - 1) / (2 * Decimal(25).ln())).sqrt()
        low, high = [Decimal(v) for v in ((0.01, 50.0) if name == "ve" else (0.02, 348.0))]
        return one, low * (high / low) ** t
    if name == "vp_discrete":  # geometric interpolation of alpha between the products of the table
        k = int(t * N)
        product = math.prod((1 - Decimal(b) for b in BETAS[:k].tolist()), start=one)
        if k < N:
            product *= (1 - Decimal(BETAS[k].item())) ** (t * N - k)
    else:
        low, high = [Decimal(v) for v in ((5.0, 5.0) if name == "vp_constant_beta" else (0.1, 20.0))]
        product = (-(t**2) * (high - low) / 2 - t * low).exp()
    return product.sqrt(), (1 - product if name == "sub_vp" else (1 - product).sqrt())


def exact_cosine_kernel(t):
    """cos((pi / 2) (t + s) / (1 + s)) over its value at 0, until beta = -2 d log(alpha) / dt is 999, and from there on
    exponential."""
    with mpmath.workdps(50):
        t, s, pi = mpmath.mpf(t), mpmath.mpf(0.008), mpmath.pi
        angle = lambda t: pi / 2 * (t + s) / (1 + s)  # noqa: E731
        bend = mpmath.atan(999 * (1 + s) / pi) * 2 * (1 + s) / pi - s
        alpha = mpmath.cos(angle(min(t, bend))) / mpmath.cos(angle(0)) * mpmath.exp(-999 * max(t - bend, 0) / 2)
        return Decimal(str(alpha)), Decimal(str(mpmath.sqrt(1 - alpha**2)))


def test_times_outside_of_the_sde_are_refused(name):
    """By all functions of time, as numbers and as arrays; what is no time is none."""
    sde = SDES[name]
    for function in (sde.alpha, sde.log_alpha, sde.sigma, sde.drift, sde.diffusion, sde.half_log_snr):
        for t in (2.0, -1e-3, float("nan"), np.array([0.5, 1.5]), np.float32(1.01)):
            with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
                function(t)
    with pytest.raises(ValueError, match="2.0"):
        sde.transition(0.5, 2.0)
    assert sde.alpha([0.0, 1.0]).shape == (2,) and sde.inverse_half_log_snr(-3.0).isfinite()


@pytest.mark.parametrize("t", [1e-9, 1e-5, 1e-3, 0.1, 0.5, 0.97, 1.0])
def test_kernel_is_the_papers_to_ten_digits(name, t):
    sde, (alpha, sigma) = SDES[name], exact_kernel(name, t)
    assert sde.alpha(t).item() == pytest.approx(float(alpha), rel=1e-11)
    assert sde.sigma(t).item() == pytest.approx(float(sigma), rel=1e-10)
    assert sde.half_log_snr(t).item() == pytest.approx(float((alpha / sigma).ln()), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("t", [1e-5, 1e-3, 0.3, 1.0])
def test_float32_times_lose_no_more_than_float32_rounding(name, t):
    t = torch.tensor(t, dtype=torch.float32)
    alpha, sigma = exact_kernel(name, t.item())
    for value, exact in [(SDES[name].alpha(t), alpha), (SDES[name].sigma(t), sigma)]:
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(float(exact), rel=6e-8)  # half a unit in the last place


def test_kernel_values_by_hand():
    # VP at t = 1e-5: 2 log alpha = -(9.95e-10 + 1e-6); sigma^2 = x - x^2 / 2 + x^3 / 6 with x = 1.000995e-6
    x = 1.000995e-6
    assert VPSDE().sigma(1e-5).item() == pytest.approx(math.sqrt(x - x**2 / 2 + x**3 / 6), rel=1e-14)
    assert SubVPSDE().sigma(1e-5).item() == pytest.approx(x - x**2 / 2 + x**3 / 6, rel=1e-14)
    assert VPSDE().alpha(1).item() == pytest.approx(math.exp(-5.025), rel=1e-14)
    assert VESDE().sigma(0.5).item() == pytest.approx(math.sqrt(0.5), rel=1e-14)
    assert ExponentialVESDE(25).sigma(1).item() == pytest.approx(math.sqrt(624 / (2 * math.log(25))), rel=1e-14)


def test_drift_and_diffusion_are_the_kernels_derivatives(name):
    """f = d log(alpha)/dt and g^2 = d(sigma^2)/dt - 2 f sigma^2, by central differences within table intervals."""
    sde, h = SDES[name], 1e-6
    t = (torch.arange(N, dtype=torch.float64) + 0.37) / N
    f = (sde.alpha(t + h).log() - sde.alpha(t - h).log()) / (2 * h)
    g2 = (sde.sigma(t + h) ** 2 - sde.sigma(t - h) ** 2) / (2 * h) - 2 * f * sde.sigma(t) ** 2
    torch.testing.assert_close(sde.drift(t), f, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(sde.diffusion(t) ** 2, g2, rtol=1e-6, atol=1e-8)


def test_diffusion_by_the_papers_formulas():
    for t in (0.0, 1e-4, 0.25, 1.0):
        beta = 0.1 + 19.9 * t
        alpha2 = math.exp(-9.95 * t**2 - 0.1 * t)
        assert VESDE().diffusion(t).item() == pytest.approx(0.01 * 5000**t * math.sqrt(2 * math.log(5000)))
        assert VPSDE().diffusion(t).item() == pytest.approx(math.sqrt(beta))
        assert SubVPSDE().diffusion(t).item() == pytest.approx(math.sqrt(beta * (1 - alpha2**2)), rel=1e-9)
        assert ExponentialVESDE(25).diffusion(t).item() == pytest.approx(25**t)
        for sde in (VPSDE(), SubVPSDE()):
            assert sde.drift(t).item() == pytest.approx(-beta / 2)
    table = DiscreteVPSDE(BETAS)  # f = log(1 - beta_k) N / 2 between k / N and (k + 1) / N
    assert table.drift(3.5 / N).item() == pytest.approx(math.log(1 - BETAS[3].item()) * N / 2)
    assert table.diffusion(3.5 / N).item() == pytest.approx(math.sqrt(-math.log(1 - BETAS[3].item()) * N))


def test_at_the_points_of_a_table_the_interval_below_counts():
    """In all three ways that times of a table are computed, whatever rounding does to them."""
    n = 1000
    sde = DiscreteVPSDE([1e-4, 0.02] * (n // 2))
    wanted = 0.5 * torch.log1p(-sde.betas) * n
    k = torch.arange(1, n + 1, dtype=torch.float64)
    for t in (k / n, torch.linspace(1, 1 / n, n, dtype=torch.float64).flip(0), k * (1 / n)):
        torch.testing.assert_close(sde.drift(t), wanted, rtol=1e-9, atol=0)
        torch.testing.assert_close(sde.derivatives(t)[0] / sde.alpha(t), wanted, rtol=1e-9, atol=0)
    assert [sde.drift(t).item() for t in (0.4791, 0.0)] == pytest.approx([wanted[479].item(), wanted[0].item()])


def test_a_flow_is_finite_but_for_drift_and_diffusion():
    """Of the straight path x_t = (1 - t) x_0 + t noise: f = -1 / (1 - t), g^2 = 2 t / (1 - t)."""
    sde, t = FlowSDE(), double(0.0, 0.25, 0.5, 0.999)
    torch.testing.assert_close(sde.drift(t), -1 / (1 - t), rtol=1e-12, atol=0)
    torch.testing.assert_close(sde.diffusion(t), (2 * t / (1 - t)).sqrt(), rtol=1e-12, atol=0)
    assert sde.drift(1) == -math.inf and sde.diffusion(1) == math.inf and sde.half_log_snr(1) == -math.inf
    assert sde.alpha(1) == 0 and sde.sigma(1) == 1 and sde.inverse_half_log_snr(-math.inf) == 1
    assert [slope.item() for slope in sde.derivatives(1)] == [-1, 1]
    a, b = sde.transition(0.3, 1.0)
    assert a == 0 and b == 1
    chain = sde.chain(double(1.0, 0.6, 0.2))  # from pure noise on, what follows is alpha_s x_0 + sigma_s z
    torch.testing.assert_close(chain.a, double(0.0, 0.4 / 0.8, 0.8))
    torch.testing.assert_close(chain.posterior_noise[0], double(0.6)[0])


def test_the_cosine_sdes_last_betas_are_bounded():
    """As those of the table, which it passes through (arXiv 2102.09672, eq. 17), in all but the last of 1000 steps."""
    sde = CosineVPSDE()
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    beta = -2 * sde.drift(t)
    assert (beta.diff() >= 0).all() and beta[-1].item() == pytest.approx(999)
    assert 1e-4 < sde.alpha(1).item() < 2e-3 and sde.diffusion(1).item() == pytest.approx(math.sqrt(999))
    table = DDPMScheduler(beta_schedule="squaredcos_cap_v2").betas.double()
    torch.testing.assert_close((sde.alpha(t[1:]) ** 2)[:-3], (1 - table).cumprod(0)[:-3], rtol=2e-3, atol=1e-7)
    assert CosineVPSDE(largest_beta=50.0).drift(1).item() == pytest.approx(-25)
    far = CosineVPSDE(largest_beta=20.0)  # a bend in the middle is inverted on both of its sides
    times = torch.linspace(0.01, 1.2, 100, dtype=torch.float64)
    torch.testing.assert_close(far.inverse_half_log_snr(far.half_log_snr(times)), times, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", [VESDE, VPSDE, SubVPSDE, ExponentialVESDE, DiscreteVPSDE, CosineVPSDE])
def test_there_is_no_time_of_pure_noise_but_a_flows(kind):
    assert kind().inverse_half_log_snr(-math.inf) == math.inf


def test_half_log_snr_decreases_and_is_inverted(name):
    sde = SDES[name]
    t = torch.cat([torch.logspace(-9, -2, 29, dtype=torch.float64), torch.linspace(0.02, 1, 50, dtype=torch.float64)])
    values = sde.half_log_snr(t)
    assert (values.diff() < 0).all()
    torch.testing.assert_close(sde.inverse_half_log_snr(values), t, rtol=1e-9, atol=1e-14)


def test_inverse_half_log_snr_at_any_noise_level(name):
    """Levels sigma / alpha between 1e-4 and 1e3 that the SDE reaches in [0, 1], in any shape."""
    sde = SDES[name]
    levels = torch.logspace(-4, 3, 30, dtype=torch.float64).reshape(5, 6)
    t = sde.inverse_half_log_snr(-levels.log())
    assert t.shape == levels.shape
    reached = (t >= 0) & (t <= 1)
    assert reached.sum() > 5
    assert not ((levels > sde.sigma(1e-9) / sde.alpha(1e-9)) & (levels < sde.sigma(1) / sde.alpha(1)) & ~reached).any()
    torch.testing.assert_close((sde.sigma(t) / sde.alpha(t))[reached], levels[reached], rtol=1e-9, atol=0)


def test_transitions_compose(name):
    """s -> u -> t is s -> t, and a transition from the data's end carries the kernel along."""
    sde = SDES[name]
    s, u, t = double(0.03, 0.2, 0.5), double(0.11, 0.21, 0.9), double(0.5, 0.6, 1.0)
    (a_su, b_su), (a_ut, b_ut), (a_st, b_st) = sde.transition(s, u), sde.transition(u, t), sde.transition(s, t)
    torch.testing.assert_close(a_ut * a_su, a_st, rtol=1e-12, atol=0)
    torch.testing.assert_close(((a_ut * b_su) ** 2 + b_ut**2).sqrt(), b_st, rtol=1e-9, atol=0)
    torch.testing.assert_close(a_st * sde.alpha(s), sde.alpha(t), rtol=1e-12, atol=0)
    torch.testing.assert_close((a_st * sde.sigma(s)) ** 2 + b_st**2, sde.sigma(t) ** 2, rtol=1e-12, atol=0)
    a, b = sde.transition(t, t)
    assert (a == 1).all() and (b <= 1e-7 * sde.sigma(t)).all()


def test_transition_is_the_limit_of_euler_maruyama(name):
    """Mean and variance of n Euler-Maruyama steps dx = f x dt + g dw, for n so large that they are the SDE's."""
    sde, s, t, n = SDES[name], 0.2, 0.8, 20_000
    dt = (t - s) / n
    times = s + dt * (torch.arange(n, dtype=torch.float64) + 0.5)
    mean, variance = 1.0, 0.0
    for f, g in zip(sde.drift(times).tolist(), sde.diffusion(times).tolist(), strict=True):
        mean, variance = (1 + f * dt) * mean, (1 + f * dt) ** 2 * variance + g**2 * dt
    a, b = sde.transition(s, t)
    assert a.item() == pytest.approx(mean, rel=3e-3)
    assert b.item() ** 2 == pytest.approx(variance, rel=3e-3)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_discrete_vp_passes_through_ddpm_tables(schedule):
    betas = DDPMScheduler(beta_schedule=schedule).betas.double()
    n = len(betas)
    products = (1 - betas).cumprod(0)
    sde = DiscreteVPSDE(betas)
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    torch.testing.assert_close(sde.alpha(t), products.sqrt(), rtol=1e-11, atol=0)
    torch.testing.assert_close(sde.sigma(t), (1 - products).sqrt(), rtol=1e-9, atol=0)
    theirs = DDPMScheduler(beta_schedule=schedule).alphas_cumprod.double()  # multiplied in float32
    torch.testing.assert_close(sde.alpha(t) ** 2, theirs, rtol=2e-4, atol=1e-7)
    torch.testing.assert_close(sde.table_index(t, n), torch.arange(n, dtype=torch.float64), rtol=0, atol=1e-9)
    assert sde.smallest_time == 1 / n and sde.sampling_eps >= 1 / n


def test_prior(name):
    sde = SDES[name]
    generator = torch.Generator().manual_seed(0)
    z = sde.prior((2000, 3, 2, 2), generator=generator)
    assert z.std().item() == pytest.approx(sde.prior_sigma, rel=0.02)
    assert torch.equal(z, sde.prior((2000, 3, 2, 2), generator=generator.manual_seed(0)))
    expected = torch.distributions.Normal(double(0.0), double(sde.prior_sigma)).log_prob(z.double()).sum((1, 2, 3))
    torch.testing.assert_close(sde.prior_logp(z.double()), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(sde.prior_logp(z).double(), expected, rtol=1e-5, atol=0)


def test_prior_deviation_is_that_of_the_kernel_at_the_end(name):
    """Exactly for VE SDEs; VP ones forget the data up to alpha(1)^2."""
    sde = SDES[name]
    tolerance = 1e-12 if sde.alpha(1) == 1 else 1.01 * sde.alpha(1).item() ** 2
    assert sde.prior_sigma == pytest.approx(sde.sigma(1).item(), abs=tolerance)


@pytest.mark.parametrize(
    "method", ["alpha", "sigma", "drift", "diffusion", "half_log_snr", "inverse_half_log_snr", "log_alpha"]
)
def test_functions_of_time_take_numbers_and_tensors(name, method):
    function = getattr(SDES[name], method)
    number = function(0.5)
    assert isinstance(number, torch.Tensor) and number.shape == () and number.dtype == torch.float64
    assert function(1).item() == function(1.0).item() == function(torch.tensor(1)).item()  # integers are no half-way
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for shape in ((), (3,), (2, 1, 4), (0,)):
            t = torch.full(shape, 0.5, dtype=dtype)
            values = function(t)
            assert values.shape == t.shape and values.dtype == dtype
            assert (values == number.to(dtype)).all()  # 0.5 is exact in all of them


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: VESDE(sigma_min=0.0), "sigma_min"),
        (lambda: VESDE(sigma_min=2.0, sigma_max=1.0), "sigma_max"),
        (lambda: VESDE(sigma_max=math.inf), "sigma_max"),
        (lambda: VESDE(sigma_max="50"), "sigma_max"),
        (lambda: VPSDE(beta_min=-0.1), "beta_min"),
        (lambda: VPSDE(beta_min=0.1, beta_max=math.nan), "beta_max"),
        (lambda: SubVPSDE(beta_min=3.0, beta_max=2.0), "beta_max"),
        (lambda: ExponentialVESDE(1.0), "sigma"),
        (lambda: ExponentialVESDE(-25.0), "sigma"),
        (lambda: DiscreteVPSDE([]), "betas"),
        (lambda: DiscreteVPSDE([0.1, 1.0]), "betas"),
        (lambda: DiscreteVPSDE([0.1, 0.0]), "betas"),
        (lambda: DiscreteVPSDE([0.1, math.nan]), "betas"),
        (lambda: CosineVPSDE(s=0.0), "s"),
        (lambda: CosineVPSDE(largest_beta=0.01), "largest_beta"),
        (lambda: FlowSDE(shift=0.0), "shift"),
        (lambda: FlowSDE(shift=math.inf), "shift"),
    ],
)
def test_bad_parameters_are_named(make, argument):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        make()


def test_repr_names_the_class(name):
    assert repr(SDES[name]).startswith(type(SDES[name]).__name__ + "(")


# Chains of discrete steps.


def test_exact_chain_ends_in_the_kernel(name):
    """From x_0 up through the grid: the chain's own mean and variance are alpha and sigma^2 at every time."""
    sde = SDES[name]
    times = double(1.0, 0.7, 0.4, 0.1, 0.05)
    chain = sde.chain(times)
    mean, variance = 1.0, 0.0
    for k in reversed(range(len(times))):
        mean, variance = chain.a[k] * mean, chain.a[k] ** 2 * variance + chain.b[k] ** 2
        torch.testing.assert_close(mean, sde.alpha(times[k]), rtol=1e-10, atol=0)
        torch.testing.assert_close(variance, sde.sigma(times[k]) ** 2, rtol=1e-9, atol=0)


def test_exact_chains_posterior_is_gaussian_conditioning(name):
    """Var(x_s | x_t, x_0) = sigma_s^2 - cov(x_s, x_t)^2 / sigma_t^2 with cov = a sigma_s^2."""
    sde = SDES[name]
    times = double(1.0, 0.7, 0.4, 0.1)
    chain = sde.chain(times)
    sigma = sde.sigma(times)
    a, sigma_t, sigma_s = chain.a[:-1], sigma[:-1], sigma[1:]
    expected = sigma_s**2 - (a * sigma_s**2) ** 2 / sigma_t**2
    torch.testing.assert_close(chain.posterior_noise[:-1] ** 2, expected, rtol=1e-6, atol=0)
    assert chain.posterior_noise[-1] == 0  # x_0 given x_0


def test_exact_chain_through_a_table_is_the_tables():
    """On its own times (k + 1) / N: a = sqrt(1 - beta_k), b = sqrt(beta_k), Langevin steps scaled by 1 - beta_k."""
    chain = DiscreteVPSDE(BETAS).chain(torch.arange(N, 0, -1, dtype=torch.float64) / N)
    betas = BETAS.flip(0)
    torch.testing.assert_close(chain.a, (1 - betas).sqrt(), rtol=1e-10, atol=0)
    torch.testing.assert_close(chain.b, betas.sqrt(), rtol=1e-10, atol=0)
    torch.testing.assert_close(chain.langevin_scale, 1 - betas, rtol=1e-10, atol=0)


def papers_grid(sde, n):
    return torch.linspace(1, sde.sampling_eps, n, dtype=torch.float64)


@pytest.mark.parametrize("n", [2, 50, 1000])
def test_paper_chain_of_ve_is_smld(n):
    sde = VESDE(0.01, 50.0)
    chain = sde.paper_chain(papers_grid(sde, n))
    for k in range(n):
        i = n - 1 - k
        sigma = 0.01 * 5000 ** (i / (n - 1))
        below = 0.01 * 5000 ** ((i - 1) / (n - 1)) if i > 0 else 0.0
        assert chain.a[k] == 1 and chain.langevin_scale[k] == 1
        assert chain.b[k].item() == pytest.approx(math.sqrt(sigma**2 - below**2), rel=1e-9)
        posterior = math.sqrt(below**2 * (sigma**2 - below**2) / sigma**2)
        assert chain.posterior_noise[k].item() == pytest.approx(posterior, rel=1e-9)


@pytest.mark.parametrize("n", [21, 50, 1000])
def test_paper_chain_of_vp_is_ddpm(n):
    sde = VPSDE(0.1, 20.0)
    chain = sde.paper_chain(papers_grid(sde, n))
    for k in range(n):
        i = n - 1 - k
        beta = (0.1 + (20 - 0.1) * i / (n - 1)) / n
        assert chain.a[k].item() == pytest.approx(math.sqrt(1 - beta), rel=1e-11)
        assert chain.b[k].item() == pytest.approx(math.sqrt(beta), rel=1e-11)
        assert chain.posterior_noise[k].item() == pytest.approx(math.sqrt(beta), rel=1e-11)
        assert chain.langevin_scale[k].item() == pytest.approx(1 - beta, rel=1e-11)


@pytest.mark.parametrize("n", [21, 50, 1000])
def test_paper_chain_of_sub_vp_is_euler_maruyama(n):
    """The paper discretises the sub-VP SDE by f dt and g sqrt(dt) with dt = 1 / N, at the continuous times."""
    sde = SubVPSDE(0.1, 20.0)
    chain = sde.paper_chain(papers_grid(sde, n))
    for k in range(n):
        t = 1 - k * (1 - 1e-3) / (n - 1)
        beta, alpha4 = 0.1 + 19.9 * t, math.exp(-2 * (9.95 * t**2 + 0.1 * t))
        assert chain.a[k].item() == pytest.approx(1 - beta / (2 * n), rel=1e-11)
        assert chain.b[k].item() == pytest.approx(math.sqrt(beta * (1 - alpha4) / n), rel=1e-9)
        i = n - 1 - k
        assert chain.langevin_scale[k].item() == pytest.approx(1 - (0.1 + 19.9 * i / (n - 1)) / n, rel=1e-11)
    assert chain.posterior_noise is None


@pytest.mark.parametrize("n", [1, 2, 3, 10, 20])
def test_paper_chain_of_few_steps_is_a_chain(name, n):
    """Where a beta_i would reach 1 there is no DDPM chain: the exact one stands, which ends in the kernel at t = 1."""
    sde = SDES[name]
    chain = sde.paper_chain(papers_grid(sde, n))
    for values in (chain.a, chain.b, chain.langevin_scale, chain.posterior_noise):
        assert values is None or (values.shape == (n,) and values.isfinite().all() and (values >= 0).all())
    if not isinstance(sde, VPSDE) or sde.beta_max >= n:
        mean, variance = 1.0, 0.0
        for a, b in zip(chain.a.flip(0).tolist(), chain.b.flip(0).tolist(), strict=True):
            mean, variance = a * mean, a**2 * variance + b**2
        assert mean == pytest.approx(sde.alpha(1).item(), rel=1e-9)
        assert variance == pytest.approx(sde.sigma(1).item() ** 2, rel=1e-9)


def test_table_of_ve_descends():
    sde = VESDE()
    t = torch.linspace(1, 0, 11, dtype=torch.float64)
    assert sde.table_index(t, 11).tolist() == list(range(11))
    torch.testing.assert_close(sde.time_of_index(torch.arange(11), 11).to(t), t, rtol=0, atol=1e-12)
    assert sde.table_index(0.62, 11).item() == 4  # between entries: the nearest one, as the paper's code rounds


def test_no_transition_leads_backwards():
    for sde in (VPSDE(), VESDE(), FlowSDE()):
        with pytest.raises(ValueError, match="`s` must not be later than `t`"):
            sde.transition(0.7, 0.2)
        with pytest.raises(ValueError, match="`s`"):
            sde.transition(double(0.1, 0.5), 0.4)
        s, t = double(0.1, 0.2), double(0.3, 0.4)
        torch.testing.assert_close(
            torch.func.vmap(sde.transition)(s, t), sde.transition(s, t)
        )  # none can be looked at


@pytest.mark.parametrize(
    "sde",
    [VPSDE(0.1, 2000.0), SubVPSDE(0.1, 5000.0), DiscreteVPSDE([0.9] * 1000)],
    ids=lambda sde: sde.name,
)
def test_times_of_next_to_no_signal(sde):
    """Where alpha is less than any float64 number."""
    times = double(1.0, 0.995, 0.97)
    found = sde.inverse_half_log_snr(sde.half_log_snr(times))
    torch.testing.assert_close(found, times, rtol=1e-9, atol=0)
    assert (-2 * sde.half_log_snr(1.0)).item() > 709  # beyond exp


def test_the_prior_of_half_precision():
    z = 50 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Normal(0.0, 50.0).log_prob(z.half().double()).sum()
    torch.testing.assert_close(VESDE().prior_logp(z.half()).double(), expected[None], rtol=1e-5, atol=0)


@pytest.mark.parametrize("betas", [[0.1], [[0.1, 0.2]], []])
def test_what_is_no_table_is_refused(betas):
    with pytest.raises(ValueError, match="`betas`"):
        DiscreteVPSDE(betas)
