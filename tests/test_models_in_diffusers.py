"""The network and the pipeline under diffusers' ways of loading, casting and placing."""

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from test_convert_diffusers import ddpm_unet

from sde_diffusers import NCSNppUNet2DModel, ScoreSdePipeline, ScoreSdeProbabilityFlowScheduler

NETWORKS = {
    "ncsnpp": {"progressive_input": "residual"},
    "ddpmpp": {
        "time_embedding_type": "positional",
        "fir": False,
        "scale_by_sigma": False,
        "image_range": (-1.0, 1.0),
    },
}


def pipeline(kind="ncsnpp"):
    torch.manual_seed(0)
    unet = NCSNppUNet2DModel(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, **NETWORKS[kind])
    for parameter in unet.parameters():  # some start at (nearly) zero, which would hide them
        parameter.data += 0.05 * torch.randn(parameter.shape)
    pipe = ScoreSdePipeline(
        unet=unet.eval(), scheduler=ScoreSdeProbabilityFlowScheduler(sde="ve" if kind == "ncsnpp" else "vp")
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def answer(unet):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return unet(torch.rand(2, 3, 8, 8, generator=generator), torch.tensor([0.3, 2.0])).sample


@pytest.fixture(params=NETWORKS)
def saved(request, tmp_path):
    """A pipeline and the folder to which it was saved."""
    pipe = pipeline(request.param)
    pipe.save_pretrained(tmp_path)
    return pipe, tmp_path


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_loading(saved, dtype, low_cpu_mem_usage):
    pipe, folder = saved
    options = {} if dtype is None else {"torch_dtype": dtype}
    unet = NCSNppUNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=low_cpu_mem_usage, **options)
    again = ScoreSdePipeline.from_pretrained(folder, low_cpu_mem_usage=low_cpu_mem_usage, **options)
    expected = pipe.unet if dtype is None else pipe.unet.to(dtype)
    for network in (unet, again.unet):
        assert network.dtype == (dtype or torch.float32)
        for key, value in expected.state_dict().items():  # Fourier frequencies keep their 32 bits in any dtype
            assert torch.equal(network.state_dict()[key], value), key
        assert torch.equal(answer(network), answer(expected))
    assert torch.isfinite(again(1, num_inference_steps=2, output_type="pt").images).all()


def test_dtypes_differ_by_rounding_alone(saved):
    pipe, folder = saved
    exact = answer(pipe.unet)
    half = answer(NCSNppUNet2DModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.bfloat16))
    assert half.dtype == torch.float32 and 0 < (half - exact).abs().max() < 0.05 * exact.abs().max()


def test_casting_a_pipeline(saved):
    """`pipe.to` takes device, dtype or both; the scheduler's arithmetic stays in single precision."""
    pipe, _ = saved
    for arguments in (("cpu", torch.float16), (torch.float32,), ("cpu",), (torch.bfloat16,)):
        assert pipe.to(*arguments) is pipe
    assert pipe.dtype == torch.bfloat16 and pipe.device == torch.device("cpu")
    images = pipe.to("cpu", torch.float16)(1, num_inference_steps=2, output_type="pt").images
    assert pipe.unet.dtype == torch.float16 and images.dtype == torch.float32 and torch.isfinite(images).all()


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}])
def test_device_maps_of_the_network(saved, device_map):
    pipe, folder = saved
    unet = NCSNppUNet2DModel.from_pretrained(folder, subfolder="unet", device_map=device_map)
    assert torch.equal(answer(unet), answer(pipe.unet))


def test_device_map_of_the_pipeline(saved):
    pipe, folder = saved
    again = ScoreSdePipeline.from_pretrained(folder, device_map="cpu")
    assert again.device == torch.device("cpu")
    assert torch.equal(answer(again.unet), answer(pipe.unet))


@pytest.mark.parametrize(
    "call",
    [
        lambda pipeline, network, folder: pipeline.from_pretrained(folder, device_map="nowhere"),
        lambda pipeline, network, folder: pipeline.from_pretrained(folder, device_map={"unet": "cpu"}),
        lambda pipeline, network, folder: pipeline.from_pretrained(folder, device_map="cpu", low_cpu_mem_usage=False),
        lambda pipeline, network, folder: pipeline.from_pretrained(folder, variant="fp16"),
        lambda pipeline, network, folder: pipeline.from_pretrained(folder).to("cpu", "float16"),
        lambda pipeline, network, folder: pipeline.from_pretrained(folder).enable_freeu(1, 1, 1, 1),
        lambda pipeline, network, folder: network.from_pretrained(folder, subfolder="nothing"),
        lambda pipeline, network, folder: network.from_pretrained(
            folder, subfolder="unet", device_map="cpu", low_cpu_mem_usage=False
        ),
    ],
)
def test_what_diffusers_refuses_is_refused(call, tmp_path):
    """With the same error as diffusers' own classes."""
    pipeline().save_pretrained(tmp_path / "ours")
    DDPMPipeline(unet=ddpm_unet(), scheduler=DDPMScheduler()).save_pretrained(tmp_path / "theirs")
    with pytest.raises(Exception) as theirs:  # noqa: PT011 (which error it is, diffusers says)
        call(DDPMPipeline, UNet2DModel, tmp_path / "theirs")
    with pytest.raises(theirs.type):
        call(ScoreSdePipeline, NCSNppUNet2DModel, tmp_path / "ours")


def test_dtypes_by_component(saved):
    _, folder = saved
    pipe = ScoreSdePipeline.from_pretrained(folder, torch_dtype={"unet": torch.bfloat16})
    assert pipe.unet.dtype == torch.bfloat16
