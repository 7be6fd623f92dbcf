"""A save is whole: what it replaces is gone, what it does not stays, and nobody sees it half done."""

import copy
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from warm_python import WarmPython

from sde_diffusers import (
    NCSNppUNet2DModel,
    NoiseConditionalClassifier,
    ScoreSdePipeline,
    ScoreSdeProbabilityFlowScheduler,
)
from sde_diffusers.model_card import weights_in
from sde_diffusers.saved_folders import whole_folder
from sde_diffusers.saved_folders.repository import export_folder, repository_contents

SHARDS = {"max_shard_size": "10KB"}


def make(state, **components):
    """Pipelines that differ in every file: the number of a state is their weights, width and largest sigma."""
    width = 8 * (1 + state % 2)
    unet = NCSNppUNet2DModel(sample_size=8, in_channels=1, block_out_channels=(8, width), layers_per_block=1)
    for parameter in unet.parameters():
        parameter.data.fill_(state + 1)
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="ve", sigma_max=10.0 + state)
    return ScoreSdePipeline(unet=unet.eval(), scheduler=scheduler, **components)


def classifier():
    return NoiseConditionalClassifier(sample_size=8, in_channels=1, num_classes=3, block_out_channels=(8,))


def state_of(pipe):
    """The number of a pipeline's state, which network, weights and scheduler agree on."""
    (value,) = {parameter.unique().item() for parameter in pipe.unet.parameters()}
    state = int(value) - 1
    assert pipe.scheduler.config.sigma_max == 10 + state
    assert pipe.unet.config.block_out_channels[1] == 8 * (1 + state % 2)
    return state


def listing(folder):
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*")}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is replaced.


@pytest.mark.parametrize(
    "first, second",
    [
        (SHARDS, {}),
        ({}, SHARDS),
        ({}, {"safe_serialization": False}),
        ({"variant": "fp16"}, {}),
        ({}, {"variant": "fp16"}),
        (SHARDS, {"variant": "ema", **SHARDS}),
        ({"variant": "no-ema", **SHARDS}, {}),
    ],
    ids=str,
)
def test_of_the_earlier_save_nothing_is_left(first, second, tmp_path):
    make(0, classifier=classifier()).save_pretrained(tmp_path / "over", **first)
    make(1).save_pretrained(tmp_path / "over", **second)
    make(1).save_pretrained(tmp_path / "new", **second)
    assert listing(tmp_path / "over") == listing(tmp_path / "new")
    loaded = ScoreSdePipeline.from_pretrained(tmp_path / "over", variant=second.get("variant"))
    assert state_of(loaded) == 1 and loaded.classifier is None
    if second.get("safe_serialization", True):
        assert len(repository_contents(tmp_path / "over")) == len(repository_contents(tmp_path / "new"))
        assert weights_in(tmp_path / "over" / "unet") == weights_in(tmp_path / "new" / "unet")


def test_a_network_alone_is_saved_whole(tmp_path):
    make(0).unet.save_pretrained(tmp_path, **SHARDS)
    (tmp_path / "notes.txt").write_text("mine")
    make(1).unet.save_pretrained(tmp_path)
    assert listing(tmp_path) == {"config.json", "diffusion_pytorch_model.safetensors", "notes.txt"}
    assert NCSNppUNet2DModel.from_pretrained(tmp_path).conv_out.bias.unique().item() == 2
    make(0).unet.save_pretrained(tmp_path, variant="fp16", **SHARDS)
    assert all(".fp16" in name for name in listing(tmp_path) - {"config.json", "notes.txt"})


def test_what_is_not_the_pipelines_stays(tmp_path):
    """Untouched, whatever it is called."""
    make(0).save_pretrained(tmp_path, **SHARDS)
    foreign = {
        "README.md": b"by hand",
        "notes/config.json": b'{"_name_or_path": "mine"}',
        "list/config.json": b"[1]",
        "broken/config.json": b"\xff{",
        "vae/diffusion_pytorch_model.safetensors": b"of another pipeline",
        "unet/notes.txt": b"beside the weights",
        "unet/model_of_mine.safetensors": b"also",
        "unet/my_module.py": b"raise SystemExit",
        "diffusion_pytorch_model.safetensors": b"at the top",
    }
    for name, content in foreign.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in foreign}
    make(1).save_pretrained(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in foreign} == foreign
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in foreign} == times
    assert state_of(ScoreSdePipeline.from_pretrained(tmp_path)) == 1


