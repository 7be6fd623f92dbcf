"""Where the components of a pipeline may come from: this package, diffusers and transformers.

A folder's index names a library for each component, which diffusers imports, and configurations may name code of their
own. Whatever version of diffusers is installed, nothing else than these libraries is imported by a folder's wish.
"""

import json
from pathlib import Path

TRUSTED_LIBRARIES = ("diffusers", "transformers")
CODE_KEYS = ("auto_map", "custom_pipelines", "custom_pipeline")  # by which configurations name code


def require_trusted_libraries(index: dict, origin: str | Path, package: str) -> None:
    """Raise a ValueError that names what an index, model_index.json, takes from elsewhere.

    Args:
        index: with the classes of this package under its name, `package`, and the pipeline's own as a string.
        origin: the folder or repository, for the message.
    """
    if isinstance(index.get("_class_name"), list):
        raise ValueError(f"The pipeline in {origin} is of its own code, {index['_class_name']!r}, which is not run.")
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, (list, tuple)):
            continue
        library = value[0] if value else None
        if all(isinstance(part, (int, float)) for part in value):  # no component, but a key of a newer version
            continue
        if any(part is not None for part in value) and library not in (package, *TRUSTED_LIBRARIES):
            raise ValueError(
                f"The component `{name}` of {origin} is of {library!r}, and is not loaded: components must be of "
                f"{package}, {' or '.join(TRUSTED_LIBRARIES)}. Load it with its own class, and give it to a pipeline."
            )


def require_no_code_named(folder: str | Path, index: dict) -> None:
    """Raise a ValueError that names the first configuration in a pipeline's components' folders that names code."""
    for name in index:
        if name.startswith("_") or Path(name).name != name:
            continue
        for path in sorted((Path(folder) / name).glob("*.json")):
            if path.name.endswith("model_index.json"):
                raise ValueError(f"{path} makes a pipeline of the component `{name}`, which is not loaded.")
            try:
                config = json.loads(path.read_bytes())
            except ValueError:  # whoever reads it will say so
                continue
            if not isinstance(config, dict):
                continue
            keys = [key for key in CODE_KEYS if config.get(key)]
            keys += ["_class_name"] if isinstance(config.get("_class_name"), list) else []
            if keys:
                raise ValueError(
                    f"{path} names code by `{keys[0]}`={config[keys[0]]!r}, which is not run, and is not loaded."
                )
