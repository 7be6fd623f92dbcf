"""What a sampler does to Gaussian data, in closed form: one coordinate, variance V, mean 0, the exact network.

In y = x / alpha and r = sigma / alpha the marginal variance is V + r^2, and E[noise | x] = r y / (V + r^2). Every step
is linear in the state and the noise. Here the steps are written down once more, from their equations alone, for any
number of them; and what they tend to when their number grows:

    Var(eps) = P(eps) + Phi^2 (prior^2 - P(start)),    P = alpha^2 V + sigma^2,
    Phi = sqrt(P(eps) / P(start)) ((V + r(eps)^2) / (V + r(start)^2))^(eta^2 / 2),

Phi being the linear map of the reverse SDE with noise eta: the factor that a start other than p_1 leaves. A last step
follows, from eps to the data, such as E[x_0 | x] = alpha V / P x.
"""

import math
from functools import partial

import numpy as np
import torch
from exact_scores import Gaussian, exact_output
from scipy.integrate import quad

from sde_diffusers.parameterization import PURE_NOISE
from sde_diffusers.schedulers.time_grids import time_grid


def kernel(sde, t):
    return sde.alpha(t).item(), sde.sigma(t).item()


def limit(scheduler, V):
    """Variance at the end of infinitely many steps."""
    config, sde, eps = scheduler.config, scheduler.sde, scheduler.sampling_eps
    chain = hasattr(scheduler, "corrections")
    eta = 1.0 if chain else config.get("eta", 0.0)
    (a, s), (a_1, s_1) = kernel(sde, eps), kernel(sde, scheduler.start_time)
    P, P_1 = a * a * V + s * s, a_1 * a_1 * V + s_1 * s_1
    contraction = (P / a**2 * (a_1**2 / P_1)) ** (eta**2 / 2) if eta else 1.0  # V + r^2 is P / alpha^2
    variance = P + P / P_1 * contraction**2 * (scheduler.init_noise_sigma**2 - P_1)
    if chain:
        if scheduler.corrections:  # stationary under x' = (1 - h / P) x + sqrt(2 h) z
            of_snr = 1 + config.snr**2 if config.corrector == "langevin" else 1 / (1 - (config.snr * s) ** 2 / P)
            variance = P * of_snr
        if config.predictor == "none":
            return variance
        if config.predictor == "euler_maruyama":
            f, g = sde.drift(eps).item(), sde.diffusion(eps).item()
            mean, deviation = 1 - (f + g * g / P) * eps, g * math.sqrt(eps)
        elif config.predictor == "ancestral" or a * PURE_NOISE < 1:
            mean, deviation = a * V / P, 0.0
        else:
            mean, deviation = 2 - a - s * s / P, s
        return mean**2 * variance + (0.0 if scheduler.final_denoise else deviation**2)
    if not scheduler.final_denoise:
        return variance
    if config.get("solver_order", 1) == 1 or eta > 0:
        return variance * (a * V / P) ** 2
    # The last step's polynomial, through estimates that have become one, is the Taylor polynomial of E[noise | x]
    # along the ODE, r y / (V + r^2) with y in proportion to sqrt(V + r^2).
    r, c = s / a, scheduler.parameterization.noise_unit
    u = [r / (c + r) * (1 + 1e-3 * c / (c + r) * j) for j in range(config.solver_order)]
    levels = [c * w / (1 - w) for w in u]
    noise = [level / math.sqrt((V + level**2) * (V + r * r)) for level in levels]
    jump = sum(value * integral(lambda w: 1.0, u, j, r, 0.0, c) for j, value in enumerate(noise))
    return variance / a**2 * (1 + jump) ** 2


def grid(scheduler, n):
    """(alpha, sigma) at the n steps' starts and at their end."""
    last = scheduler.final_denoise
    points = n if last else n + 1
    unit = scheduler.parameterization.noise_unit
    times = time_grid(scheduler.time_grid, points, scheduler.sde, scheduler.start_time, scheduler.sampling_eps, unit)
    assert (times.diff() < 0).all() and times[0] == scheduler.start_time
    pairs = [*zip(scheduler.sde.alpha(times).tolist(), scheduler.sde.sigma(times).tolist(), strict=True)]
    return times, pairs + [(1.0, 0.0)] * last


