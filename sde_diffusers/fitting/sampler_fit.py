"""A sampler of few steps, fitted to one network: its noise levels, and the coefficients of its steps.

n steps in y = x / alpha are (see `schedulers/fitted_steps.py`)

    y_{k+1} = a_k y_k + sum_{j <= k} w_kj D_j,    D_j = E[x_0 | y_j; s_j],    y_1 = s_1 z,    x_0 = y_{n+1}.

The numbers p = (log s, a, w) are chosen so that from some latents z the images are those of the network's own
probability flow in many steps, by Gauss and Newton's method with Levenberg and Marquardt's damping,

    minimise |r(p)|^2,    (J^T J + mu diag(J^T J)) dp = -J^T r,    r: see `fit_error.py`,

first for the levels alone, with the coefficients of the exponential solver of order 2, and then, in few steps, for all
numbers, held near that solver's by a penalty: what they gain must be worth their distance. The Jacobian is taken by
differences: a number of step k leaves the steps before as they are, and the last coefficients need no evaluation
at all. So no gradient passes the network, whatever it is, and no memory is needed but that of sampling. To choose the
numbers of a sampler for a network is the idea of LD3 (arXiv 2405.15506), S4S (2502.17423) and DPM-Solver-v3
(2310.13268).

Latents that took no part decide: steps that err more there than the scheduler's own as many are not stored.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sde_diffusers.class_names import Labels
from sde_diffusers.fitting.fit_error import SMALLEST, FitError
from sde_diffusers.fitting.fitted_network import how_asked, rounded_digests
from sde_diffusers.generators import require_generators
from sde_diffusers.guidance import Guidance
from sde_diffusers.network_fit import require_own_scheduler
from sde_diffusers.parameterization import expand_like, require_choice
from sde_diffusers.scalars import whole_number, whole_numbers
from sde_diffusers.schedulers.fitted_steps import settings_digest
from sde_diffusers.schedulers.scheduling_exponential import ScoreSdeExponentialScheduler, lagrange_integrals

fitting_log = logging.getLogger(__name__)

MOST_STEPS = 12
# Where a fit begins, in units of the images' deviation: the first level, the last one, and where they are dense.
FIRST_LEVEL, LAST_LEVEL_OF_FIT, DENSE_LEVEL, HIGHEST_LEVEL = 12.0, 13.0, 8.0, 300.0
FEW_FOR_IMAGES = 3
LEVEL_ITERATIONS, ALL_ITERATIONS = 4, 3
LEVEL_CHANGE, COEFFICIENT_CHANGE, LONGEST_STEP = 0.05, 0.03, 0.7  # of the Jacobian's differences, and of dp
NEARNESS = 0.1  # penalty of a coefficient's distance from the solver's, in units of what the levels alone leave
FIRST_DAMPING, LEAST_DAMPING, DAMPINGS = 0.02, 1e-4, 4


@dataclass
class SamplerFit:
    """What became of one number of steps.

    Args:
        steps: the number.
        error, default_error: of the fitted steps and of the scheduler's own, on latents that the fit did not see; a
            number of `fit_error.py`, 0 for the ODE's solution, of images in units of their deviation.
        stored: whether the first is less than the second.
        images: (N, C, H, W) in [0, 1] of some of these latents, by name: "solution", "default" and "fitted".
        numbers: {"levels": ..., "state": ..., "estimates": ...}, see `schedulers/fitted_steps.py`.
    """

    steps: int
    error: float
    default_error: float
    stored: bool
    images: dict[str, Tensor]
    numbers: dict[str, list]


@torch.inference_mode(False)
@torch.no_grad()
def fit_sampler(
    pipe: DiffusionPipeline,
    steps: Sequence[int] = (2, 3, 4, 5, 6, 8),
    generator: torch.Generator | None = None,
    class_labels: Labels = None,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    classifier_scale: float = 0.0,
    guide_scale: float = 1.0,
    num_latents: int | None = None,
    solution_steps: int = 40,
    coefficients: bool | None = None,
    batch_size: int = 64,
    on_fit: Callable[[SamplerFit], None] | None = None,
) -> ScoreSdeExponentialScheduler:
    """Fit samplers of few steps to a pipeline's network; with `pipe.scheduler = fit_sampler(pipe)` it has them.

    The scheduler that is returned has the settings of the pipeline's; for the numbers of steps that were fitted it
    takes these steps of the ODE, and for others its own. `from_config` with other settings leaves them out.

    Args:
        pipe: a `ScoreSdePipeline`; it stays as it is.
        steps: numbers of steps, each from 2 to 12.
        generator: source of the latents.
        class_labels: as many as there are latents, or one for all; None takes each class in turn.
        guidance_scale, guidance_interval, classifier_scale, guide_scale: of the sampling to come, as in `pipe(...)`.
        num_latents: from how many the fit learns, and by how many others it is judged; by default 96 for images, and
            as many more as these have less than 340 values, up to 1,024.
        solution_steps: of the ODE, for what is taken as its solution.
        coefficients: whether those of the steps are fitted, too, or the noise levels alone, with the coefficients of
            the exponential solver of order 2. All together come nearer to the ODE's solution, which need not be nearer
            to real images. By default they are fitted for 2 and 3 steps, and for any number where images are vectors,
            less than 4 pixels high or wide.
        batch_size: latents that the network sees at once.
        on_fit: called with a `SamplerFit` when a number of steps is done.

    Returns:
        A scheduler, whose configuration holds the fits in `fits`: those of the pipeline's scheduler, too, if they are
        for the same weights, guidance and settings.

    Raises:
        ValueError: on arguments out of range, before anything is evaluated.

    Examples:
        >>> pipe.scheduler = fit_sampler(pipe, steps=[4], generator=torch.Generator().manual_seed(0))
        >>> pipe(8, num_inference_steps=4).images[0].save("four_steps.png")
    """
    steps = checked_steps(steps)
    require_own_scheduler(pipe.scheduler)
    require_choice("coefficients", coefficients, (None, True, False))
    config = pipe.scheduler.config
    plain = ScoreSdeExponentialScheduler.from_config(config, fits=None)
    if not plain.final_denoise:
        raise ValueError("`final_denoise` of the scheduler must be True for a fit, whose steps end at the data.")
    order = plain.config.solver_order if plain.config.eta == 0 else 3
    ode = ScoreSdeExponentialScheduler.from_config(config, fits=None, eta=0.0, solver_order=order, final_denoise=None)
    shape = pipe._image_shape
    count = min(1024, max(96, 32768 // math.prod(shape))) if num_latents is None else whole_number(num_latents)
    for name, value in {"num_latents": num_latents, "solution_steps": solution_steps}.items():
        if value is not None and not whole_number(value) >= 8:
            raise ValueError(f"`{name}` must be an integer of at least 8, but is {value!r}.")
    if on_fit is not None and not callable(on_fit):
        raise ValueError(f"`on_fit` must be a function or None, but is {on_fit!r}.")
    if not whole_number(batch_size) >= 1:
        raise ValueError(f"`batch_size` must be a positive integer, but is {batch_size!r}.")
    require_generators(generator, int(2 * count), "latents")
    asked: dict = {
        "guidance_scale": guidance_scale,
        "guidance_interval": guidance_interval,
        "classifier_scale": classifier_scale,
        "guide_scale": guide_scale,
    }
    parts = ("unet", "classifier", "guide", "tiles", "_execution_device")
    asking = SimpleNamespace(scheduler=ode, **{name: getattr(pipe, name, None) for name in parts})
    labels = labels_in_turn(pipe.unet, class_labels, 2 * count)
    guidance = Guidance(asking, int(2 * count), labels, **asked)
    z = randn_tensor((2 * count, *shape), generator=generator, device=pipe._execution_device, dtype=torch.float32)
    halves = [slice(0, count), slice(count, None)]
    learnt, judged = (Flow(asking, z[half], labels[half] if labels else None, batch_size, asked) for half in halves)
    bar = pipe.progress_bar(total=2 * (len(steps) + 1))
    with guidance.frozen(), bar:
        solutions = [flow.solution(solution_steps) for flow in (learnt, judged)]
        bar.update(2)
        deviation = solutions[0].std().item()
        pictures = min(shape[1:]) >= SMALLEST  # and not vectors, which have no scales, and no bounds
        bounds = plain.parameterization.image_range if pictures else (-math.inf, math.inf)
        errors = [FitError(solution, deviation, bounds) for solution in solutions]
        entries = {}
        for n in steps:
            few = n <= FEW_FOR_IMAGES or not pictures
            numbers = fitted_numbers(n, learnt, errors[0], deviation, few if coefficients is None else coefficients)
            bar.update(1)
            fit = judged_fit(n, numbers, judged, errors[1])
            if fit.stored:
                held = {"error": round(fit.error, 4), "default_error": round(fit.default_error, 4)}
                entries[str(n)] = fit.numbers | held
            else:
                fitting_log.warning(
                    "%d steps: the fit is not stored, since its error, %.4g, is no less than the default's, %.4g.",
                    n, fit.error, fit.default_error,
                )  # fmt: skip
            if on_fit is not None:
                on_fit(fit)
            bar.update(1)
    made_for = {
        "network": rounded_digests(pipe.unet),
        "guidance": how_asked(guidance),
        "settings": settings_digest(plain),
    }
    known = config.get("fits")
    if known and {key: known[key] for key in made_for} == made_for:
        entries = {n: entry for n, entry in known["steps"].items() if int(n) not in steps} | entries
    return type(plain).from_config(plain.config, fits=made_for | {"steps": entries} if entries else None)


def checked_steps(steps) -> list[int]:
    """Numbers of steps, each once; a `ValueError` on others than can be fitted."""
    numbers = whole_numbers(steps) or [whole_number(steps)]
    if not numbers or not all(2 <= n <= MOST_STEPS for n in numbers):
        raise ValueError(f"`steps` must be integers from 2 to {MOST_STEPS}, but are {steps!r}.")
    return list(dict.fromkeys(map(int, numbers)))


def labels_in_turn(network, class_labels, n):
    """A list of n labels, or None where the network knows no classes."""
    if class_labels is None:
        classes = getattr(network.config, "num_class_embeds", None)
        return [k % classes for k in range(n)] if classes else None
    labels = class_labels.tolist() if isinstance(class_labels, (Tensor, np.ndarray)) else class_labels
    labels = list(labels) if isinstance(labels, (list, tuple)) else [labels]
    if len(labels) not in (1, n // 2, n):
        raise ValueError(f"`class_labels` must be one, {n // 2} or {n} of them, but are {len(labels)}.")
    return labels * (n // len(labels))


class Flow:
    """The network's probability flow from given latents, in y = x / alpha.

    Args:
        pipe: networks, a device and the ODE's scheduler.
        z: (N, C, H, W) standard normal.
        labels: N, or None.
        batch_size: how many are asked at once.
        asked: how, by `Guidance`'s names.
    """

    def __init__(self, pipe, z, labels, batch_size, asked):
        self.scheduler, self.z = pipe.scheduler, z
        self.parts = [slice(k, k + batch_size) for k in range(0, len(z), batch_size)]
        self.guidances = [
            Guidance(pipe, len(z[part]), None if labels is None else labels[part], **asked) for part in self.parts
        ]

    def solution(self, n: int) -> Tensor:
        """Images by n of the scheduler's own steps."""
        return torch.cat(
            [self._solved(n, self.z[part], g) for part, g in zip(self.parts, self.guidances, strict=True)]
        )

    def _solved(self, n, z, guidance):
        self.scheduler.set_timesteps(n, z.device)
        x = z * self.scheduler.init_noise_sigma
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(guidance(x), t, x).prev_sample
        return x

    def denoised(self, y: Tensor, level: float) -> Tensor:
        """E[x_0 | y] at a noise level."""
        t = self.scheduler.sde.inverse_half_log_snr(torch.tensor(-math.log(level), dtype=torch.float64))
        network_time = self.scheduler.network_time(t).to(y.device, torch.float32)
        x = y * expand_like(self.scheduler.sde.alpha(t), y)
        estimates = []
        for part, guidance in zip(self.parts, self.guidances, strict=True):
            output = guidance.answer(x[part], t, network_time).to(y.dtype)
            estimates.append(self.scheduler.noise_and_denoised(output, x[part], t)[1])
        bounds = self.scheduler.denoised_range
        return bounds(torch.cat(estimates)) if bounds.bounded else torch.cat(estimates)


