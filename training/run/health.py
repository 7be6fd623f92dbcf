"""Whether a run is of use: a loss or a gradient that is no finite number ends it."""

import math
from pathlib import Path

import torch
from accelerate import Accelerator

from run.checkpoints import list_checkpoints
from run.config import RunConfig

FP16_PATIENCE = 20  # steps in a row without a finite gradient while the loss scale falls from 2^16


class Diverged(RuntimeError):
    """The loss or its gradient is no longer a finite number."""


class Health:
    """Counts the steps in a row, up to the last one, whose gradient was no finite number.

    Args:
        checkpoints: folder of the run's, for the advice that `Diverged` gives.
    """

    def __init__(self, config: RunConfig, accelerator: Accelerator, checkpoints: Path):
        self._learning_rate, self._checkpoints = config.optimizer.lr, checkpoints
        self._precision = accelerator.mixed_precision
        self._unhealthy_steps = torch.zeros((), dtype=torch.int64, device=accelerator.device)

    def observe(self, gradient_norm: torch.Tensor) -> None:
        """A step was done; nobody waits for a GPU."""
        # The gradient is that of all processes, so that they all come to the same conclusion.
        self._unhealthy_steps = torch.where(gradient_norm.isfinite(), 0, self._unhealthy_steps + 1)

    def check(self, step: int, mean_loss: float = 0.0) -> None:
        """Raise `Diverged` if the steps before `step` were of no use; fp16 may skip some while its scale adapts."""
        unhealthy, fp16 = self._unhealthy_steps.item(), self._precision == "fp16"
        if unhealthy <= (FP16_PATIENCE if fp16 else 0) and (fp16 or math.isfinite(mean_loss)):
            return
        good = [str(path) for path in list_checkpoints(self._checkpoints)] or ["there is none"]
        precision = {"fp16": ", mixed_precision=bf16 or no", "bf16": ", mixed_precision=no", "no": ""}
        raise Diverged(
            f"The gradient is no finite number since step {step - max(unhealthy, 1) + 1} (loss {mean_loss}). "
            f"Last good checkpoint: {good[-1]}. Try a lower optimizer.lr (now {self._learning_rate:g}), more "
            f"optimizer.warmup_steps, gradient_clip=1{precision[self._precision]}."
        )
