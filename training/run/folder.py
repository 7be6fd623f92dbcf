"""The folder of a run: whether a new run may have it, and where a resumed one goes on."""

import shutil
from pathlib import Path

from run.checkpoints import list_checkpoints
from run.config import RunConfig
from run.yaml_config import ConfigError

RESULTS = ("pipeline", "classifier")  # of a finished run
CONTENTS = (
    "config.yaml",
    "images.json",
    "metrics.jsonl",
    "checkpoints",
    "figures",
    "tensorboard",
    "best",
    "pushed",
    *RESULTS,
)
FIXED_KEYS = (
    "model.",
    "scheduler.",
    "data.channels",
    "data.image_size",
    "data.value_range",
    "data.white_level",
)  # a resumed run cannot change them
FREE_KEYS = ("resume", "overwrite", "output_dir")


def checkpoint_to_resume(config: RunConfig) -> Path | None:
    """The checkpoint that `config.resume` asks for; None for a new run.

    Raises:
        ConfigError: it is no complete checkpoint.
    """
    if config.resume is None:
        return None
    if config.resume == "latest":
        return (list_checkpoints(Path(config.output_dir) / "checkpoints") or [None])[-1]
    path = Path(config.resume)
    if path not in list_checkpoints(path.parent):
        raise ConfigError(f'resume must be null, "latest" or a checkpoint\'s folder, but is {config.resume!r}')
    return path


def _present(config: RunConfig) -> list[Path]:
    return [path for name in CONTENTS if (path := Path(config.output_dir) / name).exists()]


def require_free_folder(config: RunConfig) -> None:
    """Raise a ConfigError if a new run would mix with an old one, or delete it unasked."""
    present = _present(config)
    if config.resume:  # a run that died before its first checkpoint starts again; a finished one is not thrown away
        present = [path for path in present if path.name in RESULTS]
    if present and not config.overwrite:
        raise ConfigError(
            f"output_dir {config.output_dir} holds a run: continue it with resume=latest (if there is a checkpoint), "
            "delete it with overwrite=true, or choose another folder"
        )


def clear_folder(config: RunConfig) -> None:
    """Make the folder of a new run; delete what an old run left there, and nothing else."""
    for path in _present(config):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)


def changes(saved: dict, present: dict) -> list[str]:
    """What a resumed run's configuration changes, in words; both as `as_dict` gives them.

    Raises:
        ConfigError: a key differs that describes the network or its SDE.
    """
    texts = []
    for key in sorted((saved.keys() | present.keys()) - set(FREE_KEYS)):
        if saved.get(key) != present.get(key):
            if key.startswith(FIXED_KEYS):
                raise ConfigError(
                    f"{key} was {saved.get(key)!r} when the checkpoint was written and is {present.get(key)!r} now: "
                    "it cannot change"
                )
            texts.append(f"{key}: {present.get(key)!r}, was {saved.get(key)!r}")
    return texts
