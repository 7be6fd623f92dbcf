"""Saved pipelines and repositories that are broken, from another version, or hostile."""

import importlib
import io
import json
import logging
import pickle
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from test_hub import (  # noqa: F401 (fixtures)
    ID,
    WEIGHTS,
    draw,
    expected,
    hub,
    pipe,
    saved,
    waits,
)

from sde_diffusers import NCSNppUNet2DModel, ScoreSdePipeline
from sde_diffusers.convert import from_diffusers
from sde_diffusers.hub import push_model


@pytest.fixture
def folder(pipe, tmp_path):  # noqa: F811
    """A saved pipeline to be broken."""
    pipe.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit(path, change):
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


@pytest.mark.parametrize("length", [0, 4, 100, -5])
def test_truncated_weights(folder, length):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(OSError, match=f"Unable to load weights .*{WEIGHTS}"):
        ScoreSdePipeline.from_pretrained(folder)


def test_a_text_is_no_dtype(folder):
    """For which diffusers would load float32."""
    for load in (lambda **how: ScoreSdePipeline.from_pretrained(folder, **how),
                 lambda **how: NCSNppUNet2DModel.from_pretrained(folder / "unet", **how)):  # fmt: skip
        for how in ({"torch_dtype": "bfloat16"}, {"dtype": {"unet": "auto"}}):
            with pytest.raises(ValueError, match=f"`{[*how][0]}` must be a dtype of torch, such as torch.bfloat16"):
                load(**how)


def test_missing_and_additional_tensors(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["conv_out.bias_"] = tensors.pop("conv_out.bias")
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"saved/unet .* conv_out\.bias missing; conv_out\.bias_ left over"):
        ScoreSdePipeline.from_pretrained(folder)


def test_wrong_shapes(folder):
    edit(folder / "unet" / "config.json", lambda config: config.update(block_out_channels=[16, 16]))
    with pytest.raises(ValueError, match=r"saved/unet: .* expected shape torch.Size.* but got torch.Size"):
        ScoreSdePipeline.from_pretrained(folder)


@pytest.mark.parametrize("key", ["block_out_channels", "num_class_embeds"])
def test_missing_keys_that_the_weights_tell_of(folder, key):
    edit(folder / "unet" / "config.json", lambda config: config.pop(key))
    with pytest.raises(ValueError, match="saved/unet"):
        ScoreSdePipeline.from_pretrained(folder)


def test_missing_keys_that_have_a_default(folder, caplog):
    edit(folder / "scheduler" / "scheduler_config.json", lambda config: config.pop("sde"))
    with caplog.at_level(logging.WARNING):
        loaded = ScoreSdePipeline.from_pretrained(folder)
    assert "The configuration of scheduler in" in caplog.text and "defaults are used: sde='vp'" in caplog.text
    caplog.clear()
    ScoreSdePipeline.from_pretrained(folder, scheduler=loaded.scheduler)
    assert "defaults" not in caplog.text


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
def test_keys_of_a_newer_version(folder, expected, caplog, monkeypatch, file):  # noqa: F811
    edit(folder / file, lambda config: config.update(holography=[1, 2], _diffusers_version="99.0"))
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        loaded = ScoreSdePipeline.from_pretrained(folder)
    assert "holography" in caplog.text and "will be ignored" in caplog.text
    assert torch.equal(draw(loaded), expected)


def test_values_of_a_newer_version(folder):
    edit(folder / "scheduler" / "scheduler_config.json", lambda config: config.update(sde="of_tomorrow"))
    with pytest.raises(ValueError, match="`sde` must be one of .* but is 'of_tomorrow'"):
        ScoreSdePipeline.from_pretrained(folder)


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
@pytest.mark.parametrize("content", ["", '{"sde": '], ids=["empty", "half"])
def test_broken_configurations(folder, file, content):
    (folder / file).write_text(content)
    with pytest.raises(OSError, match=f"{file}.* is not a valid JSON"):
        ScoreSdePipeline.from_pretrained(folder)


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.bin", WEIGHTS])
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_poisoned_pickle(folder, tmp_path, file, write):
    touched = tmp_path / "touched"
    (folder / WEIGHTS).unlink()
    write({"conv_in.weight": Touch(touched)}, folder / file)
    with pytest.raises(OSError, match=f"Unable to load weights .*{file}"):
        ScoreSdePipeline.from_pretrained(folder)
    assert not touched.exists()
    content = (folder / file).read_bytes()
    torch.load(io.BytesIO(content), weights_only=False) if write is torch.save else pickle.loads(content)
    assert touched.exists()  # so it was poisonous


def test_shards_outside_the_folder(folder):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "../../outside.safetensors")}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"'\.\./\.\./outside\.safetensors' .* not allowed"):
        ScoreSdePipeline.from_pretrained(folder)


def test_components_outside_the_folder(folder):
    edit(folder / "model_index.json", lambda index: index.update(unet=["../../evil", "EvilModel"]))
    with pytest.raises(ValueError, match=r"\.\./\.\./evil"):
        ScoreSdePipeline.from_pretrained(folder)