# The numbers of n steps as one vector: n logarithms of levels, then (a_k, w_k1, ..., w_kk) for each k.


def row(n: int, k: int) -> slice:
    """Where step k's coefficients stand (k from 0)."""
    start = n + k * (k + 3) // 2
    return slice(start, start + k + 2)


def walk(p: Tensor, n: int, flow: Flow, first: int = 0, before=None) -> tuple[list[Tensor], list[Tensor]]:
    """The states y_1, ..., y_{n+1} and estimates D_1, ..., D_n; those `before` that a change in step `first` leaves
    as they are can be given."""
    levels = p[:n].exp().tolist()
    states, estimates = ([levels[0] * flow.z], []) if before is None else before
    states, estimates = states[: first + 1], list(estimates)
    for k in range(first, n):
        if len(estimates) == k:
            estimates.append(flow.denoised(states[k], levels[k]))
        terms = [states[k], *estimates[: k + 1]]
        states.append(sum(c * term for c, term in zip(p[row(n, k)].tolist(), terms, strict=True)))
    return states, estimates


def solver_coefficients(levels: Tensor) -> Tensor:
    """Those of the exponential solver of order 2, whose last step returns the last estimate."""
    rows, s = [], levels.tolist()
    for k, level in enumerate(s):
        coefficients = [0.0] * (k + 2)
        if k + 1 == len(s):
            coefficients[-1] = 1.0
        else:
            nodes, end = [v / (1 + v) for v in s[max(k - 1, 0) : k + 1]], -math.log(s[k + 1])
            integrals = lagrange_integrals(
                nodes, -math.log(level), end, lambda v, end=end: np.exp(v - end), lambda v: 1 / (1 + np.exp(v))
            )
            coefficients[0] = s[k + 1] / level
            coefficients[-len(integrals) :] = integrals
        rows += coefficients
    return torch.tensor(rows, dtype=torch.float64)


