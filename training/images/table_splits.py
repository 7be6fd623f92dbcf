"""Which file of a table belongs to which split: by the name of the file, or of its folder at the top, up to the number
of its part (train-00000-of-00002.parquet). It is not guessed by words inside of names; where these say that there are
splits, the files are refused.
"""

from __future__ import annotations

import re
from pathlib import Path

from images.folders import NAMES_A_SPLIT, SPLITS, words_of

PART_OF = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})")
PART = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(-\w+)?|(?P<word>[A-Za-z]+)([-_.]?\d+)?")


def splits_of_files(folder: Path, files: list[str]) -> dict[str, list[str]]:
    """The files (relative paths) of each split.

    Raises:
        ValueError: some belong to no split beside others that do; they are likely to be splits; or there are two of
            one split in several folders.
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
    likely = {frozenset(match.lastgroup for match in NAMES_A_SPLIT.finditer(words_of(path))): path for path in outside}
    likely.pop(frozenset(), None)
    if len(likely) > 1:
        raise ValueError(
            f"{folder} holds {', '.join(likely.values())}: are they splits? Splits are told by names such as "
            "train.parquet or test/0000.parquet: rename the files, or read a part of the folder with data_dir"
        )
    for split, paths in splits.items():
        places = {place_of_split(path): path for path in reversed(paths)}
        if len(places) > 1:
            raise ValueError(
                f"{folder} holds {' and '.join(sorted(places.values())[:2])} of the split {split}: are they of "
                "several data sets? Read one of them with data_dir, or move all files into one folder of that name"
            )
    return splits or {"train": outside}


def require_all_parts(folder: Path, files: list[str]) -> None:
    """Raise a ValueError unless the parts in each folder, train-00000-of-00002.parquet and so on, are all parts of one
    table."""
    parts: dict[str, dict[str, re.Match]] = {}  # of each table
    whole = {}  # tables in one file each
    for path in sorted(files):
        stem = path.rpartition(".")[0]
        if match := PART_OF.search(stem, stem.rfind("/") + 1):
            parts.setdefault(stem[: match.start()], {})[path] = match
        else:
            whole[stem] = path
    for table, matches in parts.items():
        counts = {int(match["count"]) for match in matches.values()}
        numbers = sorted(int(match["number"]) for match in matches.values())
        if table in whole or len(counts) > 1 or len(set(numbers)) < len(numbers):
            mixed = [*([whole[table]] if table in whole else []), *matches]
            raise ValueError(
                f"{folder} holds {', '.join(mixed[:5])}: are they several versions of one table? Keep one of them"
            )
        (count,) = counts
        missing = sorted(set(range(count)) - set(numbers))
        if missing and numbers != [*range(1, count + 1)]:  # some count from 1
            raise ValueError(
                f"{folder} lacks {len(missing)} of the {count} parts of {table}, the first of them number "
                f"{missing[0]:05d}: get them, or rename the others if these are all that is wanted"
            )


def place_of_split(path: str) -> str:
    """The folder that tells to which split a table file belongs, or that of the file, which tells it itself, with the
    word that it uses."""
    *folders, name = path.split("/")
    named = [k for k, folder in enumerate(folders) if folder in SPLITS]
    word = PART.fullmatch(name.rpartition(".")[0])
    return "/".join(folders[: named[0] + 1] if named else [*folders, word["split"] or word["word"] if word else ""])


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
