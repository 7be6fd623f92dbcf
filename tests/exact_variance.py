"""What a sampler does to Gaussian data, in closed form: one coordinate, variance V, mean 0, the exact network.

In y = x / alpha and r = sigma / alpha the marginal variance is V + r^2, and E[noise | x] = r y / (V + r^2). Every step is
linear in the state and the noise. Here the steps are written down once more, from their equations alone, for any number
of them; and what they tend to when their number grows:

    Var(eps) = P(eps) + Phi^2 (prior^2 - P(start)),    P = alpha^2 V + sigma^2,
    Phi = sqrt(P(eps) / P(start)) ((V + r(eps)^2) / (V + r(start)^2))^(eta^2 / 2),

Phi being the linear map of the reverse SDE with noise eta: the factor that the wrong start leaves. The last evaluation,
without noise, multiplies the deviation by that of E[x_0 | x], alpha V / P.
"""

import math

import torch
from exact_scores import Gaussian, exact_output

from sde_diffusers.parameterization import PURE_NOISE
from sde_diffusers.schedulers.time_grids import time_grid


def kernel(sde, t):
    return sde.alpha(t).item(), sde.sigma(t).item()


def limit(scheduler, V, eta):
    """Variance at the end for infinitely many steps, but for correctors."""
    (a, s), (a_1, s_1) = kernel(scheduler.sde, scheduler.sampling_eps), kernel(scheduler.sde, scheduler.start_time)
    P, P_1 = a * a * V + s * s, a_1 * a_1 * V + s_1 * s_1
    # (V + r^2) = P / alpha^2; from pure noise nothing of the start is left where eta is above 0
    contraction = (P / a**2 * (a_1**2 / P_1)) ** (eta**2 / 2) if eta else 1.0
    variance = P + P / P_1 * contraction**2 * (scheduler.init_noise_sigma**2 - P_1)
    return variance * (a * V / P) ** 2 if scheduler.final_denoise else variance


def grid(scheduler, n):
    """(alpha, sigma) at the n steps' starts and at their end."""
    last = scheduler.final_denoise
    times = time_grid(scheduler.time_grid, n if last else n + 1, scheduler.sde, scheduler.start_time, scheduler.sampling_eps)
    assert (times.diff() < 0).all() and times[0] == scheduler.start_time
    pairs = [*zip(scheduler.sde.alpha(times).tolist(), scheduler.sde.sigma(times).tolist(), strict=True)]
    return times, pairs + [(1.0, 0.0)] * last


def flow_variance(scheduler, V, n):
    """Euler's and Heun's methods in y and r, or, from pure noise, in z = x / (alpha + sigma), u = sigma / (alpha + sigma)."""
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


def chain_variance(scheduler, V, n):
    """Predictors and correctors on exact transitions x_t = a x_s + b z, or on the paper's chains where they apply."""
    config, sde = scheduler.config, scheduler.sde
    times = time_grid(scheduler.time_grid, n, sde, scheduler.start_time, scheduler.sampling_eps)
    assert (times.diff() < 0).all() and times[0] == scheduler.start_time
    levels = [*zip(sde.alpha(times).tolist(), sde.sigma(times).tolist(), strict=True), (1.0, 0.0)]
    paper = scheduler.time_grid == "uniform" and sde.is_paper_grid(times)
    table = paper_table(sde, n) if paper else None
    ends = [*times.tolist(), 0.0]
    variance = scheduler.init_noise_sigma**2
    for i in range(n):
        (al, s), (al_s, s_s) = levels[i], levels[i + 1]
        P = al * al * V + s * s
        a, noise_s = al / al_s, s_s
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


def paper_table(sde, n):
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
