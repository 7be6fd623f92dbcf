"""The folder of a run holds one history: what a new run may do with it, and where and how a resumed one goes on.

Going back to an earlier checkpoint begins another history. What the old one wrote after that step, checkpoints above
all, is then set aside in abandoned/1, abandoned/2, ..., each with the names of a run's folder.

A run's folder is known by what a trainer wrote: config.yaml with the keys of a run, written first and deleted last, or
a checkpoint. Nothing is deleted in any other folder, whatever its names are.
"""

import json
import re
import shutil
from itertools import count
from pathlib import Path

import yaml

from images.sources import HUB_IDS
from run.checkpoints import CHECKPOINT_NAME, checkpoint_path, list_checkpoints, read_state, step_of
from run.config import RunConfig
from run.log import read_metrics
from run.record import RECORD
from run.written_folder import discard, mend, written_folder
from run.yaml_config import ConfigError, as_dict, save_config

RESULTS = ("pipeline", "classifier")  # of a finished run
CHECKPOINTS, METRICS, FIGURES, BEST, ABANDONED = "checkpoints", "metrics.jsonl", "figures", "best", "abandoned"
AVERAGES = "averages"  # see power_averages.py
CONFIG = "config.yaml"
KEYS_OF_A_RUN = {"output_dir", "overwrite", "resume", "data", "model", "optimizer", "ema", "steps", "checkpoint_every"}
CONTENTS = (
    *(CHECKPOINTS, "images.json", METRICS, FIGURES, "tensorboard", BEST, AVERAGES, "pushed", ABANDONED, *RESULTS),
    CONFIG,  # the last that is deleted
)
VALIDATION_LOSS = "validation_loss.json"  # in best/: {"step", "loss"} of the model
FIXED_KEYS = (  # a resumed run cannot change them
    *("model.", "scheduler.", "data.channels", "data.image_size", "data.value_range", "data.white_level"),
    *("data.split", "optimizer.name"),
)
KEYS_OF_VALIDATION = (
    "objective.",
    "noise.",
    "data.dataset",
    "data.data_dir",
    "data.validation",
    "data.uniform",
    "seed",
)
FREE_KEYS = ("resume", "overwrite", "output_dir")


def mend_folder(folder: Path) -> list[str]:
    """Put right what a run left there that was killed; what was done, in words."""
    ours = re.compile("|".join(map(re.escape, CONTENTS)))
    done = mend(folder, ours) + mend(folder / CHECKPOINTS, re.compile(CHECKPOINT_NAME))
    done += mend(folder / AVERAGES, re.compile(CHECKPOINT_NAME))
    return done + mend(folder / FIGURES, re.compile(r".+\.png"))


def checkpoint_to_resume(config: RunConfig) -> Path | None:
    """The checkpoint that `config.resume` asks for; None for a new run.

    Raises:
        ConfigError: it is no complete checkpoint, or one of another run than the one that the folder holds, or with
            other keys that cannot change; what the folder holds is no run; it is later than the last step, or
            overwrite=true would delete it.
    """
    if config.resume is None:
        return None
    own = Path(config.output_dir) / CHECKPOINTS
    if config.overwrite and (config.resume == "latest" or _is_in(Path(config.resume), own)):
        raise ConfigError(
            f"resume={config.resume} goes on with the run in output_dir={config.output_dir}, which overwrite=true "
            "deletes: leave out one of them"
        )
    if config.resume == "latest":
        path = max(list_checkpoints(own), key=step_of, default=None)
    else:
        path = _given_checkpoint(config, own)
    if path is not None and step_of(path) > config.steps:
        raise ConfigError(
            f"steps must be at least {step_of(path)}, of the checkpoint {path} that the run goes on from, but is "
            f"{config.steps}"
        )
    if path is not None:
        require_unchanged(read_state(path)["config"], as_dict(config))
    return path


