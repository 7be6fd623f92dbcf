"""A folder is saved as a whole or not at all, and what is loaded from it is one of the saved states.

A save writes into a hidden folder within the other one, which the old files do not mind. The renaming of that folder,
from `STAGED` to `DECIDED`, is the moment at which it counts: what was interrupted before is thrown away by the next
save, what was interrupted afterwards is finished by whoever comes next. Saves wait for each other; a load begins anew
if the files changed meanwhile.
"""

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: saves of several processes into one folder do not wait for each other there
    fcntl = None  # type: ignore[assignment]

from sde_diffusers.saved_folders.folder_options import require_path

LOCK, STAGED, DECIDED = ".saving.lock", ".saving", ".saved"
NEW_FILES, OLD_FILES = "files", "stale.json"  # in DECIDED: what takes its place, and the names of what goes
LOADED_FILES = ("*.json", "*/*.json", "*/*.safetensors", "*/*.bin")
HASTY_LOADS = 5  # that look for changes, before one that keeps others from saving
LOADING = threading.RLock()  # diffusers changes torch's functions while it loads, for all threads


@contextlib.contextmanager
def whole_save(folder: str | Path, stale_files: Callable[[Path, Path], list[str]]) -> Iterator[Path]:
    """An empty folder; the files that are written there take their places in `folder` at the end of the block.

    `folder` is made if there is none, and a link stays one. An exception in the block leaves it as it was.

    Args:
        stale_files: of (folder, the new files' folder), relative paths of what the save replaces under other names.

    Raises:
        ValueError: if `folder` is empty text or no path, or it, or one of the folders within that are needed, is a
            file; or if a place of a file is taken by a folder or lies on another file system.
        OSError: if something cannot be written.
    """
    require_path("save_directory", folder)
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`save_directory` must be a folder, but {folder} is a file.")
    made = not folder.exists()
    staged, decided = folder / STAGED, folder / DECIDED
    try:
        with folder_lock(folder):
            finish_save(folder)
            shutil.rmtree(staged, ignore_errors=True)
            (staged / NEW_FILES).mkdir(parents=True)
            try:
                yield staged / NEW_FILES
                check_places(folder, staged / NEW_FILES)
                stale = stale_files(folder, staged / NEW_FILES)
                (staged / OLD_FILES).write_text(json.dumps(stale), encoding="utf-8")
                staged.rename(decided)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                raise
            try:
                finish_save(folder)
            except KeyboardInterrupt:
                finish_save(folder)
                raise
    except BaseException:
        if made:
            with contextlib.suppress(OSError):  # somebody else writes there
                folder.rmdir()
        raise


def check_places(folder: Path, new: Path) -> None:
    """Raise a ValueError if files of `new` cannot take their places in `folder`."""
    for name in files_within(new):
        place = folder / name
        if place.is_dir():
            raise ValueError(f"{place} must be a file, but is a folder.")
        for parent in [parent for parent in place.parents if parent.is_relative_to(folder) and parent.exists()]:
            if not parent.is_dir():
                raise ValueError(f"{parent} must be a folder, but is a file.")
            if parent.stat().st_dev != folder.stat().st_dev:
                raise ValueError(f"{parent} lies on another file system than {folder}.")
            if not os.access(parent, os.W_OK):
                raise PermissionError(f"{parent} cannot be written.")


def finish_save(folder: Path) -> None:
    """Let the files of a save that counts take their places; nothing if there is none. The caller holds the lock."""
    decided = folder / DECIDED
    if not decided.exists():
        return
    for name in json.loads((decided / OLD_FILES).read_text(encoding="utf-8")):
        (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds other files
            (folder / name).parent.rmdir()
    for name in files_within(decided / NEW_FILES):
        (folder / name).parent.mkdir(exist_ok=True)
        os.replace(decided / NEW_FILES / name, folder / name)
    decided.rename(folder / STAGED)  # or deleting it could be interrupted in the middle
    shutil.rmtree(folder / STAGED)


def load_whole(folder: str | Path, load: Callable):
    """What `load()` returns; if it read more than one of a folder's states, it is called again."""
    folder = Path(folder)
    for _ in range(HASTY_LOADS):
        if (folder / DECIDED).exists():
            with folder_lock(folder):
                finish_save(folder)
        before = loaded_state(folder)
        try:
            with LOADING:
                loaded = load()
        except Exception:
            if not (folder / DECIDED).exists() and loaded_state(folder) == before:
                raise
        else:
            if not (folder / DECIDED).exists() and loaded_state(folder) == before:
                return loaded
    with folder_lock(folder):
        finish_save(folder)
        with LOADING:
            return load()


def loaded_state(folder: Path) -> list[tuple] | None:
    """What tells the files that are loaded from those of another save; None in the middle of one."""
    try:
        paths = sorted(path for pattern in LOADED_FILES for path in folder.glob(pattern))
        states = [path.stat() for path in paths]
    except FileNotFoundError:
        return None
    return [(path, stat.st_ino, stat.st_mtime_ns, stat.st_size) for path, stat in zip(paths, states, strict=True)]


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made if there is none, against other saves; a dead process holds nothing."""
    path = folder / LOCK
    descriptor = locked_file(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def locked_file(path: Path) -> int:
    """The descriptor of a file that only this one has locked, as soon as that can be."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), path.stat()):  # and not deleted by who had it before
                return descriptor
        except FileNotFoundError:  # the file, or the folder, was deleted meanwhile
            pass
        except BaseException:
            if descriptor is not None:
                os.close(descriptor)
            raise
        if descriptor is not None:
            os.close(descriptor)


def files_within(folder: Path) -> list[str]:
    """Relative paths of a folder's files, those of its own level, a pipeline's index among them, last."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(names, key=lambda name: (name.count("/") == 0, name))
