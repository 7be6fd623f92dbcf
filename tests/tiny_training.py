"""Trainings of a few seconds: their configuration, and how they are started and compared."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from warm_python import WarmPython

import train
from run.checkpoints import list_checkpoints

ROOT = Path(__file__).resolve().parents[1]
TINY = f"""
data: {{dataset: {ROOT}/data/fashion_mnist, max_images: 300, validation_images: 30}}
model:
  block_out_channels: [8]
  layers_per_block: 1
  attention_resolutions: []
  patch_size: 4
  fir: false
  scale_by_sigma: false
  fourier_scale: 1.0
  image_range: [-1.0, 1.0]
  preconditioning: edm
  sigma_data: 0.7
  num_class_embeds: 10
scheduler:
  {{sde: ve, sigma_min: 0.002, sigma_max: 80.0, prediction_type: sample, time_input: sigma, image_range: [-1.0, 1.0]}}
objective: {{objective: edm, sigma_data: "${{model.sigma_data}}"}}
optimizer: {{lr: 2.0e-3, warmup_steps: 5, decay_fraction: 0.5}}
ema: {{decay: 0.9}}
samples: {{num_inference_steps: 3, rows: 1}}
label_dropout: 0.1
mixed_precision: "no"
steps: 12
batch_size: 12
log_every: 1
validate_every: 0
sample_every: 0
checkpoint_every: 0
"""


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-for-bit comparisons with other processes need the same number of threads in all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(TINY)
    return path


def run_here(config, folder, *overrides):
    """A run in this process, whose loss curve and strip of noise are one pixel: they take longer than the training."""
    with pytest.MonkeyPatch.context() as patch:
        for drawing in ("train.noising_strip", "run.log.loss_curve"):
            patch.setattr(drawing, lambda *_: Image.new("RGB", (1, 1)))
        assert train.main([str(config), f"output_dir={folder}", *overrides]) == 0
    return folder


def start(config, folder, *overrides, launcher=(), **variables):
    command = [str(ROOT / "training" / "train.py"), str(config), f"output_dir={folder}", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    if not launcher:
        return WarmPython(command, environment, folder.parent)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *launcher, *command], env=environment, cwd=folder.parent, **pipes)


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def metrics(folder, name="loss"):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record[name] for record in records if name in record}


def final_state(folder):
    """All tensors of the last checkpoint: weights, averaged weights and moments."""
    last = list_checkpoints(folder / "checkpoints")[-1]
    return {(path.name, key): value for path in last.glob("*.safetensors") for key, value in load_file(path).items()}


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
