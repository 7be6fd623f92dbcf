"""The trainer's uploads: in the background, and never in its way."""

import threading

import numpy as np
import pytest
from huggingface_hub import HfApi, ModelCard
from loopback_hub import LoopbackHub
from tiny_training import one_thread, tiny  # noqa: F401

import sde_diffusers.hub
import train

OPTIONS = ["steps=4", "checkpoint_every=2", "sample_every=4", "push_to_hub=true"]
ID = "tester/tiny"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with LoopbackHub() as hub:
        hub.connect(monkeypatch, tmp_path / "home")
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield hub


def test_checkpoints_and_the_end_are_pushed(hub, tiny, tmp_path, capsys):  # noqa: F811
    folder = tmp_path / "run"
    options = [*OPTIONS, f"hub_model_id={ID}", "hub_private=true", "hub_license=mit", f"output_dir={folder}"]
    assert train.main([str(tiny), *options]) == 0
    repository = hub.model(ID)
    assert repository.private and repository.messages == ["initial commit", "Step 2 of 4", "Step 4 of 4"]
    files = repository.files()
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert files[weights] == (folder / "pipeline" / weights).read_bytes()
    earlier = list(repository.commits.values())[1]
    assert earlier[weights] != files[weights] and earlier[weights] == (folder / "pushed" / weights).read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit" and "4 of 4 steps" in card.text and "(samples.png)" in card.text
    assert files["samples.png"].startswith(b"\x89PNG") and "samples.png" not in earlier
    assert f"Pushed step 4 to the Hub: {hub.endpoint}/{ID}/commit/" in capsys.readouterr().out


@pytest.mark.parametrize("how", [{"status": 500}, {"cut": True}], ids=str)
def test_a_failed_upload_does_not_stop_training(hub, tiny, tmp_path, capsys, how):  # noqa: F811
    hub.fail("repos/create", times=1000, **how)
    folder = tmp_path / "run"
    assert train.main([str(tiny), *OPTIONS, "hub_private=true", f"output_dir={folder}"]) == 0
    assert (folder / "pipeline" / "model_index.json").exists() and not hub.repositories
    error = capsys.readouterr().err
    assert "Step 2 is not pushed to the Hub: " in error and "Step 4 is not pushed to the Hub: " in error
    assert f"sde-diffusers push {folder}/pipeline run --private\n" in error


def test_a_slow_upload_does_not_hold_training_up(hub, tiny, tmp_path, capsys, monkeypatch):  # noqa: F811
    """Steps are made, and later checkpoints not pushed, while the first upload hangs; at the end it is waited for."""
    push, release, pushed = sde_diffusers.hub.push_model, threading.Event(), []

    def slow_push(folder, repo_id, **options):
        if not pushed:
            assert release.wait(60)
        pushed.append(options["commit_message"])
        return push(folder, repo_id, **options)

    monkeypatch.setattr("run.publishing.push_model", slow_push)
    finish = train.Publisher.finish

    def release_and_finish(self, *arguments):
        assert pushed == []  # all steps are done, and the first upload is not
        release.set()
        finish(self, *arguments)

    monkeypatch.setattr(train.Publisher, "finish", release_and_finish)
    options = [*OPTIONS, "checkpoint_every=1", f"hub_model_id={ID}", f"output_dir={tmp_path / 'run'}"]
    assert train.main([str(tiny), *options]) == 0
    assert pushed == ["Step 1 of 4", "Step 4 of 4"] == hub.model(ID).messages[1:]
    out = capsys.readouterr().out
    assert "Step 2 is not pushed to the Hub: an earlier upload is not done yet" in out and "Step 3 is not" in out


def test_a_token_is_needed_before_training(hub, tiny, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.delenv("HF_TOKEN")
    assert train.main([str(tiny), *OPTIONS, f"output_dir={tmp_path / 'run'}"]) == 1
    assert "hf auth login" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("hub_model_id=a b/c", "hub_model_id=a b/c: `repo_id` must be"),
        ("hub_license=Apache 2", "`license` must be such"),
    ],
)
def test_what_the_hub_would_refuse_is_refused_before_training(hub, tiny, tmp_path, capsys, word, message):  # noqa: F811
    assert train.main([str(tiny), *OPTIONS, word, f"output_dir={tmp_path / 'run'}"]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_file_of_images_is_no_data_set_of_the_hub(hub, tiny, tmp_path):  # noqa: F811
    source = tmp_path / "private place" / "scans.npy"
    source.parent.mkdir()
    np.save(source, np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8))
    words = [f"data.dataset={source}", "data.max_images=null", "model.num_class_embeds=null", "label_dropout=0"]
    words += [f"hub_model_id={ID}", f"output_dir={tmp_path / 'run'}"]
    assert train.main([str(tiny), *OPTIONS, *words]) == 0
    card = ModelCard(hub.model(ID).files()["README.md"].decode())
    assert card.data.datasets is None and "`scans.npy`" in card.text and "private place" not in card.text


def test_a_card_written_by_hand_keeps_its_text(hub, tiny, tmp_path):  # noqa: F811
    api = HfApi()
    api.create_repo(ID)
    text = "---\nlicense: mit\n---\n\n# Mine\n\nWritten by hand.\n"
    api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=ID)
    assert train.main([str(tiny), *OPTIONS, f"hub_model_id={ID}", f"output_dir={tmp_path / 'run'}"]) == 0
    files = hub.model(ID).files()
    assert "Written by hand." in files["README.md"].decode() and "model_index.json" in files
