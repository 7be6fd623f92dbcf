"""Sampling that begins late, at a noisy image: by `start_late`, or with a loop over the last of the `timesteps`."""

from collections.abc import Callable

import torch
from torch import Tensor

from sde_diffusers.scalars import real_number, whole_number
from sde_diffusers.schedulers.fitted_steps import FittedSteps


class LateStartMixin:
    """Which of a scheduler's time steps is the first."""

    fit: FittedSteps | None
    num_inference_steps: int | None
    times: Tensor
    timesteps: Tensor
    _calls: int
    _ends_step: list[bool]
    set_timesteps: Callable

    def leave_fit(self) -> None:
        """Take the sampler's own steps; see the samplers that know others."""

    def start_late(self, steps: int) -> Tensor:
        """Leave out all but the last `steps` time steps, as for sampling that starts from a noisy image.

        Returns:
            Scalar float64, the SDE time of the first evaluation that is left, `timesteps[step_index]`.

        Raises:
            ValueError: unless 1 <= steps <= `num_inference_steps`.
        """
        n = whole_number(steps)
        if self.num_inference_steps is None or not 1 <= n <= self.num_inference_steps:
            raise ValueError(f"`steps` must lie in [1, {self.num_inference_steps}], but is {steps!r}.")
        self.leave_fit()
        self._calls = self._starts()[-int(n)]
        return self.times[self._calls]

    def _begin_at(self, timestep) -> None:
        """Start late where the loop's first entry of `timesteps` is not the first of all.

        An entry itself is known by its place in memory, for which nothing waits; numbers are compared. One that is
        none of the entries, such as the SDE's time of an evaluation, is taken for the first.

        Raises:
            ValueError: on what is no number, and on one that was rounded to several entries.
        """
        if self._calls or self.num_inference_steps is None or torch.compiler.is_compiling():
            return
        entries, starts, k = self.timesteps, self._starts(), None
        if isinstance(timestep, Tensor) and timestep.device == entries.device and timestep.dtype == entries.dtype:
            place = (timestep.data_ptr() - entries.data_ptr()) // entries.element_size()
            k = place if 0 <= place < len(entries) else None
        if k is None and timestep is not None:
            k = self._place_of(timestep, entries.cpu().double(), starts)
        if not k:
            return
        if self.fit is not None:
            raise ValueError(
                f"`timestep` {timestep} is entry {k} of `timesteps`, which were fitted to whole ways of the network: "
                "call `start_late` before the loop, and take the steps that are then laid."
            )
        if k not in starts:
            raise ValueError(
                f"`timestep` {timestep} is entry {k} of `timesteps`, within a time step: a loop over the last of them "
                f"begins at one of the entries {', '.join(map(str, starts[-5:]))}, say (see `start_late`)."
            )
        self.start_late(len(starts) - starts.index(k))

    def _place_of(self, timestep, entries: Tensor, starts: list[int]) -> int | None:
        """The entry of `timesteps` (M,) that a number stands for, the start of a time step if possible."""
        given, rounding = timestep, 1e-6
        if isinstance(timestep, Tensor):
            if timestep.numel() and (timestep == timestep.flatten()[0]).all():
                given = timestep.flatten()[0]
            if timestep.is_floating_point():
                rounding = max(rounding, torch.finfo(timestep.dtype).eps)
        number = real_number(given)
        if number != number:
            raise ValueError(f"`timestep` must be one of `timesteps`, or a batch of equal ones, but is {timestep!r}.")
        value = torch.tensor(number, dtype=torch.float64)
        places = torch.isclose(entries, value, rtol=rounding, atol=1e-9).nonzero().flatten().tolist()
        if not places and isinstance(number, int):
            places = (entries.trunc() == number).nonzero().flatten().tolist()
        if len(entries[places].unique()) > 1:
            raise ValueError(
                f"`timestep` {timestep!r} is rounded, and may be any of {entries[places].unique().tolist()}: give the "
                "entry of `timesteps` itself."
            )
        return next((place for place in places if place in starts), places[0] if places else None)

    def _starts(self) -> list[int]:
        """The evaluations with which the time steps begin."""
        return [0, *(k + 1 for k, ends_step in enumerate(self._ends_step[:-1]) if ends_step)]
