"""Tables of images: parquet, arrow, webdataset files and folders of `Dataset.save_to_disk`, read by `datasets`.

Which file belongs to which split is said in `table_splits.py`.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow.parquet as pq
from datasets.features.features import _ArrayXD

from images.folders import SPLITS
from images.labels import encode_labels, is_missing, refuse_missing_labels
from images.own_cache import own_cache
from images.rows import Rows
from images.table_classes import require_same_classes, require_same_classes_in
from images.table_splits import splits_of_files
from images.tars import require_whole_tar

BUILDERS = {"parquet": "parquet", "arrow": "arrow", "tar": "webdataset"}
ROWS_AT_ONCE = 64  # of a file
FILES_AT_ONCE = 16  # whose ends are read to count their rows


class TableRows(Rows):
    """A table with a column of images, encoded (type Image) or as numbers (Array2D, Array3D)."""

    def __init__(self, rows: datasets.Dataset, image_column: str):
        self.column, feature = image_column, rows.features[image_column]
        self.dtype = None if isinstance(feature, datasets.Image) else feature.dtype
        rows = rows.select_columns([image_column])
        if self.dtype is None:
            self.rows = rows.cast_column(image_column, datasets.Image(decode=False))
        else:
            self.rows, self.as_stored = rows.with_format("numpy"), rows.with_format("arrow")

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, numbers: Sequence[int]) -> list:
        values = self.rows[list(numbers)][self.column]
        if self.dtype is None:
            return values
        missing = self.as_stored[list(numbers)].column(0).is_null().to_pylist()  # which numpy would make numbers of
        return [None if none else np.asarray(value, self.dtype) for value, none in zip(values, missing, strict=True)]

    def name(self, number: int) -> str:
        return f"row {number}"

    def title(self, number: int, value) -> str:
        return (value["path"] if isinstance(value, dict) else None) or self.name(number)


@dataclass
class TableStream:
    """A table without random access. The columns are its own; `num_images` is None where it does not tell.

    `dtype` is that of a column of arrays, None of encoded images (asking `datasets` takes as long as decoding one).
    `files` are the paths or addresses of its files, None where unknown. With a `limit`, only the first images of each
    group of files are read, `limit` in all.
    """

    rows: datasets.IterableDataset
    image_column: str
    dtype: str | None
    label_column: str | None
    class_names: list[str] | None
    num_images: int | None
    files: list[str] | None = None
    limit: int | None = None
    label_asked: bool = False  # by name

    def read(self, row: dict) -> dict | np.ndarray | None:
        """The image of a row as `decode_image` takes it."""
        value = row[self.image_column]
        return value if self.dtype is None or value is None else np.asarray(value, self.dtype)

    def limited(self, count: int | None) -> TableStream:
        """The first `count` images, without labels if the first of all has none (and nobody has asked for them)."""
        stream = self
        if count is not None:
            stream = replace(stream, limit=count, num_images=self.num_images and min(count, self.num_images))
        if self.label_column and is_missing(next(iter(stream.rows), {}).get(self.label_column)):
            if self.label_asked:
                raise ValueError(
                    f"the first image has no {self.label_column!r}: complete the column (no class is below 0), or "
                    "leave label_column out"
                )
            stream = replace(stream, label_column=None, class_names=None)
        return stream

    def files_of(self, group: int, groups: int) -> list[Callable[[], Iterator[dict]]]:
        """Functions that read the rows of each file of one of the groups that the files are dealt into, in order."""
        files = [partial(self._rows_of, number) for number in self._numbers(group, groups)]
        if self.limit is None:
            return files
        most = self._limit(group, groups)
        return [lambda: itertools.islice(itertools.chain.from_iterable(file() for file in files), most)]

    def group_sizes(self, groups: int) -> list[int] | None:
        """How many images each group holds; None where that is known only once they have been read."""
        known = self.num_images if groups == 1 else None
        if self.files is None or not all(file.lower().endswith(".parquet") for file in self.files):
            return None if known is None else [known]
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            counts = list(pool.map(count_rows, self.files))
        sizes = [sum(counts[k] for k in self._numbers(group, groups)) for group in range(groups)]
        return [size if self.limit is None else min(size, self._limit(g, groups)) for g, size in enumerate(sizes)]

    def _rows_of(self, number: int) -> Iterator[dict]:
        """The rows of one file."""
        file = self.rows.shard(num_shards=self.rows.num_shards, index=number)
        for table in file.with_format("arrow").iter(ROWS_AT_ONCE):  # several times as quick as row by row
            yield from table.to_pylist()

    def _numbers(self, group: int, groups: int) -> range:
        count = self.rows.num_shards
        return range(group * count // groups, (group + 1) * count // groups)

    def _limit(self, group: int, groups: int) -> int:
        return (group + 1) * self.limit // groups - group * self.limit // groups


def count_rows(file: str) -> int:
    """The number of rows that the end of a parquet file tells."""
    with datasets.download.streaming_download_manager.xopen(file, "rb") as opened:
        return pq.read_metadata(opened).num_rows


# ---- which files ---------------------------------------------------------------------------------------------------


def is_saved_to_disk(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` has written this folder."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def open_saved(folder: Path, notes: list[str]) -> dict[str, datasets.Dataset]:
    """The splits of such a folder; a single data set is "train".

    Raises:
        ValueError: files are missing or broken.
    """
    try:
        content = datasets.load_from_disk(str(plain_path(folder))).with_format(None)
    except Exception as error:  # of files that are broken anywhere
        raise ValueError(f"{folder}, which `save_to_disk` has written, cannot be read: {error!r}") from error
    if isinstance(content, datasets.DatasetDict):
        return dict(content)
    if str(content.split or "train").partition("[")[0] != "train":
        notes.append(f"one data set, saved from the split {content.split}: it is the split train here")
    return {"train": content}


def open_files(
    folder: Path, files: list[str], streaming: bool, columns: dict
) -> dict[str, datasets.Dataset | StreamOfFiles]:
    """The splits of a folder of table files (relative paths), as `datasets` opens them; `columns`: of `read_tables`.

    Raises:
        ValueError: files of several formats, some that belong to no split beside others that do, or broken ones.
    """
    endings = sorted({path.rpartition(".")[2].lower() for path in files})
    if len(endings) > 1:
        raise ValueError(f"{folder} holds files of several formats, .{' and .'.join(endings)}: keep them apart")
    if odd := [path for path in files if "::" in path]:
        raise ValueError(f"{folder} holds {odd[0]}: `datasets` takes :: in a path for an address. Rename it")
    for path in files if endings == ["tar"] else ():
        looked_at = Path(own_cache(folder, [path]), "whole")  # which takes a second for each 30,000 files within
        if not looked_at.exists():
            require_whole_tar(folder / path)
            looked_at.parent.mkdir(parents=True, exist_ok=True)
            looked_at.touch()
    splits = splits_of_files(folder, files)
    require_same_classes_in(str(folder), {path: folder / path for paths in splits.values() for path in paths}, columns)
    order = [name for name in dict.fromkeys(SPLITS.values()) if name in splits]
    plain = str(plain_path(folder))
    data_files = {
        split: [glob.escape(os.path.join(plain, path)) for path in splits[split]]
        for split in [*order, *(name for name in splits if name not in order)]
    }
    try:
        return open_splits(BUILDERS[endings[0]], streaming, data_files=data_files, cache_dir=own_cache(folder, files))
    except Exception as error:  # of files that are broken anywhere
        raise ValueError(f"{folder}: its tables {', '.join(sorted(files)[:5])} cannot be read: {error}") from error


class StreamOfFiles(NamedTuple):
    """What `datasets` streams, and the paths or addresses of its files, None where unknown."""

    rows: datasets.IterableDataset
    files: list[str] | None


def open_splits(path: str, streaming: bool, **options) -> dict[str, datasets.Dataset | StreamOfFiles]:
    """The splits of `datasets.load_dataset(path, **options)`."""
    if not streaming:
        return dict(datasets.load_dataset(path, **options))
    builder = datasets.load_dataset_builder(path, **options)
    files = {str(split): list(names) for split, names in (builder.config.data_files or {}).items()}
    return {split: StreamOfFiles(rows, files.get(split)) for split, rows in builder.as_streaming_dataset().items()}


def files_of_builder(path: str, **options) -> dict[str, Path]:
    """The files on this machine that `datasets.load_dataset(path, **options)` would read, by their names."""
    data_files = datasets.load_dataset_builder(path, **options).config.data_files or {}
    return {str(name): Path(str(name)) for names in data_files.values() for name in names}


def plain_path(folder: Path) -> Path:
    """The folder, or a link to it without "::" and brackets, which `datasets` takes for addresses and patterns."""
    folder = folder.absolute()
    if "::" not in str(folder) and not glob.has_magic(str(folder)):
        return folder
    links = Path(datasets.config.HF_DATASETS_CACHE) / "links"
    links.mkdir(parents=True, exist_ok=True)
    link = links / hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    if not link.is_symlink():
        link.symlink_to(folder)
    return link


# ---- which columns -------------------------------------------------------------------------------------------------


def read_tables(
    splits: dict,
    name: str,
    notes: list[str],
    labels: str = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
) -> dict[str, TableRows | TableStream]:
    """The images and labels of tables that are open.

    Args:
        splits: {name: Dataset or StreamOfFiles}.
        name: of the data set, for messages.
        notes: what has to be said is added.
        labels: "none" leaves labels out.
        image_column, label_column: needed only where the types leave a choice, or labels are no ClassLabel.

    Raises:
        ValueError: no such column, several that could be meant, or one of another type.
    """
    if any(isinstance(rows, StreamOfFiles) for rows in splits.values()):
        columns = (labels, image_column, label_column)
        streams = {split: _stream(split, *opened, notes, *columns) for split, opened in splits.items()}
        require_same_classes(name, {split: stream.class_names for split, stream in streams.items()})
        notes[:] = dict.fromkeys(notes)
        return streams
    found, given, names = {}, {}, []
    without = [split for split, rows in splits.items() if image_column is None and not _of_images(rows.features)]
    if without and len(without) < len(splits):
        notes.append(f"left out, having no column of images: the splits {', '.join(without)}")
        splits = {split: rows for split, rows in splits.items() if split not in without}
    labelled = [split for split, rows in splits.items() if label_column in rows.features]
    for split, rows in splits.items():
        image = _image_column(rows.features, image_column)
        if labels == "none" or (labelled and split not in labelled):
            label = None
            notes += [f"the split {split} has no {label_column}"] if labels == "auto" else []
        else:
            label = _label_column(rows.features, label_column)
        found[split] = TableRows(rows, image)
        if label is not None:
            given[split] = rows.select_columns([label])[label][:]
            own = getattr(rows.features[label], "names", None) or []
            if own and (beyond := [value for value in given[split] if not is_missing(value) and value >= len(own)]):
                raise ValueError(f"{name}: {label!r} of the split {split} is {beyond[0]}, but has {len(own)} names")
            names += [name for name in own if name not in names]
            if own and own != names[: len(own)]:  # a class has one number in all splits: the first one's
                numbers = {k: names.index(name) for k, name in enumerate(own)}
                given[split] = [numbers.get(value, value) for value in given[split]]
        elif labels == "auto" and label_column is None:
            notes += _possible_labels(rows.features, image)
    if label_column is not None:
        refuse_missing_labels(name, label_column, given, found)
    for split, values in given.items():
        if missing := sum(map(is_missing, values)):
            notes.append(f"{missing:,} of {len(values):,} images of the split {split} have no label: none has one")
            given[split] = [None] * len(values)
    encoded, text = encode_labels(label_column or "label", given)
    for split, numbers in encoded.items():
        if numbers is not None:
            if names and numbers.max() >= len(names):
                raise ValueError(
                    f"{name}: the split {split} has the label {numbers.max()}, but the classes of the others have "
                    f"{len(names)} names"
                )
            found[split].labels, found[split].class_names = numbers, names or text
    notes[:] = dict.fromkeys(notes)
    return found


def _stream(split, rows, files, notes, labels, image_column, label_column) -> TableStream:
    if rows.features is None:  # of a format without a schema
        rows = rows._resolve_features()
    image = _image_column(rows.features, image_column)
    label = _label_column(rows.features, label_column) if labels == "auto" else None
    notes += _possible_labels(rows.features, image) if labels == "auto" and label is None else []
    feature = rows.features.get(label)
    if getattr(feature, "dtype", "") in ("string", "large_string"):
        raise ValueError(
            f"label_column {label!r} holds text, which can be numbered only once all of it is known: streaming=false"
        )
    class_names = getattr(feature, "names", ["False", "True"] if getattr(feature, "dtype", "") == "bool" else None)
    announced = (rows.info.splits or {}).get(split)
    rows = rows.select_columns([image] + ([label] if label else []))
    dtype = None if isinstance(rows.features[image], datasets.Image) else rows.features[image].dtype
    if dtype is None:
        rows = rows.cast_column(image, datasets.Image(decode=False))
    count = announced.num_examples if announced else None
    return TableStream(rows, image, dtype, label, class_names, count, files, label_asked=label_column is not None)


def _of_images(features: datasets.Features) -> list[str]:
    """The columns that hold images, encoded or as numbers."""
    return [name for name, feature in features.items() if isinstance(feature, (datasets.Image, _ArrayXD))]


def _image_column(features: datasets.Features, column: str | None) -> str:
    """The column of type Image, or else of arrays; or the one asked for."""
    pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    arrays = [name for name in _of_images(features) if name not in pictures]
    if column is not None:
        if column not in pictures + arrays:
            raise ValueError(
                f"image_column {column!r} is not a column of type Image; columns: {dict(features)}. Array2D and "
                "Array3D will do, too"
            )
        return column
    choices = pictures or arrays
    if not choices:
        raise ValueError(f"no column of type Image; columns: {dict(features)}")
    if len(choices) > 1:
        kind = "Image" if pictures else "arrays"
        raise ValueError(f"columns {', '.join(choices)} are all of type {kind}: choose with image_column")
    return choices[0]


def _label_column(features: datasets.Features, column: str | None) -> str | None:
    """The column of type ClassLabel, or the one asked for, or None."""
    choices = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if column is not None:
        if column not in features or (column not in choices and not _can_be_labels(features[column])):
            raise ValueError(
                f"label_column {column!r} is not a column of type ClassLabel, integers, text or booleans; columns: "
                f"{dict(features)}"
            )
        return column
    if len(choices) > 1:
        raise ValueError(f"columns {', '.join(choices)} are all of type ClassLabel: choose with label_column")
    return choices[0] if choices else None


def _can_be_labels(feature) -> bool:
    kind = getattr(feature, "dtype", "")
    return isinstance(feature, datasets.Value) and kind.startswith(
        ("int", "uint", "bool", "string", "large_s", "float")
    )


def _possible_labels(features: datasets.Features, image: str) -> list[str]:
    """What is said of the columns that nobody has asked for, if there are any."""
    choices = [name for name, feature in features.items() if name != image and _can_be_labels(feature)]
    return [f"columns that could be labels: {', '.join(choices)} (choose with data.label_column)"] if choices else []
