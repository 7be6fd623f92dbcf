"""Training images: found, decoded at their own depth, and served in batches that depend on nothing but (seed, step).

`load_images` reads a data set of the Hugging Face Hub, a local folder in the Hub's layout, a folder of image files, or
a file of arrays (`sources.py`). What fits into memory is decoded once (`ImageData`), the rest on the way
(`StreamedImages` of `streams.py`). Both have `batches(batch_size, seed, start_step, rank, world_size, flip)`, an
endless iterator whose k-th global batch is a pure function of (seed, k): a resumed run sees what an uninterrupted one
would have seen, and N processes see, each its slice, what a single one would.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from images.batch_order import batch_indices, check_integer, epoch_order, flipped, slice_of_rank
from images.pixels import (
    DECODING_THREADS,
    NAMED,
    Skipped,
    UnreadableImage,
    as_type,
    check_broken,
    conform,
    decode_image,
)
from images.rows import Rows, evenly_spaced
from images.sources import Source, open_source
from images.streams import Batch, StreamedImages
from images.value_formats import format_of_stream, measured_format
from sde_diffusers.images import PixelFormat

logger = logging.getLogger("images")

MEMORY_LIMIT = 4 * 2**30  # bytes of decoded images; more than that is streamed
TRIED = 100  # images that are tried until one can be read

# ---- images in memory ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageData:
    """Images decoded once into memory. `data[indices]` gives the (images, labels) of a LongTensor of indices.

    Attributes:
        images: (N, C, H, W), of the type of `pixels`.
        labels: int64 class indices, shape (N,); None without a label column or where any image lacks its label.
        class_names: the name of each class, None where unknown.
        skipped: names of the images that could not be read and are not part of `images`; it knows the reasons.
        name: what was loaded, for messages and model cards.
        pixels: what the values mean.
        rows, numbers: where the images come from: image k is that with the number `numbers[k]` of `rows`.
        notes: what has to be said of how they were read, in sentences.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    class_names: list[str] | None
    skipped: list[str]
    name: str
    pixels: PixelFormat = PixelFormat()  # noqa: RUF009 (frozen)
    rows: Rows | None = field(default=None, repr=False)
    numbers: torch.Tensor | None = field(default=None, repr=False)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: torch.Tensor) -> Batch:
        return self.images[indices], None if self.labels is None else self.labels[indices]

    def part(self, indices: torch.Tensor) -> ImageData:
        """Some of the images, as data of their own."""
        images, labels = self[indices]
        numbers = None if self.numbers is None else self.numbers[indices]
        return replace(self, images=images, labels=labels, numbers=numbers)

    def name_of(self, index: int) -> str:
        """What an image is called in its data set."""
        return f"image {index}" if self.rows is None else self.rows.name(int(self.numbers[index]))

    @property
    def num_images(self) -> int:
        return len(self)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def batches(
        self,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        flip: bool = False,
    ) -> Iterator[Batch]:
        """Endless batches in a random order, each epoch a new permutation; batches run over epoch boundaries.

        Args:
            batch_size: images of the global batch; a multiple of `world_size`, and possibly more than `len(self)`.
            seed: at least 0; with the step number it determines the batch.
            start_step: number of the first batch (a run resumed after k steps gives k).
            rank, world_size: this process and their number; each gets its slice of the global batch.
            flip: mirror each image horizontally with probability 1/2.

        Returns:
            Iterator of (images of shape (batch_size / world_size, C, H, W), int64 labels or None).

        Raises:
            ValueError: an argument is out of range.
        """
        own = slice_of_rank(batch_size, seed, start_step, rank, world_size)

        def serve() -> Iterator[Batch]:
            for step in itertools.count(start_step):
                images, labels = self[batch_indices(len(self), batch_size, seed, step)[own]]
                yield (flipped(images, batch_size, seed, step, own) if flip else images), labels

        return serve()


# ---- loading -------------------------------------------------------------------------------------------------------


