"""Tuning of a score network into a consistency model: Easy Consistency Tuning (arXiv 2406.14548).

A consistency model f(x_t, t) answers with the end of the probability flow ODE that passes through x_t, so that f is
the same all the way along each solution, and f(x, 0) = x (arXiv 2303.01469). From a trained denoiser, in which the
last holds already, one is made by comparing its answers at two levels s > r of the same noise,

    |f(x_0 + s z) - stop_gradient(f(x_0 + r z))| / (s - r),    r / s = 1 - n(s) / q^a,    n(s) = 1 + k sigmoid(-b s),

the noise levels s = sigma / alpha being log-normal. Where r would be 0 or less, the right side is x_0 and the loss
that of the denoiser; a counts the stages of the training, from 1, in which the two levels draw together. Both sides
have the same dropout. The norm is Pseudo-Huber's, sqrt(|d|^2 + c^2) - c with |d|^2 a mean (arXiv 2310.14189).

With `solver_steps` = m above 0 the right side is asked where m steps of the trained denoiser's own ODE lead from the
noisy image (consistency distillation, algorithm 2 of arXiv 2303.01469): it costs m evaluations more and takes over the
denoiser's errors, but each comparison is free of the noise of a drawn pair, so that far fewer are needed; its weight
is then 1 / s + 1, which is about the same for the bare network at all levels. With q = 1, r is 0 for all, and the
right side is the solution itself, which no training changes: it can be found once and compared with many times.

To the norm a distance of how the two sides look may be added, as LPIPS is in arXiv 2303.01469 (section 6.1): where
many images are possible, the norm alone is least for a blend of them. And where the sampler asks at a few noise levels
alone, `levels` trains at these alone.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusers.generators import require_draws
from sde_diffusers.guidance import frozen
from sde_diffusers.network_fit import config_of, require_consistency, require_network_fits
from sde_diffusers.parameterization import Parameterization, expand_like, require_choice, require_times
from sde_diffusers.scalars import real_number, require_floating, whole_number
from sde_diffusers.schedulers.scheduling_consistency import LEVELS_REACHED

# How much an error of the network's answer may grow on the way to x_0: eight bits of it (bfloat16) are then good to an
# eighth of the range of images.
LARGEST_GROWTH = 32.0
SOLVER_MIDDLE = 2.4  # the noise level about which the solver's steps lie


class ConsistencyTuning:
    """Training objective of a consistency model, as it is in the last stage; `at` gives those of earlier stages.

    Args:
        parameterization: how the network is asked and what it answers; holds the SDE. The image that its answer stands
            for is f.
        objective: "consistency".
        stages: number of stages, all of the same length.
        q, k, b: constants of the relation of the two levels.
        solver_steps: number m of steps of the ODE between them, of second order; 0 takes the same noise at both.
        huber: c of the norm, in the units of the network's images.
        log_sigma_mean, log_sigma_std: mean and deviation of log s.
        levels: values of s, each drawn as often as the others, instead; None draws log-normal ones.
        perceptual_weight: factor of the perceptual distance; 0 leaves it out.
        eps: smallest time drawn; below its level stands x_0.

    Attributes:
        denoiser: the network whose ODE is followed, if there are solver steps; to be set.
        perceptual: distances (N,) of two batches of images in the network's range, such as a `PerceptualDistance`, if
            there is a `perceptual_weight`; to be set.
        given_solutions: whether x_0 and noise are those of `solved`, so that there is no ODE to follow; to be set.

    Raises:
        ValueError: on values out of range, for a network that knows a table of noise levels alone, or where its answer
            at the most noise says too little of x_0.
    """

    def __init__(
        self,
        parameterization: Parameterization,
        objective: str = "consistency",
        stages: int = 8,
        q: float = 2.0,
        k: float = 8.0,
        b: float = 1.0,
        solver_steps: int = 0,
        huber: float = 0.00054,
        log_sigma_mean: float = -1.1,
        log_sigma_std: float = 2.0,
        eps: float = 1e-5,
        levels: Sequence[float] | None = None,
        perceptual_weight: float = 0.0,
    ):
        require_choice("objective", objective, ("consistency",))
        if not whole_number(stages) >= 1:
            raise ValueError(f"`stages` must be an integer of at least 1, but is {stages!r}.")
        for name, value in {"huber": huber, "log_sigma_std": log_sigma_std}.items():
            if not 0 < real_number(value) < math.inf:
                raise ValueError(f"`{name}` must be a finite number above 0, but is {value!r}.")
        if not 1 <= real_number(q) < math.inf:
            raise ValueError(f"`q` must be a finite number of at least 1, but is {q!r}.")
        if not whole_number(solver_steps) >= 0:
            raise ValueError(f"`solver_steps` must be an integer of at least 0, but is {solver_steps!r}.")
        for name, value in {"k": k, "b": b, "perceptual_weight": perceptual_weight}.items():
            if not 0 <= real_number(value) < math.inf:
                raise ValueError(f"`{name}` must be a finite number of at least 0, but is {value!r}.")
        if not -math.inf < real_number(log_sigma_mean) < math.inf:
            raise ValueError(f"`log_sigma_mean` must be a finite number, but is {log_sigma_mean!r}.")
        if not 0 < real_number(eps) < 1:
            raise ValueError(f"`eps` must lie in (0, 1), but is {eps!r}.")
        require_consistency_possible(parameterization)
        self.parameterization, self.sde = parameterization, parameterization.sde
        self.stages = self.stage = int(stages)
        self.solver_steps = int(solver_steps)
        self.denoiser: Callable | None = None
        self.perceptual: Callable | None = None
        self.given_solutions = False
        self.q, self.k, self.b, self.huber = map(real_number, (q, k, b, huber))
        self.log_sigma_mean, self.log_sigma_std = real_number(log_sigma_mean), real_number(log_sigma_std)
        self.perceptual_weight = real_number(perceptual_weight)
        self.eps = max(real_number(eps), parameterization.smallest_time)
        self.cleanest, noisiest = self.level(torch.tensor([self.eps, 1.0], dtype=torch.float64)).tolist()
        if levels is not None and not (
            isinstance(levels, Sequence)
            and levels
            and all(self.cleanest < real_number(level) <= LEVELS_REACHED * noisiest for level in levels)
        ):
            raise ValueError(
                f"`levels` must be a list of numbers above {self.cleanest:.3g} and at most {noisiest:.3g}, as "
                f"{self.sde!r} has them, but is {levels!r}."
            )
        self.levels = None if levels is None else [*map(real_number, levels)]

    def at(self, share: float) -> "ConsistencyTuning":
        """The objective when this share of the training is done, in [0, 1]; a ValueError beyond."""
        if not 0 <= real_number(share) <= 1:
            raise ValueError(f"`share` must lie in [0, 1], but is {share!r}.")
        then = copy.copy(self)
        then.stage = min(self.stages, 1 + math.floor(share * self.stages))
        return then

    def draw_times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n times of the noisier side: (n,) float64 on the CPU; a ValueError on an n that is no count."""
        require_draws(n, generator)
        if self.levels is not None:
            of_image = torch.randint(len(self.levels), (n,), generator=generator)
            log_s = torch.tensor(self.levels, dtype=torch.float64).log()[of_image]
        else:
            log_s = torch.randn(n, generator=generator, dtype=torch.float64) * self.log_sigma_std + self.log_sigma_mean
        return self.sde.inverse_half_log_snr(-log_s).clamp(self.eps, 1)

    def level(self, t: Tensor) -> Tensor:
        """The noise level s = sigma / alpha at time t; float64."""
        return (-self.sde.half_log_snr(t)).exp()

    def lower_level(self, s: Tensor) -> Tensor:
        """The level r of the other side; 0 where that is x_0."""
        share = 1 - (1 + self.k * torch.sigmoid(-self.b * s)) / self.q**self.stage
        return torch.where(share * s > self.cleanest, share * s, 0.0)

    def solved(
        self, x_0: Tensor, noise: Tensor, t: Tensor, class_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The image to which the denoiser's ODE leads from the noisy one, and the noise between the two.

        Args:
            x_0, noise, t, class_labels: of `__call__`.

        Raises:
            ValueError: without solver steps, or if those do not lead all along to the image, which q = 1 says.
        """
        if not self.solver_steps or self.q > 1:
            raise ValueError(
                f"`solved` is for `solver_steps` above 0 and `q`=1, but they are {self.solver_steps} and {self.q:g}."
            )
        s = self.level(t)
        y = x_0 + expand_like(s, x_0) * noise
        solution = self._solution(y, s, torch.zeros_like(s), class_labels)
        return solution, (y - solution) / expand_like(s, y)

    def __call__(
        self, network: Callable, x_0: Tensor, noise: Tensor, t: Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        """Loss of each image; arguments, result and errors are those of `DenoisingScoreMatching`, and a ValueError if
        the network's configuration does not say that it is a consistency model."""
        require_floating(x_0=x_0, noise=noise)
        config = config_of(network)
        require_network_fits(config, self.parameterization)
        require_times(x_0, noise, t)
        require_boundary(config, self.parameterization)
        require_consistency(config, True)
        s = self.level(t)
        r = self.lower_level(s)
        other_time = self.sde.inverse_half_log_snr(-r.clamp(min=self.cleanest).log())
        y = x_0 + expand_like(s, x_0) * noise
        if self.solver_steps and not self.given_solutions:
            if self.denoiser is None:
                raise ValueError("`denoiser`, the network whose ODE the solver's steps follow, has to be set before.")
            other = self._solution(y, s, r, class_labels)
        else:
            other = x_0 + expand_like(r, x_0) * noise
        if self.q > 1:
            is_image = expand_like((r == 0).double(), x_0) > 0
            devices = [x_0.device] if x_0.device.type == "cuda" else []
            with torch.no_grad(), torch.random.fork_rng(devices):  # the other pass then draws the same dropout
                other = torch.where(is_image, other, self._answer(network, other, other_time, class_labels))
        answer = self._answer(network, y, t, class_labels)
        distance = ((answer - other).square().flatten(1).mean(1) + self.huber**2).sqrt() - self.huber
        if self.perceptual_weight:
            if self.perceptual is None:
                raise ValueError("`perceptual`, the distance that `perceptual_weight` weighs, has to be set before.")
            distance = distance + self.perceptual_weight * self.perceptual(answer, other.to(answer.dtype))
        return distance * expand_like(1 / s + 1 if self.solver_steps else 1 / (s - r), distance)

    def _answer(self, network, y, t, class_labels):
        """The image that a network's answer stands for, in float32 at least, at y = x / alpha."""
        alpha, _ = self.parameterization.kernel(y, t)
        x = alpha * y
        precision = torch.promote_types(x.dtype, torch.float32)
        network_time = self.parameterization.network_time(t).to(precision).to(x.device, non_blocking=True)
        output = network(x, network_time, class_labels).sample
        return self.parameterization.denoised(output.to(precision), x.to(precision), t)

    @torch.no_grad()
    def _solution(self, y, s, r, class_labels):
        """Where the denoiser's ODE leads from y = x / alpha at the levels s (N,) to the levels r; DPM-Solver++(2M)
        (arXiv 2211.01095, algorithm 2), even in the square root of level / (level + SOLVER_MIDDLE)."""
        ends = [(level / (level + SOLVER_MIDDLE)).sqrt() for level in (s, r)]
        shares = [torch.lerp(*ends, k / self.solver_steps) ** 2 for k in range(self.solver_steps)]
        levels = [s, *(SOLVER_MIDDLE * share / (1 - share) for share in shares[1:]), r]
        before = None
        with frozen(self.denoiser) if isinstance(self.denoiser, torch.nn.Module) else nullcontext():
            for k, (start, end) in enumerate(pairwise(levels)):
                time = self.sde.inverse_half_log_snr(-start.clamp(min=self.cleanest).log())
                denoised = estimate = self._answer(self.denoiser, y, time, class_labels)
                if before is not None:  # from the middle of the step, where it does not end at the data
                    ratio = torch.where(end > 0, (start / end).log() / (levels[k - 1] / start).log() / 2, 0.0)
                    estimate = estimate + expand_like(ratio, y) * (denoised - before)
                y, before = estimate + expand_like(end / start, y) * (y - estimate), denoised
        return y


def require_consistency_possible(parameterization: Parameterization) -> None:
    """Raise a `ValueError` unless a network that is asked and answers so can be a consistency model."""
    if parameterization.time_input == "index":
        raise ValueError(
            "`time_input`='index' knows the noise levels of a table alone; a consistency model is asked at levels as "
            "near to each other as wanted: `time_input` must be 'sigma', '999t', '1000t' or 't'."
        )
    growth = parameterization.denoised_error_scale(torch.tensor(1.0, dtype=torch.float64)).item()
    if not growth <= LARGEST_GROWTH:
        raise ValueError(
            f"`prediction_type`={parameterization.prediction_type!r} with {parameterization.sde!r}: from pure noise "
            f"an error of the answer makes one of x_0 that is {growth:.3g} times as large (at most "
            f"{LARGEST_GROWTH:g} are allowed), so that no image can be told in one step. `prediction_type` must be "
            "'sample', 'v_prediction' or 'velocity'."
        )


def require_boundary(config, parameterization: Parameterization) -> None:
    """Raise a `ValueError` unless f(x, 0) = x in a network of this configuration (any, if it is unknown)."""
    plain = config is not None and getattr(config, "preconditioning", None) is None
    if parameterization.prediction_type == "sample" and plain:
        raise ValueError(
            "A consistency model answers x itself where there is no noise, as a network with `prediction_type`="
            "'sample' does by `preconditioning`='edm' alone, but that is None."
        )
