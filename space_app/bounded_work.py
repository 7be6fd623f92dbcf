"""What one request computes: in a thread of its own, within a time limit, and stopped when its user goes away."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import gradio as gr

TIME_LIMIT = 60.0  # seconds
INTERVAL = 0.3  # seconds between two looks at the work


class Stopped(Exception):
    """Nobody waits for the result any more."""


class Work:
    """Iterating over it runs `compute(work)` in a thread and yields the work itself a few times a second.

    A generator of Gradio that loops over it can show how far the work is. When it is closed, because the user left or
    pressed Stop, the computation ends at its next `tick`.

    Args:
        compute: function of this object; it calls `tick` often.

    Attributes:
        share: of the work that is done, in [0, 1].
        picture: what the computation wants to be seen, or None.
        part, parts: what is under way of several equal parts, if there are such.
        result: what `compute` returned, once the loop has ended.
        seconds: that it took so far.
    """

    def __init__(self, compute):
        self.compute, self.share, self.picture, self.result = compute, 0.0, None, None
        self.started, self.stopped = time.monotonic(), threading.Event()
        self.part, self.parts = 0, 1

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def tick(self, share: float) -> None:
        """Note how far the work, or the current one of several equal parts of it, is.

        Raises:
            Stopped: if the result isn't wanted any more.
            gr.Error: after `TIME_LIMIT` seconds.
        """
        if self.stopped.is_set():
            raise Stopped
        if self.seconds > TIME_LIMIT:
            raise gr.Error(
                f"This took longer than {TIME_LIMIT:.0f} seconds, so it was stopped. Ask for fewer images or steps.",
                print_exception=False,
            )
        self.share = (self.part + share) / self.parts

    def __iter__(self):
        pool = ThreadPoolExecutor(1)
        try:
            future = pool.submit(self.compute, self)
            while not wait([future], INTERVAL).done:
                yield self
            self.result = future.result()
        finally:
            self.stopped.set()
            pool.shutdown(wait=False)


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