def test_a_link_and_relative_paths(tmp_path, monkeypatch):
    """What a link leads to is written; the working folder stays the one that it is."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    make(0).save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "model_index.json").exists()
    monkeypatch.chdir(tmp_path / "elsewhere")
    make(1).save_pretrained(".")
    assert Path.cwd() == tmp_path / "elsewhere" and state_of(ScoreSdePipeline.from_pretrained(".")) == 1
    monkeypatch.setenv("HOME", str(tmp_path))
    make(2).save_pretrained("~/elsewhere")
    assert state_of(ScoreSdePipeline.from_pretrained(tmp_path / "link")) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link"]


def test_linked_weights_are_replaced_and_not_written_through(tmp_path):
    """As in the Hub's cache, where one file serves several snapshots."""
    make(0).save_pretrained(tmp_path / "saved")
    weights, blob = tmp_path / "saved" / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "blob"
    before = weights.rename(blob).read_bytes()
    weights.symlink_to(blob)
    make(1).save_pretrained(tmp_path / "saved")
    assert blob.read_bytes() == before and not weights.is_symlink()


def test_a_variant_stays_only_in_another_precision(tmp_path, caplog):
    """Of the same weights, to the last bit; weights that are nearly the same are others, as a warning says."""
    torch.manual_seed(0)
    pipe = make(0)
    for parameter in pipe.unet.parameters():
        parameter.data.normal_()
    for name, dtype in {"fp16": torch.float16, "bf16": torch.bfloat16}.items():
        half = ScoreSdePipeline(unet=copy.deepcopy(pipe.unet).to(dtype), scheduler=pipe.scheduler)
        half.save_pretrained(tmp_path, variant=name)
    pipe.save_pretrained(tmp_path)
    names = {f"unet/diffusion_pytorch_model{variant}.safetensors" for variant in ("", ".fp16", ".bf16")}
    assert names < listing(tmp_path) and "deleted" not in caplog.text
    for parameter in pipe.unet.parameters():
        parameter.data.mul_(1.001)
    pipe.save_pretrained(tmp_path, variant="ema")
    assert not names & listing(tmp_path) and "held other weights than those saved now" in caplog.text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"variant": ""}, "variant"),
        ({"variant": "a.b"}, "variant"),
        ({"variant": "../x"}, "variant"),
        ({"variant": 16}, "variant"),
        ({"max_shard_size": 0}, "max_shard_size"),
        ({"max_shard_size": -1}, "max_shard_size"),
        ({"max_shard_size": "0KB"}, "max_shard_size"),
        ({"max_shard_size": "a lot"}, "max_shard_size"),
        ({"save_directory": ""}, "save_directory"),
        ({"save_directory": " "}, "save_directory"),
        ({"save_directory": None}, "save_directory"),
    ],
    ids=str,
)
def test_what_could_not_be_loaded_is_not_written(options, named, tmp_path, monkeypatch):
    """By a pipeline and by a network alone; the current folder, too, stays as it is."""
    monkeypatch.chdir(tmp_path)
    pipe = make(0)
    for save in (pipe.save_pretrained, pipe.unet.save_pretrained):
        with pytest.raises(ValueError, match=f"`{named}` must be .*, but is {re.escape(repr(options[named]))}"):
            save(**{"save_directory": "new", **options})
    assert not list(tmp_path.iterdir())
    if named == "save_directory":
        with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must be the path of a folder or the id"):
            ScoreSdePipeline.from_pretrained(options[named])


# What is interrupted.


@pytest.mark.parametrize("occupied", ["saved", "saved/unet", "saved/unet/config.json"])
def test_places_that_are_taken_are_refused(occupied, tmp_path):
    place = tmp_path / occupied
    if place.suffix:
        place.mkdir(parents=True)
    else:
        place.parent.mkdir(exist_ok=True)
        place.write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(ValueError, match=f"{place.name} .*is a f"):
        make(0).save_pretrained(tmp_path / "saved")
    assert listing(tmp_path) == before


