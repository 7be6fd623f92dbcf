"""Networks compile whole: no break in the graph, and no second compilation from step to step."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from sde_diffusers import (
    VESDE,
    DenoisingScoreMatching,
    NCSNppUNet2DModel,
    NoiseConditionalClassifier,
    Parameterization,
)

SHAPE = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8, 8), "layers_per_block": 1}
NETWORKS = {
    "NCSN++": {"progressive_input": "residual", "dropout": 0.1, "num_class_embeds": 3},
    "DDPM": {"time_embedding_type": "positional", "resblock_type": "ddpm", "fir": False, "scale_by_sigma": False},
    "EDM": {
        "preconditioning": "edm",
        "fir": False,
        "scale_by_sigma": False,
        "patch_size": 2,
        "image_range": (-1.0, 1.0),
    },
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NETWORKS)
def test_training_and_sampling_are_one_graph_each(name):
    options = NETWORKS[name]
    network = NCSNppUNet2DModel(attention_resolutions=(4,), **SHAPE, **options)
    asked = "sample" if name == "EDM" else "score"
    objective = DenoisingScoreMatching(Parameterization(VESDE(), asked, "sigma", network.config.image_range))
    counter = CompileCounter()
    network.compile(backend=counter, fullgraph=True)  # which raises where the graph would break
    optimizer = torch.optim.AdamW(network.parameters())
    labels = torch.tensor([0, -1]) if "num_class_embeds" in options else None
    for _ in range(3):
        x = torch.rand(2, 1, 8, 8)
        objective(network, x, torch.randn_like(x), objective.draw_times(2), labels).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert counter.frame_count == 1
    network.eval()
    for sigma in (50.0, 1.0, 0.01):
        with torch.no_grad():
            network(torch.randn(2, 1, 8, 8), torch.tensor(sigma), labels)
    assert counter.frame_count == 2


def test_a_classifier_is_one_graph():
    counter = CompileCounter()
    network = NoiseConditionalClassifier(sample_size=8, in_channels=1, num_classes=3, block_out_channels=(8, 8))
    network.compile(backend=counter, fullgraph=True)
    for level in (0.1, 1.0, 10.0):
        network(torch.rand(2, 1, 8, 8), torch.full((2,), level)).sum().backward()
    assert counter.frame_count == 1
