"""Fixed-step solvers of the probability flow ODE (eq. 13 of arXiv 2011.13456).

In y = x / alpha and the noise level sigma_hat = sigma / alpha the ODE of every Gaussian SDE is the same,

    dy / d sigma_hat = E[noise | x],

so the solvers step in sigma_hat: Euler's method is then DDIM (arXiv 2010.02502, eq. 14), and Heun's is algorithm 1 of
arXiv 2206.00364.

A step from pure noise (alpha = 0, as at the end of a flow) has no y and an infinite noise level. It is the same method
in z = x / (alpha + sigma) and the share of the noise u = sigma / (alpha + sigma), where the ODE is

    dz / du = E[noise | x] - E[x_0 | x].

Stochastic sampling (algorithm 2 there) raises the noise level before a step by fresh noise, from sigma_hat to
(1 + gamma) sigma_hat, and then solves the ODE from there; the network is conditioned on the raised time.
"""

import math

import torch
from diffusers.configuration_utils import register_to_config

from sde_diffusers.parameterization import PURE_NOISE, require_choice
from sde_diffusers.scalars import real_number
from sde_diffusers.schedulers.kept_batch import LeftState, chosen_images
from sde_diffusers.schedulers.scheduling_score_sde import ScoreSdeScheduler

ODE_METHODS = ("euler", "heun")