def first_levels(n: int, deviation: float) -> Tensor:
    """n levels to begin with: even in a power of the share of the noise, as the time grid "few_steps" is."""
    middle, ends = DENSE_LEVEL, torch.tensor([FIRST_LEVEL * n, LAST_LEVEL_OF_FIT / n**3], dtype=torch.float64)
    low, high = ((ends / (middle + ends)) ** (1 / 4)).tolist()
    share = torch.linspace(low, high, n, dtype=torch.float64) ** 4
    return deviation * middle * share / (1 - share)


def fitted_numbers(n: int, flow: Flow, error: FitError, deviation: float, coefficients: bool) -> Tensor:
    """The vector of n steps for which the error is least; of the levels alone unless `coefficients`."""
    scheduler = flow.scheduler
    ends = torch.tensor([scheduler.start_time, scheduler.sampling_eps], dtype=torch.float64)
    highest, lowest = (-scheduler.sde.half_log_snr(ends)).exp().tolist()
    bounds = math.log(lowest), math.log(min(highest, HIGHEST_LEVEL * deviation))

    def with_solver(levels):
        return torch.cat([levels, solver_coefficients(levels.exp())])

    def allowed(q):
        return bool((q[:n].diff() < -LEVEL_CHANGE).all()) and bounds[0] <= q[n - 1] and q[0] <= bounds[1]

    def by_levels(q, column=None, before=None):
        states, _ = walk(with_solver(q), n, flow)
        return error(states[-1]), None

    room = (bounds[1] - bounds[0]) / (2 * n)
    levels = first_levels(n, deviation).log().clamp(bounds[0], bounds[1])
    for k in range(1, n):  # where the scheduler has few levels
        levels[k] = min(levels[k], levels[k - 1] - min(room, 0.5))
    levels = levels if allowed(levels) else torch.linspace(bounds[1], bounds[0], n, dtype=torch.float64)
    levels, left = damped_gauss_newton(levels, by_levels, allowed, [LEVEL_CHANGE] * n, LEVEL_ITERATIONS)
    if not coefficients:
        return with_solver(levels)
    penalty = math.sqrt(NEARNESS) * left
    changes = [LEVEL_CHANGE] * n + [COEFFICIENT_CHANGE] * (row(n, n - 1).stop - n)
    step_of = [*range(n), *(k for k in range(n) for _ in range(k + 2))]

    def by_all(q, column=None, before=None):
        first, kept = 0, None
        if column:  # not the first level, with which all begins
            first, (states, estimates) = step_of[column], before
            kept = states, estimates[: first if column < n else first + 1]
        states, estimates = walk(q, n, flow, first, kept)
        nearness = penalty * (q[n:] - solver_coefficients(q[:n].exp()))
        return torch.cat([error(states[-1]), nearness]), (states, estimates)

    return damped_gauss_newton(with_solver(levels), by_all, allowed, changes, ALL_ITERATIONS)[0]


