"""Classes by their names: what a person may say instead of their numbers."""

import difflib
from collections.abc import Sequence

import numpy as np
from torch import Tensor

# What networks' configurations say of their data and training, and what files of older versions rightly lack.
DATA_KEYS = ("value_dtype", "value_range", "class_names", "label_dropout")

# A class, or one for each image, by numbers (-1: none) or names; None: no classes.
Labels = int | str | Sequence[int | str] | np.ndarray | Tensor | None


def check_class_names(class_names, classes: int | None) -> None:
    """Raise a ValueError unless `class_names` is None, or different strings for (the first of) the classes."""
    if class_names is None:
        return
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise ValueError(f"`class_names` must be None or a list of strings, but is {class_names!r}.")
    if len(set(class_names)) < len(class_names) or len(class_names) > (classes or 0):
        raise ValueError(f"`class_names` must be at most {classes or 0} different names, but is {class_names!r}.")


def names_of(network) -> list[str] | None:
    """The names of a network's classes, if its configuration has any."""
    return getattr(network.config, "class_names", None)


def numbered_classes(class_labels, class_names: list[str] | None):
    """`class_labels` with numbers for names: "bag" or ["bag", 3] for one or several; other values as they are.

    Args:
        class_labels: a name, or a list, tuple or array with names in it, or anything else.
        class_names: of classes 0, 1, ...; None if they have no names.

    Raises:
        ValueError: on a name that is none of a class; it says the nearest.
    """

    def number(label):
        if not isinstance(label, str):
            return label
        if class_names is None:
            raise ValueError(f"`class_labels` holds {label!r}, but the model's classes have numbers only, no names.")
        if label in class_names:
            return list(class_names).index(label)
        folded = {name.casefold(): name for name in class_names}
        near = difflib.get_close_matches(label.casefold(), folded, n=1, cutoff=0.5)
        shown = ", ".join(map(repr, class_names[:20])) + (", ..." if len(class_names) > 20 else "")
        hint = f"did you mean {folded[near[0]]!r}? " if near else ""
        raise ValueError(f"`class_labels` holds {label!r}, which is no class: {hint}The classes are {shown}.")

    if isinstance(class_labels, str):
        return number(class_labels)
    if isinstance(class_labels, np.ndarray):
        class_labels = class_labels.tolist()  # of text, or of types that torch lacks
    if isinstance(class_labels, (list, tuple)) and any(isinstance(label, str) for label in class_labels):
        return [number(label) for label in class_labels]
    return class_labels
