"""What an earlier save left in a folder, and a new one does not write again.

Every other file there is somebody else's, and stays.
"""

import json
import logging
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from sde_diffusers.repository import INDEX, components

stale_log = logging.getLogger(__name__)

CONFIGURATIONS = ("config.json", "scheduler_config.json")
WEIGHTS_FILE = re.compile(
    r"(?:diffusion_pytorch_|pytorch_)?model(?:\.(?P<variant>[^-]+?))?(?:-\d+-of-\d+)?\.(?P<kind>safetensors|bin|flashpack)"
)
SHARDS_INDEX = re.compile(
    r"(?:diffusion_pytorch_|pytorch_)?model\.(?P<kind>safetensors|bin)\.index(?:\.(?P<variant>.+))?\.json"
)


def stale_files(folder: Path, new: Path) -> list[str]:
    """Relative paths of the files in a pipeline's folder that an earlier save wrote and that `new` does not replace.

    They are the modules that the old index names and, in the folders of the components that either index names,
    configurations and weights: other shards, another format, another variant. A variant with the weights of `new` in
    another precision stays.
    """
    old_index, new_index = index_of(folder), index_of(new)
    modules = {name: str(value[0]) for name, value in components(old_index).items()}
    stale = []
    if isinstance(old_index.get("_class_name"), list):
        stale += [f"{old_index['_class_name'][0]}.py"]
    for name in sorted({*modules, *components(new_index)}):
        if Path(name).name != name or not (folder / name).is_dir():
            continue
        present = [path.name for path in (folder / name).iterdir() if not path.is_dir()]
        kept = variants_kept(folder / name, new / name, present)
        for file in present:
            weights = WEIGHTS_FILE.fullmatch(file) or SHARDS_INDEX.fullmatch(file)
            if weights and weights["kind"] == "safetensors" and weights["variant"] in kept:
                continue
            if weights or file in (*CONFIGURATIONS, f"{modules.get(name)}.py"):
                stale.append(f"{name}/{file}")
    return [name for name in stale if (folder / name).is_file() and not (new / name).exists()]


def index_of(folder: Path) -> dict:
    """What model_index.json holds; nothing if there is none, or it cannot be read."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


def variants_kept(folder: Path, new: Path, present: list[str]) -> set[str | None]:
    """The variants in a component's folder that hold the new weights in another precision."""
    written = safetensors_of(new, [path.name for path in new.iterdir()] if new.is_dir() else [])
    replaced = set(written)  # under these names the new weights lie
    kept = set()
    for variant, files in safetensors_of(folder, present).items():
        if variant in replaced or not written:
            continue
        if same_weights(files, next(iter(written.values()))):
            kept.add(variant)
        else:
            stale_log.warning(
                "%s held other weights than those saved now: %s deleted.",
                folder,
                ", ".join(path.name for path in files),
            )
    return kept


def safetensors_of(folder: Path, names: list[str]) -> dict[str | None, list[Path]]:
    """The weights among the names of a folder's files, by variant."""
    found = {}
    for name in sorted(names):
        weights = WEIGHTS_FILE.fullmatch(name)
        if weights and weights["kind"] == "safetensors":
            found.setdefault(weights["variant"], []).append(folder / name)
    return found


def same_weights(files: list[Path], others: list[Path]) -> bool:
    """Whether two sets of files hold the same tensors, up to the rounding of 16 bits."""
    try:
        ours, theirs = ({key: path for path in paths for key in tensor_names(path)} for paths in (files, others))
        return ours.keys() == theirs.keys() and all(
            nearly_equal(stored_tensor(ours[key], key), stored_tensor(theirs[key], key)) for key in ours
        )
    except (OSError, SafetensorError):
        return False


def tensor_names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


def stored_tensor(path: Path, key: str) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(key)


def nearly_equal(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    return tensor.shape == other.shape and torch.allclose(tensor.double(), other.double(), rtol=2**-7, atol=1e-6)
