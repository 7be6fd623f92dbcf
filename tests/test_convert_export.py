"""VP models exported to plain diffusers: the same network, the same samples."""

import json

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel
from test_convert_diffusers import ddpm_unet

from sde_diffusers import NCSNppUNet2DModel, ScoreSdePipeline, ScoreSdeProbabilityFlowScheduler
from sde_diffusers.convert import from_diffusers, to_diffusers

DDPM = {
    "sample_size": 16,
    "block_out_channels": (8, 8, 16),
    "layers_per_block": 1,
    "attention_resolutions": (8,),
    "resblock_type": "ddpm",
    "time_embedding_type": "positional",
    "fir": False,
    "scale_by_sigma": False,
    "image_range": (-1.0, 1.0),
    "skip_rescale": False,
    "norm_num_groups": 4,
}


def network(**changes):
    torch.manual_seed(0)
    unet = NCSNppUNet2DModel(**{**DDPM, **changes}).eval()
    for parameter in unet.parameters():  # some start at (nearly) zero, which would hide them
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return unet


def pipeline(unet=None, **scheduler):
    scheduler = {"sde": "vp_discrete", "method": "euler", "time_grid": "uniform", **scheduler}
    unet = network() if unet is None else unet
    pipe = ScoreSdePipeline(unet=unet, scheduler=ScoreSdeProbabilityFlowScheduler(**scheduler))
    pipe.set_progress_bar_config(disable=True)
    return pipe


# DDIM's "trailing" times of ten steps: labels 999, 899, ..., 99.
@pytest.mark.parametrize(
    "scheduler",
    [
        {"sde": "vp_discrete", "sampling_eps": 0.1},
        {"sde": "vp_discrete", "sampling_eps": 0.1, "trained_betas": torch.linspace(2e-4, 0.01, 1000).tolist()},
        {"sde": "vp_discrete", "sampling_eps": 0.1, "prediction_type": "v_prediction"},
        {"sde": "vp", "sampling_eps": 99 / 999},
        {"sde": "vp", "sampling_eps": 99 / 999, "beta_max": 10.0},
    ],
)
def test_ddim_draws_the_same_images(scheduler, tmp_path):
    pipe = pipeline(**scheduler)
    to_diffusers(pipe, tmp_path / "exported")
    exported = DDIMPipeline.from_pretrained(tmp_path / "exported")
    exported.set_progress_bar_config(disable=True)
    x, labels = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(exported.unet(x, labels).sample, pipe.unet(x, labels).sample, rtol=0, atol=1e-5)
    theirs = exported(2, num_inference_steps=10, generator=torch.Generator().manual_seed(0), output_type="np").images
    ours = pipe(2, num_inference_steps=10, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert exported.scheduler.timesteps.tolist() == pipe.scheduler.timesteps.round().tolist()
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3)


