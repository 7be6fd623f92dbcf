"""Whether a run has begun to learn its training images by heart."""

from __future__ import annotations

import sys

from run.log import RunLog

PATIENCE = 3  # validations in a row above the lowest


def overfits_since(records: list[dict]) -> int | None:
    """The step of the lowest validation loss, if it has risen since while the training loss has fallen; else None.

    It has risen if the last `PATIENCE` validations lie above the lowest, each not below the one before. The training
    loss has fallen if its mean since the lowest is below its mean over as many lines before.

    Args:
        records: lines of metrics.jsonl, in order of their steps.
    """
    validations = [(r["step"], r["validation_loss"]) for r in records if "validation_loss" in r]
    if len(validations) <= PATIENCE:
        return None
    lowest_step, lowest = min(validations, key=lambda pair: pair[1])
    recent = [loss for step, loss in validations if step > lowest_step][-PATIENCE:]
    if len(recent) < PATIENCE or recent[0] <= lowest or recent != sorted(recent):
        return None
    losses = [(r["step"], r["loss"]) for r in records if "loss" in r]
    after = [loss for step, loss in losses if step > lowest_step]
    before = [loss for step, loss in losses if step <= lowest_step][-len(after) :]
    fallen = after and before and sum(after) / len(after) < sum(before) / len(before)
    return lowest_step if fallen else None


def warn_of_overfitting(log: RunLog, step: int) -> None:
    """Say once, and write down, that the validation loss has begun to rise."""
    lowest = overfits_since(log.records)
    if lowest is None or any("overfits_since" in record for record in log.records):
        return
    log.metrics(step, overfits_since=lowest)
    print(
        f"Step {step}: the validation loss has risen since step {lowest} while the training loss falls: the "
        "network begins to learn the training images by heart. best/ has the weights of the lowest one.",
        file=sys.stderr,
    )
