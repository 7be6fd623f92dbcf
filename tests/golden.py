"""The reference numbers in `../shared/golden`, which exist in development and CI only."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


def golden_names(prefix):
    """Names of the files `<prefix>_*.safetensors`; a placeholder that skips where there are none."""
    names = sorted(path.stem for path in GOLDEN.glob(f"{prefix}_*.safetensors"))
    return names or [pytest.param("none", marks=pytest.mark.skip(reason=f"{GOLDEN} is not on this machine"))]


def load_golden(name):
    """Tensors and metadata of one file; the JSON `config` is parsed."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        metadata = dict(file.metadata())
    if "config" in metadata:
        metadata["config"] = json.loads(metadata["config"])
    return tensors, metadata


def load_golden_pipeline(name):
    """The pipeline converted from `model_<name>`."""
    from sde_diffusers.convert import from_score_sde

    tensors, metadata = load_golden(f"model_{name}")
    state = {key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")}
    return from_score_sde(state, metadata["config"])


def relative_error(ours, reference):
    """Largest deviation, relative to the reference's largest magnitude."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()
