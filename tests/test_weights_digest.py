"""The digest that tells networks apart, and where it is written down."""

import hashlib
import json
import re
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from evaluation.samples import network_digest
from sde_diffusers import ScoreSdePipeline
from sde_diffusers.weights_digest import weights_digest

ROOT = Path(__file__).resolve().parents[1]


def network(weight=(1.0, 2.0), step=3, dtype=torch.float32, name="layer"):
    module = nn.Module()
    module.register_parameter(name, nn.Parameter(torch.tensor(weight, dtype=dtype)))
    module.register_buffer("step", torch.tensor(step))
    return module


def test_digest_is_that_of_names_and_values():
    expected = hashlib.sha256(b"layer" + struct.pack("<2f", 1, 2) + b"step" + struct.pack("<q", 3)).hexdigest()
    assert weights_digest(network()) == expected
    assert (
        weights_digest(network(), "{}")
        == hashlib.sha256(b"{}layer" + struct.pack("<2f", 1, 2) + b"step" + struct.pack("<q", 3)).hexdigest()
    )


@pytest.mark.parametrize(
    "change", [{"weight": (1.0, 2.5)}, {"step": 4}, {"name": "other"}, {"dtype": torch.float64}], ids=str
)
def test_digest_tells_networks_apart(change):
    assert weights_digest(network(**change)) != weights_digest(network())


def test_digest_is_the_same_in_every_memory_format():
    convolution = nn.Conv2d(4, 4, 3)
    before = weights_digest(convolution)
    assert weights_digest(convolution.to(memory_format=torch.channels_last)) == before


@pytest.mark.parametrize("name", ["fashion-mnist-ve", "fashion-mnist-subvp"])
def test_numbers_on_the_cards_are_of_the_shipped_networks(name):
    """What an evaluation's folder and a card hold from earlier counts as long as this digest stays."""
    card = (ROOT / "pretrained" / name / "README.md").read_text()
    unet = ScoreSdePipeline.from_pretrained(ROOT / "pretrained" / name).unet
    assert set(re.findall(r"^ +network: (\w+)$", card, re.MULTILINE)) == {network_digest(unet)}


def test_recorded_distances_are_of_the_shipped_network():
    recorded = json.loads((ROOT / "docs" / "sampler_distances.json").read_text())["network"]
    unet = ScoreSdePipeline.from_pretrained(ROOT / "pretrained" / "fashion-mnist-ve").unet
    assert weights_digest(unet).startswith(recorded)
