"""What a repository of a pipeline holds, put together from a folder; a copy of a folder that needs no package.

The index of a folder, model_index.json, says where each class is: in a module of the folder (as saved pipelines have
it), in diffusers, or in this package, by its name. What it names of this package is added here as a module
(`single_file.py`), so that a repository loads where the package is not installed.
"""

import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from sde_diffusers.saved_folders.refused_files import is_pickle
from sde_diffusers.saved_folders.single_file import PACKAGE, carry_code
from sde_diffusers.saved_folders.trusted_libraries import TRUSTED_LIBRARIES
from sde_diffusers.saved_folders.whole_folder import DECIDED, finish_save, folder_lock, load_whole
from sde_diffusers.scalars import real_number
from sde_diffusers.sdes.gaussian import GaussianSDE

Contents = dict[str, Path | bytes]  # path in the repository -> file of this machine, or content
INDEX = "model_index.json"
PIECE = 2**22  # bytes, copied at once


def repository_contents(folder: str | Path) -> Contents:
    """What makes a pipeline's folder a repository: its files, and the code that it takes from this package.

    A save that was interrupted when it counted already is finished first.

    Raises:
        ValueError: if the folder holds no complete pipeline.
    """
    if (Path(folder) / DECIDED).exists():
        with folder_lock(Path(folder)):
            finish_save(Path(folder))
    contents = with_code(folder_contents(folder))
    missing = missing_from(contents)
    if missing:
        raise ValueError(
            f"`folder` {folder} is no complete pipeline: {', '.join(missing)} missing. "
            "`ScoreSdePipeline.save_pretrained` saves all but the code of classes of one's own: put that there, in "
            "modules of these names."
        )
    return contents


def export_folder(folder: str | Path, output: str | Path, progress: bool = False) -> Contents:
    """Copy a pipeline's folder, with the code that loads it where this package is not installed.

    Args:
        folder: of the pipeline; it is left alone.
        output: the copy's folder, written under a temporary name beside it until it is complete.
        progress: whether a bar counts the bytes, on a terminal.

    Returns:
        What was written.

    Raises:
        ValueError: if `folder` holds no complete pipeline, or `output` is in it, or lies there and is no empty folder.
    """
    repository_contents(folder)
    output = Path(output).resolve()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"`output` must be a new or empty folder, but {output} exists.")
    require_outside(folder, output)
    output.parent.mkdir(parents=True, exist_ok=True)
    return load_whole(folder, lambda: _copied(folder, output, progress))


def _copied(folder: str | Path, output: Path, progress: bool) -> Contents:
    contents = repository_contents(folder)
    bar = tqdm(
        total=sum(content_sizes(contents).values()), unit="B", unit_scale=True, disable=None if progress else True
    )
    with bar, tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        copy = Path(temporary) / output.name
        for name, source in contents.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            opened = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
            with opened, (copy / name).open("wb") as written:
                shutil.copyfileobj(CallbackIOWrapper(bar.update, opened), written, PIECE)
        copy.replace(output)
    return contents


def require_outside(folder: str | Path, output: Path) -> None:
    """Raise a ValueError if `output` is within the folder, by links too: whoever copies that next would get both.

    What is no folder, but an id of the Hub, has nothing within.
    """
    if Path(folder).is_dir() and Path(folder).resolve() in output.resolve().parents:
        raise ValueError(f"`output` must not be within the pipeline's own folder {folder}, but is {output}.")


