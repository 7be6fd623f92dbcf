"""Undecoded images by number, from wherever they come: what folders, arrays and tables have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Rows:
    """The images of one split, with random access.

    Attributes:
        labels: (N,) int64 class indices; None without labels.
        class_names: the name of each class; None where unknown.
    """

    labels: np.ndarray | None = None
    class_names: list[str] | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, numbers: Sequence[int]) -> list:
        """The images with these numbers as `pixels.decode_image` takes them."""
        raise NotImplementedError

    def name(self, number: int) -> str:
        """What an image is called in messages, and by which a run finds it again when others have been added."""
        raise NotImplementedError

    def title(self, number: int, value) -> str:
        """The name for messages, of an image that has been read."""
        return self.name(number)


class Selection(Rows):
    """Some of the images of another source, in the given order."""

    def __init__(self, rows: Rows, numbers: Sequence[int]):
        self.rows, self.numbers = rows, np.asarray(numbers, dtype=np.int64)
        self.labels = None if rows.labels is None else rows.labels[self.numbers]
        self.class_names = rows.class_names

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, numbers: Sequence[int]) -> list:
        return self.rows.read(self.numbers[np.asarray(numbers, dtype=np.int64)].tolist())

    def name(self, number: int) -> str:
        return self.rows.name(int(self.numbers[number]))

    def title(self, number: int, value) -> str:
        return self.rows.title(int(self.numbers[number]), value)


def evenly_spaced(rows: Rows, count: int | None) -> Rows:
    """`count` of the images, spaced evenly; all of them if there are no more, or `count` is None."""
    if count is None or count >= len(rows):
        return rows
    return Selection(rows, [i * len(rows) // count for i in range(count)])
