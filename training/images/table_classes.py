"""The classes that the files of a table know: a class must have one number in all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def require_same_classes_in(name: str, files: dict[str, Path], columns: dict) -> None:
    """The same as `require_same_classes`, of the columns of classes that may be read of files: {a name: path}."""
    if columns["labels"] == "none":
        return
    known: dict[str, dict[str, list[str] | None]] = {}
    for place, path in files.items():
        for column, names in classes_in(path).items():
            if columns["label_column"] in (None, column):
                known.setdefault(column, {})[place] = names
    for classes in known.values():
        require_same_classes(name, classes)


def classes_in(path: Path) -> dict[str, list[str] | None]:
    """The names in each column of classes that `datasets` wrote into a parquet or arrow file's schema."""
    if path.suffix.lower() not in (".parquet", ".arrow") or not path.is_file():
        return {}
    try:
        if path.suffix.lower() == ".parquet":
            metadata = pq.read_schema(path).metadata
        else:
            with pa.memory_map(str(path)) as file:
                try:
                    metadata = pa.ipc.open_stream(file).schema.metadata
                except pa.ArrowInvalid:
                    metadata = pa.ipc.open_file(file).schema.metadata
        features = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features") or {}
    except (pa.ArrowException, OSError, ValueError):  # whoever reads all of it will say what is wrong
        return {}
    return {
        column: feature.get("names")
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def require_same_classes(name: str, classes: dict[str, list[str] | None]) -> None:
    """Raise a ValueError if files or splits number their classes differently: `datasets` takes the numbers of all for
    those of the first."""
    known = {place: names for place, names in classes.items() if names}
    for place, names in known.items():
        first = next(iter(known))
        if names != known[first]:
            raise ValueError(
                f"{name}: the classes of {first} are {known[first]}, but those of {place} are {names}: the same "
                "number would stand for two classes. Give all of them one list of classes"
            )
