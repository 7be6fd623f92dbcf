"""What `data.dataset` means: a folder, a file of arrays, or a data set of the Hub, opened but not decoded."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
import yaml
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from images.arrays import ARRAY_FILES, FEW_CHANNELS, read_arrays
from images.folders import LABELS, SPLITS, arrange
from images.listing import IMAGE_ENDINGS, TABLE_ENDINGS, Listing, list_folder
from images.own_cache import all_files, own_cache
from images.rows import Rows
from images.table_classes import require_same_classes_in
from images.table_splits import require_all_parts
from images.tables import (
    TableStream,
    files_of_builder,
    is_saved_to_disk,
    open_files,
    open_saved,
    open_splits,
    plain_path,
    read_tables,
)

logger = logging.getLogger("images")

HUB_IDS = {
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cassava": "dpdl-benchmark/cassava",
}
EMBEDDED_FASHION_MNIST = Path(__file__).resolve().parents[2] / "data" / "fashion_mnist"
TEXT_ENDINGS = frozenset("md txt json yaml yml csv tsv xml html license gitattributes gitignore ds_store".split())
HUB_TIMEOUT = 5.0  # seconds until the Hub counts as unreachable


@dataclass
class Source:
    """A data set, opened.

    Attributes:
        name: for messages and model cards.
        splits: the images of each split.
        files: number of data files that were found; None where that is up to the Hub.
        skipped: (name, reason) of files that are no part of it; `num_skipped` of all.
        notes: what has to be said of how it was read, in sentences.
    """

    name: str
    splits: dict[str, Rows | TableStream]
    files: int | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    num_skipped: int = 0
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, split: str) -> Rows | TableStream:
        if split not in self.splits:
            raise ValueError(
                f"split {split!r} does not exist in {self.name}; it has {', '.join(map(repr, self.splits))}"
            )
        return self.splits[split]


def open_source(
    dataset: str,
    *,
    data_dir: str | None = None,
    streaming: bool = False,
    labels: str = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """Opens a data set; arguments and errors are those of `load_images`."""
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
    if labels == "none" and label_column is not None:
        raise ValueError(f"labels is 'none', but label_column is {label_column!r}: leave one of them out")
    columns = {"labels": labels, "image_column": image_column, "label_column": label_column}
    if not dataset.strip():
        raise ValueError(f"dataset must name a folder, a file or a data set of the Hub, got {dataset!r}")
    path = Path(dataset).expanduser()
    if dataset not in HUB_IDS and path.is_file():
        if data_dir is not None:
            raise ValueError(f"data_dir is {data_dir!r}, but {dataset} is a file: leave it out")
        return _open_file(dataset, path, columns)
    if dataset not in HUB_IDS and path.is_dir():
        if data_dir is not None:
            parts = Path(data_dir).parts  # a link within the data set may lead anywhere
            if Path(data_dir).is_absolute() or ".." in parts or not (path / data_dir).is_dir():
                raise FileNotFoundError(f"data_dir {data_dir!r} is not a folder in {dataset}")
        return _open_folder(dataset, path, data_dir, streaming, columns)
    return _open_hub(dataset, data_dir, streaming, columns)


# ---- on this machine -----------------------------------------------------------------------------------------------


def _open_file(name: str, path: Path, columns: dict) -> Source:
    ending = path.suffix[1:].lower()
    if ending in TABLE_ENDINGS:
        notes: list[str] = []
        splits = open_files(path.parent, [path.name], False, columns)
        return Source(name, read_tables(splits, name, notes, **columns), 1, notes=notes)
    if ending not in ARRAY_FILES:
        raise ValueError(f"{name} is a file, but none of .{', .'.join((*ARRAY_FILES, *sorted(TABLE_ENDINGS)))}")
    _refuse_image_column(name, columns)
    splits, notes = read_arrays(str(path), columns["labels"], columns["label_column"])
    return Source(name, splits, 1, notes=notes)


def _open_folder(name: str, path: Path, data_dir: str | None, streaming: bool, columns: dict) -> Source:
    folder, notes = path / data_dir if data_dir else path, []
    if is_saved_to_disk(folder):
        return Source(name, read_tables(open_saved(folder, notes), name, notes, **columns), notes=notes)
    if _has_configs(path):  # its author said which file is what
        if plain_path(path) != path.absolute():
            raise ValueError(
                f"{name}: its README.md says which files are which split, but `datasets` cannot follow that where a "
                "path holds [ ], * or ::. Rename the folder"
            )
        try:
            options = {"data_dir": data_dir, "cache_dir": own_cache(path, all_files(path))}
            require_same_classes_in(name, files_of_builder(str(path.absolute()), **options), columns)
            splits = open_splits(str(path.absolute()), streaming, **options)
        except (FileNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
            raise ValueError(f"{name} is no data set as its README.md describes it: {error}") from error
        except ValueError as error:
            if "Config name is missing" not in str(error):
                raise
            raise ValueError(
                f"{name}: its README.md describes several data sets (configs). Read the folder of one of them with "
                "data_dir (data.data_dir)"
            ) from error
        if columns["labels"] == "auto":
            _require_plain_classes(name, splits)
        return Source(name, read_tables(splits, name, notes, **columns), notes=notes)
    listing = list_folder(str(folder))
    if not listing.num_images:  # a table of that name, then
        listing.tables += [path for path in listing.metadata if path.endswith(".parquet")]
    if listing.tables:
        if listing.num_images:
            notes.append(
                f"{listing.num_images:,} image files beside {len(listing.tables)} files of tables are left out: the "
                "tables are the data set"
            )
        require_all_parts(folder, listing.tables)
        notes += _left_out(listing)
        tables = read_tables(open_files(folder, listing.tables, streaming, columns), name, notes, **columns)
        return Source(name, tables, len(listing.tables), listing.skipped, listing.num_skipped, notes)
    if not listing.num_images:
        found = "; ".join(f"{path} ({reason})" for path, reason in listing.skipped[:5]) or "nothing"
        raise ValueError(
            f"{name} is neither a folder of images nor a data set of parquet files: it holds {found}"
            + (f" and {listing.num_skipped - 5} more files" if listing.num_skipped > 5 else "")
        )
    if alone := _array_file_alone(listing):
        source = _open_file(name, folder / alone, columns)
        if list(source.splits) == ["train"]:  # as of files that name no splits within
            top, stem = alone.partition("/")[0], Path(alone).stem
            source.splits = {SPLITS.get(top, SPLITS.get(stem, "train")): source.splits["train"]}
        return source
    if stacks := _array_files_of_splits(listing):
        _refuse_image_column(name, columns)
        told = columns["labels"], columns["label_column"]
        opened = {split: read_arrays(str(folder / path), *told) for split, path in stacks.items()}
        splits = {split: rows["train"] for split, (rows, _) in opened.items()}
        return Source(name, splits, len(stacks), listing.skipped, listing.num_skipped)
    return _of_files(name, listing, columns)


def _require_plain_classes(name: str, splits: dict) -> None:
    """Raise a ValueError if `datasets` would take folders of one name in several folders for one class."""
    for rows in splits.values():
        rows = getattr(rows, "rows", rows)  # of a stream
        if getattr(rows.info, "builder_name", None) != "imagefolder" or "label" not in (rows.features or {}):
            continue
        paths = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        within: dict[str, str] = {}  # innermost folder -> what it lies in
        for row in paths:
            folder, innermost = os.path.split(os.path.dirname(row["image"]["path"]))
            if within.setdefault(innermost, folder) != folder:
                raise ValueError(
                    f"{name}: its README.md names files, of which `datasets` takes the innermost folders for classes, "
                    f"but {innermost} lies in {within[innermost]} and in {folder}. Take `configs` out of the "
                    "README.md (deeper folders then belong to their class), or leave labels out"
                )


def _array_file_alone(listing: Listing) -> str | None:
    """The only image file of a folder, if it is one of arrays, and so of many images."""
    if listing.num_images != 1:
        return None
    ((folder, names),) = listing.folders.items()
    path = os.path.join(folder, os.fsdecode(names[:-1]))
    if path.lower().endswith(".npy"):
        return path if _is_stack(listing, path) else None
    return path if path.lower().endswith(".npz") else None


def _array_files_of_splits(listing: Listing) -> dict[str, str] | None:
    """{split: path} of a folder whose splits are files of many images each, train.npy, or folders with one of them."""
    stacks: dict[str, str] = {}
    for folder, names in listing.folders.items():
        for name in map(os.fsdecode, names[:-1].split(b"\0")):
            path, stem = os.path.join(folder, name), name.rpartition(".")[0]
            split = SPLITS.get(folder or stem)
            if split is None or split in stacks or not name.lower().endswith(".npy") or not _is_stack(listing, path):
                return None
            stacks[split] = path
    return stacks


def _is_stack(listing: Listing, path: str) -> bool:
    """Whether a .npy file holds many images: (N, H, W) or four axes, but not (H, W, C) of few channels."""
    try:
        shape = np.load(os.path.join(listing.root, path), mmap_mode="r").shape
    except (ValueError, OSError, EOFError):  # its reason is told when it is decoded
        return False
    return len(shape) == 4 or (len(shape) == 3 and shape[-1] > FEW_CHANNELS)


def _of_files(name: str, listing: Listing, columns: dict) -> Source:
    """A folder of image files, read by the rule of `folders.py`."""
    _refuse_image_column(name, columns)
    contents = arrange(listing, columns["labels"], columns["label_column"])
    contents.notes += _left_out(listing)
    return Source(name, contents.splits, listing.num_images, listing.skipped, listing.num_skipped, contents.notes)


def _left_out(listing: Listing) -> list[str]:
    """What is said of files that are no part of a data set, if they are no mere texts."""
    others = [item for item in sorted(listing.skipped) if item[0].rpartition(".")[2].lower() not in TEXT_ENDINGS]
    some = ", ".join(f"{path} ({reason})" for path, reason in others[:5])
    return [f"{listing.num_skipped:,} files are left out, such as {some}"] if others else []


def _refuse_image_column(name: str, columns: dict) -> None:
    if columns["image_column"] is not None:
        raise ValueError(f"image_column is {columns['image_column']!r}, but {name} has no columns, being no table")


def _has_configs(folder: Path) -> bool:
    """Whether a folder's README.md says, as data cards of the Hub do, which files are which split."""
    card = folder / "README.md"
    if not card.is_file():
        return False
    text = card.read_text(encoding="utf-8", errors="replace")
    match = re.match(r"\ufeff?\s*---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        told = bool(match) and "configs" in (yaml.safe_load(match[1]) or {})
    except yaml.YAMLError:
        return False
    if told and text.startswith("\ufeff"):
        raise ValueError(f"{card} begins with a byte order mark, which `datasets` does not read past: save it without")
    return told


# ---- on the Hub ----------------------------------------------------------------------------------------------------


def _open_hub(dataset: str, data_dir: str | None, streaming: bool, columns: dict) -> Source:
    repo_id = HUB_IDS.get(dataset, dataset)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise FileNotFoundError(
            f"dataset {dataset!r} is not a folder; also allowed: {', '.join(HUB_IDS)}, an id org/name of the Hub"
        )
    notes: list[str] = []
    files, failure = _files_on_hub(repo_id)
    if failure is None:
        if data_dir:
            files = [file for file in files if file.startswith(data_dir.rstrip("/") + "/")]
        if _are_images(files):
            return _open_hub_images(repo_id, data_dir, files, columns)
        splits = open_splits(repo_id, streaming, data_dir=data_dir)
        tables = read_tables(splits, repo_id, notes, **columns)
        if data_dir and streaming:  # the numbers that the repository announces are those of all of it
            tables = {split: replace(table, num_images=None) for split, table in tables.items()}
        return Source(repo_id, tables, notes=notes)
    offline_mode, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True  # spares long retries
    try:
        splits = datasets.load_dataset(repo_id, data_dir=data_dir)  # downloaded before
        return Source(repo_id, read_tables(dict(splits), repo_id, notes, **columns), notes=notes)
    except OSError:
        pass
    finally:
        datasets.config.HF_HUB_OFFLINE = offline_mode
    try:
        return _open_hub_images(repo_id, data_dir, None, columns)
    except OSError:
        pass
    if dataset == "fashion_mnist" and not data_dir:
        logger.warning(
            "The Hub cannot be reached (%s): using the sample of Fashion-MNIST in %s, "
            "10,000 training images rather than 60,000. Its figures do not compare with those of the full set.%s",
            failure,
            EMBEDDED_FASHION_MNIST,
            _folder_of_the_name(dataset),
        )
        return _open_folder("fashion_mnist (embedded sample)", EMBEDDED_FASHION_MNIST, None, streaming, columns)
    raise ConnectionError(
        f"dataset {dataset!r}: no such folder, no copy of {repo_id} in the local cache, and the Hub cannot be reached "
        f"({failure}). Give a local folder with the data, or connect and try again.{_folder_of_the_name(dataset)}"
    )


def _folder_of_the_name(dataset: str) -> str:
    """What is said if there is a folder of a data set's short name."""
    return f" The folder {dataset} here is ./{dataset}." if os.path.isdir(dataset) else ""


def _files_on_hub(repo_id: str) -> tuple[list[str], str | None]:
    """The files of a data set, and None; or what keeps us from asking."""
    try:
        info = HfApi().dataset_info(repo_id, timeout=HUB_TIMEOUT)
    except GatedRepoError as error:
        raise FileNotFoundError(f"dataset {repo_id!r} asks for permission: accept its terms and log in") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"dataset {repo_id!r} is neither a folder nor a data set of the Hub") from error
    except Exception as error:  # the HTTP library's own errors, which differ between releases
        return [], f"{type(error).__name__}: {error}"
    if "configs" in (getattr(info, "card_data", None) or {}):
        return [], None  # its author said which file is what
    return [file.rfilename for file in info.siblings or ()], None


def _are_images(files: list[str]) -> bool:
    """Whether a repository is a folder of image files, and not of tables with pictures on its card."""
    endings = [file.rpartition(".")[2].lower() for file in files]
    return not TABLE_ENDINGS.intersection(endings) and bool(IMAGE_ENDINGS.intersection(endings))


def _open_hub_images(repo_id: str, data_dir: str | None, files: list[str] | None, columns: dict) -> Source:
    """A repository of image files, downloaded (None: earlier) and read by the rule for folders."""
    patterns = f"{data_dir.rstrip('/')}/*" if data_dir else None
    folder = snapshot_download(repo_id, repo_type="dataset", allow_patterns=patterns, local_files_only=files is None)
    listing = list_folder(os.path.join(folder, data_dir) if data_dir else folder)
    if not listing.num_images:
        raise FileNotFoundError(f"the cache holds no images of {repo_id}")
    return _of_files(repo_id, listing, columns)
