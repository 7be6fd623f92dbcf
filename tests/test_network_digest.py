"""One digest for what is drawn, measured and shown of a network."""

from pathlib import Path

import torch
from huggingface_hub import ModelCard

from sde_diffusers import NCSNppUNet2DModel, ScoreSdePipeline
from sde_diffusers.models.network_digest import network_digest

PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"


def make_network():
    torch.manual_seed(0)
    return NCSNppUNet2DModel(sample_size=8, in_channels=1, block_out_channels=(8, 8), layers_per_block=1)


def test_equal_weights_have_the_same_digest_and_others_another():
    network, digest = make_network(), network_digest(make_network())
    assert network_digest(network) == digest and len(digest) == 64 and int(digest, 16)
    assert network_digest(network.to(memory_format=torch.channels_last).eval()) == digest
    with torch.no_grad():
        network.conv_in.weight[0, 0, 0, 0] += 1e-6
    assert network_digest(network) != digest
    assert network_digest(make_network().half()) != digest


def test_names_count():
    """Layers of one shape, swapped."""
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    digests = {
        network_digest(torch.nn.ModuleDict(layers)) for layers in ({"a": one, "b": other}, {"b": one, "a": other})
    }
    assert len(digests) == 2


def test_a_configuration_counts_less_where_it_was_loaded_from():
    network = make_network()
    digest = network_digest(network, network.config)
    assert digest != network_digest(network)
    assert network_digest(network, {**network.config, "_name_or_path": "elsewhere"}) == digest
    assert network_digest(network, {**network.config, "image_range": (-1, 1)}) != digest


def test_published_figures_are_of_the_weights_that_ship():
    """The card's results name the network that they were measured with."""
    unet = ScoreSdePipeline.from_pretrained(PRETRAINED / "fashion-mnist-ve").unet
    results = ModelCard.load(PRETRAINED / "fashion-mnist-ve" / "README.md").data.eval_results
    named = {
        result.metric_args["network"] for result in results if result.metric_args and "network" in result.metric_args
    }
    assert named == {network_digest(unet, unet.config)[:12]}
