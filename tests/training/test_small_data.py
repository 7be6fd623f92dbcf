"""What makes small data go further, in whole runs: each is right, resumes bit for bit, and is off unless asked for."""

# ruff: noqa: F401, F811 (fixtures)

import json
import re
import shutil
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_training import ROOT, assert_same_bits, final_state, metrics, one_thread, run_here, start, tiny
from warm_python import ranks

import average
import evaluate
import train
from images.loading import load_images
from run.checkpoints import list_checkpoints
from run.config import read_config
from run.power_averages import gamma_of, list_snapshots
from run.training_run import TrainingRun
from sde_diffusers import ScoreSdePipeline

ALL = [
    "augmentation=0.3",
    "model.augment_dim=9",
    "learned_weighting=true",
    "power_averages.snapshot_every=4",
    "noise_levels=4",
    "validate_every=4",
    "checkpoint_every=6",
]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    torch.set_num_threads(1)
    return run_here(tiny, tmp_path_factory.mktemp("runs") / "whole", *ALL, "optimizer.lr=1e-2")


def snapshots(folder):
    return {
        (step, key): value for step, path in list_snapshots(folder).items() for key, value in load_file(path).items()
    }


def test_a_resumed_run_ends_with_the_same_bits(tiny, whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "run")
    middle, last = list_checkpoints(folder / "checkpoints")
    assert middle.name == "step-00000006"
    shutil.rmtree(last)  # what is compared is not what was copied
    run_here(tiny, folder, *ALL, "optimizer.lr=1e-2", f"resume={middle}")
    assert "Resumed from" in capsys.readouterr().out
    assert {file for file, _ in final_state(folder)} == {
        f"{name}.safetensors" for name in ("network", "ema", "optimizer", "learned_weighting", "power_averages")
    }
    assert_same_bits(final_state(folder), final_state(whole))
    assert list(list_snapshots(folder)) == [4, 8, 12]
    assert_same_bits(snapshots(folder), snapshots(whole))
    for name in ("loss", "validation_loss", "noise_level_losses"):
        assert metrics(folder, name) == metrics(whole, name)


def test_two_processes_and_micro_batches_follow_one_process(tiny, whole, tmp_path):
    processes = [start(tiny, tmp_path / "two", *ALL, "optimizer.lr=1e-2", **rank) for rank in ranks(2)]
    micro = run_here(tiny, tmp_path / "micro", *ALL, "optimizer.lr=1e-2", "gradient_accumulation_steps=3")
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0] and "on 2 x cpu" in outputs[0][0], outputs
    for folder in (micro, tmp_path / "two"):
        for name in ("loss", "grad_norm", "validation_loss"):
            one, other = metrics(whole, name), metrics(folder, name)
            assert one.keys() == other.keys()
            assert max(abs(one[step] - other[step]) for step in one) < 2e-4, (folder.name, name)
        for (file, key), value in final_state(folder).items():
            if file == "learned_weighting.safetensors":
                torch.testing.assert_close(value, final_state(whole)[file, key], rtol=1e-3, atol=1e-4)


def test_nothing_of_it_is_there_unless_asked_for(tiny, tmp_path):
    folder = run_here(tiny, tmp_path / "run", "steps=2", "validate_every=2")
    names = {path.name for path in list_checkpoints(folder / "checkpoints")[-1].iterdir()}
    assert names == {"network.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"}
    assert not (folder / "averages").exists() and not metrics(folder, "noise_levels")
    unet = ScoreSdePipeline.from_pretrained(folder / "pipeline").unet
    assert unet.config.augment_dim is None and unet.augment_embedding is None


