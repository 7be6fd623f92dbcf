"""Where `datasets` keeps what it has read of files. It tells them apart by path and time of change alone, and of files
that were replaced by others of the same time would take what it has kept of the first."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import datasets


def own_cache(folder: Path, paths: Iterable[str]) -> str:
    """The folder of `datasets`' cache for these files, by paths relative to `folder`, as they are now."""
    state = hashlib.sha256(str(folder.resolve()).encode(errors="surrogateescape"))
    for path in paths:
        place = os.path.join(folder, path)
        status = os.stat(place) if os.path.exists(place) else os.lstat(place)
        told = f"{path} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n"
        state.update(told.encode(errors="surrogateescape"))
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "folders" / state.hexdigest()[:16])


def all_files(folder: Path) -> list[str]:
    """The relative paths of all that lies in a folder, also by links, in order."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # by a link
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        found += [os.path.relpath(os.path.join(place, name), folder) for name in sorted(names)]
    return found