def _given_checkpoint(config: RunConfig, own: Path) -> Path:
    path = Path(config.resume)
    if path not in list_checkpoints(path.parent):
        raise ConfigError(f'resume must be null, "latest" or a checkpoint\'s folder, but is {config.resume!r}')
    if _is_in(path, own):
        return path
    if path.resolve().is_relative_to(Path(config.output_dir).resolve()):
        raise ConfigError(
            f"resume={config.resume} was set aside when the run in output_dir={config.output_dir} went back to an "
            "earlier checkpoint, and is not of its history: go on from it in another folder, output_dir=..."
        )
    if _present(config) and not config.overwrite:
        raise ConfigError(
            f"resume={config.resume} is a checkpoint of another run than the one that output_dir={config.output_dir} "
            "holds: continue that one with resume=latest, delete it with overwrite=true, or choose another folder"
        )
    _require_a_run(config)
    _require_no_run_around(config)
    return path


def require_outside_the_data(data, output: str | Path, key: str = "output_dir") -> None:
    """Raise a ConfigError if what is written would lie among the images, and its figures would be some of them.

    Args:
        data: has `dataset` and `data_dir`, as the section `data` of a configuration.
        key: what gave it.
    """
    folder = Path(data.dataset).expanduser() / (data.data_dir or "")
    if data.dataset in HUB_IDS or not folder.is_dir():
        return
    if Path(output).expanduser().resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"{key}={output} lies in data.dataset={data.dataset}, so that figures would be images to train on: choose "
            f"a place outside of {folder}"
        )


def require_free_folder(config: RunConfig) -> None:
    """Raise a ConfigError if a new run would mix with an old one, delete it unasked, or delete what is no run."""
    _require_a_run(config)
    _require_no_run_around(config)
    present = _present(config)
    if config.resume:  # a run that died before its first checkpoint starts again; nothing else is thrown away
        present = [path for path in present if path.name in (*RESULTS, ABANDONED)]
    if present and not config.overwrite:
        raise ConfigError(
            f"output_dir {config.output_dir} holds a run: continue it with resume=latest (if there is a checkpoint), "
            "delete it with overwrite=true, or choose another folder"
        )


def _require_a_run(config: RunConfig) -> None:
    folder, present = Path(config.output_dir), _present(config)
    if not present or list_checkpoints(folder / CHECKPOINTS):
        return
    if not _is_of_a_run(folder / CONFIG):
        raise ConfigError(
            f"output_dir {folder} holds {', '.join(path.name for path in present)}, but no {CONFIG} that a trainer "
            "wrote: it can't be told to be a run's folder, and nothing in it is deleted. Choose another folder, or "
            "move these away"
        )


def _require_no_run_around(config: RunConfig) -> None:
    """Raise a ConfigError if the folder lies among what another run writes, and replaces."""
    output = Path(config.output_dir).resolve()
    for place in (output, *output.parents):
        if place.name in CONTENTS and _is_of_a_run(place.parent / CONFIG):
            raise ConfigError(
                f"output_dir {config.output_dir} lies in {place.name}/ of the run in {place.parent}, which may "
                "replace it: choose another folder"
            )