def test_the_pipeline_has_the_augmentation_labels_and_needs_none(whole):
    pipe = ScoreSdePipeline.from_pretrained(whole / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.augment_dim == 9 and not any("weighting" in name for name in pipe.unet.state_dict())
    trained = load_file(list_checkpoints(whole / "checkpoints")[-1] / "network.safetensors")
    first = load_file(list_checkpoints(whole / "checkpoints")[0] / "network.safetensors")
    assert not torch.equal(trained["augment_embedding.weight"], first["augment_embedding.weight"])  # it learns
    assert pipe(batch_size=2, num_inference_steps=2, class_labels=[0, 9], output_type="pt").images.isfinite().all()


def test_learned_weights_are_in_the_gradient_and_not_in_the_loss_that_is_shown(tiny, tmp_path):
    """The first step's weights are 1, the second's are not."""
    plain, learned = (
        run_here(tiny, tmp_path / name, "steps=3", f"learned_weighting={name}") for name in ("false", "true")
    )
    for name in ("loss", "grad_norm"):
        one, other = metrics(plain, name), metrics(learned, name)
        assert one[1] == other[1]
    assert metrics(plain, "loss")[2] == metrics(learned, "loss")[2]  # the same weights, after one equal step
    assert metrics(plain, "grad_norm")[2] != metrics(learned, "grad_norm")[2]


# ---- averages afterwards -------------------------------------------------------------------------------------------


def test_average_writes_the_pipeline_of_any_width(tiny, tmp_path, capsys):
    steps = 20
    options = [f"steps={steps}", "power_averages.snapshot_every=5", "checkpoint_every=1", "checkpoints_limit=null"]
    folder = run_here(tiny, tmp_path / "run", *options, "optimizer.lr=1e-2")
    weights = [
        load_file(path / "network.safetensors")["conv_in.weight"] for path in list_checkpoints(folder / "checkpoints")
    ]
    assert len(weights) == steps

    def exact(sigma_rel):
        time, exponent = np.arange(1, steps + 1), gamma_of(sigma_rel) + 1
        profile = (time**exponent - (time - 1) ** exponent) / steps**exponent
        return sum(share * weight.double() for share, weight in zip(profile, weights, strict=True)).float()

    spread = (weights[0] - weights[-1]).abs().max()
    for sigma_rel, allowed in ((0.1, 1e-6), (0.15, 0.05)):
        target = tmp_path / f"average-{sigma_rel}"
        assert average.main([str(folder), f"sigma_rel={sigma_rel}", f"output_dir={target}"]) == 0
        assert "its profile differs from the power function by" in capsys.readouterr().out
        found = ScoreSdePipeline.from_pretrained(target).unet.conv_in.weight
        assert (found - exact(sigma_rel)).abs().max() < allowed * spread
    assert average.main([str(folder), "sigma_rel=0.1", f"output_dir={target}"]) == 1
    assert "exists: delete it or choose another" in capsys.readouterr().err
    for arguments, message in (
        (["sigma_rel=0.5"], "sigma_rel must be above 0 and at most 0.2887, but is 0.5"),
        (["sigma_rel=0.1", "step=7"], "step must be one of 5, 10, 15, 20, but is 7"),
    ):
        assert average.main([str(folder), *arguments, f"output_dir={tmp_path}/none"]) == 1
        assert message in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_averages_cannot_begin_in_the_middle(tiny, tmp_path, capsys):
    folder = run_here(tiny, tmp_path / "run", "steps=2")
    arguments = [str(tiny), f"output_dir={folder}", "steps=4", "resume=latest"]
    assert train.main([*arguments, "power_averages.snapshot_every=1"]) == 1
    assert "power_averages cannot begin in the middle of a run" in capsys.readouterr().err


# ---- measured on the images ----------------------------------------------------------------------------------------


def test_sigma_data_is_measured_once_and_kept(tiny, tmp_path, capsys):
    auto = ["model.sigma_data=auto", "scheduler.sigma_max=auto"]  # the objective's is that of the model, in tiny.yaml
    folder = run_here(tiny, tmp_path / "run", *auto, "steps=2")
    images = load_images(str(ROOT / "data" / "fashion_mnist"), max_images=300).images
    expected = (images.double() / 127.5).std().item()

    def kept():
        pipe = ScoreSdePipeline.from_pretrained(folder / "pipeline")
        config = read_config([str(folder / "config.yaml")])
        assert config.model["sigma_data"] == config.objective["sigma_data"] == pipe.unet.config.sigma_data
        return pipe.unet.config.sigma_data, pipe.scheduler.config.sigma_max

    first = kept()
    assert first[0] == pytest.approx(expected, rel=0.02)  # a tenth may be held out
    assert f"model.sigma_data: {first[0]:.4g}, from the training images" in capsys.readouterr().out
    run_here(tiny, folder, *auto, "steps=4", "resume=latest", "data.max_images=40")
    assert kept() == first and "from the training images" not in capsys.readouterr().out


# ---- distances, warnings, trackers ---------------------------------------------------------------------------------


def test_distances_in_training_are_those_of_evaluate(tiny, tmp_path):
    cache = tmp_path / "features"
    options = ["distance.features=fashion-mnist", "distance.num_images=120", "distance.num_inference_steps=3"]
    options += [f"distance.cache_dir={cache}", "distance_every=6", "power_averages.snapshot_every=0"]
    folder = run_here(tiny, tmp_path / "run", *options)
    measured = metrics(folder, "frechet_distance")
    assert list(measured) == [6, 12] and (folder / "figures" / "distance.png").exists()
    arguments = [f"data.dataset={ROOT}/data/fashion_mnist", "data.max_images=300", f"output_dir={tmp_path}/evaluation"]
    arguments += ["samples.num_images=120", "samples.num_inference_steps=3", "feature_spaces=[fashion-mnist]"]
    arguments += [f"cache_dir={cache}", "neighbors.num_images=0", "samples.batch_size=100"]
    assert evaluate.main([str(folder / "pipeline"), *arguments]) == 0
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())["results"]
    (expected,) = (r["value"] for r in results if r["metric"] == "frechet_distance")
    assert measured[12] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.pixel_levels=256", "data.uniform_dequantization=true"],
            "pixels have levels, which data.uniform_dequantization takes",
        ),
        (["distance_every=5"], "distance_every needs a feature network"),
        (["distance_every=5", "distance.features=vgg"], "distance.features must be one of .* but is 'vgg'"),
        (
            ["augmentation=0.1"],
            "augmentation needs a network that is told of it, model.augment_dim=9, but",
        ),
        (["noise_levels=8"], "noise_levels tells the validation loss apart, but there is none"),
        (["augmentation=2"], r"augmentation must be in \[0, 1\], but is 2"),
        (
            ["power_averages.sigma_rel=[0.05,0.3]"],
            "power_averages.sigma_rel must be numbers above 0",
        ),
        (["log_with=[tensorbored]"], "log_with must be a list of tensorboard, wandb, mlflow, none twice"),
        (["model.sigma_data=automatic"], "model: "),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tiny, tmp_path, capsys, overrides, message):
    assert train.main([str(tiny), f"output_dir={tmp_path}/run", *overrides]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_tracker_that_is_not_installed_is_named(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("run.trackers.find_spec", lambda name: None)
    assert train.main([str(tiny), f"output_dir={tmp_path}/run", "log_with=[wandb]"]) == 1
    assert "log_with: wandb is not installed: pip install wandb" in capsys.readouterr().err


def test_weights_and_biases_gets_all_numbers_and_the_pictures_as_bytes(tiny, tmp_path, monkeypatch):
    """A stand-in for wandb; the real one writes floats in [0, 1] as black."""
    logged, started = [], {}
    wandb = ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None)
    wandb.Image = lambda image: image
    wandb.config = SimpleNamespace(update=lambda values, **_: started.update(values))
    run = SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: logged.append("end"))
    wandb.init = lambda **options: started.update(options) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    options = ["log_with=[wandb]", "tracker_options.wandb.mode=offline", "tracker_options.wandb.project=mine"]
    folder = run_here(tiny, tmp_path / "run", *options, "steps=2", "sample_every=2")
    assert (started["project"], started["mode"], started["dir"]) == ("mine", "offline", str(folder))
    assert started["steps"] == 2 and started["model.patch_size"] == 4
    assert logged.pop() == "end"
    numbers = [(step, values) for step, values in logged if "grad_norm" in values]
    assert {step: values["loss"] for step, values in numbers} == metrics(folder)
    (samples,) = (values["samples"][0] for _, values in logged if "samples" in values)
    with Image.open(folder / "figures" / "samples-00000002.png") as image:
        assert samples.dtype == np.uint8 and (samples == np.asarray(image)).all()


def test_files_are_written_with_no_tracker(tiny, tmp_path):
    folder = run_here(tiny, tmp_path / "run", "log_with=[]", "steps=2", "sample_every=2")
    assert list(metrics(folder)) == [1, 2] and (folder / "figures" / "samples-00000002.png").exists()
    assert not (folder / "tensorboard").exists()


def test_overfitting_is_said_once(tiny, tmp_path, capsys, monkeypatch):
    """By a run whose losses are given: at the third validation above the lowest, and at the next one no more."""
    validations, train_step = iter((0.9, 0.8, 0.85, 0.9, 0.95, 1.0)), TrainingRun.train_step

    def falling(self, *batch):
        _, gradient_norm = train_step(self, *batch)
        return torch.tensor(1 / (1 + self.step)), gradient_norm

    monkeypatch.setattr(TrainingRun, "train_step", falling)
    monkeypatch.setattr("run.training_run.Validation.mean", lambda *_: [next(validations)])
    folder = run_here(tiny, tmp_path / "run", "steps=6", "validate_every=1")
    assert metrics(folder, "overfits_since") == {5: 2}
    error = capsys.readouterr().err
    assert error.count("the validation loss has risen since") == 1
    assert "Step 5: the validation loss has risen since step 2 while" in error
