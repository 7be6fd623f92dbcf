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
    old_index, new_index = index_of(folder), index_of(new)
    modules = {name: str(value[0]) for name, value in components(old_index).items()}
    stale = []
    if isinstance(old_index.get("_class_name"), list):
        stale += [f"{old_index['_class_name'][0]}.py"]
    for name in sorted({*modules, *components(new_index)}):
        if Path(name).name == name and (folder / name).is_dir():
            stale += [f"{name}/{file}" for file in (*CONFIGURATIONS, f"{modules.get(name)}.py")]
            stale += [f"{name}/{file}" for file in stale_weights(folder / name, new / name)]
    return [name for name in stale if (folder / name).is_file() and not (new / name).exists()]


def index_of(folder: Path) -> dict:
    """What model_index.json holds; nothing if there is none, or it cannot be read."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}
