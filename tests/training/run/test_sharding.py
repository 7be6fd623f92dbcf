"""Networks in shards compute what whole ones do; test_train.py trains them with several processes."""

import copy

import pytest
import torch
import torch.distributed as dist

from run.sharding import gathered, shard, shard_of, shard_size, whole
from sde_diffusers import NCSNppUNet2DModel, NoiseConditionalClassifier

SMALL = {"sample_size": 16, "block_out_channels": (8, 16), "attention_resolutions": (8,)}


@pytest.fixture(autouse=True)
def one_process(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def unet(**options):
    torch.manual_seed(0)
    return NCSNppUNet2DModel(**{**SMALL, **options})


NETWORKS = {
    "NCSN++": lambda: unet(progressive_input="residual", progressive="output_skip"),
    "DDPM++": lambda: unet(fir=False, time_embedding_type="positional", scale_by_sigma=False),
    "classes, patches": lambda: unet(num_class_embeds=3, patch_size=2),
    "classifier": lambda: NoiseConditionalClassifier(sample_size=16, num_classes=3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_whole_network(name):
    network = NETWORKS[name]().to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in network.parameters():  # no layer starts at zero
            parameter.add_(0.05 * torch.randn_like(parameter))
    sharded = copy.deepcopy(network)
    shard(sharded, torch.device("cpu"), reshard_after_forward=True)
    assert shard_size(network) is None and shard_size(sharded) == sum(p.numel() for p in network.parameters())

    x, levels = torch.randn(2, network.config.in_channels, 16, 16), torch.tensor([0.5, 2.0])
    gradients = []
    for module in (network, sharded):
        output = module(x, levels)
        getattr(output, "sample", output).square().mean().backward()
        gradients.append({key: whole(p.grad) for key, p in module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-4, atol=1e-6)


def test_shards_are_put_together_for_a_while():
    network, average = unet(), unet().requires_grad_(False)
    shard(network, torch.device("cpu"), reshard_after_forward=False)
    shards = [shard_of(p, like) for p, like in zip(average.parameters(), network.parameters(), strict=True)]
    expected = [p.clone() for p in average.parameters()]
    for parameter in average.parameters():
        parameter.zero_()
    with gathered(average, shards):
        assert all(torch.equal(p, q) for p, q in zip(average.parameters(), expected, strict=True))
    assert all(type(whole(shard)) is torch.Tensor for shard in shards)