def load_images(
    dataset: str | Source,
    split: str = "train",
    *,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    streaming: bool | None = None,
    max_images: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    data_dir: str | None = None,
    stream_shards: int = 1,
    stream_by_size: bool = False,
    labels: str = "auto",
    value_range: Sequence[float] | None = None,
    white_level: int | None = None,
    pixels: PixelFormat | None = None,
) -> ImageData | StreamedImages:
    """Loads one split of an image data set.

    Args:
        dataset: "fashion_mnist", "cifar10", "cassava", another data set id "org/name" of the Hub, a local folder in
            the Hub's layout (parquet files) or of `Dataset.save_to_disk`, a folder of image files (`folders.py` says
            what its sub-folders mean), or a file of arrays (`arrays.py`); or what `open_source` has opened. Without a
            connection, "fashion_mnist" is the sample in this repository (10,000 training and 1,000 test images).
        split: "train", or another of `split_names(dataset)`.
        image_size: side of the square, or (height, width), that each image is resized (antialiased, to cover it) and
            centre-cropped to; None keeps images of one common size as they are.
        channels: 1 (gray), 3 (RGB) or the number of bands; None follows the data, with RGB if any image is coloured.
        streaming: True decodes on the way and downloads only what is read, False decodes into memory, None does the
            latter up to 4 GiB of decoded images. A stream has labels if its first image has.
        max_images: use this many images, evenly spaced over the split (of a stream, the first
            ones, of each group).
        image_column, label_column: column names, needed only where the features' types leave a choice, or where
            labels are no ClassLabel: integers, text or booleans; of a folder, a column of its metadata.
        data_dir: sub-folder of the data set to read.
        stream_shards: groups that the files of a stream are dealt into; see `StreamedImages`.
        stream_by_size: their shares of a batch are those of their images (parquet files); otherwise equal.
        labels: "none" reads the images without labels.
        value_range: (low, high), the values that are 0 and 1 in the unit range; None is that of integers' type, and
            of floating point what is measured.
        white_level: short for the range (0, white_level), of cameras with 10 or 12 bits in files of 16.
        pixels: the format of images loaded before, say the training's, instead of both; floating-point values may lie
            beyond its range.

    Returns:
        `ImageData`, or `StreamedImages`.

    Raises:
        ValueError: an argument is out of range; no such split or column; images differ in size and no `image_size`
            is given; more than 1 % of the images are unreadable; values beyond the given range; fewer files than
            `stream_shards`, or no stream.
        FileNotFoundError: there is no such folder or data set.
        ConnectionError: the Hub cannot be reached and the data set is not in the local cache.
    """
    sides = [] if image_size is None else [image_size] if isinstance(image_size, int) else list(image_size)
    if len(sides) > 2 or (not isinstance(image_size, int) and len(sides) == 1):
        raise ValueError(f"image_size must be a side, or height and width, got {image_size!r}")
    numbers = [("image_size", side) for side in sides]
    numbers += [("channels", channels), ("max_images", max_images), ("white_level", white_level)]
    for name, value in (*numbers, ("stream_shards", stream_shards)):
        if value is not None:
            check_integer(name, value, minimum=1)
    if white_level is not None and value_range is not None:
        raise ValueError(f"white_level is {white_level} and value_range {list(value_range)}: give one of them")
    value_range = (0, white_level) if white_level is not None else value_range

    source = dataset
    if isinstance(dataset, str):
        options = {"labels": labels, "image_column": image_column, "label_column": label_column}
        source = open_source(dataset, data_dir=data_dir, streaming=bool(streaming), **options)
    rows, name = source[split], source.name
    random_access = isinstance(rows, Rows)
    files = len(rows) if random_access and streaming else 0 if random_access else rows.rows.num_shards
    if stream_shards > max(files, 1):
        reason = f"has {files} files" if files else "is not streamed (with streaming=True, it may be)"
        raise ValueError(f"stream_shards is {stream_shards}, but {name} {reason}")
    if stream_by_size and stream_shards == 1:
        raise ValueError("stream_by_size is true, but stream_shards is 1: one group has every place of a batch")
    for note in source.notes:
        logger.warning("%s: %s", name, note)

    decode = partial(decode_image, image_size=tuple(sides) if len(sides) == 2 else image_size, channels=channels)
    decode = partial(decode, dtype=None)
    if random_access:
        rows = evenly_spaced(rows, max_images)
        first = first_image((read_one(rows, k) for k in range(len(rows))), decode, name)
        num_bytes = len(rows) * first.numel() * first.element_size()
        if streaming is None and num_bytes > MEMORY_LIMIT:
            logger.info("%s: more than %d GiB when decoded, so its images are streamed", name, MEMORY_LIMIT // 2**30)
            streaming = True
    else:
        rows = rows.limited(max_images)
        first = first_image(((rows.read(row), "an unnamed image") for row in rows.rows), decode, name)
    about = (name, source.notes)
    if streaming:
        pixels = pixels or format_of_stream(first, value_range, name)
        return StreamedImages.of(rows, decode, tuple(first.shape), pixels, *about, stream_shards, stream_by_size)
    images, kept, skipped = _decode_all(rows, decode, first, name)
    if pixels is not None and (same := as_type(images, pixels.torch_dtype)) is not None:
        images = same
    pixels = measured_format(images, pixels, value_range, lambda k: rows.name(kept[k]), name)
    kept = torch.tensor(kept, dtype=torch.int64)
    found = None if rows.labels is None else torch.from_numpy(rows.labels)[kept]
    return ImageData(images, found, rows.class_names, skipped, name, pixels, rows, kept, list(source.notes))


def split_names(dataset: str, data_dir: str | None = None, streaming: bool = False) -> list[str]:
    """Names of the splits of a data set; arguments and errors of `load_images`."""
    return list(open_source(dataset, data_dir=data_dir, streaming=streaming).splits)


def hold_out(data: ImageData, size: float | int, seed: int = 0) -> tuple[ImageData, ImageData]:
    """Splits data without a validation split into (train, validation), at random and without overlap.

    Args:
        data: images in memory.
        size: validation images: a fraction in (0, 1), or a number from 1 to len(data) - 1.
        seed: determines which.

    Raises:
        ValueError: `data` is streamed, or one of the parts would be empty.
    """
    if not isinstance(data, ImageData):
        raise ValueError(
            f"data must be in memory to hold out a part of it, but {data.name} is streamed. With "
            "data.validation=SPLIT another split validates, with validate_every=0 none, and data.streaming=false "
            "decodes all images into memory"
        )
    count = round(size * len(data)) if isinstance(size, float) else size
    if not 0 < count < len(data) or (isinstance(size, float) and size >= 1):
        raise ValueError(
            f"size must be a fraction in (0, 1) or a number, and leave images in both parts: "
            f"got {size!r} for the {len(data)} images of {data.name}"
        )
    order = epoch_order(len(data), seed, 0)
    return data.part(order[count:].sort().values), data.part(order[:count].sort().values)


def read_one(rows: Rows, number: int) -> tuple[dict | np.ndarray, str]:
    """An image that is not decoded yet, and its name."""
    value = rows.read([number])[0]
    return value, rows.title(number, value)


# ---- decoding ------------------------------------------------------------------------------------------------------


def first_image(images: Iterator[tuple], decode: Callable, name: str) -> torch.Tensor:
    """The first image that can be read."""
    skipped = Skipped()
    for value, title in itertools.islice(images, TRIED):
        try:
            return decode(value)
        except UnreadableImage as error:
            skipped.add(title, error)
    among = f" among the first {TRIED}" if len(skipped) == TRIED else ""
    raise ValueError(f"{name}: no readable image{among}: {skipped.explain() or 'there is none'}")


def _decode_all(
    rows: Rows, decode: Callable, first: torch.Tensor, name: str
) -> tuple[torch.Tensor, list[int], Skipped]:
    """All readable images as one tensor, their row indices, and the names of the others."""
    images, kept, skipped = torch.empty(len(rows), *first.shape, dtype=first.dtype), [], Skipped()

    def attempt(value) -> torch.Tensor | UnreadableImage:
        try:
            return decode(value)
        except UnreadableImage as error:
            return error

    with (
        ThreadPoolExecutor(DECODING_THREADS) as pool,
        tqdm(total=len(rows), desc=f"Decoding {name}", delay=2) as progress,
    ):
        for start in range(0, len(rows), 256):
            values = rows.read(range(start, min(start + 256, len(rows))))
            for row, (value, image) in enumerate(zip(values, pool.map(attempt, values), strict=True), start):
                title = rows.title(row, value)
                if isinstance(image, UnreadableImage):
                    logger.warning("%s: skipped %s: %s", name, title, image)
                    skipped.add(title, image)
                    check_broken(skipped, len(rows), name)
                    continue
                if len(image) == 3 and images.shape[1] == 1:  # the first coloured image after gray ones
                    images = images.repeat(1, len(image), 1, 1)
                # The first image with values below 0 after others of 16 bits, which may allow for a sign.
                if image.dtype == torch.int16 and images.dtype == torch.int32 and image.min() < 0:
                    signed = as_type(images[: len(kept)], torch.int16)
                    images = images if signed is None else images.to(torch.int16)
                images[len(kept)] = conform(image, images.shape[1:], title, images.dtype)
                kept.append(row)
            progress.update(len(values))
    if skipped:
        logger.warning(
            "%s: skipped %d of %d images that cannot be read: %s%s",
            name,
            len(skipped),
            len(rows),
            skipped.explain(),
            "; ..." if len(skipped) > NAMED else "",
        )
    return images[: len(kept)], kept, skipped
