"""Stopping on SIGTERM or Ctrl-C at the end of a step, on all processes at once."""

import signal

import torch
import torch.distributed as dist


class Interruption:
    """Remembers the first SIGTERM or SIGINT. A second one ends the process as usual, unless there are several: their
    launcher passes on what the terminal has sent to all of them already.

    Processes agree over a group of its own on the CPUs, so that asking every step does not wait for a GPU.
    """

    def __init__(self):
        self.received = 0
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number, frame) -> None:
        self.received = number
        if self._group is None:
            signal.signal(number, signal.SIG_DFL)

    def agreed(self) -> str | None:
        """The name of the signal that any process received, or None; to be called by all processes."""
        number = torch.tensor(self.received)
        if self._group is not None:
            dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._group)
        return signal.Signals(number.item()).name if number else None
