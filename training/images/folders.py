"""What a folder of images means, by one rule:

    folder/train/cat/...   folder/test/cat/...     splits are folders named train, validation (or val, valid), test,
    folder/cat/...         folder/dog/...          classes the folders one level below, or at the top without splits,
    folder/cat/2024/...                            deeper folders belong to their class,
    folder/0.png           folder/1.png            and images beside one another have neither.

A folder `train` beside folders of other names is one like them. One folder alone is no class. What could mean two
things is refused, with what to do. `metadata.csv` (or .jsonl, .parquet) adds columns, by its column `file_name`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from images.labels import encode_labels, in_order, is_missing, refuse_missing_labels
from images.listing import Listing, Paths, list_folder
from images.metadata import Metadata, read_metadata
from images.rows import Rows

SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
# Words that most people mean as splits, alone or before "images", "2017" and the like.
SPLIT_WORDS = {
    "train": "train|training",
    "validation": "val|valid|validation|dev|develop|development",
    "test": "test|testing|eval|evaluation|hold_?out|held_?out|unseen",
}
SPLIT_WORD = "|".join(f"(?P<{split}>{words})" for split, words in SPLIT_WORDS.items())
LIKE_A_SPLIT = re.compile(rf"(?:{SPLIT_WORD})[-_ ]?(?:images?|imgs?|set|data)?[-_ ]?\d*", re.IGNORECASE)
NAMES_A_SPLIT = re.compile(rf"(?<![a-z])(?:{SPLIT_WORD})(?![a-z])", re.IGNORECASE)  # somewhere in `words_of` a name
LABELS = ("auto", "none")


def split_like(name: str) -> str | None:
    """The split that a folder of this name is most likely to be; None for names of other things."""
    match = LIKE_A_SPLIT.fullmatch(name)
    return match and match.lastgroup


def words_of(name: str) -> str:
    """A name with _ where a capital begins a word: cats_Train, train_A, MNIST_Test."""
    return re.sub("(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)


class FolderRows(Rows):
    """Image files of a folder; `name` is their path relative to it, `metadata` the columns beside them, if any."""

    def __init__(self, paths: Paths, labels: np.ndarray | None, class_names: list[str] | None):
        self.paths, self.labels, self.class_names = paths, labels, class_names

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, numbers: Sequence[int]) -> list[dict]:
        return [{"bytes": None, "path": os.path.join(self.paths.root, self.paths[k])} for k in numbers]

    def name(self, number: int) -> str:
        return self.paths[number]


@dataclass
class FolderContents:
    """Attributes:
    splits: the images of each split.
    listing: all that lies in the folder.
    notes: what has to be said of how it was read, in sentences.
    """

    splits: dict[str, FolderRows]
    listing: Listing
    notes: list[str] = field(default_factory=list)


def read_folder(root: str, labels: str = "auto", label_column: str | None = None) -> FolderContents:
    """The splits, classes and images of a folder.

    Args:
        root: the folder.
        labels: "none" reads all images without classes.
        label_column: a column of its metadata files that the classes are taken from, and not the folders.

    Raises:
        ValueError: the folder can mean two things, holds images outside its classes, or no images; no such column.
        OSError: a folder cannot be read.
    """
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
    return arrange(list_folder(root), labels, label_column)


def arrange(listing: Listing, labels: str = "auto", label_column: str | None = None) -> FolderContents:
    """The same, of a folder that has been listed."""
    root, notes = listing.root, []
    if not listing.folders:
        raise ValueError(f"{root} holds no images")
    splits = _splits(listing, notes, as_one=labels == "none" or label_column is not None)
    contents = {split: {folder: listing.folders[folder] for folder, _ in members} for split, members in splits.items()}
    rows = {split: FolderRows(Paths(root, folders), None, None) for split, folders in contents.items()}
    if labels == "auto" and label_column is None:
        _label_by_folder(root, splits, rows, notes)
    tables = []
    for path in listing.metadata:
        try:
            tables.append(read_metadata(os.path.join(root, path), os.path.dirname(path)))
        except ValueError as error:
            if label_column is not None:
                raise
            notes.append(f"{error}: left out")
    if label_column is not None:
        _label_by_column(root, tables, label_column, rows, notes)
    else:
        notes += [table.describe(rows.values()) for table in tables]
    return FolderContents(rows, listing, notes)


# Folder -> its path below the split's folder, in parts.
Members = list[tuple[str, tuple[str, ...]]]


def _splits(listing: Listing, notes: list[str], as_one: bool) -> dict[str, Members]:
    """The folders with images, by split; `as_one`: classes do not matter."""
    parts = {folder: tuple(folder.split("/")) if folder else () for folder in listing.folders}
    tops: dict[str, set[str]] = {}  # top-level folder -> its sub-folders with images
    for path in parts.values():
        if path:
            tops.setdefault(path[0], set()).update(path[1:2])
    named = [top for top in tops if top in SPLITS]
    others = [top for top in tops if top not in SPLITS]
    whole = {"train": list(parts.items())}
    alike = {split_like(top) for top in tops}
    words: dict[str, set[str | None]] = {}  # of splits, in names that differ in nothing else: seg_train, seg_test
    for top in others:
        if match := NAMES_A_SPLIT.search(words_of(top)):
            words.setdefault(NAMES_A_SPLIT.sub("*", words_of(top)), set()).add(match.lastgroup)
    unsure = len(tops) > 1 and None not in alike and (named or len(alike) > 1)
    if others and (unsure or any(len(found) > 1 for found in words.values())):
        raise ValueError(
            f"{listing.root} holds the folders {_some(tops)}: are they splits or classes? Splits are named "
            "exactly train, validation (or val, valid) and test: rename them, or read one of them with data_dir"
        )
    below = {split_like(name): name for names in tops.values() for name in sorted(names, reverse=True)}
    below.pop(None, None)
    if not named and len(below) > 1:
        notes.append(f"the folders {_some(below.values())} within classes are not taken as splits: all are one")
    if not named:
        if len(tops) == 1 and "" not in parts and tops[others[0]] and not as_one:
            below = sorted({path[1] for path in parts.values() if len(path) > 1})
            raise ValueError(
                f"{listing.root} holds one folder, {others[0]}, with folders of its own, {_some(below)}: are they its "
                f"splits or classes? Read them with data_dir={others[0]}, or all without labels with labels=none"
            )
        return whole
    if others:
        deep = [top for top in named if tops[top]]
        same = any(tops[top] == tops[other] for top in deep for other in others)
        if deep and (len(named) > 1 or same or not any(tops[top] for top in others)):
            raise ValueError(
                f"{listing.root} holds {_some(named)}, with folders of their own, beside {_some(others)}: are they "
                f"splits or classes? Read one of them with data_dir (data_dir={deep[0]}), or move the others away"
            )
        notes.append(f"{_some(named)} beside {_some(others)}: taken as classes, not as splits")
        return whole
    if "" in parts:
        raise ValueError(
            f"{listing.root} holds images outside its splits {_some(named)}, such as {_examples(listing, [''])}: move "
            "them into one, or read one split alone with data_dir"
        )
    splits: dict[str, Members] = {}
    for top in sorted(named, key=lambda top: list(SPLITS).index(top)):
        if SPLITS[top] in splits:
            raise ValueError(f"{listing.root} holds several folders for one split: {_some(named)}")
        splits[SPLITS[top]] = [(folder, path[1:]) for folder, path in parts.items() if path[0] == top]
    return splits


def _label_by_folder(root: str, splits: dict[str, Members], rows: dict[str, FolderRows], notes: list[str]) -> None:
    """Give the rows of each split that has class folders their labels."""
    classes = {split: sorted({path[0] for _, path in members if path}) for split, members in splits.items()}
    names = in_order(set().union(*classes.values()))
    for name in names:
        if any("\udc80" <= letter <= "\udcff" for letter in name):  # how Python reads other bytes
            raise ValueError(
                f"{root} holds the folder {os.fsencode(name)!r}, whose name is no text (UTF-8): rename it"
            )
    if len(names) < 2:
        if names:
            notes.append(f"one folder alone, {names[0]}, is no class")
        return
    for split, members in splits.items():
        if not classes[split]:
            notes.append(f"the split {split} has no folders of classes, and so no labels")
            continue
        outside = [folder for folder, path in members if not path]
        if outside:
            examples = ", ".join(_first(rows[split].paths, outside[0], 10))
            raise ValueError(
                f"{root} has images outside its classes {_some(classes[split])}: {examples}. Move them into a class, "
                "or read all images without labels with labels=none (data.labels=none)"
            )
        if missing := sorted(set(names) - set(classes[split])):
            notes.append(f"the split {split} has no images of {_some(missing)}")
        rows[split].labels = rows[split].paths.repeat([names.index(path[0]) for _, path in members])
        rows[split].class_names = names


def _label_by_column(
    root: str, tables: list[Metadata], column: str, rows: dict[str, FolderRows], notes: list[str]
) -> None:
    """Give all rows their labels from a column of the metadata files."""
    available = sorted({name for table in tables for name in table.columns})
    if column not in available:
        has = f"its metadata has {', '.join(available)}" if tables else "it has no metadata.csv (or .jsonl, .parquet)"
        raise ValueError(f"label_column {column!r} is not a column of {root}: {has}")
    values, spelled = {}, {}
    for table in tables:
        for path, value in table.column(column).items() if column in table.columns else ():
            text = table.rows[path].get(column)
            if not is_missing(values.get(path)) and not is_missing(value) and values[path] != value:
                raise ValueError(f"label_column {column!r} of {root}: {path} is {values[path]!r} and {value!r}")
            values[path] = values.get(path) if is_missing(value) else value
            if type(value) is int and isinstance(text, str) and spelled.setdefault(value, text) != text:
                raise ValueError(
                    f"label_column {column!r} of {root} holds {spelled[value]!r} and {text!r}, which are one number: "
                    "write each class in one way, or with a letter if they are two"
                )
    given = {split: [values.get(of.name(k)) for k in range(len(of))] for split, of in rows.items()}
    if not any(of.name(k) in table.rows for table in tables for of in rows.values() for k in range(len(of))):
        told = "; ".join(table.describe(rows.values()) for table in tables)
        raise ValueError(f"label_column {column!r} of {root}: none of its rows is about an image. {told}")
    refuse_missing_labels(root, column, given, rows)
    notes += [f"the split {split} has no {column}" for split, labels in given.items() if all(map(is_missing, labels))]
    encoded, names = encode_labels(column, given)
    for split, labels in encoded.items():
        rows[split].labels, rows[split].class_names = labels, names
    notes += [table.describe(rows.values()) for table in tables]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _examples(listing: Listing, folders: list[str]) -> str:
    return ", ".join(_first(Paths(listing.root, {f: listing.folders[f] for f in folders}), folders[0], 10))


def _first(paths: Paths, folder: str, count: int) -> list[str]:
    """The first images that lie directly in a folder."""
    names = (path for path in map(paths.__getitem__, range(len(paths))) if os.path.dirname(path) == folder)
    return [name for name, _ in zip(names, range(count), strict=False)]
