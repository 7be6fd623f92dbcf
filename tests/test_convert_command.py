"""`sde-diffusers convert`, as it is called from a shell."""

import argparse
import json

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors.torch import save_file
from test_convert_diffusers import ddpm_unet
from test_convert_edm import DATA, load
from test_convert_score_sde_files import CONFIG, checkpoint, expected

from sde_diffusers import ScoreSdePipeline
from sde_diffusers.commands.convert import add_convert_parser


def convert(*arguments):
    parser = argparse.ArgumentParser()
    add_convert_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(["convert", *map(str, arguments)])
    return options.run(options)


def test_score_sde(tmp_path, capsys):
    torch.save(checkpoint(), tmp_path / "checkpoint.pth")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert (
        convert("score_sde", tmp_path / "checkpoint.pth", tmp_path / "out", "--config", tmp_path / "config.json") == 0
    )
    assert "not compared" in capsys.readouterr().out
    unet = ScoreSdePipeline.from_pretrained(tmp_path / "out").unet
    assert torch.equal(unet.conv_in.weight, expected().conv_in.weight)


def test_edm(tmp_path, capsys):
    state, config, _ = load("edm_ncsnpp")
    save_file(state, tmp_path / "edm.safetensors")
    (tmp_path / "edm.json").write_text(json.dumps(config))
    arguments = ("edm", tmp_path / "edm.safetensors", tmp_path / "out", "--config", tmp_path / "edm.json", "--verify")
    with pytest.raises(ValueError, match="does not answer as recorded"):
        _, _, recorded = load("edm_ncsnpp")
        save_file({**recorded, "y": 2 * recorded["y"]}, tmp_path / "wrong.safetensors")
        convert(*arguments, tmp_path / "wrong.safetensors")
    assert not (tmp_path / "out").exists()
    assert convert(*arguments, DATA / "edm_ncsnpp.safetensors") == 0
    assert "answers as recorded" in capsys.readouterr().out
    ScoreSdePipeline.from_pretrained(tmp_path / "out")


def test_diffusers_and_back(tmp_path):
    DDPMPipeline(unet=ddpm_unet(), scheduler=DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    assert convert("diffusers", tmp_path / "ddpm", tmp_path / "ours") == 0
    assert convert("export", tmp_path / "ours", tmp_path / "theirs") == 0
    weights = [DDPMPipeline.from_pretrained(tmp_path / name).unet.conv_in.weight for name in ("ddpm", "theirs")]
    assert torch.equal(*weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ddpm", "ours", "theirs"]
    with pytest.raises(FileExistsError, match="ours exists"):
        convert("diffusers", tmp_path / "ddpm", tmp_path / "ours")
