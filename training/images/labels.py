"""Class labels from whatever a column holds: integers, text, booleans, whole floats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from images.rows import Rows


def is_missing(label) -> bool:
    """Whether there is no label; the Hub's mark for a withheld one is -1."""
    return label is None or label != label or (not isinstance(label, str) and label < 0) or label == ""


def refuse_missing_labels(name: str, column: str, given: dict[str, Sequence], rows: dict[str, Rows]) -> None:
    """Raise a ValueError that names images without a label, in a split where others have one."""
    for split, values in given.items():
        missing = [k for k, value in enumerate(values) if is_missing(value)]
        if missing and len(missing) < len(values):
            some = ", ".join(rows[split].name(k) for k in missing[:10])
            raise ValueError(
                f"{name}: {len(missing)} of {len(values)} images of the split {split} have no {column!r}, among them "
                f"{some}. Complete the column, or leave label_column out"
            )


def encode_labels(column: str, given: dict[str, Sequence]) -> tuple[dict[str, np.ndarray | None], list[str] | None]:
    """Class indices of each split, and the names of the classes.

    Integers (and floats that are whole) are indices themselves and have no names; text is numbered in alphabetical
    order; False is 0 and True 1. A split without any label gets None.

    Raises:
        ValueError: the values are of mixed types, or fractions.
    """
    present = {split: values for split, values in given.items() if not all(map(is_missing, values))}
    kinds = {_kind(value) for values in present.values() for value in values if not is_missing(value)}
    kinds.discard("empty")
    if len(kinds) > 1 or "other" in kinds:
        raise ValueError(f"label_column {column!r} must hold integers, text or booleans, but holds {sorted(kinds)}")
    names = None
    if kinds == {"text"}:
        names = sorted({value for values in present.values() for value in values if not is_missing(value)})
        index = {name: k for k, name in enumerate(names)}
    elif kinds == {"boolean"}:
        names, index = ["False", "True"], {False: 0, True: 1}
    encoded: dict[str, np.ndarray | None] = dict.fromkeys(given)
    for split, values in present.items():
        numbers = [int(v) if names is None else index[v] for v in values]
        encoded[split] = np.array(numbers, np.int64)
    return encoded, names


def _kind(value) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "boolean"
    if isinstance(value, (int, np.integer)) or (isinstance(value, (float, np.floating)) and value == int(value)):
        return "integer"
    return "text" if isinstance(value, str) else "fraction" if isinstance(value, float) else "other"
