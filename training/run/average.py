"""The exponential moving average of a network's weights (EMA)."""

import contextlib
import copy

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from run.config import EmaConfig
from run.sharding import gathered, shard_of


class AveragedNetwork:
    """A copy of a network that gets the average of its weights.

    Attributes:
        network: the copy. It holds the averaged weights always, unless they are in shards (see `whole`).

    Args:
        device: of the copy; None leaves it where the network is, until its weights are asked for.
    """

    def __init__(self, network: nn.Module, config: EmaConfig, device: torch.device | None):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        if device is not None:
            self.network.to(device)
        self._ema = EMAModel(
            [],
            decay=config.decay,
            use_ema_warmup=config.warmup,
            inv_gamma=config.inv_gamma,
            power=config.power,
            foreach=True,
        )

    @property
    def step(self) -> int:
        """Number of updates, which the decay depends on."""
        return self._ema.optimization_step

    @step.setter
    def step(self, step: int) -> None:
        self._ema.optimization_step = step

    def start(self, network: nn.Module) -> None:
        """Average the weights of `network` from now on, starting with those of the copy, and sharded as they are."""
        # They are the parameters of the copy themselves, or as sharded as those of the network.
        pairs = zip(self.network.parameters(), network.parameters(), strict=True)
        self._ema.shadow_params = [shard_of(average, like) for average, like in pairs]

    def update(self, network: nn.Module) -> None:
        """After a step of the network's weights."""
        self._ema.step(network.parameters())

    def whole(self) -> contextlib.AbstractContextManager:
        """A block in which `network` holds the averaged weights; to be entered by all processes."""
        return gathered(self.network, self._ema.shadow_params)
