"""What all converters need: read a file without running its code, put tensors in their places, compare outputs."""

import copy
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

# Relative to the largest magnitude. Another machine's rounding stays far below, a wrong mapping far above.
VERIFICATION_TOLERANCE = 1e-3


def read_tensors(path, advice=""):
    """The contents of a file of weights, without running code from it.

    Args:
        path (`str` or `Path`): safetensors, or what `torch.save` wrote.
        advice (`str`): What the error says of a pickle that can't be read safely.

    Returns:
        `dict`: Tensors by name; what `torch.save` wrote may be nested.

    Raises:
        ValueError: If the file can't be read without running code from it, or holds no dictionary.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is no complete safetensors file: {error}.") from error
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no such file provokes any kind
        reason = (str(error).splitlines() or ["it is empty"])[0]
        raise ValueError(
            f"{path} is not a file of plain tensors, and reading anything else could run its code ({reason}). {advice}"
        ) from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} must hold a dictionary of tensors, but holds a {type(contents).__name__}.")
    return contents


def read_json(path):
    """The dictionary in a JSON file, that of a converter's `config`.

    Raises:
        ValueError: If it holds none.
        FileNotFoundError: If there is no such file.
    """
    try:
        contents = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"`config` {path} is no JSON file: {error}.") from error
    if not isinstance(contents, dict):
        raise ValueError(f"`config` {path} must hold a dictionary, but holds a {type(contents).__name__}.")
    return contents


def load_converted(unet, source, layout, problems=()):
    """Fill a network with tensors of other names.

    Args:
        unet (`NCSNppUNet2DModel`): The network.
        source (`dict[str, torch.Tensor]`): The tensors, in our axes.
        layout (`dict[str, list[str]]`): For each entry of the network's state dict the names of those that make it
            up, stacked along the rows.
        problems (`list[str]`): What is already known to be wrong.

    Raises:
        ValueError: Listing every tensor that is missing, left over or of the wrong shape.
    """
    source, problems = dict(source), list(problems)
    converted, places = {}, unet.state_dict()
    for target, keys in layout.items():
        missing = [key for key in keys if key not in source]
        if missing:
            problems += [f"{key}: missing" for key in missing]
            continue
        tensors = [source.pop(key) for key in keys]
        if target.endswith("frequency_bits"):
            tensors = [tensor.float().view(torch.int32) for tensor in tensors]
        rows = places[target].shape[0] // len(tensors)
        expected = torch.Size([rows, *places[target].shape[1:]])
        wrong = [
            f"{key}: shape {tuple(tensor.shape)} (as {target}), expected {tuple(expected)}"
            for key, tensor in zip(keys, tensors, strict=True)
            if tensor.shape != expected
        ]
        problems += wrong
        if not wrong:
            converted[target] = torch.cat(tensors)
    problems += [f"{key}: unexpected" for key in source]
    if problems:
        raise ValueError("The state dict does not fit the configuration:\n  " + "\n  ".join(problems))
    unet.load_state_dict(converted)


def check_against_recorded(answer, recorded, tolerance=VERIFICATION_TOLERANCE):
    """Compare a converted model with outputs that the original one recorded.

    Args:
        answer (callable): Takes the recorded tensors; returns what should equal `y`.
        recorded (`str`, `Path` or `dict[str, torch.Tensor]`): A safetensors file, or what it holds: `x`, the noisy
            images (N, C, H, W); `labels` (N,), the noise levels as the original takes them; `y`, what it answered;
            `class_labels` (N,) integers, where it has classes. Other entries are ignored.
        tolerance (`float`): Deviation that counts as rounding.

    Returns:
        `float`: The largest deviation, relative to the largest magnitude of `y`.

    Raises:
        ValueError: If an entry is missing or none that the network can be asked, or the deviation exceeds `tolerance`.
    """
    if not isinstance(recorded, dict):
        recorded = read_tensors(recorded)
    missing = [key for key in ("x", "labels", "y") if key not in recorded]
    if missing:
        raise ValueError(f"Recorded outputs need the tensors x, labels and y, but {', '.join(missing)} is missing.")
    x, labels, class_labels = _asked(recorded)
    try:
        with torch.no_grad():
            output = answer(x, labels, class_labels)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as misfit:
        raise ValueError(f"`recorded` does not fit the network: {misfit}") from misfit
    y = recorded["y"].to(output)
    if y.shape != output.shape:
        raise ValueError(f"The recorded y has shape {tuple(y.shape)}, but the network answers {tuple(output.shape)}.")
    error = ((output - y).abs().max() / y.abs().max()).item()
    if not error < tolerance:
        raise ValueError(
            f"The converted model does not answer as recorded: the deviation is {error:.2g} of the largest value, "
            f"where up to {tolerance:g} is rounding. Is the configuration that of these weights?"
        )
    return error


def _asked(recorded):
    """x in float32, labels and class_labels of recorded outputs; a ValueError names what no network can be asked."""
    asked = {key: recorded.get(key) for key in ("x", "labels", "class_labels")}
    for key, value in {**asked, "y": recorded["y"]}.items():
        if not isinstance(value, torch.Tensor) and not (key == "class_labels" and value is None):
            raise ValueError(f"The recorded {key} must be a tensor, but is a {type(value).__name__}.")
    x, labels, classes = asked.values()
    if x.ndim != 4 or not x.numel() or not x.is_floating_point():
        raise ValueError(f"The recorded x must be floating-point images (N, C, H, W), but is {_described(x)}.")
    if labels.shape != x.shape[:1]:
        raise ValueError(f"The recorded labels must be {len(x)} noise levels, but are {_described(labels)}.")
    if classes is not None and (classes.shape != x.shape[:1] or classes.dtype not in (torch.int32, torch.int64)):
        raise ValueError(f"The recorded class_labels must be {len(x)} integers, but are {_described(classes)}.")
    return x.float(), labels, classes


def _described(tensor):
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def network_answer(pipe):
    """The bare network of a pipeline, as `check_against_recorded` asks it: a copy in float32, in evaluation mode."""
    network = torch.nn.Module.to(copy.deepcopy(pipe.unet), torch.float32).eval()
    return lambda x, labels, class_labels: network(x, labels, class_labels=class_labels).sample