@pytest.mark.parametrize("load", [ScoreSdePipeline.from_pretrained, from_diffusers], ids=["ours", "from_diffusers"])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"unet": ["{evil}", "UNet2DModel"]}, "`unet` of .* is of '{evil}'"),
        ({"scheduler": ["{evil}", "DDPMScheduler"]}, "`scheduler` of .* is of '{evil}'"),
        ({"classifier": ["{evil}", "AnyModel"]}, "`classifier` of .* is of '{evil}'"),
        ({"something": ["{evil}.inner", "Model"]}, "`something` of .* is of '{evil}.inner'"),
        ({"unet": [["{evil}"], "UNet2DModel"]}, "`unet`"),
        (
            {"unet/config.json": {"auto_map": {"AutoModel": "{evil}.AnyModel"}}},
            "unet/config.json names code by `auto_map`",
        ),
        (
            {"unet/config.json": {"_class_name": ["{evil}", "AnyModel"]}},
            "unet/config.json names code by `_class_name`",
        ),
        ({"scheduler/tokenizer_config.json": {"auto_map": {"A": "{evil}.B"}}}, "tokenizer_config.json names code"),
        ({"unet/model_index.json": {"unet": ["{evil}", "AnyModel"]}}, "a pipeline of the component `unet`"),
    ],
    ids=lambda value: None if isinstance(value, str) else ", ".join(value),
)
def test_libraries_that_a_folder_names(tmp_path, monkeypatch, load, changes, message):
    """A module that leaves a mark when it is imported: it is not, since it is none of the three that may be."""
    folder, mark = tmp_path / "saved", tmp_path / "mark"
    unet = UNet2DModel(sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
                       down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    evil = f"evil_{abs(hash(tmp_path))}"
    (tmp_path / f"{evil}.py").write_text(f"open({str(mark)!r}, 'w')")
    (folder / "unet" / f"{evil}.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    changes = json.loads(json.dumps(changes).replace("{evil}", evil))
    for name, value in changes.items():
        path = folder / (name if name.endswith(".json") else "model_index.json")
        if not path.exists():
            path.write_text("{}")
        edit(path, lambda config, name=name, value=value: config.update(value if "/" in name else {name: value}))
    with pytest.raises(ValueError, match=message.replace("{evil}", evil)):
        load(folder)
    assert not mark.exists() and evil not in sys.modules
    importlib.import_module(evil)
    assert mark.exists()


def test_a_network_of_ones_own(pipe, tmp_path, monkeypatch, caplog):  # noqa: F811
    """Its class is not looked up by its name alone: it is saved with a warning, and loaded where it is given."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "networks_of_mine.py").write_text(
        "import sde_diffusers\n"
        "class NCSNppUNet2DModel(sde_diffusers.NCSNppUNet2DModel):\n"
        "    def forward(self, *arguments, **options):\n"
        "        output = super().forward(*arguments, **options)\n"
        "        output.sample = -output.sample\n"
        "        return output\n"
    )
    mine = importlib.import_module("networks_of_mine").NCSNppUNet2DModel
    unet = mine(**{key: value for key, value in pipe.unet.config.items() if not key.startswith("_")}).eval()
    folder = tmp_path / "saved"
    ScoreSdePipeline(unet=unet, scheduler=pipe.scheduler).save_pretrained(folder)
    assert "The code of `unet`, NCSNppUNet2DModel of networks_of_mine, is not saved" in caplog.text
    with pytest.raises(ValueError, match="`unet` of .* is of 'networks_of_mine', and is not loaded"):
        ScoreSdePipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match="unet/networks_of_mine.py missing.*all but the code of classes of one's own"):
        push_model(folder, ID, dry_run=True)
    monkeypatch.undo()
    del sys.modules["networks_of_mine"]
    given = ScoreSdePipeline.from_pretrained(folder, unet=mine.from_pretrained(folder / "unet"))
    assert type(given.unet) is mine and torch.equal(draw(given), draw(ScoreSdePipeline(unet, pipe.scheduler)))
    other = ScoreSdePipeline.from_pretrained(folder, unet=pipe.unet)  # nor is the saved one's module imported then
    assert other.unet is pipe.unet and "networks_of_mine" not in sys.modules


@pytest.mark.parametrize("name", ["../../../../../evil.json", "unet/../../../../../../evil.json"])
def test_files_outside_the_cache(hub, saved, tmp_path, name):  # noqa: F811
    push_model(saved, ID)
    hub.model(ID).commit("main", {**hub.model(ID).files(), name: b"{}"}, "evil")
    with pytest.raises((OSError, ValueError)):
        ScoreSdePipeline.from_pretrained(ID)
    assert not list(tmp_path.parent.rglob("evil.json"))


@pytest.mark.parametrize("file", ["unet/config.json", "model_index.json", WEIGHTS])
def test_a_hub_with_empty_files(hub, saved, expected, file):  # noqa: F811
    push_model(saved, ID)
    files = hub.model(ID).files()
    hub.model(ID).commit("main", {**files, file: b""}, "emptied")
    with pytest.raises(OSError, match=file):
        ScoreSdePipeline.from_pretrained(ID)
    hub.model(ID).commit("main", files, "restored")
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID)), expected)


@pytest.mark.parametrize("pattern", ["GET /api/models/", "GET /cdn", "GET /.*config.json"])
def test_too_many_requests(hub, saved, expected, waits, pattern):  # noqa: F811
    """Of a hub that never relents: an error, and no copy that breaks a later attempt."""
    push_model(saved, ID)
    hub.fail(pattern, times=1000, status=429, headers={"Retry-After": "7"})
    with pytest.raises(OSError):
        ScoreSdePipeline.from_pretrained(ID)
    hub.faults.clear()
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID)), expected)
