"""Stopping on SIGTERM or Ctrl-C at the end of a step, on all processes at once."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist


class Interruption:
    """While in its `with` block, remembers the first SIGTERM or SIGINT instead of dying of it.

    A second one ends the process as usual, unless there are several: their launcher passes on what the terminal has
    sent to all of them already. Processes agree over a group of their own on the CPUs, so that asking after every
    step does not wait for a GPU.

    Args:
        timeout: seconds that `agreed` waits for the other processes before it raises RuntimeError.
    """

    def __init__(self, timeout: float):
        self._timeout = timedelta(seconds=timeout)

    def __enter__(self):
        self._received = 0
        self._group = dist.new_group(backend="gloo", timeout=self._timeout) if dist.is_initialized() else None
        self._handlers = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _remember(self, number, frame) -> None:
        self._received = number
        if self._group is None:
            signal.signal(number, self._handlers[number])

    def agreed(self) -> str | None:
        """The name of the signal that any process received, or None; to be called by all processes."""
        number = torch.tensor(self._received)
        if self._group is not None:
            dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._group)
        return signal.Signals(number.item()).name if number else None


class _Left(SystemExit):
    """The exit that a signal asked for; its code is 128 + the signal's number, as shells have it."""


@contextlib.contextmanager
def ends_in_order() -> Iterator[None]:
    """A block that SIGTERM and SIGHUP end by SystemExit, as Ctrl-C does by KeyboardInterrupt: nothing stays held.

    Python drops an exception that is raised while an object is being deleted; the signal is then sent again.
    """

    def leave(number, frame):
        raise _Left(128 + number)

    def on_dropped(dropped):
        number = signal.SIGINT if dropped.exc_type is KeyboardInterrupt else None
        if dropped.exc_type is _Left:
            number = dropped.exc_value.code - 128
        if number is None:
            return previous_hook(dropped)
        leaves = threading.Event()
        threading.Thread(target=send_again, args=(number, leaves), daemon=True).start()
        leaves.set()

    def send_again(number, leaves):
        leaves.wait()
        time.sleep(0.1)  # in the hook, which ends meanwhile, it would be dropped for good
        os.kill(os.getpid(), number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has one
    before = {number: signal.getsignal(number) for number in numbers}
    previous_hook, sys.unraisablehook = sys.unraisablehook, on_dropped
    for number, handler in before.items():
        if handler == signal.SIG_DFL:  # not for `nohup`
            signal.signal(number, leave)
    try:
        yield
    finally:
        sys.unraisablehook = previous_hook
        for number, handler in before.items():
            if signal.getsignal(number) == leave:
                signal.signal(number, handler)
