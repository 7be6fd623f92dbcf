"""The network: every configuration runs, and does what its configuration says."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from diffusers.training_utils import EMAModel
from torch import nn

from sde_diffusers.models.group_norm import GroupNorm, HalfGroupNorm
from sde_diffusers.models.layers import (
    Downsample,
    Dropout,
    ResidualBlock,
    Upsample,
    fir_downsample,
    fir_upsample,
)
from sde_diffusers.models.presets import NCSNPP_PRESETS
from sde_diffusers.models.unet_ncsnpp import NCSNppUNet2DModel

SMALL = {"sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1, "attention_resolutions": (8,)}


def build(**config):
    torch.manual_seed(0)
    return NCSNppUNet2DModel(**{**SMALL, **config}).eval()


def lively(**config):
    """A network whose output depends on everything: by default the last convolutions start at (nearly) zero."""
    return build(**{"init_scale": 1.0, **config})


def images(n=2, channels=3, size=16):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


COMBINATIONS = [
    combination
    for combination in itertools.product(
        ["biggan", "ddpm"],
        [True, False],
        ["none", "output_skip", "residual"],
        ["none", "input_skip", "residual"],
        ["sum", "cat"],
    )
    if combination[3] == "input_skip" or combination[4] == "sum"
]


@pytest.mark.parametrize("size", [16, 13])
@pytest.mark.parametrize("resblock_type, fir, progressive, progressive_input, progressive_combine", COMBINATIONS)
def test_every_combination_runs_forward_and_backward(
    resblock_type, fir, progressive, progressive_input, progressive_combine, size
):
    unet = lively(
        block_out_channels=(8, 12, 16),
        resblock_type=resblock_type,
        fir=fir,
        progressive=progressive,
        progressive_input=progressive_input,
        progressive_combine=progressive_combine,
    )
    x = images(size=size).requires_grad_()
    out = unet(x, torch.tensor([0.1, 3.0])).sample
    assert out.shape == x.shape and out.isfinite().all()
    out.square().sum().backward()
    assert x.grad.abs().sum() > 0
    without_gradient = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without_gradient


@pytest.mark.parametrize("name", NCSNPP_PRESETS)
def test_presets_build(name):
    with torch.device("meta"):
        unet = NCSNppUNet2DModel.from_preset(name)
    assert unet.config.sample_size in (28, 32, 64, 256)


def test_parameter_counts_of_the_paper():
    def millions(name):
        with torch.device("meta"):
            unet = NCSNppUNet2DModel.from_preset(name)
        return sum(p.numel() for p in unet.parameters()) / 1e6

    assert millions("cifar10-ncsnpp-continuous") == pytest.approx(62.76, abs=0.005)
    assert millions("cifar10-ncsnpp-deep-continuous") == pytest.approx(107.6, abs=0.05)
    assert millions("small-28") < 2.5


def test_preset_overrides_and_unknown_presets():
    assert NCSNppUNet2DModel.from_preset("small-28", block_out_channels=(8, 8)).config.block_out_channels == (8, 8)
    with pytest.raises(ValueError, match="small-28"):
        NCSNppUNet2DModel.from_preset("small-27")


@pytest.mark.parametrize("name, size", [("small-28", 28), ("small-32", 32), ("small-64", 64)])
def test_small_presets_run(name, size):
    unet = NCSNppUNet2DModel.from_preset(name, block_out_channels=(8, 8, 8))
    x = images(channels=unet.config.in_channels, size=size)
    assert unet(x, 0.5).sample.shape == x.shape


@pytest.mark.parametrize(
    "config",
    [
        {"in_channels": 1},
        {"in_channels": 5, "out_channels": 2},
        {"block_out_channels": (4, 6, 10)},
        {"block_out_channels": (7, 9), "layers_per_block": 2},
        {"patch_size": 2},
        {"patch_size": 3, "in_channels": 1},
        {"sample_size": (16, 20)},
    ],
)
@pytest.mark.parametrize("size", [16, 9])
def test_channel_counts_patches_and_sizes(config, size):
    unet = lively(progressive="output_skip", progressive_input="input_skip", **config)
    x = torch.randn(2, unet.config.in_channels, size, size + 4)
    out = unet(x, torch.tensor([0.5, 1.0])).sample
    assert out.shape == (2, unet.config.out_channels or unet.config.in_channels, size, size + 4)
    assert out.isfinite().all()


def test_attention_is_decided_by_level():
    def attends(blocks):
        return [block.attention is not None for block in blocks]

    unet = build(sample_size=28, block_out_channels=(8, 8, 8), layers_per_block=2, attention_resolutions=(14, 4))
    assert [attends(blocks) for blocks in unet.down_blocks] == [[False] * 2, [True] * 2, [False] * 2]
    assert attends(unet.mid_blocks) == [True, False]
    assert [attends(blocks) for blocks in unet.up_blocks] == [[False] * 3, [False, False, True], [False] * 3]
    halved = build(sample_size=28, block_out_channels=(8, 8, 8), attention_resolutions=(14, 4), patch_size=2)
    assert [attends(blocks) for blocks in halved.down_blocks] == [[True], [False], [True]]


# --- What a new network returns ---


def test_a_new_network_returns_nearly_zero():
    assert build()(images(), 1.0).sample.abs().max() < 1e-3
    assert lively()(images(), 1.0).sample.abs().max() > 1e-2


def test_scale_by_sigma_divides_by_sigma():
    x, sigma = images(), torch.tensor([0.1, 20.0])
    scaled, plain = lively()(x, sigma).sample, lively(scale_by_sigma=False)(x, sigma).sample
    torch.testing.assert_close(scaled * sigma[:, None, None, None], plain)


def test_scale_by_sigma_with_an_index_into_a_table():
    table = {"sigma_min": 0.01, "sigma_max": 50.0, "num_scales": 11}
    x, index = images(3), torch.tensor([0, 4, 10])
    sigmas = torch.logspace(math.log10(50), -2, 11)[index]
    scaled = lively(time_embedding_type="positional", **table)(x, index).sample
    plain = lively(time_embedding_type="positional", scale_by_sigma=False)(x, index).sample
    torch.testing.assert_close(scaled * sigmas[:, None, None, None], plain)


def test_image_range_is_mapped_to_the_same_inside():
    x = images()
    expected = lively(image_range=(-1, 1))(x, 1.0).sample
    torch.testing.assert_close(lively(image_range=(0, 1))((x + 1) / 2, 1.0).sample, expected)
    torch.testing.assert_close(
        lively(image_range=(0, 255))((x + 1) * 127.5, 1.0).sample, expected, rtol=1e-4, atol=1e-5
    )


EDM = {"preconditioning": "edm", "scale_by_sigma": False, "image_range": (-1.0, 1.0), "sigma_data": 0.7}


@pytest.mark.parametrize("time_embedding_type", ["fourier", "positional"])
def test_edm_preconditioning(time_embedding_type):
    x, sigma = images(), torch.tensor([0.05, 3.0])
    unet = lively(time_embedding_type=time_embedding_type, **EDM)
    s = sigma[:, None, None, None]
    c_skip, c_out, c_in = 0.49 / (s**2 + 0.49), s * 0.7 / (s**2 + 0.49).sqrt(), 1 / (s**2 + 0.49).sqrt()
    bare = unet._network(c_in * x, sigma.log() / 4, None)
    torch.testing.assert_close(unet(x, sigma).sample, c_skip * x + c_out * bare)
    # With F = 0 the skip is all that is left, exactly, and also under bfloat16 autocast
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.testing.assert_close(unet(x, sigma).sample, c_skip * x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(unet(x, sigma).sample, c_skip * x)


# --- Conditioning ---


@pytest.mark.parametrize("time_embedding_type", ["fourier", "positional"])
def test_timesteps_in_every_form_and_not_rounded(time_embedding_type):
    unet, x = lively(time_embedding_type=time_embedding_type, scale_by_sigma=False), images()
    expected = unet(x, torch.tensor([2.5, 2.5])).sample
    for timestep in (2.5, torch.tensor(2.5), torch.tensor([2.5]), torch.tensor([2.5, 2.5], dtype=torch.float64)):
        torch.testing.assert_close(unet(x, timestep).sample, expected)
    assert (unet(x, 2.6).sample - expected).abs().max() > 1e-4
    torch.testing.assert_close(unet(x, 3).sample, unet(x, torch.tensor(3.0)).sample)
    assert not unet(x, 2.5, return_dict=False)[0].sub(expected).any()
    with pytest.raises(ValueError, match="timestep"):
        unet(x, torch.ones(3))
    with pytest.raises(ValueError, match="sample"):
        unet(images(channels=1), 2.5)


def test_embedding_keeps_its_precision_in_half_networks():
    sigma = torch.tensor([0.0123, 41.7])
    full, half = lively(fourier_scale=16.0), lively(fourier_scale=16.0).to(torch.bfloat16)
    torch.testing.assert_close(half.time_proj(sigma.log()), full.time_proj(sigma.log()))


def test_class_labels():
    unet, x = lively(num_class_embeds=3), images()
    unconditional = unet(x, 1.0).sample
    torch.testing.assert_close(unet(x, 1.0, torch.tensor([-1, -1])).sample, unconditional)
    mixed = unet(x, 1.0, torch.tensor([2, -1])).sample
    torch.testing.assert_close(mixed[1], unconditional[1])
    assert (mixed[0] - unconditional[0]).abs().max() > 1e-3
    torch.testing.assert_close(unet(x, 1.0, torch.tensor(2)).sample[0], mixed[0])
    for labels in ([3, 0], [-2, 0]):
        with pytest.raises(ValueError, match=r"\[0, 3\)"):
            unet(x, 1.0, torch.tensor(labels))
    with pytest.raises(ValueError, match="class_labels"):
        lively()(x, 1.0, torch.tensor([0, 0]))


def test_the_class_embedding_learns_only_from_labelled_images():
    unet = lively(num_class_embeds=3)
    unet(images(), 1.0, torch.tensor([1, -1])).sample.sum().backward()
    assert unet.class_embedding.weight.grad.abs().sum(1).bool().tolist() == [False, True, False]


# --- Resampling ---


def upfirdn(x, kernel, up, down, pad):
    """The definition: zeros between pixels, padding, convolution with the flipped kernel, every down-th pixel."""
    n, c, h, w = x.shape
    y = torch.zeros(n, c, h * up, w * up, dtype=x.dtype)
    y[..., ::up, ::up] = x
    k = torch.tensor(kernel, dtype=x.dtype)
    k = torch.outer(k, k) / k.sum() ** 2 * up**2
    y = F.conv2d(F.pad(y, (*pad, *pad)).reshape(n * c, 1, h * up + sum(pad), -1), k.flip(0, 1)[None, None])
    return y.reshape(n, c, *y.shape[-2:])[..., ::down, ::down]


def test_augmentation_labels(tmp_path):
    unet, x, t = lively(augment_dim=9), images(), torch.tensor([0.5, 2.0])
    labels = torch.randn(2, 9, generator=torch.Generator().manual_seed(2))
    plain = lively()
    plain.load_state_dict({k: v for k, v in unet.state_dict().items() if k != "augment_embedding.weight"})
    out = unet(x, t).sample
    assert torch.equal(out, unet(x, t, augment_labels=torch.zeros(2, 9)).sample)
    assert torch.equal(out, plain(x, t).sample)
    labelled = unet(x, t, augment_labels=labels).sample
    assert (labelled - out).abs().max() > 1e-3
    torch.testing.assert_close(labelled[1:], unet(x[1:], t[1:], augment_labels=labels[1:]).sample)
    unet(x, t).sample.sum().backward()  # without labels as well, several processes want a gradient of each parameter
    assert unet.augment_embedding.weight.grad is not None
    unet.save_pretrained(tmp_path)
    assert torch.equal(NCSNppUNet2DModel.from_pretrained(tmp_path)(x, t, augment_labels=labels).sample, labelled)
    with pytest.raises(ValueError, match=r"`augment_labels` must have shape \(2, 9\), got \(2, 8\)"):
        unet(x, t, augment_labels=labels[:, :8])
    with pytest.raises(ValueError, match=r"`augment_labels` must have shape \(2, None\)"):
        plain(x, t, augment_labels=labels)


@pytest.mark.parametrize("kernel", [(1, 3, 3, 1), (1, 2, 1), (1, 1), (1, 2, 3, 4), (1, 4, 6, 4, 1)])
def test_fir_filters_against_their_definition(kernel):
    x, p = torch.randn(2, 3, 8, 6, dtype=torch.float64), len(kernel) - 2
    torch.testing.assert_close(fir_downsample(x, kernel), upfirdn(x, kernel, 1, 2, ((p + 1) // 2, p // 2)))
    torch.testing.assert_close(fir_upsample(x, kernel), upfirdn(x, kernel, 2, 1, ((p + 1) // 2 + 1, p // 2)))


def test_fir_filters_keep_constants_and_halve_sizes_upwards():
    x = torch.full((1, 2, 7, 10), 3.0)
    down, up = fir_downsample(x, (1, 3, 3, 1)), fir_upsample(x, (1, 3, 3, 1))
    assert down.shape == (1, 2, 4, 5) and up.shape == (1, 2, 14, 20)
    torch.testing.assert_close(down[..., 1:-1, 1:-1], torch.full((1, 2, 2, 3), 3.0))
    torch.testing.assert_close(up[..., 1:-1, 1:-1], torch.full((1, 2, 12, 18), 3.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fir_filters_in_half_precision(dtype):
    x = torch.randn(1, 2, 8, 8).to(dtype)
    for resample in (fir_downsample, fir_upsample):
        y = resample(x, (1, 3, 3, 1))
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), resample(x.double(), (1, 3, 3, 1)), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kernel", [None, (1, 3, 3, 1)])
@pytest.mark.parametrize("channels", [(), (4, 6)])
def test_resampling_sizes(kernel, channels):
    x = torch.randn(1, 4, 7, 8)
    down = Downsample(kernel, *channels)(x)
    assert down.shape[1:] == (6 if channels else 4, 4, 4)
    assert Upsample(kernel, *channels)(down[:, :4], (7, 8)).shape[-2:] == (7, 8)


def test_averages_at_odd_edges_count_only_pixels():
    torch.testing.assert_close(Downsample()(torch.ones(1, 1, 5, 5)), torch.ones(1, 1, 3, 3))


# --- Cheaper paths on CPUs compute the same ---


def test_dropout_keeps_the_right_share_and_the_mean():
    torch.manual_seed(0)
    dropout, x = Dropout(0.1), torch.ones(16, 25, 32, 32).to(memory_format=torch.channels_last).requires_grad_()
    y = dropout(x)
    kept = y != 0
    n = x.numel()
    assert abs(kept.float().mean() - 0.9) < 5 * math.sqrt(0.09 / n)
    torch.testing.assert_close(y[kept].double(), torch.full_like(y[kept], 1 / 0.9).double(), rtol=1e-4, atol=0)
    neighbours = (kept[..., 1:] & kept[..., :-1]).float().mean(), (kept[:, 1:] & kept[:, :-1]).float().mean()
    assert all(abs(share - 0.81) < 0.005 for share in neighbours)  # independent
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y)
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize("p", [0.001, 0.3, 0.995, 0.999])
def test_dropout_at_any_probability(p):
    torch.manual_seed(0)
    kept = Dropout(p)(torch.ones(400, 3, 16, 16)) != 0
    n = kept.numel()
    assert abs(kept.float().mean() - (1 - p)) < 6 * math.sqrt(p * (1 - p) / n + 1 / (4 * 400 * 256**2))
    assert Dropout(p)(torch.ones(0, 3, 4, 4)).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("channels", [4, 6, 9, 48, 150])
def test_group_norm_in_bfloat16(channels):
    x = 3 + torch.randn(2, channels, 5, 5)
    norm = GroupNorm(channels)
    assert channels % norm.num_groups == 0
    torch.testing.assert_close(
        norm.to(torch.bfloat16)(x.bfloat16()).float(), GroupNorm(channels)(x), rtol=0, atol=0.05
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(7, 9), (32, 40)])  # PyTorch's own kernel is used from 1024 pixels on
def test_group_norm_and_its_gradient_in_half_precision(monkeypatch, dtype, size):
    monkeypatch.setattr(HalfGroupNorm, "NUMBERS", 3 * 8 * size[0] * size[1])  # pieces of 3, 3 and 1 images
    torch.manual_seed(0)
    norm = GroupNorm(8)
    norm.weight.data, norm.bias.data = torch.rand(8), torch.randn(8)
    x = (1 + torch.randn(7, 8, *size)).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    grad_y = torch.randn_like(x)
    y = norm(x)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(y, (x, norm.weight, norm.bias), grad_y)

    exact = GroupNorm(8).double()
    exact.load_state_dict(norm.state_dict())
    x_exact = x.detach().double().requires_grad_()
    y_exact = exact(x_exact)
    expected = torch.autograd.grad(y_exact, (x_exact, exact.weight, exact.bias), grad_y.double())
    for ours, theirs in zip((y, *gradients), (y_exact, *expected), strict=True):
        assert (ours.double() - theirs).abs().max() < torch.finfo(dtype).eps * theirs.abs().max()


def test_dtypes_and_memory_formats():
    x, sigma = images(), torch.tensor([0.3, 4.0])
    unet = lively(progressive="output_skip", progressive_input="residual")
    exact = unet.double()(x.double(), sigma.double()).sample
    assert exact.dtype == torch.float64
    largest = exact.abs().max()
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)):
        unet.to(dtype)
        for layout in (torch.contiguous_format, torch.channels_last):
            unet.to(memory_format=layout)
            y = unet(x.to(dtype).contiguous(memory_format=layout), sigma).sample
            assert y.dtype == dtype
            assert (y - exact).abs().max() < tolerance * largest
    y = unet.float()(x, sigma).sample
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = unet(x, sigma).sample
    assert z.dtype == torch.float32 and (y - z).abs().max() < 0.1 * largest


# --- Habits of diffusers and PyTorch ---


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16, torch.float64])
def test_save_and_load(tmp_path, low_cpu_mem_usage, dtype):
    unet = lively(num_class_embeds=2, progressive="residual", progressive_input="residual", patch_size=2)
    unet.save_pretrained(tmp_path)
    options = {} if dtype is None else {"torch_dtype": dtype}
    loaded = NCSNppUNet2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage, **options)
    assert loaded.dtype == (dtype or torch.float32)
    x, labels = images(), torch.tensor([1, -1])
    expected, y = unet(x, 0.7, labels).sample, loaded(x, 0.7, labels).sample
    if dtype in (None, torch.float64):
        torch.testing.assert_close(y, expected)
    else:
        assert (y - expected).abs().max() < 0.1 * expected.abs().max()
    assert torch.equal(loaded.time_proj.frequency_bits, unet.time_proj.frequency_bits)


def test_configuration_has_no_keys_of_the_parent():
    assert "down_block_types" not in build().config and "add_attention" not in build().config


def test_gradient_checkpointing_gives_the_same_gradients():
    def gradients(unet):
        torch.manual_seed(0)
        unet(images(), 1.0).sample.square().sum().backward()
        return [p.grad for p in unet.parameters()]

    plain, checkpointed = lively(dropout=0.2).train(), lively(dropout=0.2).train()
    checkpointed.enable_gradient_checkpointing()
    calls = []
    function = checkpointed._gradient_checkpointing_func
    checkpointed._gradient_checkpointing_func = lambda *args: (calls.append(1), function(*args))[1]
    for a, b in zip(gradients(plain), gradients(checkpointed), strict=True):
        torch.testing.assert_close(a, b)
    assert len(calls) == len([m for m in checkpointed.modules() if isinstance(m, ResidualBlock)])


def test_a_compiled_network_answers_as_it_does():
    """Other networks, which compile without breaks: test_compile.py."""
    unet = lively(block_out_channels=(8, 8), progressive="output_skip", progressive_input="residual").train()
    sigma = torch.tensor([0.1, 3.0])
    out = torch.compile(unet, fullgraph=True, backend="aot_eager")(images(), sigma).sample
    out.sum().backward()
    assert all(p.grad is not None for p in unet.parameters())
    torch.testing.assert_close(out, unet(images(), sigma).sample)


def test_forward_derivatives():
    unet, x = lively(), images()
    try:
        channels_last = torch.rand(2, 4, 3, 3).to(memory_format=torch.channels_last)
        torch.func.jvp(lambda x: torch.nn.functional.group_norm(x, 2), (channels_last,), (channels_last,))
    except RuntimeError as error:  # 2.9
        pytest.skip(f"PyTorch {torch.__version__} alone cannot do it, for group norm in channels_last: {error}")
    _, tangent = torch.func.jvp(lambda x: unet(x, 1.0).sample, (x,), (torch.ones_like(x),))
    step = 1e-4 * torch.ones_like(x)
    with torch.no_grad():
        unet.double()
        slope = (unet(x.double() + step, 1.0).sample - unet(x.double() - step, 1.0).sample) / 2e-4
    torch.testing.assert_close(tangent.double(), slope, rtol=1e-3, atol=1e-3)


def test_methods_that_do_not_apply_say_so():
    with pytest.raises(NotImplementedError):
        build().set_attention_backend("native")
    with pytest.raises(NotImplementedError):
        build().enable_xformers_memory_efficient_attention()


@pytest.mark.parametrize(
    "config",
    [
        {"resblock_type": "resnet"},
        {"progressive": "skip"},
        {"progressive_input": True},
        {"progressive_combine": "add"},
        {"time_embedding_type": "learned"},
        {"preconditioning": "ddpm"},
        {"layers_per_block": 0},
        {"in_channels": 0},
        {"out_channels": 0},
        {"patch_size": 1.5},
        {"num_class_embeds": -1},
        {"sample_size": 0},
        {"block_out_channels": ()},
        {"block_out_channels": (8, 0)},
        {"block_out_channels": (32, 48), "norm_num_groups": 32},
        {"fir_kernel": (1,)},
        {"fir_kernel": (1, math.nan)},
        {"fir_kernel": 3},
        {"block_out_channels": 8},
        {"attention_resolutions": 8},
        {"attention_resolutions": ("8",)},
        {"sample_size": (8,)},
        {"image_range": (0, 1, 2)},
        {"image_range": None},
        {"out_channels": 1, **EDM},
        {"dropout": 1.0},
        {"label_dropout": 1.0},
        {"image_range": (1, 0)},
        {"sigma_data": 0.0, **{k: v for k, v in EDM.items() if k != "sigma_data"}},
        {"scale_by_sigma": True, **{k: v for k, v in EDM.items() if k != "scale_by_sigma"}},
        {"image_range": (0, 1), **{k: v for k, v in EDM.items() if k != "image_range"}},
        {"num_scales": None, "time_embedding_type": "positional", "scale_by_sigma": True},
    ],
)
def test_bad_configurations_name_the_argument(config):
    with pytest.raises(ValueError, match=f"`{next(iter(config))}`"):
        build(**config)


@pytest.mark.parametrize("widths", [(16, 16), (5, 7), (8, 16)])
def test_a_loaded_network_answers_bit_for_bit(widths, tmp_path):
    """Where a file puts its tensors must not matter; a single image is what showed it."""
    unet = NCSNppUNet2DModel(
        sample_size=8, in_channels=1, block_out_channels=widths, layers_per_block=1, init_scale=1.0, num_class_embeds=3
    ).eval()
    unet.save_pretrained(tmp_path)
    again, info = NCSNppUNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(x, 0.7).sample, unet(x, 0.7).sample)


class Adapted(nn.Module):
    """A layer with an adapter beside it, which has the layer's weight, as PEFT's have."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer, self.delta = layer, nn.Linear(layer.in_features, layer.out_features)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, x):
        return self.base_layer(x) + self.delta(x)


