"""The weight of each noise level in the loss, learned along: the u(sigma) of Karras et al. 2023 (arXiv 2312.02696).

They have it from Kendall et al. 2018 (arXiv 1705.07115), where it weighs several tasks.

With L the loss of an image at the noise level s = sigma / alpha, what is minimised is

    L / exp(u(s)) + u(s).

For given losses the best u(s) is the logarithm of E[L | s]: each noise level then counts as much as any other, however
large its losses are. u is linear in random Fourier features of log s, and takes no part in sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

FEATURES = 128


class LearnedWeighting:
    """u(s) and its optimiser (Adam). Its gradient comes from losses as numbers: the network's does not see it.

    Args:
        learning_rate: of the step with this number, from 0.
        mean_of_processes: the mean of a tensor over all processes; None if there is one.
        device: where losses are.
    """

    def __init__(
        self,
        learning_rate: Callable[[int], float],
        mean_of_processes: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
    ):
        self._learning_rate, self._mean_of_processes = learning_rate, mean_of_processes
        generator = torch.Generator().manual_seed(0)
        # Most have periods of some four e-foldings of s and more.
        self._frequencies = (2 * math.pi * torch.randn(FEATURES, generator=generator) / 4).to(device)
        self._phases = (2 * math.pi * torch.rand(FEATURES, generator=generator)).to(device)
        self._weights = torch.zeros(FEATURES, device=device, requires_grad=True)
        self._bias = torch.zeros((), device=device, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._weights, self._bias])

    def log_scale(self, log_s: Tensor) -> Tensor:
        """u (N,) at log s (N,)."""
        angles = log_s.to(self._frequencies)[:, None] * self._frequencies + self._phases
        return math.sqrt(2) * angles.cos() @ self._weights / math.sqrt(FEATURES) + self._bias

    def weight(self, log_s: Tensor) -> Tensor:
        """exp(-u) (N,), by which losses at log s (N,) are to be multiplied."""
        return torch.exp(-self.log_scale(log_s).detach())

    def learn(self, losses: Tensor, log_s: Tensor, share: float = 1.0) -> None:
        """Add to the gradient of u: from losses (N,) at log s (N,), which are `share` of a batch.

        A loss that is no finite number, as fp16 may give at the start, counts as if u were right about it.
        """
        u = self.log_scale(log_s)
        losses = losses.detach().to(u)
        losses = torch.where(losses.isfinite(), losses, u.detach().exp())
        (share * (losses * torch.exp(-u) + u).mean()).backward()

    def update(self, step: int) -> None:
        """Update u by the gradient since the last update, at the end of the step with this number, from 1."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate(step - 1)
        for parameter in (self._weights, self._bias) if self._mean_of_processes else ():
            parameter.grad = self._mean_of_processes(parameter.grad)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state_dict(self) -> dict[str, Tensor]:
        """Coefficients and Adam's moments, by name."""
        tensors = {"weights": self._weights.detach(), "bias": self._bias.detach()}
        for name, parameter in (("weights", self._weights), ("bias", self._bias)):
            state = self._optimizer.state.get(parameter, {})
            tensors |= {f"{name}/{key}": value for key, value in state.items()}
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Raises ValueError if the tensors are not those of `state_dict`."""
        try:
            for name, parameter in (("weights", self._weights), ("bias", self._bias)):
                with torch.no_grad():
                    parameter.copy_(tensors[name])
                keys = [key for key in tensors if key.startswith(f"{name}/")]
                self._optimizer.state[parameter] = {
                    key.partition("/")[2]: tensors[key].to(parameter.device if "step" not in key else "cpu")
                    for key in keys
                }
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"it holds no learned weighting: {error}") from error
