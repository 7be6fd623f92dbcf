"""The command sde-diffusers, against a Hub on this machine."""

import gzip
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub
from module_names import plain

from sde_diffusers.cli import main

FOLDER = Path(__file__).parent.parent / "pretrained" / "fashion-mnist-ve"
ID = "tester/garments"
CODE = {"pipeline_score_sde.py", "scheduler/scheduling_score_sde.py", "unet/unet_ncsnpp.py"}


def objects() -> bytes:
    """A .npy file of Python objects."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}, 1], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with LoopbackHub() as hub:
        hub.connect(monkeypatch, tmp_path / "home")
        yield hub


def test_push(hub, capsys):
    arguments = ["push", str(FOLDER), ID, "--private", "--message", "First", "--revision", "trial"]
    card = ["--license", "mit", "--dataset", "a/b", "--tag", "x", "--tag", "y", "--metric", "FID=3.5"]
    assert main(arguments + card) == 0
    repository = hub.model(ID)
    commit = repository.branches["trial"]
    assert capsys.readouterr().out == f"{hub.endpoint}/{ID}/commit/{commit}\n"
    assert repository.private and repository.messages[-1] == "First" and commit != repository.branches["main"]
    files = repository.files("trial")
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert files[weights] == (FOLDER / weights).read_bytes() and "samples.png" in files
    assert {plain(path) for path in files if path.endswith(".py")} == CODE  # which the folder itself does without
    data = ModelCard(files["README.md"].decode()).data
    assert data.license == "mit" and data.datasets == ["a/b"] and data.tags[-2:] == ["x", "y"]
    assert data.eval_results[0].metric_value == 3.5


def test_export(capsys, tmp_path):
    assert main(["export", str(FOLDER), str(tmp_path / "new" / "copy")]) == 0
    names = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    copy = tmp_path / "new" / "copy"
    assert {plain(path.relative_to(copy).as_posix()) for path in copy.rglob("*") if path.is_file()} == names | CODE
    assert f"Wrote {copy}: {len(names | CODE)} files" in capsys.readouterr().out


def test_dry_run_lists_files_with_sizes(hub, capsys):
    assert main(["push", str(FOLDER), ID, "--dry-run", "--max-gigabytes", "1e300"]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = (FOLDER / "samples.png").stat().st_size
    assert f"{size:>14,}  samples.png" in lines
    assert "files would be sent to tester/garments" in lines[-1] and len(lines) > 8
    assert hub.requests == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["push", "nowhere", ID], "nowhere"),
        (["push", str(FOLDER), ID, "--max-gigabytes", "0.001"], "--max-gigabytes allows 0.001 GB"),
        (["push", str(FOLDER), ID, "--metric", "FID=3.5"], "--metric ['FID'] need --dataset"),
        (["push-space", str(FOLDER), "tester/space", "--model", ID], "app.py"),
        (["export", "nowhere", "out"], "nowhere"),
        (["push", str(FOLDER), ID, "--max-gigabytes", "1e300", "--revision", "a..b"], "--revision must be the name"),
        (["push-space", str(FOLDER), "tester/space", "--model", "a/b/c"], "--model must be the id of a model"),
        (["export", "owner/model", "out"], "folder must be a folder, but owner/model"),
        (["export", str(FOLDER / "unet"), "out"], "model_index.json"),
        (["export", str(FOLDER), str(FOLDER)], "output must be a new or empty folder"),
        (["export", str(FOLDER), str(FOLDER / "README.md")], "README.md exists"),
    ],
)
def test_mistakes_are_explained(hub, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("sde-diffusers: error: ") and message in error and error.count("\n") == 1
    assert hub.requests == [] and not Path("out").exists()


@pytest.mark.parametrize(
    "path, content, message",
    [
        ("unet/config.json", b"{}", "`_class_name` in"),
        ("unet/config.json", b"[]", "must hold a JSON object"),
        ("unet/diffusion_pytorch_model.safetensors", b"\0" * 50, "no complete safetensors file"),
        ("unet/diffusion_pytorch_model.safetensors.index.json", b"{}", "`weight_map`"),
        ("model_index.json", b'{"_class_name": []}', "no complete pipeline"),
        ("optimizer.PT", b"", "pickles"),
        ("weights.pkl.gz", b"", "pickles"),
        ("forest.joblib", b"", "pickles"),
        ("table.npy", objects(), "pickles"),
        ("state.dat", pickle.dumps({"a": 1}), "pickles"),
        ("state.xyz", gzip.compress(pickle.dumps({"a": 1}), mtime=0), "pickles"),
        ("secret.txt", Path("/etc/hostname"), "links"),
        ("nowhere.txt", Path("nowhere"), "links"),
        ("folder", Path("/etc"), "links"),
    ],
)
def test_what_has_no_place_on_the_hub(capsys, tmp_path, path, content, message):
    (tmp_path / "p").mkdir()
    for file in FOLDER.rglob("*"):  # linked within tmp_path would be outside: copies
        if file.is_file():
            (tmp_path / "p" / file.relative_to(FOLDER)).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, tmp_path / "p" / file.relative_to(FOLDER))
    path = tmp_path / "p" / path
    path.symlink_to(content) if isinstance(content, Path) else path.write_bytes(content)
    assert main(["push", str(tmp_path / "p"), ID, "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sde-diffusers: error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("words", [["a/b/../c"], ["a b"], [ID, "--revision=a..b"]])
def test_a_dry_run_checks_names(capsys, words):
    assert main(["push", str(FOLDER), *words, "--dry-run"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


WITHOUT_AVERAGE = {"model": {"a": torch.zeros(1)}, "ema": None}


@pytest.mark.parametrize("content", [b"", b"hello", WITHOUT_AVERAGE, {1: torch.zeros(1)}])
def test_no_checkpoints(capsys, tmp_path, content):
    file = tmp_path / "w.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    assert main(["convert", "score_sde", str(file), str(tmp_path / "out"), "--config", "vp/ddpm/cifar10"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not re.match("sde-diffusers: error: [A-Z][a-z]+Error: ", error)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["push"],
        ["push", "a", "b", "--metric", "FID"],
        ["push", "a", "b", "--unknown"],
        ["push", "a", "b", "--max-gigabytes", "inf"],
        ["push-space", "a", "b"],
        ["export", "a"],
    ],
)
def test_arguments_are_checked(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_configurations_that_are_no_json(capsys, tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n")
    for source in ("score_sde", "edm"):
        arguments = ["convert", source, str(tmp_path / "w.pth"), str(tmp_path / "out")]
        assert main([*arguments, "--config", str(tmp_path / "x.png")]) == 1
        assert f"--config {tmp_path / 'x.png'} is no JSON file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["show"], ["convert", "diffusers"], ["convert", "export"]])
def test_a_folder_that_is_not_here_is_taken_for_an_id(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", refuse_connection)
    output = [] if arguments == ["show"] else [str(tmp_path / "out")]
    assert main([*arguments, "nowhere/at-all", *output]) == 1
    error = capsys.readouterr().err
    assert "There is no folder nowhere/at-all. The Hub" in error and "cannot be reached: refused" in error


def refuse_connection(*arguments, **options):
    raise ConnectionError("refused")


@pytest.mark.parametrize("arguments", [["--print-completion", "bash"], ["--help"]])
def test_a_closed_pipe_is_no_error(arguments):
    """As by `| head -1`, which reads no more."""
    if "--print-completion" in arguments:
        pytest.importorskip("shtab", reason="shtab is not installed")
    command = [sys.executable, "-m", "sde_diffusers.cli", *arguments]
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": buffered}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 141)


def test_a_pipe_that_a_command_finds_closed_is_no_error(monkeypatch, capsys):
    """In this process, since this one imports torch; what is left to write, Python gets rid of at its end."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["push", str(FOLDER), ID, "--dry-run"]) == 141
    assert capsys.readouterr().err == ""


def test_a_refused_token_is_explained(hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["push", str(FOLDER), ID]) == 1
    error = capsys.readouterr().err
    assert "401" in error and "hf auth login" in error


def test_a_failed_upload_names_the_file_and_the_cause(hub, capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.fail("PUT /lfs", times=1000, status=503)
    assert main(["push", str(FOLDER), ID]) == 1
    error = capsys.readouterr().err
    assert "503" in error and re.search(r"'\S+\.(png|safetensors)'", error)  # one of those sent at once


def test_push_space(hub, capsys, tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "app.py").write_text("print()\n")
    (folder / "requirements.txt").write_text("gradio\n")
    (folder / "README.md").write_text("---\nsdk: gradio\n---\n")
    arguments = ["push-space", str(folder), "tester/space", "--model", ID]
    assert main([*arguments, "--dry-run"]) == 0 and hub.requests == []
    assert main(arguments) == 0
    repository = hub.repositories["spaces", "tester/space"]
    assert repository.variables == {"MODEL_ID": ID} and "app.py" in repository.files()
    assert f"/spaces/tester/space/commit/{repository.branches['main']}" in capsys.readouterr().out
