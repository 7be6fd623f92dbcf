"""Files that have no place on the Hub: pickles, which run any code when they are loaded, and links that lead outside.

A pickle is known by its name in any spelling (optimizer.PT, weights.pkl.gz, model.pth.tar, forest.joblib) and by its
content: that of `pickle` and of `torch.save`, also compressed, and NumPy's arrays of objects.
"""

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path, PurePath

import numpy as np

PICKLE_ENDINGS = {".bin", ".ckpt", ".cloudpickle", ".dill", ".joblib", ".p", ".pickle", ".pk", ".pkl", ".pt", ".pth"}
PACKED_ENDINGS = {".bz2", ".gz", ".lz4", ".lzma", ".tar", ".tgz", ".xz", ".z", ".zip", ".zst"}
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
PICKLE_PROTOCOLS = range(2, 6)  # whose number a pickle starts with; the older two are text


def is_pickle(name: str, source: Path | bytes) -> bool:
    """Whether a file is a pickle, or holds one, by its name or by its content.

    Raises:
        OSError: if it cannot be read.
    """
    suffixes = PurePath(name.lower()).suffixes
    while suffixes and suffixes[-1] in PACKED_ENDINGS:
        suffixes.pop()
    if suffixes and suffixes[-1] in PICKLE_ENDINGS:
        return True
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        return holds_pickle(file)


def holds_pickle(file) -> bool:
    """Whether the content of an open file is a pickle, or an archive or array that holds one."""
    start = file.read(6)
    file.seek(0)
    for magic, unpack in COMPRESSED.items():
        if start.startswith(magic):
            try:
                with unpack(file) as content:  # type: ignore[operator]  # which have no type in common
                    return holds_pickle(io.BytesIO(content.read(4096)))
            except (OSError, EOFError, lzma.LZMAError):
                return False
    if start.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(file) as archive:
                return any(is_pickle(entry, archive.open(entry).read(4096)) for entry in archive.namelist())
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):  # damaged, or with a password
            return False
    if start.startswith(b"\x93NUMPY"):
        return of_objects(file)
    return len(start) > 1 and start[0] == 0x80 and start[1] in PICKLE_PROTOCOLS


def of_objects(file) -> bool:
    """Whether a .npy file's array is one of Python objects, which are pickled."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)[2].hasobject
    except ValueError:  # of a later version, or damaged: np.load refuses it
        return False


def links_outside(folder: Path) -> list[str]:
    """The links of a folder that lead out of it, or nowhere, and linked folders, by their relative paths."""
    root, found = folder.resolve(), []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and (not path.is_file() or root not in path.resolve().parents):
            found.append(path.relative_to(folder).as_posix())
    return found