def fail_at(call, monkeypatch, module, name, error):
    """Let the given call of a function, of 0, 1, ..., raise an error."""
    original, calls = getattr(module, name), []

    def function(*args, **kwargs):
        calls.append(args)
        if len(calls) == call + 1:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, function)
    return calls


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"]
)
def test_a_save_that_fails_leaves_the_old_folder(error, tmp_path, monkeypatch):
    from safetensors import torch as safetensors_torch

    make(0).save_pretrained(tmp_path / "saved")
    before = contents(tmp_path / "saved")
    for call in (0, 3):
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            fail_at(call, patch, safetensors_torch, "save_file", error)
            make(1).save_pretrained(tmp_path / "saved", **SHARDS)
        assert contents(tmp_path / "saved") == before
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            fail_at(call, patch, safetensors_torch, "save_file", error)
            make(1).save_pretrained(tmp_path / "new", **SHARDS)
        assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed in its place")
@pytest.mark.parametrize("call, state", [(0, 0), (4, 0), (5, 1), (8, 1), (12, 1)])
def test_killed_at_any_rename_it_is_the_old_or_the_new_folder(call, state, tmp_path):
    """Four renames save the network, the fifth decides, and each of the others puts a file into its place."""
    make(0).save_pretrained(tmp_path / "saved", **SHARDS)
    pipe, calls = make(1), []

    def dying(function):
        def called(*args, **kwargs):
            calls.append(args)
            if len(calls) > call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return called

    if (child := os.fork()) == 0:
        os.replace, Path.rename = dying(os.replace), dying(Path.rename)
        pipe.save_pretrained(tmp_path / "saved")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert state_of(ScoreSdePipeline.from_pretrained(tmp_path / "saved")) == state
    pipe.save_pretrained(tmp_path / "saved")
    pipe.save_pretrained(tmp_path / "new")
    assert listing(tmp_path / "saved") == listing(tmp_path / "new")


# Many at once.


BUSY = """
import json, sys, threading
from test_whole_saves import busy

print(json.dumps(busy(sys.argv[1], first=int(sys.argv[2]))))
"""


def busy(folder, first, rounds=4):
    """Two threads that save, two that load: the states that were loaded, or what went wrong."""
    pipes = [make(state) for state in range(first, first + 4)]
    seen, failures = [], []

    def repeat(action):
        try:
            for k in range(rounds):
                action(k)
        except BaseException as error:
            failures.append(repr(error))

    def save(k, half):
        pipes[half + 2 * (k % 2)].save_pretrained(folder, **(SHARDS if k % 3 else {}))

    def load(k):
        seen.append(state_of(ScoreSdePipeline.from_pretrained(folder)))

    threads = [
        threading.Thread(target=repeat, args=[action]) for action in [lambda k: save(k, 0), lambda k: save(k, 1)]
    ]
    threads += [threading.Thread(target=repeat, args=[load]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"seen": seen, "failures": failures}


def test_many_save_and_load_at_once(tmp_path):
    """Four threads in each of two processes, 32 saves and loads: each load is one of the saved states."""
    make(0).save_pretrained(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    root = Path(__file__).resolve().parents[1]
    other = WarmPython(["-c", BUSY, tmp_path, "4"], environment, root)
    try:
        mine = busy(tmp_path, first=0)
        theirs = json.loads(other.communicate(timeout=300)[0].splitlines()[-1])
    finally:
        other.kill()
    assert not mine["failures"] and not theirs["failures"]
    assert len(mine["seen"]) == len(theirs["seen"]) == 8
    assert set(mine["seen"] + theirs["seen"]) <= set(range(8))
    assert state_of(ScoreSdePipeline.from_pretrained(tmp_path)) in range(8)
    assert not [name for name in listing(tmp_path) if name.startswith(".")]
    assert torch.get_default_dtype() is torch.float32


def test_what_is_copied_or_sent_is_one_state(tmp_path):
    """A save that was killed when it counted already is finished by whoever copies the folder."""
    make(0).save_pretrained(tmp_path / "model")
    child = os.fork()
    if child == 0:
        replace = os.replace

        def dying(source, target):
            replace(source, target)
            if Path(target) == (tmp_path / "model" / "unet" / "config.json").resolve():
                os._exit(9)

        whole_folder.os.replace = dying
        make(1).save_pretrained(tmp_path / "model")
    os.waitpid(child, 0)
    assert (tmp_path / "model" / whole_folder.DECIDED).exists()
    export_folder(tmp_path / "model", tmp_path / "copy")
    assert state_of(ScoreSdePipeline.from_pretrained(tmp_path / "copy")) == 1
    assert not (tmp_path / "model" / whole_folder.DECIDED).exists()
