"""Class labels from whatever a column holds: integers, text, booleans, whole floats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from images.rows import Rows

LABELS_BELOW = 2**31
NUMBERS = (int, float, np.integer, np.floating)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes as they are numbered: alphabetically, but numbers from the least to the largest."""
    names = set(names)
    numbers = all(re.fullmatch("0|[1-9][0-9]*", name) for name in names)
    return sorted(names, key=int if numbers else None)


def is_missing(label) -> bool:
    """Whether there is no label; the Hub's mark for a withheld one is -1."""
    if isinstance(label, NUMBERS):
        return label != label or label < 0
    return label is None or (isinstance(label, str) and label == "")


def refuse_missing_labels(name: str, column: str, given: dict[str, Sequence], rows: dict[str, Rows]) -> None:
    """Raise a ValueError that names images without a label in a split where others have one, or if none has."""
    gaps = {split: [k for k, value in enumerate(values) if is_missing(value)] for split, values in given.items()}
    if given and all(len(gaps[split]) == len(values) for split, values in given.items()):
        raise ValueError(
            f"{name}: no image has a value of {column!r} that is a class: classes are texts, booleans or whole "
            "numbers of at least 0"
        )
    for split, values in given.items():
        missing = gaps[split]
        if missing and len(missing) < len(values):
            some = ", ".join(rows[split].name(k) for k in missing[:10])
            raise ValueError(
                f"{name}: {len(missing)} of {len(values)} images of the split {split} have no {column!r}, among them "
                f"{some}. Complete the column (no class is below 0), or leave label_column out"
            )


def encode_labels(column: str, given: dict[str, Sequence]) -> tuple[dict[str, np.ndarray | None], list[str] | None]:
    """Class indices of each split, and the names of the classes.

    Integers (and floats that are whole) are indices themselves and have no names; text is numbered as
    `in_order` says; False is 0 and True 1. A split without any label gets None.

    Raises:
        ValueError: the values are of mixed types, or fractions; some of a split are missing.
    """
    present = {split: values for split, values in given.items() if not all(map(is_missing, values))}
    for split, values in present.items():
        if missing := sum(map(is_missing, values)):
            raise ValueError(f"{missing} of {len(values)} {column} of the split {split} are nothing, or below 0")
    kinds = {_kind(value) for values in present.values() for value in values if not is_missing(value)}
    if len(kinds) > 1 or not kinds <= {"text", "boolean", "integer"}:
        raise ValueError(f"label_column {column!r} must hold integers, text or booleans, but holds {sorted(kinds)}")
    names = None
    if kinds == {"text"}:
        names = in_order(value for values in present.values() for value in values if not is_missing(value))
        refuse_spellings(column, names)
        index = {name: k for k, name in enumerate(names)}
    elif kinds == {"boolean"}:
        names, index = ["False", "True"], {False: 0, True: 1}
    encoded: dict[str, np.ndarray | None] = dict.fromkeys(given)
    for split, values in present.items():
        numbers = [int(v) if names is None else index[v] for v in values]
        if (largest := max(numbers)) >= LABELS_BELOW:
            raise ValueError(
                f"label_column {column!r} holds {largest:,}, but classes are numbers below {LABELS_BELOW:,}: is it an "
                "id? Write it as text, if it is a class"
            )
        encoded[split] = np.array(numbers, np.int64)
    return encoded, names


def refuse_spellings(column: str, names: list[str]) -> None:
    """Raise a ValueError if two classes are one text with other blanks around it, or one whole number."""
    seen: dict[str | int, str] = {}
    for name in names:
        text = name.strip()
        key = int(text.partition(".")[0]) if re.fullmatch(r"[-+]?\d+(\.0*)?", text) else text
        if seen.setdefault(key, name) != name:
            raise ValueError(
                f"label_column {column!r} holds {seen[key]!r} and {name!r}: if these are one class, write them alike"
            )


def _kind(value) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "boolean"
    if isinstance(value, NUMBERS):
        return "integer" if value % 1 == 0 else "fraction"  # infinity is none
    return "text" if isinstance(value, str) else f"{type(value).__name__}s"
