"""The validation loss at each noise level: where a network still learns, and where it has begun to forget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SAMPLE = 20_000  # times by which the levels are divided


class NoiseLevels:
    """Groups of noise levels s = sigma / alpha that an objective draws equally often.

    Args:
        objective: has `sde` and `draw_times`, as `DenoisingScoreMatching` does.
        count: of the groups.

    Attributes:
        levels: the geometric mean of each group's s, a list of `count` numbers, rising.
    """

    def __init__(self, objective, count: int):
        self._sde = objective.sde
        log_s = self.log_s(objective.draw_times(SAMPLE, torch.Generator().manual_seed(0))).sort().values
        groups = log_s.tensor_split(count)
        self.levels = [group.mean().exp().item() for group in groups]
        self._edges = torch.stack([group[0] for group in groups[1:]]) if count > 1 else log_s.new_empty(0)

    def log_s(self, times: Tensor) -> Tensor:
        """log(sigma / alpha), float64, on the CPU."""
        return -self._sde.half_log_snr(times.double().cpu())

    def spread(self, losses: Tensor, times: Tensor) -> Tensor:
        """Losses (N,) and ones, each in the columns of its group: (N, 2 count), like the losses."""
        group = torch.bucketize(self.log_s(times), self._edges, right=True).to(losses.device)
        ones = F.one_hot(group, len(self.levels)).to(losses)
        return torch.cat([losses[:, None] * ones, ones], 1)

    def means(self, spread_mean: Sequence[float]) -> list[float | None]:
        """The mean loss of each group, from the mean of `spread` over all images; None for a group without any."""
        count = len(self.levels)
        pairs = zip(spread_mean[:count], spread_mean[count:], strict=True)
        return [total / share if share else None for total, share in pairs]