def _is_of_a_run(path: Path) -> bool:
    """Whether a configuration is one that a trainer wrote."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and content.keys() >= KEYS_OF_A_RUN


def prepare_folder(config: RunConfig, checkpoint: Path | None) -> list[str]:
    """Make the folder that of a run that starts anew or goes on from `checkpoint`, with its configuration.

    A new run deletes what an old one left there, and nothing else. A resumed one finds its own history alone: later
    checkpoints, and what came with them, are set aside; a checkpoint from elsewhere is copied, so that resume=latest
    leads there as well.

    Returns:
        What was done, in words.
    """
    folder = Path(config.output_dir)
    if checkpoint is not None and _is_in(checkpoint, folder / CHECKPOINTS):
        done = _set_aside(folder, step_of(checkpoint))
        save_config(config, folder / CONFIG)
        return done
    for path in _present(config):
        discard(path)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / CONFIG)
    if checkpoint is None:
        return []
    own = checkpoint_path(folder / CHECKPOINTS, step_of(checkpoint))
    with written_folder(own) as copy:
        shutil.copytree(checkpoint, copy, dirs_exist_ok=True)
    return [f"{checkpoint} is copied to {own}"]


def has_best(folder: Path, step: int) -> bool:
    """Whether the run has a best model, of `step` or earlier."""
    return (folder / BEST).exists() and _step_of_best(folder) <= step


def changes(saved: dict, present: dict) -> list[str]:
    """What a resumed run's configuration changes, in words; both as `as_dict` gives them.

    Raises:
        ConfigError: a key differs that describes the network or its SDE.
    """
    texts = []
    saved = {"optimizer.name": "adamw"} | saved  # earlier releases had no other
    for key in sorted((saved.keys() | present.keys()) - set(FREE_KEYS)):
        if saved.get(key) != present.get(key):
            if key.startswith(FIXED_KEYS) and saved.get(key) != "auto":  # of a run that did not keep what it measured
                raise ConfigError(
                    f"{key} was {saved.get(key)!r} when the checkpoint was written and is {present.get(key)!r} now: "
                    "it cannot change"
                )
            texts.append(f"{key}: {present.get(key)!r}, was {saved.get(key)!r}")
    return texts


def require_unchanged(saved: dict, present: dict) -> None:
    """Raise the ConfigError of `changes` before anything is loaded; what is "auto" is known only later."""
    known = [key for key, value in present.items() if value != "auto"]
    changes({key: saved[key] for key in known if key in saved}, {key: present[key] for key in known})


def validates_alike(saved: dict, present: dict) -> bool:
    """Whether validation losses of these configurations can be compared; both as `as_dict` gives them."""
    keys = [key for key in saved.keys() | present.keys() if key.startswith(KEYS_OF_VALIDATION)]
    return all(saved.get(key) in (present.get(key), "auto") for key in keys)


def _present(config: RunConfig) -> list[Path]:
    return [path for name in CONTENTS if (path := Path(config.output_dir) / name).exists()]


def _step_of_best(folder: Path) -> int:
    try:
        return json.loads((folder / BEST / VALIDATION_LOSS).read_text())["step"]
    except (OSError, ValueError, TypeError, KeyError):  # of an earlier version, which did not say, or damaged
        return 0


def _is_in(path: Path, folder: Path) -> bool:
    return path.parent.resolve() == folder.resolve()


def _set_aside(folder: Path, step: int) -> list[str]:
    """Move what a run wrote after `step` into a folder of its own, if there are checkpoints or results among it."""
    checkpoints = folder / CHECKPOINTS
    later = sorted((path for path in checkpoints.iterdir() if (step_of(path) or 0) > step), key=step_of, reverse=True)
    done = max((record["step"] for record in read_metrics(folder / METRICS)), default=0)
    if not later and not (done > step and any((folder / name).exists() for name in RESULTS)):
        return []
    target = next(path for k in count(1) if not (path := folder / ABANDONED / str(k)).exists())
    for name in (CHECKPOINTS, FIGURES):
        (target / name).mkdir(parents=True)
    for name in (METRICS, RECORD):  # whole: the run's own metrics lose the lines after `step`
        if (folder / name).exists():
            shutil.copy(folder / name, target)
    for name in (*RESULTS, *([BEST] if _step_of_best(folder) > step else [])):
        if (folder / name).exists():
            (folder / name).rename(target / name)
    for path in (folder / FIGURES).glob("*.png"):
        if (match := re.search(r"-(\d{8,})$", path.stem)) and int(match[1]) > step:
            path.rename(target / FIGURES / path.name)
    for path in (folder / AVERAGES).glob("step-*"):
        if (step_of(path) or 0) > step:
            (target / AVERAGES).mkdir(exist_ok=True)
            path.rename(target / AVERAGES / path.name)
    for path in later:  # newest first: whenever the process dies, what is left is one history
        path.rename(target / CHECKPOINTS / path.name)
    names = "".join(f"{path.name}, " for path in reversed(later))
    return [
        f"Set aside in {target}, since they came after step {step}: {names}{'and ' if later else ''}the figures and "
        "results of then"
    ]
