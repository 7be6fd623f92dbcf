"""The checkpoints of a run.

A checkpoint holds the raw and the averaged weights and the optimizer's state as safetensors, likewise what else a run
keeps beside its network (its companions), and the rest (step, best
validation loss, fp16 loss scale) as JSON. Neither random states nor the learning rate are kept: both are functions of
the step.
"""

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from run.sharding import shard_of, whole
from run.written_folder import discard
from run.yaml_config import ConfigError

STATE = "state.json"
STATE_KEYS = ("step", "best_loss", "ema_step", "scaler", "config")  # which every release has written
CHECKPOINT_NAME = r"step-(\d{8,})"


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step of a checkpoint's folder, or None if it has not the name of one."""
    match = re.fullmatch(CHECKPOINT_NAME, path.name)
    return match and int(match[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; what an interrupted write left behind has another name."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if step_of(p) is not None and (p / STATE).is_file()), key=step_of)


def checkpoint_tensors(
    network: nn.Module, ema_network: nn.Module, optimizer: torch.optim.Optimizer, keep: bool, companions: dict
) -> dict[str, dict[str, torch.Tensor]]:
    """What the files of a checkpoint hold, by name of the file and of the tensor; to be called by all processes.

    Args:
        keep: whether this process will write it; the others, from which sharded tensors are gathered, get no tensors.
        companions: by the names of their files; each has `state_dict`.
    """
    moments = {
        f"{name}/{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    files = {"network": network.state_dict(), "ema": ema_network.state_dict(), "optimizer": moments}
    files |= {name: companion.state_dict() for name, companion in companions.items()}
    gathered = {file: {} for file in files}
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            tensor = whole(tensor.detach())
            if keep:
                gathered[file][name] = tensor.cpu().contiguous()
    return gathered


def write_checkpoint(folder: Path, tensors: dict[str, dict[str, torch.Tensor]], state: dict) -> None:
    """Write a checkpoint of `checkpoint_tensors` into an empty folder."""
    for name, content in tensors.items():
        save_file(content, folder / f"{name}.safetensors")
    (folder / STATE).write_text(json.dumps(state, indent=2))


def read_state(path: Path) -> dict:
    """The `state` of a checkpoint, without its weights.

    Raises:
        ConfigError: the file is damaged, or the folder has the name of another step.
    """
    try:
        state = json.loads((path / STATE).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path / STATE, error) from error
    missing = [key for key in STATE_KEYS if not isinstance(state, dict) or key not in state]
    if missing:
        raise _damaged(path / STATE, f"it lacks {', '.join(missing)}")
    if not isinstance(state["config"], dict):
        raise _damaged(path / STATE, f"its config must be a dictionary, but is {state['config']!r}")
    if state["step"] != step_of(path):
        raise ConfigError(f"{path} is the checkpoint of step {state['step']}: give the folder the name of that step")
    return state


def images_seen(state: dict) -> int:
    """How many images the steps up to a checkpoint have taken."""
    return state.get("images_seen", state["step"] * state["config"]["batch_size"])  # older releases did not count


def delete_oldest(folder: Path, limit: int | None) -> None:
    """Delete all but the latest `limit` checkpoints (None keeps all)."""
    for oldest in list_checkpoints(folder)[:-limit] if limit is not None else []:
        discard(oldest)


def load_checkpoint(path: Path, network: nn.Module, ema_network: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Read a checkpoint into the given objects.

    Returns:
        The `state` that it was saved with.

    Raises:
        ValueError: the weights are those of another network, or a file is damaged.
    """
    weights, averages, moments = (_read(path / f"{name}.safetensors") for name in ("network", "ema", "optimizer"))
    state = read_state(path)
    try:
        own = network.state_dict()
        network.load_state_dict({name: shard_of(value, like=own.get(name)) for name, value in weights.items()})
        ema_network.load_state_dict(averages)
    except RuntimeError as error:
        raise ValueError(f"checkpoint {path} is one of another network: {error}") from error
    known, own = {key.rpartition("/")[0] for key in moments}, {name for name, _ in network.named_parameters()}
    skipped = bool(state.get("scaler"))  # steps of fp16, whose scale falls at first: there may have been no other yet
    if known - own or (state["step"] and known != own and not skipped):
        raise _damaged(path / "optimizer.safetensors", "it holds no optimizer's state of this network, or a part")
    for name, parameter in network.named_parameters():
        own = {key.rpartition("/")[2]: value for key, value in moments.items() if key.rpartition("/")[0] == name}
        for key, value in own.items():
            # In the layout and on the device of the parameter: fused kernels walk through both in parallel.
            like = (
                parameter if value.shape == parameter.shape else value.new_empty(value.shape, device=parameter.device)
            )
            optimizer.state[parameter][key] = torch.empty_like(like, dtype=value.dtype).copy_(shard_of(value, like))
    return state


def load_companions(path: Path, companions: dict) -> None:
    """Read what belongs to a run beside its network from a checkpoint.

    Args:
        companions: by the names of their files; each has `load_state_dict`.

    Raises:
        ValueError: the checkpoint is without one of them, or a file is damaged or does not fit.
    """
    for name, companion in companions.items():
        file = path / f"{name}.safetensors"
        if not file.is_file():
            raise ValueError(f"{name} cannot begin in the middle of a run, but checkpoint {path} has none")
        try:
            companion.load_state_dict(_read(file))
        except ValueError as error:
            raise ValueError(f"checkpoint {path}: {error}") from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception | str) -> ConfigError:
    return ConfigError(f"{path} is damaged: {error}. resume=FOLDER takes an earlier checkpoint")
