"""Images decoded while they are served, for data sets that do not fit into memory or on the disk.

A stream has no random access. Its order is that of its files, shuffled anew in each epoch, and of their images,
shuffled through a buffer. For many processes its files are dealt into S groups (`data.stream_shards`), each with an
order, a buffer and epochs of its own: the global batch consists of S slices, slice s from group s. So a process reads
only the groups of its own slices, and global batch k is a function of (seed, k, S), whatever the number of processes.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import datasets
import numpy as np
import torch

from images.batch_order import batch_indices, flipped, slice_of_rank
from images.pixels import DECODING_THREADS, UnreadableImage, check_broken, conform, file_name

SHUFFLE_BUFFER = 4096  # encoded images held, by all groups together, to shuffle them
SPARE = 100  # a group's first rows, which stand in for images of a slice that has no readable one
UNNAMED = "an unnamed image"

Batch = tuple[torch.Tensor, "torch.Tensor | None"]
logger = logging.getLogger("images")


@dataclass(frozen=True)
class StreamedImages:
    """What `load_images` gives for images that are not decoded into memory.

    Local and downloaded data sets, which have random access, are shuffled as `ImageData` is, so that both serve equal
    batches. For others, `start_step` reads past the earlier images of an epoch without decoding them; past whole
    epochs only if the length of a group is unknown, and then past the first alone, which tells it.

    An unreadable image is replaced by the next readable one of its slice of the global batch and added to `skipped`.

    Attributes:
        image_shape: (C, H, W) of every image served.
        num_images: images in the data set, unreadable ones included; None where a stream does not tell.
        class_names, skipped, name: as in `ImageData`; `skipped` grows while images are read.
        groups: the S of this module; at most the number of files, and 1 with random access.
    """

    rows: datasets.Dataset | datasets.IterableDataset = field(repr=False)
    image_column: str
    label_column: str | None
    decode: Callable[[dict], torch.Tensor] = field(repr=False)
    image_shape: tuple[int, int, int]
    num_images: int | None
    class_names: list[str] | None
    skipped: list[str]
    name: str
    groups: int = 1

    def batches(
        self,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        flip: bool = False,
    ) -> Iterator[Batch]:
        """Endless batches; arguments, values and errors of `ImageData.batches`.

        The iterator raises ValueError where images differ in size and no `image_size` was given, where a label is
        missing, and where more than 1 % of the images (and more than 10) cannot be read.
        """
        own = slice_of_rank(batch_size, seed, start_step, rank, world_size)
        group_of = [slot * self.groups // batch_size for slot in range(batch_size)]
        sizes = {group: group_of.count(group) for group in group_of[own]}
        places = [(group_of[slot], slot - group_of.index(group_of[slot])) for slot in range(batch_size)[own]]

        def serve() -> Iterator[Batch]:
            seen, current = 0, None
            slices = {group: self._slices(group, size, seed, start_step) for group, size in sizes.items()}
            with ThreadPoolExecutor(DECODING_THREADS) as pool:
                for step in itertools.count(start_step - 1):
                    # `step` is decoded already while the rows of the step after it are read
                    rows = {group: next(of_group) for group, of_group in slices.items()}
                    ahead = [pool.submit(self._decode_one, group, rows[group], k) for group, k in places]
                    if current is not None:
                        images, labels = zip(*(future.result() for future in current), strict=True)
                        seen += len(images)
                        check_broken(self.skipped, max(seen, 1000), self.name)
                        images = torch.stack(images)
                        images = flipped(images, batch_size, seed, step, own) if flip else images
                        yield images, None if self.label_column is None else torch.tensor(labels)
                    current = ahead

        return serve()

    def _slices(self, group: int, size: int, seed: int, start_step: int) -> Iterator[list[dict]]:
        """The undecoded rows of a group's slice of each global batch, endlessly."""
        if isinstance(self.rows, datasets.Dataset):
            for step in itertools.count(start_step):
                columns = self.rows[batch_indices(len(self.rows), size, seed, step).tolist()]
                yield [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        rows = self._stream(group, seed, start_step * size)
        while True:
            yield list(itertools.islice(rows, size))

    def _stream(self, group: int, seed: int, position: int) -> Iterator[dict]:
        """The undecoded rows of a group from the given position on, one epoch after another."""
        rows, buffer_size = self._files(group), max(1, SHUFFLE_BUFFER // self.groups)
        announced = self.num_images if self.groups == 1 else None
        epoch, position = divmod(position, announced) if announced else (0, position)
        while True:
            order, count = int(np.random.SeedSequence([seed, epoch, group]).generate_state(1)[0]), 0
            for row in rows.shuffle(seed=order, buffer_size=buffer_size):
                count += 1
                if count > position:
                    yield row
            if count == 0 or announced not in (None, count):
                raise ValueError(
                    f"{self.name} streams {count} images but announces {announced}: load it with streaming=False"
                )
            epochs, position = divmod(max(position - count, 0), count)
            epoch += 1 + epochs

    def _files(self, group: int) -> datasets.IterableDataset:
        """The undecoded rows of a group's files, in their own order."""
        return self.rows.shard(num_shards=self.groups, index=group)

    def _candidates(self, group: int, rows: list[dict], number: int) -> Iterator[dict]:
        yield from rows[number:]
        yield from rows[:number]
        yield from itertools.islice(self._files(group), SPARE)

    def _decode_one(self, group: int, rows: list[dict], number: int) -> tuple[torch.Tensor, int | None]:
        """Image and label of one of the rows, or of the first readable one after it."""
        for row in self._candidates(group, rows, number):
            name = file_name(row[self.image_column]) or UNNAMED
            try:
                image = self.decode(row[self.image_column])
            except UnreadableImage as error:
                if name == UNNAMED or name not in self.skipped:
                    logger.warning("%s: skipped %s: %s", self.name, name, error)
                    self.skipped.append(name)
                continue
            if self.label_column is None:
                return conform(image, self.image_shape, name), None
            if is_missing(row[self.label_column]):
                raise ValueError(f"{self.name}: {name} has no label where the first image has one")
            return conform(image, self.image_shape, name), row[self.label_column]
        raise ValueError(f"{self.name}: none of the {len(rows)} images of a slice of a batch can be read")


def is_missing(label: int | None) -> bool:
    return label is None or label < 0  # the Hub's mark for a withheld label is -1
