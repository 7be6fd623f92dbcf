"""Which file of a table belongs to which split: by the name of the file, or of its folder at the top, up to the number
of its part (train-00000-of-00002.parquet). It is not guessed by words inside of names; where these say that there are
splits, the files are refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from images.folders import SPLIT_WORD, SPLITS

PART_OF = re.compile(r"-\d{5}-of-\d{5}")
PART = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(-\w+)?|(?P<word>[A-Za-z]+)([-_.]?\d+)?")
NAMES_A_SPLIT = re.compile(rf"(?<![a-z])(?:{SPLIT_WORD})(?![a-z])", re.IGNORECASE)


def splits_of_files(folder: Path, files: list[str]) -> dict[str, list[str]]:
    """The files (relative paths) of each split.

    Raises:
        ValueError: some belong to no split beside others that do; they are likely to be splits; or there are two of
            one name and split.
    """
    splits: dict[str, list[str]] = {}
    outside = []
    for path in sorted(files):
        split = split_of_file(path)
        if split is None:
            outside.append(path)
        else:
            splits.setdefault(split, []).append(path)
    if splits and outside:
        raise ValueError(
            f"{folder} holds files of the splits {', '.join(splits)} and others that belong to none, such as "
            f"{', '.join(outside[:5])}: name them after a split, or read a part of the folder with data_dir"
        )
    likely = {frozenset(match.lastgroup for match in NAMES_A_SPLIT.finditer(path)): path for path in outside}
    likely.pop(frozenset(), None)
    if len(likely) > 1:
        raise ValueError(
            f"{folder} holds {', '.join(likely.values())}: are they splits? Splits are told by names such as "
            "train.parquet or test/0000.parquet: rename the files, or read a part of the folder with data_dir"
        )
    for split, paths in splits.items():
        parts = [os.path.basename(path) for path in paths if PART_OF.search(path)]
        if len(set(parts)) < len(parts):
            raise ValueError(
                f"{folder} holds several files {next(name for name in parts if parts.count(name) > 1)} of the split "
                f"{split}: are they of several data sets? Read one of them with data_dir"
            )
    return splits or {"train": outside}


def split_of_file(path: str) -> str | None:
    """The split of a table file by its relative path: train-00000-of-00002.parquet, test.arrow, val/0000.parquet."""
    *folders, name = path.split("/")
    named = [SPLITS[folder] for folder in folders if folder in SPLITS]
    if match := PART.fullmatch(name.rpartition(".")[0]):
        if (match["split"] or match["word"]) in SPLITS:
            return SPLITS[match["split"] or match["word"]]
        if match["split"] and not named:  # the Hub's layout, whatever the split is called
            return match["split"]
    return named[0] if named else None
