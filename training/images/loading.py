"""Training images: found, decoded to uint8, and served in batches that depend on nothing but (seed, step).

`load_images` reads a data set of the Hugging Face Hub, a local folder in the Hub's layout, or a folder of image files.
What fits into memory is decoded once (`ImageData`), the rest on the way (`StreamedImages` of `streams.py`). Both have
`batches(batch_size, seed, start_step, rank, world_size, flip)`, an endless iterator whose k-th global batch is a pure
function of (seed, k): a resumed run sees what an uninterrupted one would have seen, and N processes see, each its
slice, what a single one would.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from tqdm import tqdm

from images.batch_order import batch_indices, check_integer, epoch_order, flipped, slice_of_rank
from images.pixels import DECODING_THREADS, UnreadableImage, check_broken, conform, decode_image, file_name
from images.streams import Batch, StreamedImages, is_missing

logger = logging.getLogger("images")

HUB_IDS = {
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cassava": "dpdl-benchmark/cassava",
}
EMBEDDED_FASHION_MNIST = Path(__file__).resolve().parents[2] / "data" / "fashion_mnist"
MEMORY_LIMIT = 4 * 2**30  # bytes of decoded uint8 images; more than that is streamed
HUB_TIMEOUT = 5.0  # seconds until the Hub counts as unreachable

# ---- images in memory ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageData:
    """Images decoded once into memory. `data[indices]` gives the (images, labels) of a LongTensor of indices.

    Attributes:
        images: uint8, shape (N, C, H, W).
        labels: int64 class indices, shape (N,); None without a label column or where any image lacks its label.
        class_names: the name of each class, None where unknown.
        skipped: names of the images that could not be read and are not part of `images`.
        name: what was loaded, for messages and model cards.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    class_names: list[str] | None
    skipped: list[str]
    name: str

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: torch.Tensor) -> Batch:
        return self.images[indices], None if self.labels is None else self.labels[indices]

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
            Iterator of (uint8 images of shape (batch_size / world_size, C, H, W), int64 labels or None).

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
    dataset: str,
    split: str = "train",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    streaming: bool | None = None,
    max_images: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    data_dir: str | None = None,
    stream_shards: int = 1,
) -> ImageData | StreamedImages:
    """Loads one split of an image data set.

    Args:
        dataset: "fashion_mnist", "cifar10", "cassava", another data set id "org/name" of the Hub, a local folder in
            the Hub's layout (parquet files), or a folder of image files (sub-folders are classes). Without a
            connection, "fashion_mnist" is the sample in this repository (10,000 training and 1,000 test images).
        split: "train", or another of `split_names(dataset)`.
        image_size: side of the square that each image is resized (short side, antialiased) and centre-cropped to;
            None keeps images of one common size as they are.
        channels: 1 (gray) or 3 (RGB); None follows the data, with RGB if any image is coloured.
        streaming: True decodes on the way and downloads only what is read, False decodes into memory, None does the
            latter up to 4 GiB of decoded images. A stream has labels if its first image has.
        max_images: use this many images, evenly spaced over the split (of a stream, the first
            ones, of each group).
        image_column, label_column: column names, needed only where the features' types leave a choice.
        data_dir: sub-folder of the data set to read.
        stream_shards: groups that the files of a stream are dealt into; see `StreamedImages`.

    Returns:
        `ImageData`, or `StreamedImages`.

    Raises:
        ValueError: an argument is out of range; no such split or column; images differ in size and no `image_size`
            is given; more than 1 % of the images are unreadable; fewer files than `stream_shards`, or no stream.
        FileNotFoundError: there is no such folder or data set.
        ConnectionError: the Hub cannot be reached and the data set is not in the local cache.
    """
    for name, value in (("image_size", image_size), ("max_images", max_images), ("stream_shards", stream_shards)):
        if value is not None:
            check_integer(name, value, minimum=1)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or None (as the data is), got {channels!r}")

    splits, name = _open(dataset, data_dir, bool(streaming))
    if split not in splits:
        raise ValueError(f"split {split!r} does not exist in {name}; it has {', '.join(map(repr, splits))}")
    rows = splits[split]
    files = rows.num_shards if isinstance(rows, datasets.IterableDataset) else 0
    if stream_shards > max(files, 1):
        reason = f"has {files} files" if files else "is not streamed (with streaming=True, it may be)"
        raise ValueError(f"stream_shards is {stream_shards}, but {name} {reason}")
    if rows.features is None:  # a stream of a format without a schema
        rows = rows._resolve_features()
    image_column = _find_column(rows.features, "image_column", image_column, datasets.Image)
    label_column = _find_column(rows.features, "label_column", label_column, datasets.ClassLabel)
    class_names = getattr(rows.features.get(label_column), "names", None)
    rows = rows.select_columns([image_column] + ([label_column] if label_column else []))
    rows = rows.cast_column(image_column, datasets.Image(decode=False))

    if isinstance(rows, datasets.Dataset):
        numbers = range(len(rows))
        if max_images is not None and max_images < len(rows):
            numbers = [i * len(rows) // max_images for i in range(max_images)]
            rows = rows.select(numbers)
        num_images = len(rows)
        if label_column and any(map(is_missing, rows[label_column][:])):
            logger.warning("%s: images without a label: its labels are left out", name)
            label_column = class_names = None
    else:
        announced = (rows.info.splits or {}).get(split)
        num_images = announced.num_examples if announced and not data_dir else None
        if max_images is not None:
            rows, num_images = rows.take(max_images), num_images and min(max_images, num_images)
        if label_column and is_missing(next(iter(rows), {}).get(label_column)):
            label_column = class_names = None

    decode = partial(decode_image, image_size=image_size, channels=channels)
    shape = _first_shape(rows, image_column, decode, name)
    if streaming is None and num_images * np.prod(shape) > MEMORY_LIMIT:
        logger.info("%s: more than %d GiB when decoded, so its images are streamed", name, MEMORY_LIMIT // 2**30)
        streaming = True
    if streaming:
        about = (decode, shape, num_images, class_names, [], name, stream_shards)
        return StreamedImages(rows, image_column, label_column, *about)
    images, kept, skipped = _decode_all(rows, numbers, image_column, decode, shape, name)
    labels = torch.tensor(rows[label_column][:])[kept] if label_column else None
    return ImageData(images, labels, class_names, skipped, name)


def split_names(dataset: str, data_dir: str | None = None, streaming: bool = False) -> list[str]:
    """Names of the splits of a data set; arguments and errors of `load_images`."""
    return list(_open(dataset, data_dir, streaming)[0])


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
        raise ValueError(f"data must be in memory to hold out a part of it, but {data.name} is streamed")
    count = round(size * len(data)) if isinstance(size, float) else size
    if not 0 < count < len(data) or (isinstance(size, float) and size >= 1):
        raise ValueError(
            f"size must be a fraction in (0, 1) or a number, and leave images in both parts: "
            f"got {size!r} for the {len(data)} images of {data.name}"
        )
    order = epoch_order(len(data), seed, 0)
    parts = (order[count:].sort().values, order[:count].sort().values)
    return tuple(ImageData(*data[part], data.class_names, data.skipped, data.name) for part in parts)


def _open(dataset: str, data_dir: str | None, streaming: bool) -> tuple[dict, str]:
    """The splits of a data set, and its name for messages."""
    folder = Path(dataset).expanduser()
    if dataset not in HUB_IDS and folder.is_dir():
        if data_dir is not None and not (folder / data_dir).is_dir():
            raise FileNotFoundError(f"data_dir {data_dir!r} is not a folder in {dataset}")
        try:
            return datasets.load_dataset(str(folder.absolute()), data_dir=data_dir, streaming=streaming), dataset
        except (FileNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
            raise ValueError(
                f"{dataset} is neither a folder of images nor a data set of parquet files: {error}"
            ) from error
    repo_id = HUB_IDS.get(dataset, dataset)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise FileNotFoundError(
            f"dataset {dataset!r} is not a folder; also allowed: {', '.join(HUB_IDS)}, an id org/name of the Hub"
        )

    if (failure := _why_unreachable(repo_id)) is None:
        return datasets.load_dataset(repo_id, data_dir=data_dir, streaming=streaming), repo_id
    offline_mode, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True  # spares long retries
    try:
        return datasets.load_dataset(repo_id, data_dir=data_dir), repo_id  # downloaded before
    except OSError:
        pass
    finally:
        datasets.config.HF_HUB_OFFLINE = offline_mode
    if dataset == "fashion_mnist":
        logger.warning(
            "The Hub cannot be reached (%s): using the sample of Fashion-MNIST in %s, "
            "10,000 training images rather than 60,000. Its figures do not compare with those of the full set.",
            failure,
            EMBEDDED_FASHION_MNIST,
        )
        splits = datasets.load_dataset(str(EMBEDDED_FASHION_MNIST), streaming=streaming)
        return splits, "fashion_mnist (embedded sample)"
    raise ConnectionError(
        f"dataset {dataset!r}: no such folder, no copy of {repo_id} in the local cache, and the Hub cannot be reached "
        f"({failure}). Give a local folder with the data, or connect and try again."
    )


def _why_unreachable(repo_id: str) -> str | None:
    """None if the Hub has the data set, else what keeps us from asking."""
    try:
        HfApi().dataset_info(repo_id, timeout=HUB_TIMEOUT)
    except GatedRepoError as error:
        raise FileNotFoundError(f"dataset {repo_id!r} asks for permission: accept its terms and log in") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"dataset {repo_id!r} is neither a folder nor a data set of the Hub") from error
    except Exception as error:  # the HTTP library's own errors, which differ between releases
        return f"{type(error).__name__}: {error}"
    return None


def _find_column(features: datasets.Features, option: str, column: str | None, kind: type) -> str | None:
    """The column of the given type, or the one asked for; labels may also be plain integers, or absent."""
    choices = [name for name, feature in features.items() if isinstance(feature, kind)]
    if column is not None:
        is_integer = getattr(features.get(column), "dtype", "").startswith(("int", "uint"))
        if column not in choices and not (kind is datasets.ClassLabel and is_integer):
            raise ValueError(f"{option} {column!r} is not a column of type {kind.__name__}; columns: {dict(features)}")
        return column
    if len(choices) > 1:
        raise ValueError(f"columns {', '.join(choices)} are all of type {kind.__name__}: choose with {option}")
    if not choices and kind is datasets.Image:
        raise ValueError(f"no column of type Image; columns: {dict(features)}")
    return choices[0] if choices else None


# ---- decoding ------------------------------------------------------------------------------------------------------


def _first_shape(rows: Iterable[dict], image_column: str, decode: Callable, name: str) -> tuple[int, int, int]:
    for row in itertools.islice(rows, 100):
        try:
            return tuple(decode(row[image_column]).shape)
        except UnreadableImage:
            continue
    raise ValueError(f"{name}: no readable image, or none among the first 100")


def _decode_all(
    rows: datasets.Dataset, numbers: Sequence[int], image_column: str, decode: Callable, shape: tuple, name: str
) -> tuple[torch.Tensor, list[int], list[str]]:
    """All readable images as one tensor, their row indices, and the names of the others."""
    images, kept, skipped = torch.empty(len(rows), *shape, dtype=torch.uint8), [], []

    def attempt(value: dict) -> torch.Tensor | UnreadableImage:
        try:
            return decode(value)
        except UnreadableImage as error:
            return error

    with (
        ThreadPoolExecutor(DECODING_THREADS) as pool,
        tqdm(total=len(rows), desc=f"Decoding {name}", delay=2) as progress,
    ):
        for batch in rows.iter(batch_size=256):
            for value, image in zip(batch[image_column], pool.map(attempt, batch[image_column]), strict=True):
                row = len(kept) + len(skipped)
                image_name = file_name(value) or f"row {numbers[row]}"
                if isinstance(image, UnreadableImage):
                    logger.warning("%s: skipped %s: %s", name, image_name, image)
                    skipped.append(image_name)
                    check_broken(skipped, len(rows), name)
                    continue
                if len(image) > images.shape[1]:  # the first coloured image after gray ones
                    images = images.repeat(1, len(image), 1, 1)
                images[len(kept)] = conform(image, images.shape[1:], image_name)
                kept.append(row)
            progress.update(len(batch[image_column]))
    if skipped:
        logger.warning("%s: skipped %d of %d images that cannot be read", name, len(skipped), len(rows))
    return images[: len(kept)], kept, skipped
