"""Configurations that were saved before SDEs had files, names and parameters of their own: the same images, bit for
bit on processors that sum in the order of the one that drew them (tests/data/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from old_schedulers import drawn
from safetensors.torch import load_file

import sde_diffusers

DATA = Path(__file__).with_name("data")
FOLDERS = sorted((DATA / "old_schedulers").iterdir())


@pytest.fixture(scope="module")
def recorded():
    return load_file(DATA / "old_schedulers.safetensors")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_old_configurations_draw_the_same_images(folder, recorded):
    torch.testing.assert_close(drawn(folder), recorded[folder.name], rtol=0, atol=1e-6)  # corrector: the sum in a norm


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_old_configurations_are_saved_again_as_they_were(folder, tmp_path):
    """But for the keys that there were not, none of which, and no parameter, has got a value; and for the length of a
    table of one's own, which was not told."""
    before = json.loads((folder / "scheduler_config.json").read_text())
    scheduler = getattr(sde_diffusers, before["_class_name"]).from_pretrained(folder)
    scheduler.save_pretrained(tmp_path)
    after = json.loads((tmp_path / "scheduler_config.json").read_text())
    new = {key: after.pop(key) for key in [*after] if key not in before}
    told = {"num_train_timesteps": len(before["trained_betas"])} if before["trained_betas"] else {}
    assert after == before | told | {"_diffusers_version": after["_diffusers_version"]}
    bounds = ("clip_denoised", "dynamic_thresholding_ratio", "sample_max_value")
    own = ("unified_corrector", "fits") if before["_class_name"] == "ScoreSdeExponentialScheduler" else ()
    assert new == dict.fromkeys(("sde_parameters", "sampling_sde_parameters", *bounds, *own))
