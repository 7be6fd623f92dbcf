"""AdamW, and its learning rate at each step."""

import torch
from torch import nn

from run.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, network: nn.Module, device: torch.device) -> torch.optim.AdamW:
    """The optimizer of a network's parameters, fused where the device has such a kernel."""
    return torch.optim.AdamW(
        network.parameters(),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Of the step with this number, from 0, of `steps`: linear warm-up, constant, linear decay."""
    rise = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    fall = (steps - step) / (config.decay_fraction * steps) if config.decay_fraction else 1.0
    return config.lr * min(rise, fall, 1.0)
