"""Files of many images as arrays: .npy, .npz (also in the layout of MedMNIST) and TIFF stacks."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import numpy as np

from images.files import open_tiff, read_tiff
from images.folders import SPLITS
from images.labels import encode_labels
from images.rows import Rows

FEW_CHANNELS = 4  # up to which the last of three axes is that of colours
ARRAY_FILES = ("npy", "npz", "tif", "tiff")
# train_images, val_labels (MedMNIST); x_train, y_test (Keras)
SPLIT_FIRST = re.compile(rf"({'|'.join(SPLITS)})_(images|labels)")
SPLIT_LAST = re.compile(rf"([xXyY])_({'|'.join(SPLITS)})")
# arr_1 is what numpy calls a second array without a name
LIKE_LABELS = re.compile(
    r"(?:\w+_)?(?:labels?|class(?:es)?|targets?|y|digits?|categor(?:y|ies))(?:_\w+)?|arr_1", re.IGNORECASE
)


class ArrayRows(Rows):
    """The images values[k], each (H, W), (C, H, W) or (H, W, C)."""

    def __init__(self, origin: str, values: np.ndarray, labels: np.ndarray | None, class_names: list[str] | None):
        self.origin, self.values, self.labels, self.class_names = origin, values, labels, class_names

    def __len__(self) -> int:
        return len(self.values)

    def read(self, numbers: Sequence[int]) -> list[np.ndarray]:
        return [np.asarray(self.values[k]) for k in numbers]

    def name(self, number: int) -> str:
        return f"{self.origin}[{number}]"


def read_arrays(path: str, labels: str = "auto", label_column: str | None = None) -> tuple[dict[str, Rows], list[str]]:
    """The splits of an array file, and what has to be said of them.

    Args:
        path: of a .npy file or a TIFF file of many images, (N, H, W), (N, H, W, C) or (N, C, H, W); or of a .npz file
            that holds one such array, with or without one of labels (N,) or (N, 1); or one for each split, named as
            in MedMNIST (train_images, train_labels, val_images, ...) or Keras (x_train, y_train, ...).
        labels: "none" leaves labels out.
        label_column: name of the array of labels in a .npz file, if there are several.

    Raises:
        ValueError: the file holds something else.
    """
    title, notes = os.path.basename(path), []
    ending = title.rpartition(".")[2].lower()
    if ending == "npz":
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
        except Exception as error:  # of an archive that is broken anywhere
            raise ValueError(f"{path} cannot be read: {error}") from error
        images, labelled = _splits_of_npz(path, arrays, label_column, notes)
    elif label_column is not None:
        raise ValueError(f"label_column {label_column!r} is not in {path}, which holds one array")
    else:
        images, labelled = {"train": _single_array(path, ending)}, {}
    for split, values in images.items():
        if values.ndim == 3 and values.shape[-1] <= FEW_CHANNELS and ending in ("npy", "npz"):
            raise ValueError(
                f"{path} cannot be read: for {split}, its shape {values.shape} is that of one image, (H, W, C): give "
                "a folder of such files, or one file of many, (N, H, W, C)"
            )
        if values.ndim not in (3, 4) or not len(values):
            raise ValueError(
                f"{path}: its images for {split} have the shape {values.shape}, not (N, H, W), (N, H, W, C) or "
                "(N, C, H, W)"
            )
    given = {}
    for split, values in labelled.items() if labels == "auto" else ():
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.shape != images[split].shape[:1]:
            notes.append(f"labels of shape {values.shape} for {split}: no single class for each image, so no labels")
            continue
        given[split] = values.tolist()
    encoded, names = encode_labels(label_column or "labels", given)
    splits = {}
    for split, values in images.items():
        prefix = title if len(images) == 1 else f"{title}:{split}"
        splits[split] = ArrayRows(prefix, values, encoded.get(split), names if split in encoded else None)
    without = [split for split in images if split not in encoded]
    if encoded and without:
        notes.append(f"no labels for {', '.join(without)}")
    return splits, notes


def _single_array(path: str, ending: str) -> np.ndarray:
    try:
        if ending == "npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with open_tiff(path) as tiff:
            values, axes = read_tiff(tiff)
    except Exception as error:  # of a file that is broken anywhere
        raise ValueError(f"{path} cannot be read: {error}") from error
    if axes.startswith("YX") or axes in ("SYX", "CYX"):
        values = values[None]  # a single image, whose colours or bands may come first
    return values


def _splits_of_npz(path: str, arrays: dict, label_column: str | None, notes: list[str]) -> tuple[dict, dict]:
    """The arrays of images and of labels, by split."""
    images, labels, others = {}, {}, []
    for name, values in arrays.items():
        first, last = SPLIT_FIRST.fullmatch(name), SPLIT_LAST.fullmatch(name)
        if first or last:
            split, of_images = (first[1], first[2] == "images") if first else (last[2], last[1] in "xX")
            found = images if of_images else labels
            if SPLITS[split] in found:
                raise ValueError(f"{path} holds {name} and another array for the split {SPLITS[split]}: leave one out")
            found[SPLITS[split]] = values
        else:
            others.append(name)
    if images:
        if label_column is not None:
            raise ValueError(
                f"label_column {label_column!r} is for one array of images, but {path} has {list(arrays)}"
            )
        if others:
            notes.append(f"arrays that are no part of a split are left out: {', '.join(others)}")
        order = list(dict.fromkeys(SPLITS.values()))
        return {split: images[split] for split in sorted(images, key=order.index)}, {
            split: values for split, values in labels.items() if split in images
        }
    found = [name for name, values in arrays.items() if values.ndim >= 3]
    if len(found) != 1:
        shapes = ", ".join(f"{name} {values.shape}" for name, values in arrays.items())
        raise ValueError(f"{path} must hold one array of images (N, H, W) or more axes, but holds {shapes or 'none'}")
    values = arrays.pop(found[0])
    candidates = [name for name, other in arrays.items() if other.shape in ((len(values),), (len(values), 1))]
    if label_column is not None and label_column not in candidates:
        raise ValueError(f"label_column {label_column!r} is no array of {len(values)} labels in {path}: {candidates}")
    chosen = label_column or (candidates[0] if len(candidates) == 1 else None)
    if len(candidates) > 1 and chosen is None:
        notes.append(f"arrays that could be labels: {', '.join(candidates)} (choose with data.label_column)")
    elif label_column is None and chosen and not LIKE_LABELS.fullmatch(chosen):
        if arrays[chosen].dtype.kind not in "biuUS":
            chosen = None
            notes.append(f"an array that could be labels: {candidates[0]} (choose with data.label_column)")
        else:
            notes.append(f"the array {chosen} is taken as labels (data.labels=none leaves it out)")
    if left_out := [name for name in arrays if name not in candidates]:
        notes.append(f"arrays that are left out: {', '.join(left_out)}")
    return {"train": values}, {"train": arrays[chosen]} if chosen else {}
