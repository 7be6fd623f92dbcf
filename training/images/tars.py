"""Tar files that hold less than they seem to: Python's tarfile, by which `datasets` reads them, stops at the first
header that is none without a word, and `datasets` passes over links and over names that begin with __."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from PIL import Image

SHOWN = 5
CHUNK = 1 << 20
# How compressed files begin, which tell by themselves if they were cut.
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


def require_whole_tar(path: Path) -> None:
    """Raise a ValueError if a tar file was cut, holds another archive behind the first, or images that would be left
    out. Compressed ones are not looked at."""
    with open(path, "rb") as file:
        if file.read(6).startswith(COMPRESSED):
            return
    Image.init()
    left_out = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = os.path.basename(member.name)
                is_image = os.path.splitext(name)[1].lower() in Image.EXTENSION and not name.startswith(".")
                if is_image and (not member.isreg() or name.startswith("__")):
                    left_out.append(member.name)
                archive.members.clear()  # of which there may be millions
            end = archive.offset
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no whole tar file: {error}") from error
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(
                f"{path} has no end (a block of zeros): it was cut, or is damaged there, or was never closed. Get it "
                "anew"
            )
        while rest := file.read(CHUNK):
            if rest.strip(b"\0"):
                raise ValueError(f"{path} holds another archive behind its end: unpack both, or keep them apart")
    if left_out:
        some = ", ".join(sorted(left_out)[:SHOWN])
        raise ValueError(
            f"{path} holds {len(left_out):,} images that are links, or named like hidden files, and would be left "
            f"out, such as {some}: pack the files themselves (tar --dereference --hard-dereference), by other names"
        )
