"""Sampling of consistency models in one evaluation, or a few (algorithm 1 of arXiv 2303.01469).

A consistency model answers with the end f(x_t, t) of the probability flow ODE that passes through x_t, so that one
evaluation at pure noise is a sample. Further ones mend it: noise is added again, to lower and lower levels,

    x_{t_{k+1}} = alpha_{k+1} f(x_{t_k}, t_k) + sigma_{k+1} z,    z standard normal,

and the last answer is the image.
"""

import torch
from diffusers import SchedulerMixin  # noqa: F401 (diffusers' loader of remote code looks for SchedulerMixin)
from diffusers.configuration_utils import register_to_config

from sde_diffusers.scalars import real_number, whole_number
from sde_diffusers.schedulers.scheduling_score_sde import ScoreSdeScheduler

LEVELS_REACHED = 1.01  # by how much given noise levels may lie outside of the SDE's: they are rounded


class ScoreSdeConsistencyScheduler(ScoreSdeScheduler):
    """Sampler of consistency models, one network evaluation a step; shared arguments are `ScoreSdeScheduler`'s.

    Networks that were not tuned to be consistent answer E[x_0 | x_t], a mean of images, and are refused by pipelines,
    as consistency models are by the other samplers.

    n steps take the noise levels that `levels` has for n, and else the first n of a grid of n + 1 ("log_snr" by
    default), of which the last is the data's. With `final_denoise` (the default) the last answer is returned; without,
    noise of the level at `sampling_eps` is added to it.

    Args:
        levels: noise levels sigma / alpha, descending, for some numbers of steps: {"1": [80.0], "2": [80.0, 0.8]}.

    Raises:
        ValueError: on `levels` that are none, or that the SDE does not reach.
    """

    default_num_inference_steps = 2
    default_time_grid = "log_snr"
    of_consistency_models = True

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
        clip_denoised: bool | float | None = None,
        dynamic_thresholding_ratio: float | None = None,
        sample_max_value: float | None = None,
        levels: dict[str, list[float]] | None = None,
    ):
        self._setup()
        if self.config.levels is not None:
            self._require_levels(self.config.levels)
            self.register_to_config(levels={str(n): list(own) for n, own in self.config.levels.items()})  # as in JSON

    def _require_levels(self, levels):
        if not isinstance(levels, dict):
            raise ValueError(f"`levels` must be None or a dictionary by the number of steps, but is {levels!r}.")
        if len({str(n) for n in levels}) < len(levels):
            raise ValueError(f"`levels` must name each number of steps once, but are for {[*levels]}.")
        ends = torch.tensor([self.start_time, self.sampling_eps], dtype=torch.float64)
        noisiest, cleanest = (-self.sde.half_log_snr(ends)).exp().tolist()
        for n, own in levels.items():
            sound = (
                str(n) == str(whole_number(int(n) if str(n).isdecimal() else n))
                and isinstance(own, (list, tuple))
                and len(own) == int(n) >= 1
            )
            bounds = [noisiest * LEVELS_REACHED, *own, cleanest / LEVELS_REACHED] if sound else []
            if not sound or not all(real_number(a) > real_number(b) for a, b in zip(bounds, bounds[1:], strict=False)):
                raise ValueError(
                    f"`levels` for {n} steps must be as many noise levels sigma / alpha, descending, between "
                    f"{noisiest:.4g} and {cleanest:.4g}, but are {own!r}."
                )

    def _plan(self, n):
        own = (self.config.levels or {}).get(str(n))
        grid = self._grid(n + 1)
        if own is None:
            times = grid[:n]
        else:
            times = self.sde.inverse_half_log_snr(-torch.tensor(own, dtype=torch.float64).log())
            times = times.clamp(self.sampling_eps, self.start_time)
        following = torch.cat([times[1:], grid[-1:]])
        self._following = [*zip(self.sde.alpha(following).tolist(), self.sde.sigma(following).tolist(), strict=True)]
        if self.final_denoise:  # the data themselves
            self._following[-1] = (1.0, 0.0)
        return times, [True] * n

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise from which sampling starts; after `set_timesteps` that at the first time."""
        return self.start_sigma if self.num_inference_steps is None else self.sde.sigma(self.times[0]).item()

    def _update(self, k, x, noise, denoised, draw):
        alpha, sigma = self._following[k]
        mean = alpha * denoised
        return mean, mean + sigma * draw() if sigma > 0 else mean
