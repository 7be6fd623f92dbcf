"""In which order a stream's files and images are read, and which group each place of a batch is filled from.

A group's epoch starts with its files in a random order. A few are open at a time, and each next image is that of one
of them at random, through a buffer from which a random one leaves for each that comes. (`IterableDataset.shuffle`
does the like; since datasets 5 it reads each of ten files in a thread of its own, and sleeps for 5 seconds at every
end, https://github.com/apache/arrow/issues/45214.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

DRAWS = 1000  # random numbers drawn at once


def interleaved(files: Sequence[Callable[[], Iterable]], at_once: int, random: np.random.Generator) -> Iterator:
    """The rows of files, in a random order of these, `at_once` of them open at any time.

    Args:
        files: functions that open one.
        at_once: at least 1.
        random: is drawn from.
    """
    waiting = [files[k] for k in random.permutation(len(files))]
    reading, end, uniform = [], object(), _uniform(random)
    while waiting or reading:
        while waiting and len(reading) < at_once:
            reading.append(iter(waiting.pop()()))
        chosen = int(next(uniform) * len(reading))
        row = next(reading[chosen], end)
        if row is end:
            del reading[chosen]
        else:
            yield row


def shuffled(rows: Iterable, buffer_size: int, random: np.random.Generator) -> Iterator:
    """Rows in a random order, as far as a buffer of `buffer_size` of them allows."""
    buffer, uniform = [], _uniform(random)
    for row in rows:
        if len(buffer) < buffer_size:
            buffer.append(row)
        else:
            k = int(next(uniform) * buffer_size)
            buffer[k], leaving = row, buffer[k]
            yield leaving
    for k in random.permutation(len(buffer)):
        yield buffer[k]


def _uniform(random: np.random.Generator) -> Iterator[float]:
    while True:
        yield from random.random(DRAWS).tolist()


class GroupsOfBatches:
    """Which group fills each place of a global batch: sorted, so that neighbouring places share a group.

    Equal shares give each group batch_size / S places of every batch. By size, image i of the n of a group has its
    turn at time (i + 1/2) / n of an epoch of all groups, in which each image has one turn, then.

    Args:
        batch_size: of the global batch.
        count: S, the number of groups.
        sizes: images of each group, for shares by size; None for equal ones.
    """

    def __init__(self, batch_size: int, count: int, sizes: Sequence[int] | None = None):
        self.batch_size, self.sizes = batch_size, None if sizes is None else np.asarray(sizes)
        if sizes is None:
            self.turns = np.arange(batch_size) * count // batch_size
        else:
            times = np.concatenate([(np.arange(n) + 0.5) / n for n in sizes])
            self.turns = np.repeat(np.arange(count), sizes)[np.argsort(times, kind="stable")].astype(np.uint16)

    def of(self, step: int) -> np.ndarray:
        """The group of each place of global batch `step`, shape (batch_size,)."""
        return np.sort(self.turns[np.arange(step * self.batch_size, (step + 1) * self.batch_size) % len(self.turns)])

    def served(self, group: int, step: int) -> int:
        """How many images of a group the batches before this one hold."""
        epochs, turns = divmod(step * self.batch_size, len(self.turns))
        return epochs * int((self.turns == group).sum()) + int((self.turns[:turns] == group).sum())