def test_the_folder_needs_diffusers_alone(tmp_path):
    to_diffusers(pipeline(sde="vp"), tmp_path / "exported")
    index = json.loads((tmp_path / "exported" / "model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline" and index["unet"] == ["diffusers", "UNet2DModel"]
    assert not list((tmp_path / "exported").rglob("*.py")) and [p.name for p in tmp_path.iterdir()] == ["exported"]
    exported = DDPMPipeline.from_pretrained(tmp_path / "exported")
    exported.set_progress_bar_config(disable=True)
    assert exported(1, num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda unet: unet.to(torch.bfloat16),
        lambda unet: unet.to(torch.float16),
        lambda unet: unet.train(),
        torch.compile,
        lambda unet: torch.compile(unet.to(torch.bfloat16).train()),
    ],
    ids=["bfloat16", "float16", "training", "compiled", "all"],
)
def test_precision_mode_and_compiling_do_not_matter(change, tmp_path):
    """The comparison is one of weights' places; the export has the network's precision, and leaves it as it is."""
    unet = change(network(dropout=0.5))
    mode, dtype = unet.training, next(unet.parameters()).dtype
    exported = to_diffusers(pipeline(unet, sde="vp"), tmp_path / "exported").unet
    assert unet.training is mode and next(unet.parameters()).dtype is dtype
    assert type(exported) is UNet2DModel and not exported.training
    assert {parameter.dtype for parameter in exported.parameters()} == {dtype}
    original = network(dropout=0.5).to(dtype).float()
    x, labels = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        answers = exported.float()(x, labels).sample, original(x, labels).sample
    torch.testing.assert_close(*answers, rtol=0, atol=1e-4)
    assert DDPMPipeline.from_pretrained(tmp_path / "exported", torch_dtype=dtype).unet.dtype is dtype


def test_there_and_back(tmp_path):
    """A network of diffusers goes out as it came; an exported one comes back with the same SDE."""
    unet = ddpm_unet()
    exported = to_diffusers(pipeline(unet), tmp_path / "theirs")
    assert exported.unet is unet
    with pytest.raises(ValueError, match="`num_class_embeds`=3"):
        to_diffusers(pipeline(ddpm_unet(num_class_embeds=3)), tmp_path / "classes")
    to_diffusers(pipeline(), tmp_path / "ours")
    again = from_diffusers(tmp_path / "ours")
    assert type(again.unet) is UNet2DModel
    t = torch.tensor([0.001, 0.5, 1.0])
    torch.testing.assert_close(again.scheduler.sde.alpha(t), pipeline().scheduler.sde.alpha(t), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "changes",
    [
        {"preconditioning": "edm"},
        {"patch_size": 2},
        {"image_range": (0.0, 1.0)},
        {"scale_by_sigma": True, "time_embedding_type": "fourier"},
        {"time_embedding_type": "fourier"},
        {"num_class_embeds": 3},
        {"resblock_type": "biggan"},
        {"fir": True},
        {"resample_with_conv": False},
        {"skip_rescale": True},
        {"progressive": "output_skip"},
        {"progressive_input": "residual"},
        {"base_channels": 4},
        {"norm_num_groups": None, "block_out_channels": (8, 16, 32)},
        {"sample_size": 14, "attention_resolutions": ()},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_networks_that_diffusers_lacks_are_refused(changes, tmp_path):
    name, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=f"`{name}`="):
        to_diffusers(pipeline(NCSNppUNet2DModel(**{**DDPM, **changes})), tmp_path / "exported")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("scheduler", "name"),
    [
        ({"sde": "ve"}, "sde"),
        ({"sde": "sub_vp"}, "sde"),
        ({"sde": "vp", "prediction_type": "score"}, "prediction_type"),
        ({"sde": "vp", "image_range": (0, 1)}, "image_range"),
        ({"sde": "vp", "time_input": "t"}, "time_input"),
        ({"sde": "vp_discrete", "time_input": "999t"}, "time_input"),
    ],
)
def test_schedulers_that_diffusers_lacks_are_refused(scheduler, name, tmp_path):
    with pytest.raises(ValueError, match=f"`{name}`="):
        to_diffusers(pipeline(**scheduler), tmp_path / "exported")


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "exported.tmp").mkdir()
    to_diffusers(pipeline(), tmp_path / "exported")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "exported.tmp"]
    with pytest.raises(FileExistsError, match="exists"):
        to_diffusers(pipeline(), tmp_path)


def test_parts_and_depths_that_diffusers_lacks_are_refused(tmp_path):
    pipe = pipeline()
    pipe.register_modules(guide=network())
    with pytest.raises(ValueError, match="`guide`='NCSNppUNet2DModel'.*must be None"):
        to_diffusers(pipe, tmp_path / "guided")
    with pytest.raises(ValueError, match="`value_dtype`='uint16'"):
        to_diffusers(pipeline(network(value_dtype="uint16")), tmp_path / "deep")
    with pytest.raises(ValueError, match=r"`value_range`=\(0, 127\); it must be None or \(0, 255\)"):
        to_diffusers(pipeline(network(value_range=(0, 127))), tmp_path / "dark")
    assert not list(tmp_path.iterdir())
