"""The optimizer of a training, and its learning rate at each step."""

import torch
from torch import nn

from run.config import OptimizerConfig
from run.muon import Muon


def build_optimizer(config: OptimizerConfig, network: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of a network's parameters; AdamW is fused where the device has such a kernel."""
    options = {name: getattr(config, name) for name in ("lr", "betas", "eps", "weight_decay")}
    options["fused"] = device.type in ("cpu", "cuda")
    if config.name == "muon":
        return Muon(network, **options)
    return torch.optim.AdamW(network.parameters(), **options)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Of the step with this number, from 0, of `steps`: linear warm-up, constant, linear decay."""
    rise = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    fall = (steps - step) / (config.decay_fraction * steps) if config.decay_fraction else 1.0
    return config.lr * min(rise, fall, 1.0)
