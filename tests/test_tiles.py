"""Tiles that overlap: a network that sees no further than their seams answers as it would for the whole image."""

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn
from torch.nn.functional import conv2d

from sde_diffusers import NCSNppUNet2DModel, ScoreSdeExponentialScheduler, ScoreSdeRestorationPipeline
from sde_diffusers.models.tiles import Tiles
from sde_diffusers.operators import Downsampling
from sde_diffusers.posteriors import MMPS

KERNEL = torch.tensor([[0.2, 0.5, 0.1], [0.3, 1.5, 0.4], [0.1, 0.3, 0.2]]) / 3.6


class LocalNetwork(ModelMixin, ConfigMixin):
    """Answers with a nonlinear function of pixels at most one away."""

    accepts_float32_input = True

    @register_to_config
    def __init__(self, sample_size=16, in_channels=1, num_class_embeds=None, size_multiple=None):
        super().__init__()
        self.no_weight, self.largest = nn.Parameter(torch.zeros(1)), 0
        self.size_multiple = size_multiple

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        self.largest = max(self.largest, *sample.shape[2:])
        level = torch.as_tensor(timestep).to(sample) + 1
        return UNet2DOutput(sample=conv2d(sample / level, KERNEL[None, None].to(sample), padding=1).tanh())


def local_pipe(size_multiple=None):
    scheduler = ScoreSdeExponentialScheduler(
        sde="ve", sigma_max=20.0, prediction_type="sample", image_range=(-1, 1), solver_order=1, eta=1.0
    )
    pipe = ScoreSdeRestorationPipeline(unet=LocalNetwork(size_multiple=size_multiple), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("size", [(16, 16), (28, 40), (17, 9), (35, 23)])
@pytest.mark.parametrize("tile, overlap", [(16, 4), (16, 8), (12, 5), (64, 16)])
def test_a_network_that_sees_no_further_than_a_quarter_of_the_overlap(size, tile, overlap):
    network = LocalNetwork()
    x = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = network(x, 1.0).sample
    expected = torch.autograd.grad(whole, x, cotangent)[0]
    network.largest = 0
    answer = Tiles(tile, overlap).blended(lambda part: network(part, 1.0).sample, x)
    torch.testing.assert_close(answer, whole, rtol=0, atol=1e-6)  # weights are float32
    assert network.largest <= tile
    for _ in range(2):  # as the posterior methods take several products
        gradient = torch.autograd.grad(answer, x, cotangent, retain_graph=True)[0]
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


def test_restoration_in_tiles_is_that_of_whole_images():
    y = Downsampling(2)(torch.rand(1, 1, 24, 36, generator=torch.Generator().manual_seed(0)))

    def restored(pipe):
        generator = torch.Generator().manual_seed(1)
        options = {"image_size": (24, 36), "generator": generator, "output_type": "pt", "num_inference_steps": 4}
        return pipe(y, Downsampling(2), 0.05, MMPS(steps=2), **options).images

    expected = restored(local_pipe(size_multiple=1))
    pipe = local_pipe()
    with pytest.raises(ValueError, match=r"`image_size` means images of 24 x 36 .*but its own 16 x 16"):
        restored(pipe)
    pipe.enable_tiling(16)
    torch.testing.assert_close(restored(pipe), expected, rtol=0, atol=1e-4)
    assert pipe.unet.largest == 16
    pipe.disable_tiling()
    with pytest.raises(ValueError, match="image_size"):
        restored(pipe)


def test_gradients_pass_through_tiles_of_a_network():
    """Each is asked again for them, when the network has its gradients and dropout back."""
    network = NCSNppUNet2DModel(sample_size=8, in_channels=1, block_out_channels=(8,), dropout=0.5)
    torch.nn.init.normal_(network.conv_out.weight)
    scheduler = ScoreSdeExponentialScheduler(sde="ve")
    pipe = ScoreSdeRestorationPipeline(unet=network, scheduler=scheduler)
    x = torch.randn(1, 1, 8, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    gradients = []
    for mode in (True, False):
        network.train(mode)
        pipe.enable_tiling(8, 4)
        gradients += torch.autograd.grad(pipe.score(x, 0.3).square().sum(), x)
    assert gradients[0].abs().max() > 0 and torch.equal(*gradients)


def test_a_score_network_in_tiles_and_what_is_refused():
    unet = NCSNppUNet2DModel.from_preset("small-28").eval()
    pipe = ScoreSdeRestorationPipeline(
        unet=unet, scheduler=ScoreSdeExponentialScheduler(sde="ve", prediction_type="sample")
    )
    x = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    whole = pipe.denoise(x, 0.5)
    pipe.enable_tiling(28)
    assert torch.equal(pipe.denoise(x, 0.5), whole)  # one tile
    for wrong in (0, 4, 16.5, "16", None):
        with pytest.raises(ValueError, match="`tile_size`"):
            pipe.enable_tiling(wrong)
    for wrong in (0, 3, 15, 4.5):
        with pytest.raises(ValueError, match="`overlap`"):
            pipe.enable_tiling(28, wrong)
    pipe = local_pipe()
    pipe.enable_tiling(16, 6)
    with pytest.raises(ValueError, match="`tile_size` means images of 20 x 20"):
        pipe.enable_tiling(20)
    with pytest.raises(ValueError, match="`overlap`"):
        pipe.enable_tiling(16, 9)
    assert pipe.tiles == Tiles(16, 6)
