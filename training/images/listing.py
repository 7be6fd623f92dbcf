"""Every file below a folder, held in a few bytes each: 100,000 images are listed in no more time than it takes to see
them.

Links are followed, but not in circles. No file is asked for more than its name.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

# What every common reader of images knows, and arrays; compared in lower case.
IMAGE_ENDINGS = frozenset(
    "png jpg jpeg jpe jfif webp gif bmp dib tif tiff ppm pgm pbm pnm jp2 j2k avif tga ico npy npz".split()
)
TABLE_ENDINGS = frozenset(("parquet", "arrow", "tar"))
ARCHIVE_ENDINGS = frozenset("zip gz tgz bz2 xz 7z rar".split())
METADATA = frozenset(("metadata.csv", "metadata.jsonl", "metadata.parquet"))
CACHED = re.compile(r"cache-[0-9a-f]{16}(_\d{5}_of_\d{5})?\.arrow")
# Droppings of programs, which nobody means as images; their names are no accident.
DROPPINGS = {
    "__MACOSX": "what macOS adds to archives",
    ".ipynb_checkpoints": "copies that Jupyter keeps",
    ".git": "a repository's history",
    "@eaDir": "thumbnails of a file server",
    ".thumbnails": "thumbnails of a file manager",
    ".Trash": "a file manager's trash",
    ".Trashes": "a file manager's trash",
    "$RECYCLE.BIN": "a file manager's trash",
    "#recycle": "the trash of a file server",
}
TRASH = re.compile(r"\.Trash-\d+")  # of one user, on a disk that several share
NAMED_AT_MOST = 1000  # files left out whose names are kept


@dataclass
class Listing:
    """What lies below a folder.

    Attributes:
        root: the folder.
        folders: {path relative to the root, "" for itself: names of its images, sorted, each ended by a zero byte}.
        counts: {the same path: how many}.
        metadata: relative paths of metadata.csv, metadata.jsonl and metadata.parquet.
        tables: relative paths of parquet, arrow and tar files.
        skipped: (relative path, reason) of what is no image, up to `NAMED_AT_MOST` of them; `num_skipped` of all.
    """

    root: str
    folders: dict[str, bytes] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    num_skipped: int = 0

    @property
    def num_images(self) -> int:
        return sum(self.counts.values())

    def skip(self, path: str, reason: str) -> None:
        self.num_skipped += 1
        if len(self.skipped) < NAMED_AT_MOST:
            self.skipped.append((path, reason))


def list_folder(root: str) -> Listing:
    """All files below `root`, folders and names in alphabetical order.

    Raises:
        OSError: a folder cannot be read.
    """
    listing = Listing(os.path.abspath(root))
    _list(listing, listing.root, "", ())
    return listing


def _list(listing: Listing, path: str, relative: str, above: tuple[tuple[int, int], ...]) -> None:
    status = os.stat(path)  # one for a folder, none for a file
    above += ((status.st_dev, status.st_ino),)
    prefix = relative + "/" if relative else ""
    images, folders = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            ending = name.rpartition(".")[2].lower()
            if ending in IMAGE_ENDINGS and entry.is_file() and not name.startswith("._"):
                images.append(name)
            elif entry.is_dir():
                folders.append((name, entry.is_symlink()))
            elif name.startswith("._"):
                listing.skip(prefix + name, "what macOS keeps beside a file")
            elif entry.is_symlink() and not os.path.exists(entry.path):
                listing.skip(prefix + name, "a link to nothing")
            elif name in METADATA:
                listing.metadata.append(prefix + name)
            elif CACHED.fullmatch(name):
                listing.skip(prefix + name, "what `datasets` keeps beside a data set")
            elif ending in TABLE_ENDINGS:
                listing.tables.append(prefix + name)
            else:
                listing.skip(
                    prefix + name, "an archive: unpack it" if ending in ARCHIVE_ENDINGS else "no image by its name"
                )
    if images:
        images.sort()
        listing.counts[relative] = len(images)
        listing.folders[relative] = os.fsencode("\0".join(images) + "\0")
    del images
    for name, is_link in sorted(folders):
        if name in DROPPINGS or TRASH.fullmatch(name):
            listing.skip(prefix + name, DROPPINGS.get(name, DROPPINGS[".Trash"]))
            continue
        child = os.path.join(path, name)
        if is_link:
            status = os.stat(child)
            if (status.st_dev, status.st_ino) in above:
                listing.skip(prefix + name, "a link to a folder that it lies in")
                continue
        _list(listing, child, prefix + name, above)


class Paths:
    """The paths of some folders' images, by number: one buffer of names, and a number of four or eight bytes each.

    Args:
        root: of the listing.
        folders: relative paths and contents, as `Listing.folders` has them.
    """

    def __init__(self, root: str, folders: dict[str, bytes]):
        self.root, self._folders = root, list(folders)
        self._names = b"".join(folders.values())
        ends = np.flatnonzero(np.frombuffer(self._names, np.uint8) == 0)
        self._ends = ends.astype(np.uint32 if len(self._names) < 2**32 else np.uint64)
        buffer_ends = np.cumsum([len(names) for names in folders.values()], dtype=np.int64)
        self._lasts = np.searchsorted(self._ends, buffer_ends).tolist()  # number of the first image after each folder

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str:
        """The path relative to the root."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = int(self._ends[number - 1]) + 1 if number else 0
        name = os.fsdecode(self._names[start : int(self._ends[number])])
        folder = self._folders[bisect_right(self._lasts, number)]
        return f"{folder}/{name}" if folder else name

    def repeat(self, values: list[int]) -> np.ndarray:
        """(N,) int64: the value of its folder for each image."""
        return np.repeat(np.asarray(values, np.int64), np.diff([0, *self._lasts]))