def damped_gauss_newton(p: Tensor, residual, allowed, changes, iterations: int) -> tuple[Tensor, float]:
    """The vector with the least |residual|, from p, and this norm.

    Args:
        residual: (vector, column, rest) -> (residuals, rest); `column` is that in which the vector differs from the
            one that the given rest is of, None if in all.
        allowed: whether a vector may be tried.
        changes: by which each entry is changed for the Jacobian.
        iterations: at most.
    """
    damping = FIRST_DAMPING
    r, rest = residual(p)
    for _ in range(iterations):
        columns = []
        for k, change in enumerate(changes):
            q = p.clone()
            q[k] += change
            columns.append((residual(q, k, rest)[0] - r) / change)
        jacobian = torch.stack(columns, 1)
        normal, slope = jacobian.T @ jacobian, jacobian.T @ r
        normal.diagonal().add_(1e-9 * normal.diagonal().mean() + 1e-12)
        for _ in range(DAMPINGS):
            step = -torch.linalg.solve(normal + damping * torch.diag(normal.diagonal()), slope)
            q = p + step.clamp(-LONGEST_STEP, LONGEST_STEP)
            found, found_rest = residual(q) if allowed(q) else (r, rest)
            if found.norm() < r.norm():
                p, r, rest, damping = q, found, found_rest, max(damping / 5, LEAST_DAMPING)
                break
            damping *= 6
        else:
            break
    return p, r.norm().item()


def judged_fit(n: int, p: Tensor, flow: Flow, error: FitError) -> SamplerFit:
    """What the rounded numbers do from other latents, beside the scheduler's own n steps."""
    rounded = [float(f"{value:.5g}") for value in [*p[:n].exp().tolist(), *p[n:].tolist()]]
    p = torch.tensor(rounded, dtype=torch.float64)
    rows = [rounded[row(n, k)] for k in range(n)]
    numbers: dict[str, list] = {
        "levels": rounded[:n],
        "state": [r[0] for r in rows],
        "estimates": [r[1:] for r in rows],
    }
    fitted = walk(torch.cat([p[:n].log(), p[n:]]), n, flow)[0][-1]
    default = flow.solution(n)
    found, before = error(fitted).norm().item(), error(default).norm().item()
    pictures = {"solution": error.images, "default": default, "fitted": fitted}
    to_unit_range = flow.scheduler.parameterization.to_unit_range
    images = {name: to_unit_range(x[:16]).clamp(0, 1).cpu() for name, x in pictures.items()}
    return SamplerFit(n, found, before, found < before, images, numbers)
