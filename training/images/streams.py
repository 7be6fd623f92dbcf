"""Images decoded while they are served, for data sets that do not fit into memory or on the disk.

A stream has no random access. Its order is that of its files, shuffled anew in each epoch, and of their images,
shuffled through a buffer (`reading_order.py`). For many processes its files are dealt into S groups
(`data.stream_shards`), each with an order, a buffer and epochs of its own: the global batch consists of S slices,
slice s from group s, of equal lengths or by the groups' sizes (`data.stream_by_size`). So a process reads only the
groups of its own slices, and global batch k is a function of (seed, k, S), whatever the number of processes.
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from images.batch_order import flipped, order_between, slice_of_rank
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
from images.reading_order import GroupsOfBatches, interleaved, shuffled
from images.rows import Rows
from images.tables import TableStream
from sde_diffusers.images import INTEGER_RANGES, PixelFormat

SHUFFLE_BUFFER = 4096  # encoded images held, by all groups together, to shuffle them
OPEN_FILES = 10  # at a time, by all groups together
READ_AHEAD = 4  # batches whose encoded images are read while earlier ones are decoded and used
SPARE = 100  # a group's first rows, which stand in for images of a slice that has no readable one
UNNAMED = "an unnamed image"
NOTING = threading.Lock()  # several threads may meet a broken image, which is noted once

Batch = tuple[torch.Tensor, "torch.Tensor | None"]
Encoded = tuple  # (image as `decode_image` takes it, label or None, name)
logger = logging.getLogger("images")


class StreamError(ValueError):
    """Images that cannot be trained on, as is found out only when they are read."""


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
        sizes: images of each group, unreadable ones included; None where a stream does not tell.
        by_size: whether a group's share of the batches is that of its images; otherwise all have the same.
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
    sizes: list[int] | None = None
    by_size: bool = False
    _counted: dict[int, int] = field(default_factory=dict, repr=False)  # sizes of groups that have been read

    @classmethod
    def of(cls, rows, decode, image_shape, pixels, name, notes, groups=1, by_size=False) -> StreamedImages:
        """The images of a table or of rows.

        Raises:
            ValueError: the groups' shares shall be those of their sizes, which the stream does not tell.
        """
        if isinstance(rows, Rows):
            ends = [g * len(rows) // groups for g in range(groups + 1)]
            sizes = [last - first for first, last in itertools.pairwise(ends)]
            count, label_column = len(rows), None if rows.labels is None else "label"
        else:
            sizes, label_column = rows.group_sizes(groups), rows.label_column
            count = rows.num_images if sizes is None else sum(sizes)
        if by_size and sizes is None:
            raise ValueError(
                f"stream_by_size needs the number of images in each file, which only parquet files tell: {name} has "
                "others"
            )
        about = (count, rows.class_names, Skipped(), name, label_column, list(notes), groups, sizes, by_size)
        stream = cls(rows, decode, image_shape, pixels, *about)
        if sizes and not isinstance(rows, Rows):
            stream._say_sizes(sizes)
        return stream

    def _say_sizes(self, sizes: list[int]) -> None:
        """Which images are seen more often than others, unless the groups are alike or have shares by size."""
        if len(set(sizes)) == 1 or self.by_size:
            return
        logger.warning(
            "%s: groups of its files hold %s images and have equal shares of each batch, so that images of the "
            "smallest are seen %.3g times as often as those of the largest%s",
            self.name,
            ", ".join(f"{size:,}" for size in sizes[:8]) + (", ..." if len(sizes) > 8 else ""),
            max(sizes) / min(sizes),
            ": stream_by_size=true (data.stream_by_size) gives each group the share of its images"
            if self.sizes
            else "",
        )

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

        The iterator raises StreamError where images differ in size and no `image_size` was given, where a label is
        missing or a value beyond the range, and where more than 1 % of the images (and more than 10) cannot be read.
        """
        own = slice_of_rank(batch_size, seed, start_step, rank, world_size)
        groups = GroupsOfBatches(batch_size, self.groups, self.sizes if self.by_size else None)
        takers: dict[int, Callable[[int], list[Encoded]]] = {}
        reader, decoders = ThreadPoolExecutor(1), ThreadPoolExecutor(DECODING_THREADS)
        reading, decoding = deque(), deque()  # batches, as futures
        portion = max(1, (own.stop - own.start) // (4 * DECODING_THREADS))  # handing over single ones costs time

        def read(step: int) -> tuple[list[tuple[int, int]], dict[int, list[Encoded]]]:
            """The own places of a batch, as group and number within its slice, and the slices of the groups."""
            group_of = groups.of(step).tolist()
            for group in set(group_of[own]) - set(takers):
                takers[group] = self._taker(group, seed, groups.served(group, step))
            slices = {group: take(group_of.count(group)) for group, take in takers.items()}
            return [(group_of[slot], slot - group_of.index(group_of[slot])) for slot in range(batch_size)[own]], slices

        def serve() -> Iterator[Batch]:
            seen, steps = 0, itertools.count(start_step)
            for step in itertools.count(start_step):
                while len(reading) < READ_AHEAD:
                    reading.append(reader.submit(read, next(steps)))
                while len(decoding) < 2:  # this batch, and the one after it
                    places, slices = reading.popleft().result()
                    parts = [places[k : k + portion] for k in range(0, len(places), portion)]
                    decoding.append([decoders.submit(self._decode, part, slices) for part in parts])
                decoded = (future.result() for future in decoding.popleft())
                images, labels = zip(*itertools.chain.from_iterable(decoded), strict=True)
                seen += len(images)
                check_broken(self.skipped, max(seen, 1000), self.name)
                images = torch.stack(images)
                images = flipped(images, batch_size, seed, step, own) if flip else images
                yield images, None if self.label_column is None else torch.tensor(labels)

        def told() -> Iterator[Batch]:
            try:
                yield from serve()
            except ValueError as error:
                raise StreamError(str(error)) from error

        def stop() -> None:
            for future in itertools.chain(reading, *decoding):
                future.cancel()
            reader.shutdown()
            decoders.shutdown()
            takers.clear()  # closes their files

        batches = told()
        weakref.finalize(batches, stop)  # at the interpreter's exit, too, while what they read with still stands
        return batches

    def _taker(self, group: int, seed: int, position: int) -> Callable[[int], list[Encoded]]:
        """A function that reads the next n undecoded images of a group, from the given position on."""
        if not isinstance(self.rows, Rows):
            rows = self._stream(group, seed, position)
            return lambda count: list(itertools.islice(rows, count))
        first, size = sum(self.sizes[:group]), self.sizes[group]
        own = seed if self.groups == 1 else int(np.random.SeedSequence([seed, group]).generate_state(1)[0])

        def take(count: int) -> list[Encoded]:
            nonlocal position
            position += count
            return self._read(first + order_between(size, own, position - count, position)) if count else []

        return take

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
        announced = self.sizes[group] if self.sizes else None
        epoch, position = divmod(position, announced) if announced else (0, position)
        while True:
            count = 0
            for row in self._epoch(group, np.random.default_rng([seed, epoch, group])):
                count += 1
                if count > position:
                    yield self._encoded(row)
            if count == 0 or announced not in (None, count):
                raise ValueError(
                    f"{self.name} streams {count} images but announces {announced}: load it with streaming=False"
                )
            if self.sizes is None and group not in self._counted:
                known = set(self._counted.values())
                self._counted[group] = count
                if len(known) == 1 and count not in known:
                    self._say_sizes(list(self._counted.values()))
            epochs, position = divmod(max(position - count, 0), count)
            epoch += 1 + epochs

    def _epoch(self, group: int, random: np.random.Generator) -> Iterator[dict]:
        """The rows of a group, each once, in the order that `random` draws."""
        files = self.rows.files_of(group, self.groups)
        rows = interleaved(files, max(1, OPEN_FILES // self.groups), random)
        return shuffled(rows, max(1, SHUFFLE_BUFFER // self.groups), random)

    def _spare(self, group: int) -> Iterator[Encoded]:
        """The first images of a group."""
        if isinstance(self.rows, Rows):
            first, size = sum(self.sizes[:group]), self.sizes[group]
            return iter(self._read(torch.arange(first, first + min(size, SPARE))))
        rows = itertools.chain.from_iterable(file() for file in self.rows.files_of(group, self.groups))
        return map(self._encoded, itertools.islice(rows, SPARE))

    def _candidates(self, group: int, images: list[Encoded], number: int) -> Iterator[Encoded]:
        yield from images[number:]
        yield from images[:number]
        yield from self._spare(group)

    def _decode(self, places: list[tuple[int, int]], slices: dict) -> list[tuple[torch.Tensor, int | None]]:
        """Image and label of each of these places."""
        return [self._decode_one(group, slices[group], number) for group, number in places]

    def _decode_one(self, group: int, images: list[Encoded], number: int) -> tuple[torch.Tensor, int | None]:
        """Image and label of one of them, or of the first readable one after it."""
        for value, label, name in self._candidates(group, images, number):
            try:
                image = self.decode(value)
            except UnreadableImage as error:
                with NOTING:
                    if name == UNNAMED or name not in self.skipped:
                        logger.warning("%s: skipped %s: %s", self.name, name, error)
                        self.skipped.add(name, error)
                continue
            if self.label_column is not None and is_missing(label):
                raise ValueError(f"{self.name}: {name} has no label where the first image has one")
            if label is not None and label % 1 != 0:
                raise ValueError(f"{self.name}: {name} has the label {label}, which is no whole number")
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
