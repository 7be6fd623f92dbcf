"""Fixed-step solvers of the probability flow ODE (eq. 13 of arXiv 2011.13456).

In y = x / alpha and the noise level sigma_hat = sigma / alpha the ODE of every Gaussian SDE is the same,

    dy / d sigma_hat = E[noise | x],

so the solvers step in sigma_hat: Euler's method is then DDIM (arXiv 2010.02502, eq. 14), and Heun's is algorithm 1 of
arXiv 2206.00364.
"""

import torch
from diffusers.configuration_utils import register_to_config

from sde_diffusers.parameterization import require_choice
from sde_diffusers.schedulers.scheduling_score_sde import ScoreSdeScheduler, time_grid

ODE_METHODS = ("euler", "heun")


class ScoreSdeProbabilityFlowScheduler(ScoreSdeScheduler):
    """Deterministic sampler by Euler's or Heun's method; the shared arguments are those of `ScoreSdeScheduler`.

    With `final_denoise` (the default) n steps go through n times from 1 to eps and end at x_0, with n (Euler) or
    2n - 1 (Heun: the last step is Euler's) network evaluations. Without, they end at eps after n or 2n evaluations.

    Args:
        method: "heun" (second order) or "euler" (first order; DDIM).

    Raises:
        ValueError: on an unknown name.
    """

    default_time_grid = "karras"
    default_num_inference_steps = 18  # as EDM on CIFAR-10: 35 evaluations with Heun's method

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
        prediction_type: str | None = None,
        time_input: str | None = None,
        image_range: tuple[float, float] | None = None,
        num_train_timesteps: int = 1000,
        sampling_sde: str | None = None,
        sampling_eps: float | None = None,
        time_grid: str | None = None,
        final_denoise: bool | None = None,
        method: str = "heun",
    ):
        self._setup()
        require_choice("method", method, ODE_METHODS)
        self.order = 2 if method == "heun" else 1

    def _plan(self, n):
        points = n if self.final_denoise else n + 1
        grid = time_grid(self.time_grid, points, self.sde, self.start_time, self.sampling_eps)
        alpha, noise_level = self.sde.alpha(grid), (-self.sde.half_log_snr(grid)).exp()
        if self.final_denoise:  # the data themselves: alpha = 1, no noise
            alpha = torch.cat([alpha, torch.ones(1, dtype=torch.float64)])
            noise_level = torch.cat([noise_level, torch.zeros(1, dtype=torch.float64)])
        self._alpha, self._noise_level = alpha.tolist(), noise_level.tolist()
        self._start_of_step = None
        # Each evaluation: (step, stage). The network is never asked at noise level 0.
        self._evaluations = [
            (i, stage) for i in range(n) for stage in range(self.order if self._noise_level[i + 1] > 0 else 1)
        ]
        times = grid[[i + stage for i, stage in self._evaluations]]
        ends_step = [k + 1 == len(self._evaluations) or self._evaluations[k + 1][1] == 0 for k in range(len(times))]
        return times, ends_step

    def _update(self, k, x, noise, draw):
        i, stage = self._evaluations[k]
        if stage == 0:
            self._start_of_step = (x, noise)
        else:  # Heun: repeat the step from its start with the mean of the slopes at both ends
            x, first_noise = self._start_of_step
            noise = (first_noise + noise) / 2
        alpha, following_alpha = self._alpha[i], self._alpha[i + 1]
        step = self._noise_level[i + 1] - self._noise_level[i]
        following = (following_alpha / alpha) * x + (following_alpha * step) * noise
        return following, following
