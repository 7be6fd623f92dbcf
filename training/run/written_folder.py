"""Folders that appear complete or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError


class WriteError(OSError):
    """A folder cannot be written, for want of space as a rule; what had its name before is unharmed."""


@contextlib.contextmanager
def written_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `target` (and the place of what has it) only when complete.

    It lies beside `target`, so that renaming stays within one file system. A crash leaves the old folder or the new
    one; the instant between the two renames is mended by `recover`. An error gives the space back.

    Raises:
        WriteError: naming `target`.
    """
    temporary = target.with_name(f".{target.name}.incomplete")
    replaced = target.with_name(f".{target.name}.replaced")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise WriteError(f"{target} cannot be written: {error}") from error
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    temporary.rename(target)
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(target: Path) -> None:
    """Give a folder its name back if a crash struck while it was being replaced."""
    replaced = target.with_name(f".{target.name}.replaced")
    if replaced.exists() and not target.exists():
        replaced.rename(target)


def _sync(path: Path) -> None:
    """Have the disk hold what was written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
