"""No evaluation of a network makes a GPU wait for the host; torch's meta device stands for the GPU."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import host_waits  # noqa: E402

from sde_diffusers import (  # noqa: E402
    NCSNppUNet2DModel,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdeProbabilityFlowScheduler,
)

UNET = {"sample_size": 8, "in_channels": 2, "block_out_channels": (8, 8), "layers_per_block": 1, "num_class_embeds": 3}


def on_gpu():
    with host_waits.GPU:
        return NCSNppUNet2DModel(attention_resolutions=(), **UNET)


def test_waits_are_counted():
    def work():
        x = torch.zeros(3).to(host_waits.GPU) + torch.tensor([1.0, 2.0, 3.0], device=host_waits.GPU)
        return x + torch.ones(3).to(host_waits.GPU, non_blocking=True)

    count = host_waits.counted(work)
    assert count.waits == {"cpu -> meta": 1, "torch.tensor on the GPU": 1} and count.operations >= 4


@pytest.mark.parametrize("sampler", host_waits.SAMPLERS)
def test_sampling(sampler):
    cls, options = host_waits.SAMPLERS[sampler]
    sampling_sde, guided = (None, {}) if "Heun" in sampler else ("vp", {"class_labels": 1, "guidance_scale": 2.0})
    scheduler = cls(sde="ve", sampling_sde=sampling_sde, **options)
    waits, operations = host_waits.of_sampling(on_gpu().eval(), scheduler, **guided)
    assert waits == 0 and operations > 0


def test_likelihood_and_training():
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="ve")
    assert host_waits.of_likelihood(on_gpu(), scheduler)[0] == 0
    assert host_waits.of_training(on_gpu(), scheduler)[0] == 0


@pytest.mark.parametrize("method", host_waits.POSTERIOR_METHODS)
def test_restoration(method):
    unet, scheduler = on_gpu(), ScoreSdeProbabilityFlowScheduler(sde="ve")
    made, operators = host_waits.POSTERIOR_METHODS[method](), host_waits.operators_of(8)
    of_blur = 0.0 if method == "projection" else 0.05  # which takes exact measurements alone of a blur
    for operator, noise_std in ((operators["mask"], [0.05, 0.1]), (operators["blur"], of_blur)):
        assert host_waits.of_restoration(unet, scheduler, made, operator, noise_std)[0] == 0


def test_shapes_alone_are_sampled():
    """On the meta device there are no values that could be looked at."""
    with torch.device("meta"):
        unet = NCSNppUNet2DModel.from_preset("small-28")
    pipe = ScoreSdePipeline(unet=unet, scheduler=ScoreSdeExponentialScheduler(sde="ve", prediction_type="sample"))
    pipe.set_progress_bar_config(disable=True)
    images = pipe(2, 3, output_type="latent").images
    assert images.is_meta and images.shape == (2, 1, 28, 28)
