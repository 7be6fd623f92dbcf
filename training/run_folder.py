"""The folder of a run: whether a new run may have it, and where a resumed one goes on."""

import shutil
from pathlib import Path

from checkpoints import list_checkpoints
from config import Config, ConfigError

CONTENTS = ("config.yaml", "metrics.jsonl", "checkpoints", "figures", "tensorboard", "best", "pipeline")
FIXED_KEYS = ("model.", "scheduler.", "data.channels", "data.image_size")  # a resumed run cannot change them
FREE_KEYS = ("resume", "overwrite", "output_dir")


def checkpoint_to_resume(config: Config) -> Path | None:
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


def claim_folder(config: Config) -> None:
    """Empty or make the folder of a new run, so that it neither mixes with an old one nor deletes it unasked.

    Raises:
        ConfigError: it holds a run.
    """
    folder = Path(config.output_dir)
    present = [folder / name for name in CONTENTS if (folder / name).exists()]
    if present and not (config.overwrite or config.resume):
        raise ConfigError(
            f"output_dir {folder} holds a run: continue it with resume=latest, delete it with overwrite=true, "
            "or choose another folder"
        )
    for path in present:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)


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
