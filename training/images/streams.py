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
from images.labels import is_missing
from images.pixels import (
    DECODING_THREADS,
    Skipped,
    UnreadableImage,
    check_broken,
    conform,
    file_name,
    value_extremes,
)
from images.rows import Rows
from images.tables import TableStream
from sde_diffusers.images import INTEGER_RANGES, PixelFormat

SHUFFLE_BUFFER = 4096  # encoded images held, by all groups together, to shuffle them
SPARE = 100  # a group's first rows, which stand in for images of a slice that has no readable one
UNNAMED = "an unnamed image"

Batch = tuple[torch.Tensor, "torch.Tensor | None"]
Encoded = tuple  # (image as `decode_image` takes it, label or None, name)
logger = logging.getLogger("images")


@dataclass(frozen=True)
class StreamedImages:
    """What `load_images` gives for images that are not decoded into memory.

    Local and downloaded data sets, which have random access, are shuffled as `ImageData` is, so that both serve equal
    batches. For others, `start_step` reads past the earlier images of an epoch without decoding them; past whole
    epochs only if the length of a group is unknown, and then past the first alone, which tells it.

    An unreadable image is replaced by the next readable one of its slice of the global batch and added to `skipped`.

    Attributes:
        rows: a table that is streamed, or images with random access.
        decode: function that decodes one of them.
        image_shape: (C, H, W) of every image served.
        pixels: what the values mean; all lie within its range.
        num_images: images in the data set, unreadable ones included; None where a stream does not tell.
        class_names, skipped, name, notes: as in `ImageData`; `skipped` grows while images are read.
        groups: the S of this module; at most the number of files.
    """

    rows: TableStream | Rows = field(repr=False)
    decode: Callable[[dict], torch.Tensor] = field(repr=False)
    image_shape: tuple[int, int, int]
    pixels: PixelFormat
    num_images: int | None
    class_names: list[str] | None
    skipped: Skipped
    name: str
    label_column: str | None
    notes: list[str] = field(default_factory=list)
    groups: int = 1

    @classmethod
    def of(cls, rows, decode, image_shape, pixels, name, notes, groups=1) -> StreamedImages:
        """The images of a table or of rows."""
        if isinstance(rows, Rows):
            count, label_column = len(rows), None if rows.labels is None else "label"
        else:
            count, label_column = rows.num_images, rows.label_column
        about = (count, rows.class_names, Skipped(), name, label_column, list(notes), groups)
        return cls(rows, decode, image_shape, pixels, *about)

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
        missing or a value beyond the range, and where more than 1 % of the images (and more than 10) cannot be read.
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

    def _slices(self, group: int, size: int, seed: int, start_step: int) -> Iterator[list[Encoded]]:
        """The undecoded images of a group's slice of each global batch, endlessly."""
        if isinstance(self.rows, Rows):
            first, last = (g * len(self.rows) // self.groups for g in (group, group + 1))
            own = seed if self.groups == 1 else int(np.random.SeedSequence([seed, group]).generate_state(1)[0])
            for step in itertools.count(start_step):
                yield self._read(first + batch_indices(last - first, size, own, step))
        rows = self._stream(group, seed, start_step * size)
        while True:
            yield list(itertools.islice(rows, size))

    def _read(self, numbers: torch.Tensor) -> list[Encoded]:
        values, labels = self.rows.read(numbers.tolist()), self.rows.labels
        return [
            (value, None if labels is None else int(labels[k]), self.rows.title(k, value))
            for k, value in zip(numbers.tolist(), values, strict=True)
        ]

    def _encoded(self, row: dict) -> Encoded:
        """A row of a stream."""
        value = self.rows.read(row)
        return value, row[self.label_column] if self.label_column else None, file_name(value) or UNNAMED

    def _stream(self, group: int, seed: int, position: int) -> Iterator[Encoded]:
        """The undecoded images of a group from the given position on, one epoch after another."""
        rows, buffer_size = self._files(group), max(1, SHUFFLE_BUFFER // self.groups)
        announced = self.num_images if self.groups == 1 else None
        epoch, position = divmod(position, announced) if announced else (0, position)
        while True:
            order, count = int(np.random.SeedSequence([seed, epoch, group]).generate_state(1)[0]), 0
            for row in rows.shuffle(seed=order, buffer_size=buffer_size):
                count += 1
                if count > position:
                    yield self._encoded(row)
            if count == 0 or announced not in (None, count):
                raise ValueError(
                    f"{self.name} streams {count} images but announces {announced}: load it with streaming=False"
                )
            epochs, position = divmod(max(position - count, 0), count)
            epoch += 1 + epochs

    def _files(self, group: int) -> datasets.IterableDataset:
        """The undecoded rows of a group's files, in their own order."""
        return self.rows.rows.shard(num_shards=self.groups, index=group)

    def _spare(self, group: int) -> Iterator[Encoded]:
        """The first images of a group."""
        if isinstance(self.rows, Rows):
            first, last = (g * len(self.rows) // self.groups for g in (group, group + 1))
            return iter(self._read(torch.arange(first, min(last, first + SPARE))))
        return map(self._encoded, itertools.islice(self._files(group), SPARE))

    def _candidates(self, group: int, images: list[Encoded], number: int) -> Iterator[Encoded]:
        yield from images[number:]
        yield from images[:number]
        yield from self._spare(group)

    def _decode_one(self, group: int, images: list[Encoded], number: int) -> tuple[torch.Tensor, int | None]:
        """Image and label of one of them, or of the first readable one after it."""
        for value, label, name in self._candidates(group, images, number):
            try:
                image = self.decode(value)
            except UnreadableImage as error:
                if name == UNNAMED or name not in self.skipped:
                    logger.warning("%s: skipped %s: %s", self.name, name, error)
                    self.skipped.add(name, error)
                continue
            if self.label_column is not None and is_missing(label):
                raise ValueError(f"{self.name}: {name} has no label where the first image has one")
            image = conform(image, self.image_shape, name, self.pixels.torch_dtype)
            if out_of_range(image, self.pixels):
                raise ValueError(
                    f"{self.name}: {name} holds values from {{:g}} to {{:g}}, beyond the range {self.pixels.low:g} to "
                    f"{self.pixels.high:g} (value_range or white_level)".format(*value_extremes(image))
                )
            return image, None if label is None else int(label)
        raise ValueError(
            f"{self.name}: none of the {len(images)} images of a slice of a batch can be read: "
            + self.skipped.explain()
        )


def out_of_range(image: torch.Tensor, pixels: PixelFormat) -> bool:
    """Whether some value lies beyond the range; never where that is all of the type's."""
    if (pixels.low, pixels.high) == INTEGER_RANGES.get(pixels.dtype):
        return False
    low, high = value_extremes(image)
    return low < pixels.low or high > pixels.high