def folder_contents(folder: str | Path) -> Contents:
    """The files of a folder, less hidden ones and Python's caches.

    Raises:
        ValueError: if there is no such folder, or it holds pickles, which run any code when they are loaded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a folder, but {folder} is not.")
    contents: Contents = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            contents["/".join(parts)] = path
    pickles = [name for name, source in contents.items() if is_pickle(name, source)]
    if pickles:
        raise ValueError(f"`folder` {folder} holds pickles, which have no place here: {', '.join(pickles)}.")
    return contents


def with_code(contents: Contents) -> Contents:
    """The same with a module for each class of this package that the index names, and an index that names the modules.

    Raises:
        ValueError: if the index cannot be read, or names a class that this package does not have.
    """
    if INDEX not in contents:
        return contents
    index = read_object(contents[INDEX])
    classes: dict[str, type] = {}
    if pipeline := package_class(index.get("_class_name")):
        classes["_class_name"] = pipeline
    for name, (library, class_name) in components(index).items():
        if str(library).split(".")[0] == PACKAGE:
            found = package_class(class_name)
            if found is None:
                raise ValueError(f"{contents[INDEX]} names {class_name} of {PACKAGE}, but here is no such class.")
            classes[name] = found
    if not classes:
        return contents
    others = {name: sdes_named(contents, name) for name in classes}
    modules = {path: source.encode() for path, source in carry_code(index, classes, others).items()}
    return {**contents, **modules, INDEX: (json.dumps(index, indent=2) + "\n").encode()}


def sdes_named(contents: Contents, component: str) -> list[type]:
    """The SDEs of other code that the configuration of a scheduler names."""
    path = f"{component}/scheduler_config.json"
    config = read_object(contents[path]) if path in contents else {}
    named = (GaussianSDE.registered.get(config.get(key, "")) for key in ("sde", "sampling_sde"))
    return [cls for cls in dict.fromkeys(named) if cls is not None and cls.__module__.split(".")[0] != PACKAGE]


def package_class(name) -> type | None:
    """The class of this package that has a name; None if there is none, or no package around a folder's own code."""
    found = getattr(sys.modules.get(PACKAGE), str(name), None)
    return found if isinstance(found, type) else None


def missing_from(contents: Contents) -> list[str]:
    """What a saved pipeline lacks to be a complete repository, in words."""
    if INDEX not in contents:
        return [INDEX]
    index = read_object(contents[INDEX])
    missing = []
    if not isinstance(index.get("_class_name"), list) or len(index["_class_name"]) != 2:
        missing.append("the pipeline's code")
    elif f"{index['_class_name'][0]}.py" not in contents:
        missing.append(f"{index['_class_name'][0]}.py")
    for name, (library, _) in components(index).items():
        if library is None:
            continue
        files = [path.split("/", 1)[1] for path in contents if path.startswith(f"{name}/")]
        if library not in TRUSTED_LIBRARIES and f"{library}.py" not in files:
            missing.append(f"{name}/{library}.py")
        if "config.json" in files and not any(file.endswith(".safetensors") for file in files):
            missing.append(f"{name}/*.safetensors")
        if not any(file.endswith("config.json") for file in files):
            missing.append(f"{name}/*config.json")
    for path, source in contents.items():
        if ".safetensors.index." in path:
            shards = read_object(source).get("weight_map")
            if not isinstance(shards, dict):
                raise ValueError(f"{source} must hold a `weight_map`, from tensors to files.")
            expected = dict.fromkeys(f"{path.rpartition('/')[0]}/{shard}" for shard in shards.values())
            missing += [shard for shard in expected if shard not in contents]
    return missing


def read_object(source: Path | bytes) -> dict:
    """The object in a JSON file.

    Raises:
        ValueError: if it holds none.
    """
    try:
        found = json.loads(source if isinstance(source, bytes) else source.read_bytes())
    except ValueError as error:
        raise ValueError(f"{source} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{source} must hold a JSON object, but holds a {type(found).__name__}.")
    return found


def components(index: dict) -> dict[str, list]:
    """Those of a pipeline, by name: [module or library, class], or [None, None] for one that it does without."""
    return {
        name: value
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2
    }


def content_sizes(contents: Contents) -> dict[str, int]:
    """Bytes of each file."""
    return {
        name: len(source) if isinstance(source, bytes) else source.stat().st_size for name, source in contents.items()
    }


def require_bytes(max_bytes: float) -> None:
    """Raise a ValueError unless a limit of a push is one."""
    if not real_number(max_bytes) >= 0:
        raise ValueError(f"`max_bytes` must be a number of at least 0, but is {max_bytes!r}.")


def check_size(contents: Contents, max_bytes: float) -> None:
    """Raise a ValueError if a push would send more than `max_bytes`."""
    require_bytes(max_bytes)
    sizes = content_sizes(contents)
    if sum(sizes.values()) > max_bytes:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ValueError(
            f"{len(sizes)} files of {sum(sizes.values()) / 1e9:.3g} GB would be sent (the largest: {largest}), "
            f"but `max_bytes` allows {max_bytes / 1e9:.3g} GB."
        )
