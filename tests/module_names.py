"""The names of a saved folder's modules without the digests of their content."""

import re
from pathlib import Path


def plain(name: str | Path) -> str:
    """unet/unet_ncsnpp_1a2b3c4d.py -> unet/unet_ncsnpp.py; other names as they are."""
    return re.sub(r"_[0-9a-f]{8}\.py$", ".py", str(name))


def module_at(folder: Path, name: str) -> Path:
    """The file of a folder that has this plain name."""
    (path,) = [path for path in folder.rglob("*") if plain(path.relative_to(folder).as_posix()) == name]
    return path
