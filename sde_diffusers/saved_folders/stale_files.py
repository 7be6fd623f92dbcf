"""What an earlier save of a pipeline left in its folder, and a new one does not write again.

Every other file there is somebody else's, and stays.
"""

import json
from pathlib import Path

from sde_diffusers.saved_folders.repository import INDEX, components
from sde_diffusers.saved_folders.stale_weights import stale_weights

CONFIGURATIONS = ("config.json", "scheduler_config.json")


def stale_files(folder: Path, new: Path) -> list[str]:
    """Relative paths of the files in a pipeline's folder that a save, whose files are in `new`, does not write again.

    They are the modules that the old index names and, in the folders of the components that either index names,
    configurations and weights (`stale_weights.py`).
    """
    stale = stale_modules(folder, new)
    for name in sorted({*components(index_of(folder)), *components(index_of(new))}):
        if Path(name).name == name and (folder / name).is_dir():
            files = (*CONFIGURATIONS, *stale_weights(folder / name, new / name))
            stale += [f"{name}/{file}" for file in files if (folder / name / file).is_file()]
    return [name for name in stale if not (new / name).exists()]


def stale_modules(folder: Path, new: Path) -> list[str]:
    """Relative paths of the modules that a folder's index names and a save, whose files are in `new`, does not write.

    Of a save that replaces code alone they are all that goes.
    """
    index = index_of(folder)
    named = [f"{index['_class_name'][0]}.py"] if isinstance(index.get("_class_name"), list) else []
    named += [f"{name}/{library}.py" for name, (library, _) in components(index).items()]
    paths = [path for path in named if ".." not in Path(path).parts and not Path(path).is_absolute()]
    return [path for path in paths if (folder / path).is_file() and not (new / path).exists()]


def index_of(folder: Path) -> dict:
    """What model_index.json holds; nothing if there is none, or it cannot be read."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}