def flow_variance(scheduler, V, n):
    """Euler's and Heun's methods in y and r, or, from pure noise, in x / (alpha + sigma) and u = r / (1 + r)."""
    _, levels = grid(scheduler, n)
    factor = scheduler.init_noise_sigma
    for (a, s), (b, q) in zip(levels, levels[1:], strict=False):
        if s > a * PURE_NOISE:
            scale, (start, end) = (b + q) / (a + s), (s / (a + s), q / (b + q))
            slope = lambda u: (u - (1 - u) * V) / ((1 - u) ** 2 * V + u**2)  # noqa: E731
        else:
            scale, (start, end) = b / a, (s / a, q / b)
            slope = lambda r: r / (V + r**2)  # noqa: E731
        step, first = end - start, slope(start)
        growth = 1 + step * first
        if scheduler.config.method == "heun" and q > 0:
            growth = 1 + step * (first + slope(end) * growth) / 2
        factor *= scale * growth
    return factor**2


def exponential_variance(scheduler, V, n):
    """The scheduler's two equations, with the polynomials' integrals by adaptive quadrature."""
    _, levels = grid(scheduler, n)
    eta, k2 = scheduler.config.eta, 1 + scheduler.config.eta**2
    c = scheduler.parameterization.noise_unit
    u = [s / (c * a + s) for a, s in levels]
    x = np.zeros(1 + n)  # of the start and of each step's noise
    x[0], history = scheduler.init_noise_sigma, []
    for k in range(n):
        (a, s), (b, q) = levels[k], levels[k + 1]
        P, pure = a * a * V + s * s, s > a * PURE_NOISE
        history = [*history, {"data": a * V / P * x, "noise": s / P * x}][-scheduler.held_order :]
        if q == 0 and (eta > 0 or pure):
            x = history[-1]["data"]
            continue
        form = "data" if pure else "noise" if q == 0 else scheduler.config.algorithm
        nodes = sorted(set(u[k + 1 - len(history) : k + 1]), reverse=True)  # from pure noise u is 1 again and again
        if pure:
            scale, weights, deviation = (q / s if eta == 0 else 0.0), [b], (0.0 if eta == 0 else q)
        else:
            r, r_s = s / a, q / b
            if form == "noise":
                scale, deviation = b / a, b * eta * math.sqrt(r * r - r_s * r_s)
                weights = [b * integral(lambda w: k2, nodes, j, r, r_s, c) for j in range(len(nodes))]
            else:  # dlambda = -dr / r, e^(-kappa (lambda_s - lambda)) = (r_s / r)^kappa
                scale, deviation = q / s * (r_s / r) ** eta**2, q * math.sqrt(1 - (r_s / r) ** (2 * eta**2))
                forgetting = partial(remembered, k2, r_s)
                weights = [b * integral(forgetting, nodes, j, r, r_s, c, 60 / k2) for j in range(len(nodes))]
        x = scale * x + sum(w * h[form] for w, h in zip(weights, history[-len(weights) :], strict=True))
        x[1 + k] += deviation
    return float((x**2).sum())


def remembered(kappa, r_s, r):
    """Weight of x_0 in dlambda = -dr / r."""
    return -kappa * math.exp(kappa * math.log(r_s / r)) / r


def integral(density, nodes, j, start, end, c, reach=math.inf):
    """Of density(r) times the j-th Lagrange polynomial of u = r / (c + r), over r from `start` to `end`; where the
    density is nothing further than `reach` from the end in log(r), from there."""

    def integrand(log_r):
        r = math.exp(log_r)
        u = r / (c + r)
        return r * density(r) * math.prod((u - w) / (nodes[j] - w) for w in nodes if w != nodes[j])

    # From end = 0 on, where e^-60 is nothing beside the integral.
    log_end = math.log(end) if end else math.log(start) - 60
    log_start = min(math.log(start), log_end + reach)
    return quad(integrand, log_start, log_end, epsabs=0, epsrel=1e-10, limit=200)[0]


