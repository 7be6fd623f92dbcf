"""Weights that an earlier save of a network left in its folder."""

import logging
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

stale_log = logging.getLogger(__name__)

WEIGHTS_FILE = re.compile(
    r"(?:diffusion_pytorch_|pytorch_)?model(?:\.(?P<variant>.+?))?(?:-\d+-of-\d+)?\.(?P<kind>safetensors|bin|flashpack)"
)
SHARDS_INDEX = re.compile(
    r"(?:diffusion_pytorch_|pytorch_)?model\.(?P<kind>safetensors|bin)\.index(?:\.(?P<variant>.+))?\.json"
)


def stale_weights(folder: Path, new: Path) -> list[str]:
    """Names of a network's weights in its folder that a save, whose files are in `new`, does not write again.

    They are other shards, another format, another variant. A variant with the weights of `new` in another precision is
    none of them, and stays.
    """
    present = [path.name for path in folder.iterdir() if path.is_file()]
    kept = variants_kept(folder, new, present)
    stale = []
    for name in present:
        weights = WEIGHTS_FILE.fullmatch(name) or SHARDS_INDEX.fullmatch(name)
        stays = weights and weights["kind"] == "safetensors" and weights["variant"] in kept
        if weights and not stays and not (new / name).exists():
            stale.append(name)
    return stale


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
    found: dict[str | None, list[Path]] = {}
    for name in sorted(names):
        weights = WEIGHTS_FILE.fullmatch(name)
        if weights and weights["kind"] == "safetensors":
            found.setdefault(weights["variant"], []).append(folder / name)
    return found


def same_weights(files: list[Path], others: list[Path]) -> bool:
    """Whether two sets of files hold the same tensors, in whichever precision each has them."""
    try:
        ours, theirs = ({key: path for path in paths for key in tensor_names(path)} for paths in (files, others))
        return ours.keys() == theirs.keys() and all(
            same_values(stored_tensor(ours[key], key), stored_tensor(theirs[key], key)) for key in ours
        )
    except (OSError, SafetensorError):
        return False


def tensor_names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


def stored_tensor(path: Path, key: str) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(key)


def same_values(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal or one is the other in a lower precision; nearly equal weights are other ones."""
    if tensor.shape != other.shape or tensor.is_floating_point() != other.is_floating_point():
        return False
    if tensor.dtype == other.dtype or not tensor.is_floating_point():
        return torch.equal(tensor, other)
    fine, coarse = sorted((tensor, other), key=lambda values: torch.finfo(values.dtype).eps)
    if (fine.dtype, coarse.dtype) == (torch.float16, torch.bfloat16):  # what was rounded to both is neither
        return torch.allclose(fine.double(), coarse.double(), rtol=2**-8 + 2**-11, atol=2**-25)
    return torch.equal(fine.to(coarse.dtype), coarse)
