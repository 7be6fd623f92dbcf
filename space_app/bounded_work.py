"""What requests compute: in a few threads that all share, within a time limit, and while somebody waits for it."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

from pictures import friendly

AT_ONCE = 2  # requests that compute; the others wait
TIME_LIMIT = float(os.environ.get("TIME_LIMIT", 60))  # seconds
INTERVAL = 0.3  # seconds between two looks at the work
POOL = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="network")


class Stopped(Exception):
    """Nobody waits for the result any more."""


class Work:
    """Iterating over it runs `compute(work)` in a thread of `POOL` and yields the work itself a few times a second.

    When the iterator is closed, because the user left, and after `stop`, the loop ends at once and the computation at
    its next `tick`. Until then it keeps its thread, so that there are never more than `AT_ONCE`.

    Args:
        compute: function of this object; it calls `tick` often.
        show: function of this object, once the result is there: the values of all outputs of the event.
        show_state: function of this object: the values of all outputs but the status while it goes on; None changes
            none of them.

    Attributes:
        share: of the work that is done, in [0, 1].
        picture: what the computation wants to be seen, or None.
        part, parts: what is under way of several equal parts, if there are such.
        result: what `compute` returned, once the loop has ended; None if it was stopped.
        seconds: that it took so far.
    """

    def __init__(self, compute, show=None, show_state=None):
        self.compute, self.show, self.show_state = compute, show, show_state
        self.share, self.picture, self.result = 0.0, None, None
        self.started, self.stopped = time.monotonic(), threading.Event()
        self.part, self.parts = 0, 1

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def state(self):
        """The values of all outputs but the status by `show_state`; None if there is nothing to be seen yet."""
        return None if self.show_state is None or self.picture is None else self.show_state(self)

    def stop(self) -> None:
        """End the loop, and let the computation end at its next `tick`."""
        self.stopped.set()

    def tick(self, share: float) -> None:
        """Note how far the work, or the current one of several equal parts of it, is.

        Raises:
            Stopped: if the result isn't wanted any more.
            gr.Error: after `TIME_LIMIT` seconds.
        """
        if self.stopped.is_set():
            raise Stopped
        if self.seconds > TIME_LIMIT:
            raise friendly(
                f"This took longer than {TIME_LIMIT:.0f} seconds, so it was stopped. Ask for fewer images or steps."
            )
        self.share = (self.part + share) / self.parts

    def run(self):
        self.started = time.monotonic()  # threads may have been taken until now, by work that is just being stopped
        self.tick(0)
        return self.compute(self)

    def __iter__(self):
        future = POOL.submit(self.run)
        try:
            while not self.stopped.is_set() and not wait([future], INTERVAL).done:
                yield self
            if not self.stopped.is_set():
                self.result = future.result()
        finally:
            self.stop()
            future.cancel()


class TickingBar:
    """What diffusers' pipelines use of a progress bar; every step of it is a tick of the work."""

    def __init__(self, work: Work, iterable=None, total=None):
        self.work, self.iterable, self.n = work, iterable, 0
        self.total = len(iterable) if total is None else total

    def __iter__(self):
        for item in self.iterable:
            self.update(0)
            yield item
            self.n += 1

    def update(self, n: int) -> None:
        self.n += n
        self.work.tick(self.n / self.total)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return False