def test_adapters_and_hooks_of_the_embeddings_act():
    net, x = lively(), images()
    before = net(x, 0.5).sample
    block = next(module for module in net.modules() if isinstance(module, ResidualBlock))
    doubled = block.emb.register_forward_hook(lambda layer, args, output: 2 * output)
    assert (net(x, 0.5).sample - before).abs().max() > 1e-3
    doubled.remove()
    torch.testing.assert_close(net(x, 0.5).sample, before)
    for module in net.modules():
        if isinstance(module, ResidualBlock):
            module.emb = Adapted(module.emb)
    after = net(x, 0.5).sample
    assert (after - before).abs().max() > 1e-3
    after.sum().backward()
    assert all(module.delta.weight.grad.abs().max() > 0 for module in net.modules() if isinstance(module, Adapted))


@pytest.mark.parametrize("kept, working, error", [("float8_e4m3fn", "bfloat16", 0.3), ("bfloat16", "float32", 0.03)])
def test_layers_that_are_kept_in_fewer_bits(kept, working, error):
    net, x, labels = lively(num_class_embeds=3), images(), torch.tensor([1, -1])
    expected = net(x, 0.5, labels).sample
    net.enable_layerwise_casting(getattr(torch, kept), getattr(torch, working))
    assert 0 < (net(x, 0.5, labels).sample - expected).norm() < error * expected.norm()


