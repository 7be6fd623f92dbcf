"""Folders and files that are there as a whole or not at all, whenever the process that writes them dies."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError


class WriteError(OSError):
    """A folder cannot be written, for want of space as a rule; what had its name before is unharmed."""


@contextlib.contextmanager
def written_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `target` (and the place of what has it) only when complete.

    It lies beside `target`, so that renaming stays within one file system. A crash leaves the old folder or the new
    one; the instant between the two renames is mended by `mend`. An error gives the space back.

    Raises:
        WriteError: naming `target`.
    """
    temporary = target.with_name(f".{target.name}.incomplete")
    replaced = target.with_name(f".{target.name}.replaced")
    _delete(temporary)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise WriteError(f"{target} cannot be written: {error}") from error
    if target.exists() or target.is_symlink():
        _delete(replaced)
        target.rename(replaced)
    temporary.rename(target)
    _sync(target.parent)
    if replaced.is_dir() and (
        gone := sorted({p.name for p in replaced.iterdir()} - {p.name for p in target.iterdir()})
    ):
        print(f"{target} was replaced, and with it went what others had put there: {', '.join(gone)}")
    _delete(replaced)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that appears complete or not at all."""
    incomplete = path.with_name(f".{path.name}.incomplete")
    write(incomplete)
    os.replace(incomplete, path)


def mend(parent: Path, names: re.Pattern) -> list[str]:
    """Put right what processes left that were killed while they wrote, replaced or deleted folders in `parent`.

    A folder that was caught between the two renames gets its name back; anything half-written or half-deleted goes.

    Args:
        names: of the folders that are ours, to be matched in full; others are left alone.

    Returns:
        What was done, in words.
    """
    done = []
    for path in sorted(parent.glob(".*")) if parent.is_dir() else []:
        name, _, state = path.name[1:].rpartition(".")
        if state not in ("incomplete", "replaced") or not names.fullmatch(name):
            continue
        if state == "replaced" and not (parent / name).exists():
            path.rename(parent / name)
            done.append(f"{parent / name} is back: a process was killed while it replaced it")
        else:
            _delete(path)
            done.append(f"{path} is deleted: a process was killed while it wrote or deleted it")
    return done


def discard(path: Path) -> None:
    """Delete a folder, or a file, so that no half of it is left under its name, whenever the process dies."""
    doomed = path.with_name(f".{path.name}.incomplete")
    _delete(doomed)
    path.rename(doomed)
    _delete(doomed)


def _delete(path: Path) -> None:
    """Delete a folder, a file, or a link (and not what it leads to), if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the disk hold what was written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