def chain_variance(scheduler, V, n):
    """Predictors and correctors on exact transitions x_t = a x_s + b z, or on the paper's chains where they apply."""
    config, sde = scheduler.config, scheduler.sde
    unit = scheduler.parameterization.noise_unit
    times = time_grid(scheduler.time_grid, n, sde, scheduler.start_time, scheduler.sampling_eps, unit)
    assert (times.diff() < 0).all() and times[0] == scheduler.start_time
    levels = [*zip(sde.alpha(times).tolist(), sde.sigma(times).tolist(), strict=True), (1.0, 0.0)]
    paper = scheduler.time_grid == "uniform" and sde.is_paper_grid(times)
    table = paper_table(sde, n, times[-1].item()) if paper else None
    ends, log_alpha = [*times.tolist(), 0.0], [*sde.log_alpha(times).tolist(), 0.0]
    variance = scheduler.init_noise_sigma**2
    for i in range(n):
        (al, s), (al_s, s_s) = levels[i], levels[i + 1]
        P = al * al * V + s * s
        a = math.exp(log_alpha[i] - log_alpha[i + 1])
        b = math.sqrt(max(0.0, s * s - (a * s_s) ** 2))
        posterior = b * s_s / s
        langevin = a * a
        if table is not None and not (config.predictor == "ancestral" and table[i][2] is None):
            a, b, posterior, langevin = table[i]
        elif table is not None:
            langevin = table[i][3]
        for _ in range(scheduler.corrections):
            if config.corrector == "ald":
                h = 2 * langevin * (config.snr * s) ** 2
            else:  # in many dimensions |z| / |score| is P over the deviation
                h = 2 * langevin * config.snr**2 * P * P / variance
            variance = (1 - h / P) ** 2 * variance + 2 * h
        if config.predictor == "none":
            continue
        if a * PURE_NOISE < 1:
            mean, deviation = al_s * al * V / P, posterior
        elif config.predictor == "reverse_diffusion":
            mean, deviation = 2 - a - b * b / P, b
        elif config.predictor == "ancestral":
            mean, deviation = (1 - b * b / P) / a, posterior
        else:
            dt = 1 / n if paper else ends[i] - ends[i + 1]
            f, g = sde.drift(times[i]).item(), sde.diffusion(times[i]).item()
            mean, deviation = 1 - (f + g * g / P) * dt, g * math.sqrt(dt)
        last = i == n - 1 and scheduler.final_denoise
        variance = mean * mean * variance + (0.0 if last else deviation**2)
    return variance


def paper_table(sde, n, eps):
    """The paper's discretised coefficients (a, b, posterior noise, langevin factor), from the noisiest step on; None
    where it has none of its own."""
    if sde.name == "ve":
        sigma = [sde.sigma_min * (sde.sigma_max / sde.sigma_min) ** (1 - i / max(1, n - 1)) for i in range(n)] + [0.0]
        steps = [(p * p - q * q, q / p) for p, q in zip(sigma, sigma[1:], strict=False)]
        return [(1.0, math.sqrt(v), math.sqrt(v) * ratio, 1.0) for v, ratio in steps]
    if sde.name in ("vp", "sub_vp") and sde.beta_max < n:
        betas = [(sde.beta_max + (sde.beta_min - sde.beta_max) * i / (n - 1)) / n for i in range(n)]
        if sde.name == "vp":
            return [(math.sqrt(1 - b), math.sqrt(b), math.sqrt(b), 1 - b) for b in betas]
        times = torch.linspace(1, eps, n, dtype=torch.float64)
        beta = (sde.beta_min + times * (sde.beta_max - sde.beta_min)).tolist()
        alpha = sde.alpha(times).tolist()
        g = [math.sqrt(b * (1 - a**4) / n) for a, b in zip(alpha, beta, strict=True)]
        return [(1 - b / 2 / n, d, None, 1 - c) for b, d, c in zip(beta, g, betas, strict=True)]
    return None


def sampled_variance(scheduler, V, n):
    """The same from the scheduler's own steps, as an affine map of the start and of every call's noise."""
    data = Gaussian([0.0], [[V]])
    scheduler.set_timesteps(n)
    calls = len(scheduler.times)
    x = torch.zeros(1 + calls, 1, 1, 1, dtype=torch.float64)
    x[0] = scheduler.init_noise_sigma
    for k, t in enumerate(scheduler.timesteps):
        z = torch.zeros_like(x)
        z[1 + k] = 1.0
        output = exact_output(scheduler, data, scheduler.scale_model_input(x, t))
        x = scheduler.step(output, t, x, variance_noise=z).prev_sample
    return x.square().sum().item()


def drawn_variance(scheduler, V, n, count, generator):
    """From samples, for correctors whose steps depend on the norms: one image of many independent pixels."""
    data = Gaussian([0.0], [[V]])
    scheduler.set_timesteps(n)
    x = scheduler.init_noise_sigma * torch.randn(1, 1, count, 1, generator=generator, dtype=torch.float64)
    for t in scheduler.timesteps:
        pixels = scheduler.scale_model_input(x, t).reshape(-1, 1, 1, 1)
        output = exact_output(scheduler, data, pixels).reshape(x.shape)
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    return x.square().mean().item()
