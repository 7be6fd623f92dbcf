"""Columns beside image files: metadata.csv, .jsonl or .parquet, whose column `file_name` says which file is meant."""

from __future__ import annotations

import csv
import json
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from images.rows import Rows

FILE_NAME = "file_name"
NUMBER = re.compile(r"-?\d+(\.0*)?")  # of a class, as text
TWICE = object()  # the value of a column whose name another one has
MISSING = ("na", "n/a", "nan", "null", "none", "<na>")  # as R and pandas write a value that is not there


@dataclass
class Metadata:
    """A table; `rows` maps the path of an image, relative to the data set's folder, to its columns."""

    path: str
    rows: dict[str, dict]
    columns: list[str]

    def column(self, name: str) -> dict:
        """{path of an image: its value}; text that is a whole number in every row of a CSV file is that number."""
        values = {path: row.get(name) for path, row in self.rows.items()}
        if TWICE in values.values():
            raise ValueError(f"{self.path}: two of its columns are called {name}")
        try:
            return _numbers(values) if self.path.endswith(".csv") else values
        except ValueError as error:
            raise ValueError(f"{self.path}, column {name}: {error}") from error

    def describe(self, splits: Iterable[Rows]) -> str:
        """What it has to do with the images, in a sentence."""
        missing, total = set(self.rows), 0
        for rows in splits:
            for k in range(len(rows)):
                name = rows.name(k)
                total += name in self.rows
                missing.discard(name)
        text = f"{self.path} describes {total:,} images"
        if self.columns:
            text += f", with the columns {', '.join(self.columns)} (data.label_column takes one of them as labels)"
        if missing:
            some = ", ".join(sorted(missing)[:5])
            text += f"; {len(missing):,} of its rows name no image that is here, such as {some}"
        return text


def read_metadata(path: str, folder: str) -> Metadata:
    """The table in a file; its file names are relative to `folder`, that of the file within the data set.

    Raises:
        ValueError: the file cannot be read as such a table.
    """
    try:
        lines = _read_lines(path)
    except (ValueError, csv.Error, pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if any(not isinstance(line, dict) or FILE_NAME not in line for line in lines):
        raise ValueError(f"{path} must have a column {FILE_NAME} that says which image each row is about")
    rows: dict[str, dict] = {}
    for line in lines:
        name = posixpath.normpath(posixpath.join(folder, str(line[FILE_NAME]).replace("\\", "/")))
        if rows.setdefault(name, line) != line:
            raise ValueError(f"{path} has two rows about {name} that differ")
    columns = [name for name in dict.fromkeys(name for line in lines for name in line) if name and name != FILE_NAME]
    return Metadata(path, rows, columns)


def _read_lines(path: str) -> list[dict]:
    if path.endswith(".parquet"):
        return pq.read_table(path).to_pylist()
    with open(path, newline="", encoding="utf-8-sig") as file:
        return _read_csv(file) if path.endswith(".csv") else [json.loads(x) for x in file if x.strip()]


def _read_csv(file: Iterable[str]) -> list[dict]:
    reader, lines = csv.DictReader(file), []
    names = reader.fieldnames or []
    if names.count(FILE_NAME) > 1:
        raise ValueError(f"two of its columns are called {FILE_NAME}")
    for line in reader:
        if any(value.strip() for value in line.pop(None, ())):
            raise ValueError(
                f"line {reader.line_num} has more values than there are columns: text with a comma needs quotes"
            )
        lines.append(line | {name: TWICE for name in names if names.count(name) > 1})
    return lines


def _numbers(values: dict) -> dict:
    """The text of a CSV column as integers (2.0 is one) or booleans, where all of it is."""
    given = {value for value in values.values() if value not in (None, "")}
    marks = {value for value in given if value.strip().lower() in MISSING}
    others = given - marks
    if marks and others and (all(re.fullmatch(NUMBER, value) for value in others) or _are_booleans(others)):
        raise ValueError(f"it holds {', '.join(sorted(marks))} among {min(others)} and the like: leave a cell empty")
    if given and all(re.fullmatch(NUMBER, value) for value in given):
        return {path: int(value.partition(".")[0]) if value else None for path, value in values.items()}
    if given and _are_booleans(given):
        return {path: value.lower() == "true" if value else None for path, value in values.items()}
    return values


def _are_booleans(texts: set[str]) -> bool:
    return {text.lower() for text in texts} <= {"true", "false"}
