"""The central objects: the score of noisy images, and their denoised images, at any time of the SDE."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusers.class_names import Labels
from sde_diffusers.guidance import Guidance
from sde_diffusers.likelihood.questions import check_shape
from sde_diffusers.network_fit import require_own_scheduler
from sde_diffusers.parameterization import TIME_ROUNDING, expand_like
from sde_diffusers.scalars import real_number


class ScoresMixin:
    """`score` and `denoise`, for pipelines with `unet` and `scheduler`."""

    unet: Any
    scheduler: Any

    def score(self, x: Tensor, t: float | Tensor, class_labels: Labels = None) -> Tensor:
        """The score grad log p_t(x) of the noisy images' density.

        Args:
            x: (N, C, H, W) noisy images at time t of the sampling SDE, in the scheduler's image range. Gradients
                flow back to x if it requires them.
            t: SDE time in (0, 1], a number or (N,).
            class_labels: as in `__call__`.

        Returns:
            (N, C, H, W), in x's dtype, at least float32.

        Raises:
            ValueError: on an x that is no floating point tensor of that shape, or a t that is no such time.
        """
        t = self._times(x, t)
        noise, _ = self._noise_and_denoised(x, t, class_labels)
        return -noise / expand_like(self.scheduler.sde.sigma(t), noise)

    def denoise(self, x: Tensor, t: float | Tensor, class_labels: Labels = None) -> Tensor:
        """The denoised images E[x_0 | x_t = x] (Tweedie's formula), in the scheduler's image range; see `score`."""
        return self._noise_and_denoised(x, self._times(x, t), class_labels)[1]

    def _times(self, x, t) -> Tensor:
        """t as () or (N,) float64, or a `ValueError` unless x and t are what `score` takes."""
        require_own_scheduler(self.scheduler)
        check_shape(self, "x", x)
        if not x.is_floating_point():
            raise ValueError(f"`x` must be floating point, in the scheduler's image range, but is {x.dtype}.")
        earliest, latest = self.scheduler.earliest_time, self.scheduler.start_time
        each = t if isinstance(t, (list, tuple, Tensor, np.ndarray)) and np.ndim(t) == 1 else [t]
        times = torch.tensor([real_number(time) for time in each], dtype=torch.float64)
        rounded = (1 - TIME_ROUNDING) * earliest, (1 + TIME_ROUNDING) * latest
        if len(each) not in (1, len(x)) or not ((times > 0) & (times >= rounded[0]) & (times <= rounded[1])).all():
            interval = f"[{earliest}" if earliest else "(0"
            raise ValueError(f"`t` must be a time in {interval}, {latest}] or {len(x)} of them, but is {t!r}.")
        times = times.clamp(earliest, latest)
        return times if len(each) == len(x) else times[0]

    def _noise_and_denoised(self, x, t, class_labels):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        guidance = Guidance(self, len(x), class_labels)
        with guidance.frozen(), torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            network_time = self.scheduler.network_time(t, between=True).to(x.device, x.dtype)
            output = guidance.mixed(x, t, network_time)
            return self.scheduler.noise_and_denoised(output.to(x.dtype), x, t)