def test_layers_that_wait_elsewhere_until_they_are_called():
    net, x, labels = lively(num_class_embeds=3), images(), torch.tensor([1, -1])
    expected = net(x, 0.5, labels).sample
    cpu_offload(net, execution_device="cpu")
    assert all(parameter.is_meta for parameter in net.parameters())
    torch.testing.assert_close(net(x, 0.5, labels).sample, expected)


def test_labels_in_any_integers_and_nothing_else():
    net, x = lively(num_class_embeds=4), images()
    expected = net(x, 0.5, torch.tensor([0, 3])).sample
    for dtype in (torch.uint8, torch.int16, torch.uint16):
        assert torch.equal(net(x, 0.5, torch.tensor([0, 3], dtype=dtype)).sample, expected)
    for labels in (torch.tensor([0.0, 3.0]), torch.tensor([[0], [3]]), torch.tensor([0, 3, 1])):
        with pytest.raises(ValueError, match="`class_labels` must be integers of shape"):
            net(x, 0.5, labels)


def test_integer_images_are_refused():
    with pytest.raises(ValueError, match="`sample` must be floating point, but is uint8"):
        build()(images().byte(), 0.5)


@pytest.mark.parametrize("level", [0.0, -1.0, math.nan, torch.tensor([1.0, 0.0])])
@pytest.mark.parametrize("options", [{}, {"preconditioning": "edm", "image_range": (-1.0, 1.0)}])
def test_noise_levels_that_have_no_logarithm_are_refused(level, options):
    network = NCSNppUNet2DModel(sample_size=8, block_out_channels=(8,), scale_by_sigma=False, **options)
    with pytest.raises(ValueError, match="`timestep` must be above 0"):
        network(torch.zeros(2, 3, 8, 8), level)


def test_averages_of_diffusers_keep_the_frequencies(tmp_path):
    """`EMAModel` copies the parameters, and no buffers, into a network of the same configuration."""
    network = NCSNppUNet2DModel(sample_size=8, block_out_channels=(8,))
    torch.nn.init.normal_(network.conv_out.weight)
    average = EMAModel(network.parameters(), model_cls=NCSNppUNet2DModel, model_config=network.config)
    average.save_pretrained(tmp_path)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(NCSNppUNet2DModel.from_pretrained(tmp_path)(x, 0.7).sample, network(x, 0.7).sample)


def test_each_image_with_a_gradient_of_its_own():
    """Where `torch.func` batches the noise levels, nobody can look at them."""
    network = NCSNppUNet2DModel(sample_size=8, block_out_channels=(8,), scale_by_sigma=False).eval()
    torch.nn.init.normal_(network.conv_out.weight)
    x, levels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 2.0])

    def answer(image, level):
        return network(image[None], level[None]).sample[0]

    together = torch.func.vmap(answer)(x, levels)
    torch.testing.assert_close(together, network(x, levels).sample, rtol=1e-4, atol=1e-5)