class ScoreSdeProbabilityFlowScheduler(ScoreSdeScheduler):
    """Sampler by Euler's or Heun's method, deterministic unless `s_churn` is set.

    The shared arguments are those of `ScoreSdeScheduler`.

    With `final_denoise` (the default) n steps go through n times from 1 to eps and end at x_0, with n (Euler) or
    2n - 1 (Heun: the last step is Euler's) network evaluations. Without, they end at eps after n or 2n evaluations.

    Args:
        method: "heun" (second order) or "euler" (first order; DDIM).
        s_churn: amount of fresh noise, at least 0: gamma = min(s_churn / n, sqrt(2) - 1) in each of n steps. The
            state after a step is at the raised level, and so are `times` and `timesteps`. The start is not raised:
            the network has seen nothing noisier.
        s_min, s_max: noise levels sigma / alpha between which noise is added (0 and no bound).
        s_noise: factor of the added noise (1; slightly above makes up for details lost in denoising).

    Raises:
        ValueError: on an unknown name or numbers out of range.
    """

    default_num_inference_steps = 18  # as EDM on CIFAR-10: 35 evaluations with Heun's method

    @property
    def default_time_grid(self) -> str:  # type: ignore[override]
        """EDM's, unless the SDE has one that suits it better."""
        return self.sde.time_grid or "karras"

    @register_to_config
    def __init__(
        self,
        sde: str = "vp",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma: float | None = None,
        beta_min: float | None = None,
        beta_max: float | None = None,
        trained_betas: list[float] | None = None,
        sde_parameters: dict | None = None,
        prediction_type: str | None = None,
        time_input: str | None = None,
        image_range: tuple[float, float] | None = None,
        num_train_timesteps: int = 1000,
        sampling_sde: str | None = None,
        sampling_sde_parameters: dict | None = None,
        sampling_eps: float | None = None,
        time_grid: str | None = None,
        final_denoise: bool | None = None,
        method: str = "heun",
        s_churn: float = 0.0,
        s_min: float = 0.0,
        s_max: float | None = None,
        s_noise: float = 1.0,
        clip_denoised: bool | float | None = None,
        dynamic_thresholding_ratio: float | None = None,
        sample_max_value: float | None = None,
    ):
        self._setup()
        require_choice("method", method, ODE_METHODS)
        for name, value in {"s_churn": s_churn, "s_min": s_min, "s_noise": s_noise}.items():
            if not 0 <= real_number(value) < math.inf:
                raise ValueError(f"`{name}` must be a finite number of at least 0, but is {value!r}.")
        if s_max is not None and not real_number(s_max) > self.config.s_min:
            raise ValueError(f"`s_max` must be None or above `s_min` = {self.config.s_min}, but is {s_max!r}.")
        self.order = 2 if method == "heun" else 1

    def _plan(self, n):
        points = n if self.final_denoise else n + 1
        grid = self._grid(points)
        kernel = [self.sde.alpha(grid), self.sde.sigma(grid), (-self.sde.half_log_snr(grid)).exp()]
        if self.final_denoise:  # the data themselves: alpha = 1, no noise
            ends = (torch.full((1,), value, dtype=torch.float64) for value in (1.0, 0.0, 0.0))
            kernel = [torch.cat(values) for values in zip(kernel, ends, strict=True)]
        self._alpha, self._sigma, self._noise_level = (values.tolist() for values in kernel)
        raised = self._raised(grid, n)
        self._raised_alpha = self.sde.alpha(raised).tolist()
        self._raised_level = (-self.sde.half_log_snr(raised)).exp().tolist()
        # Each evaluation: (step, stage). The network is never asked at noise level 0.
        self._evaluations = [
            (i, stage) for i in range(n) for stage in range(self.order if self._noise_level[i + 1] > 0 else 1)
        ]
        times = torch.stack([grid[i + 1] if stage else raised[i] for i, stage in self._evaluations])
        ends_step = [k + 1 == len(self._evaluations) or self._evaluations[k + 1][1] == 0 for k in range(len(times))]
        return times, ends_step

    def _forget(self):
        super()._forget()
        self._first_stage: tuple[torch.Tensor, torch.Tensor, LeftState] | None = None

    def _raised(self, grid, n):
        """The times at which the n steps begin: those of the grid, or later ones where noise is added."""
        s_max = math.inf if self.config.s_max is None else self.config.s_max
        level = torch.tensor(self._noise_level[:n], dtype=torch.float64)
        rounded = 1e-9  # levels are computed from logarithms
        low, high = self.config.s_min * (1 - rounded), s_max * (1 + rounded)
        within = (level >= low) & (level <= high) & (level < PURE_NOISE)
        within[0] = False
        gamma = min(self.config.s_churn / n, math.sqrt(2) - 1)
        raised_level = torch.minimum(level * (1 + gamma), level[0])
        return torch.where(within & (gamma > 0), self.sde.inverse_half_log_snr(-raised_level.log()), grid[:n])

    def _update(self, k, x, noise, denoised, draw):
        i, stage = self._evaluations[k]
        from_pure_noise = self._raised_level[i] > PURE_NOISE
        following_alpha, following_sigma = self._alpha[i + 1], self._sigma[i + 1]
        if from_pure_noise:
            size, scale = self._alpha[i] + self._sigma[i], following_alpha + following_sigma
            scale, step = scale / size, following_sigma - scale * self._sigma[i] / size
        else:
            scale = following_alpha / self._raised_alpha[i]
            step = following_alpha * (self._noise_level[i + 1] - self._raised_level[i])
        slope = noise - denoised if from_pure_noise else noise
        if stage == 0 or self._first_stage is None:
            mean = scale * x + step * slope
            if self.order == 2:
                self._first_stage = (self._own(x), self._own(slope), LeftState(mean))
        else:  # Heun: repeat the step from its start with the mean of the slopes at both ends
            start, first_slope, left = self._first_stage
            mean = scale * start + step * ((first_slope + slope) / 2)
            # A state that was replaced meanwhile has come another way: the sampler goes on from there.
            mean = chosen_images(left.is_still(x), mean, x)
        if not self._ends_step[k] or i + 1 == self.num_inference_steps:
            return mean, mean
        return mean, self._raise(i + 1, mean, draw)

    def _raise(self, i, x, draw):
        """Add noise at grid point i, up to the level at which its step begins."""
        level, raised_level = self._noise_level[i], self._raised_level[i]
        if raised_level <= level:
            return x
        added = self.config.s_noise * math.sqrt(raised_level**2 - level**2)
        return self._raised_alpha[i] * (x / self._alpha[i] + added * draw())
