"""The classifier's trainer; what it shares with the score network's is tested in test_train.py."""

import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_training import assert_same_bits, final_state, metrics, one_thread  # noqa: F401

import train_classifier
from run.classifier_config import read_classifier_config
from run.yaml_config import ConfigError
from sde_diffusers import NoiseConditionalClassifier
from train_classifier import NoisyClassification, check_classifier

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "training" / "classifier_configs").glob("*.yaml"))
TINY = f"""
data: {{dataset: {ROOT}/data/fashion_mnist, max_images: 300, validation_images: 30}}
model: {{block_out_channels: [8], layers_per_block: 1, patch_size: 4}}
noise: {{sigma_min: 0.01, sigma_max: 1.0}}
optimizer: {{lr: 1.0e-2}}
ema: {{decay: 0.9}}
mixed_precision: "no"
steps: 8
batch_size: 12
log_every: 1
validate_every: 0
checkpoint_every: 0
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(TINY)
    return path


def run_here(config, folder, *overrides):
    assert train_classifier.main([str(config), f"output_dir={folder}", *overrides]) == 0
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_valid(path):
    check_classifier(read_classifier_config([str(path)]))


def test_learns_and_reports_accuracy_at_every_noise_level(tiny, tmp_path):
    images = ["data.max_images=1000", "data.validation_images=100"]
    options = [*images, "steps=60", "batch_size=48", "validate_every=30", "model.block_out_channels=[16]"]
    folder = run_here(tiny, tmp_path / "run", *options)
    losses = list(metrics(folder).values())
    assert losses[0] == pytest.approx(math.log(10), abs=1) and sum(losses[-10:]) < 0.85 * sum(losses[:10])
    clean, noisy = metrics(folder, "accuracy/0.01"), metrics(folder, "accuracy/1")
    assert list(clean) == list(noisy) == [30, 60]
    assert clean[60] > 0.25 and clean[60] >= noisy[60]  # a guess: 0.1
    assert 0.1 <= metrics(folder, "accuracy")[60] <= 1
    assert {path.name for path in (folder / "figures").iterdir()} == {"accuracy.png", "loss.png"}
    with Image.open(folder / "figures" / "accuracy.png") as image:
        assert len(image.convert("L").getcolors(256)) > 10
    classifier = NoiseConditionalClassifier.from_pretrained(folder / "classifier")
    assert (classifier.config.sample_size, classifier.config.in_channels, classifier.config.num_classes) == (28, 1, 10)
    averaged = {key[1]: value for key, value in final_state(folder).items() if key[0] == "ema.safetensors"}
    assert_same_bits(dict(classifier.state_dict()), averaged)
    assert (folder / "best" / "config.json").exists()


def test_a_resumed_run_follows_an_uninterrupted_one(tiny, tmp_path):
    whole = run_here(tiny, tmp_path / "whole", "model.dropout=0.1")
    folder = run_here(tiny, tmp_path / "run", "model.dropout=0.1", "steps=5")
    (folder / "classifier").rename(tmp_path / "earlier")
    run_here(tiny, folder, "model.dropout=0.1", "resume=latest")
    assert_same_bits(final_state(folder), final_state(whole))
    assert metrics(folder) == metrics(whole)


def test_a_finished_run_is_not_overwritten(tiny, tmp_path, capsys):
    folder = run_here(tiny, tmp_path / "run", "steps=1")
    assert train_classifier.main([str(tiny), f"output_dir={folder}"]) == 1
    assert "holds a run" in capsys.readouterr().err
    assert train_classifier.main([str(tiny), f"output_dir={folder}", "resume=latest", "model.patch_size=2"]) == 1
    assert "model.patch_size was 4 when the checkpoint was written and is 2 now" in capsys.readouterr().err


def test_noise_levels_are_log_uniform():
    objective = NoisyClassification(0.01, 10.0)
    times = objective.draw_times(1000, torch.Generator().manual_seed(0))
    levels = objective.noise_level(times, torch.zeros(1))
    assert levels.dtype == torch.float32 and not torch.equal(times, times.sort()[0])
    quarters = torch.histc(levels.log10(), 3, min=-2, max=1)
    assert (quarters - 1000 / 3).abs().max() <= 1


def test_the_loss_is_that_of_images_with_that_noise():
    objective = NoisyClassification(0.01, 10.0)
    x_0, noise = torch.rand(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    times, labels = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), torch.tensor([0, 1, 0])

    def network(x, level):
        expected = torch.tensor([0.01, 0.1**0.5, 10.0])
        torch.testing.assert_close(level, expected)
        torch.testing.assert_close(x, x_0 + expected[:, None, None, None] * noise)
        return torch.tensor([[0.0, 0.0], [0.0, 2.0], [3.0, 0.0]])

    expected = torch.tensor([math.log(2), math.log(1 + math.exp(-2)), math.log(1 + math.exp(-3))])
    torch.testing.assert_close(objective(network, x_0, noise, times, labels), expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("noise.sigma_mn=1", r"noise\.sigma_mn is not a key. Did you mean sigma_min"),
        ("noise.sigma_min=-1", r"noise\.sigma_min must be a finite number above 0"),
        ("noise.sigma_min=2", r"noise\.sigma_min must be below noise\.sigma_max = 1\.0, but is 2\.0"),
        ("model.widths=[8]", r"model\.widths is not a key"),
        ("model.dropout=2", r"model: `dropout` must be in \[0, 1\)"),
        (
            "model.value_dtype=uint16",
            r"model\.value_dtype is what the images say, but is given as uint16: leave it out",
        ),
        ("label_dropout=0.1", "label_dropout is not a key"),
    ],
)
def test_refuses_configuration(tiny, override, message):
    with pytest.raises(ConfigError, match=message):
        check_classifier(read_classifier_config([str(tiny), "output_dir=x", override]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_classes=3", "model.num_classes is 3, but .* has the label"),
        ("model.in_channels=3", "model.in_channels is 3, but the images have 1"),
        ("model.sample_size=32", "model.sample_size is 32, but the images have 28"),
    ],
)
def test_refuses_before_any_work(tiny, tmp_path, capsys, override, message):
    assert train_classifier.main([str(tiny), f"output_dir={tmp_path}/run", override]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_images_without_classes_are_refused(tiny, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(30):
        Image.new("L", (8, 8), 8 * k).save(folder / f"{k}.png")
    arguments = [str(tiny), f"output_dir={tmp_path}/run", f"data.dataset={folder}"]
    assert train_classifier.main(arguments) == 1
    assert "no labels: there is nothing to classify" in capsys.readouterr().err
