"""Layers of `NCSNppUNet2DModel`: resampling with FIR filters, noise-level features, residual blocks, image pyramids.

Sources: Song et al., 2021 (arXiv 2011.13456), appendix H; DDPM (Ho et al., 2020) for initialisation and attention;
BigGAN (Brock et al., 2019) for residual blocks that resample; StyleGAN2 (Karras et al., 2020) for FIR resampling and
the two kinds of pyramids. Images whose side is odd are resampled as 7 -> 4 -> 7, so every size works.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from sde_diffusers.models.group_norm import GroupNorm


def conv2d(in_channels, out_channels, kernel_size, stride=1, padding=None, init_scale=1.0):
    """Convolution with DDPM's initialisation: uniform, variance `init_scale` / mean of fan-in and fan-out."""
    padding = kernel_size // 2 if padding is None else padding
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
    nn.init.xavier_uniform_(conv.weight, gain=math.sqrt(init_scale or 1e-10))  # 0 means tiny: gradients still flow
    nn.init.zeros_(conv.bias)
    return conv


def linear(in_features, out_features, bias=True):
    """Fully connected layer with DDPM's initialisation."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def working_dtype(x):
    """float32 for half precision on CPUs, else the dtype of x.

    PyTorch's bfloat16 kernels for depthwise (transposed) convolutions are 3 to 60 times slower on CPUs than a cast to
    float32, the float32 kernel and a cast back.
    """
    return torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype


class Dropout(nn.Dropout):
    """Dropout."""

    def forward(self, x):
        chance = self.training and 0 < self.p < 255 / 256
        if chance and x.device.type != "cpu" and not torch.compiler.is_compiling():
            # In place, PyTorch would take four kernels for it, and a mask as large as x.
            return torch.native_dropout(x, self.p, True)[0]
        if not chance or torch.compiler.is_compiling():
            return super().forward(x)
        # On CPUs a Bernoulli draw per element costs more than the convolutions around it. Each byte of a 64-bit draw
        # decides on one element instead: it is dropped below 256 p, rounded up or down at random for each image, such
        # that the probability is p.
        drop = (256 * self.p + torch.rand(len(x), 1)).floor_().sub_(128).to(torch.int8)
        bits = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None).view(torch.int8)
        mask, size = torch.empty_like(x), x.shape[1:].numel()
        rows = mask.as_strided((len(x), size), (size, 1))  # in two dimensions it is five times as fast as in four
        torch.ge(bits[: x.numel()].view(rows.shape), drop, out=rows)
        mask.mul_(1 / (1 - self.p))
        return x.mul_(mask) if self.inplace else x * mask


FIR_WEIGHTS: dict[
    tuple, torch.Tensor
] = {}  # by device and dtype: to make them anew is to wait for a copy to the device


def fir_weight(x, kernel, gain):
    """The separable filter `kernel`, normalised to the sum `gain`, as weights of a depthwise convolution of x."""
    # Not kept as a buffer: a non-persistent buffer would be lost where networks are built without memory.
    kept = type(x) is torch.Tensor and not torch.compiler.is_compiling()  # no fake tensors, nor those of a graph
    key = (tuple(kernel), gain, x.dtype, x.device)
    k2d = FIR_WEIGHTS.get(key) if kept else None
    if k2d is None:
        with torch.inference_mode(False), torch.no_grad():
            k = torch.tensor(kernel, dtype=x.dtype, device=x.device)
            k2d = torch.outer(k, k) * (gain / sum(kernel) ** 2)
        if kept:
            FIR_WEIGHTS[key] = k2d
    return k2d.expand(x.shape[1], 1, -1, -1)


def fir_filter(x, kernel, **options):
    """Correlate every channel with the separable filter `kernel`, normalised to sum 1; see `F.conv2d`."""
    with torch.autocast(x.device.type, enabled=False):
        y = x.to(working_dtype(x))
        return F.conv2d(y, fir_weight(y, kernel[::-1], gain=1), groups=x.shape[1], **options).to(x.dtype)


def pad_to_even(x):
    """Append a zero row or column where the height or width is odd."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x


def crop(x, size):
    """The first rows and columns of x, as many as `size` says: (N, C, H, W) -> (N, C, *size)."""
    return x if x.shape[-2:] == tuple(size) else x[..., : size[0], : size[1]]


def in_patches(x, patch):
    """Squares of pixels as channels, zeros beyond the edges: (N, C, H, W) -> (N, C patch^2, H/patch, W/patch)."""
    if patch == 1:
        return x
    height, width = x.shape[-2:]
    return F.pixel_unshuffle(F.pad(x, (0, -width % patch, 0, -height % patch)), patch)


def fir_downsample(x, kernel):
    """Low-pass filter, then keep every second pixel (StyleGAN2's upfirdn): (N, C, H, W) -> (N, C, H/2, W/2)."""
    return fir_filter(pad_to_even(x), kernel, stride=2, padding=(len(kernel) - 1) // 2)


def fir_upsample(x, kernel, border=0):
    """Put zeros between pixels, then filter: (N, C, H, W) -> (N, C, 2H, 2W), plus `border` more pixels all around."""
    size = [2 * (side + border) for side in x.shape[-2:]]
    margin = (len(kernel) - 2) // 2 - border
    with torch.autocast(x.device.type, enabled=False):
        y = x.to(working_dtype(x))
        weight = fir_weight(y, kernel, gain=4)
        y = F.conv_transpose2d(y, weight, stride=2, padding=max(margin, 0), groups=x.shape[1]).to(x.dtype)
    if margin < 0:
        y = F.pad(y, (-margin,) * 4)
    return crop(y, size)


class Downsample(nn.Module):
    """Halve height and width, rounding up: averages or FIR filter, then a strided convolution if it has channels."""

    def __init__(self, fir_kernel=None, in_channels=None, out_channels=None):
        super().__init__()
        self.fir_kernel = fir_kernel
        self.conv = conv2d(in_channels, out_channels, 3, stride=2, padding=0) if in_channels else None

    def forward(self, x):
        if self.conv is None:
            return fir_downsample(x, self.fir_kernel) if self.fir_kernel else F.avg_pool2d(x, 2, ceil_mode=True)
        x = pad_to_even(x)
        if self.fir_kernel:
            x = fir_filter(x, self.fir_kernel, padding=(len(self.fir_kernel) + 1) // 2)
        else:
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Upsample(nn.Module):
    """Double height and width, cropped to `size`: nearest or FIR filter, then a convolution if it has channels."""

    def __init__(self, fir_kernel=None, in_channels=None, out_channels=None):
        super().__init__()
        self.fir_kernel = fir_kernel
        # After a FIR filter the convolution sees the true filtered border instead of zeros.
        padding = 0 if fir_kernel else 1
        self.conv = conv2d(in_channels, out_channels, 3, padding=padding) if in_channels else None

    def forward(self, x, size):
        border = 1 if self.conv is not None and self.fir_kernel else 0
        if self.fir_kernel:
            x = fir_upsample(x, self.fir_kernel, border)
        else:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = crop(x, [side + 2 * border for side in size])
        return x if self.conv is None else self.conv(x)


class FourierFeatures(nn.Module):
    """Random Fourier features (Tancik et al., 2020): (N,) -> (N, 2 * `width`), sines, then cosines of 2 pi W x.

    The frequencies W are fixed, and drawn by a seed of their own: who builds a network from its configuration and
    copies the parameters alone, as diffusers' `EMAModel` does, gets the same ones. They are kept as the bits of
    float32 numbers, since casting them together with the network (to bfloat16, say) would turn phases of many
    radians into noise.
    """

    def __init__(self, width, scale):
        super().__init__()
        self.width = width
        generator = torch.Generator().manual_seed(0)
        frequencies = torch.randn(width, generator=generator, dtype=torch.float32, device="cpu") * scale
        self.register_buffer("frequency_bits", frequencies.view(torch.int32).to(torch.empty(0).device))

    def forward(self, x):
        phase = x[:, None] * self.frequency_bits.view(torch.float32) * (2 * math.pi)
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class SinusoidalFeatures(nn.Module):
    """Transformer position embedding as in DDPM: (N,) -> (N, `width`), frequencies 1 to 1e-4, sines then cosines."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, x):
        half = self.width // 2
        exponent = torch.arange(half, dtype=x.dtype, device=x.device) / max(half - 1, 1)
        phase = x[:, None] * torch.exp(-math.log(10000) * exponent)
        return F.pad(torch.cat([phase.sin(), phase.cos()], dim=1), (0, self.width % 2))


def is_plain(layer):
    """Whether a layer is no more than the product with its weight: no adapter, no hook, no shard (FSDP), which are put
    together, cast or moved only when the layer is called."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return type(layer) is nn.Linear and not hooks and not hasattr(layer.weight, "full_tensor")


def compute_dtype(layer):
    """What a layer computes in: its weight's dtype, or that of diffusers' layerwise casting."""
    hooks = getattr(layer, "_diffusers_hook", None)
    casting = None if hooks is None else hooks.get_hook("layerwise_casting")
    return layer.weight.dtype if casting is None else casting.compute_dtype


class BlockEmbeddings:
    """What the embedding of noise level and class adds in each residual block: one product for all blocks.

    Args:
        emb: (N, emb_channels).
        blocks: the residual blocks, each at its `place`.
    """

    def __init__(self, emb, blocks):
        self.emb, self.parts = emb, None
        layers = [block.emb for block in blocks]
        if all(map(is_plain, layers)):
            weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
            added = F.linear(emb, weight, bias)[:, :, None, None]
            self.parts = added.split([len(layer.bias) for layer in layers], dim=1)

    def __call__(self, block):
        """(N, C, 1, 1), what the residual block adds between its convolutions."""
        return block.emb(self.emb)[:, :, None, None] if self.parts is None else self.parts[block.place]


def attention(q, k, v):
    """softmax(q k^T / sqrt(C)) v for q, k and v of shape (N, L, C)."""
    if q.device.type == "cuda":
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]  # its kernels know heads only
    # PyTorch's fused attention takes 2.5 times as long as this on CPUs in bfloat16, and as long in float32.
    return torch.softmax(torch.bmm(q * q.shape[-1] ** -0.5, k.mT), dim=-1).bmm(v)


class SelfAttention(nn.Module):
    """Self-attention over all pixels with one head of all channels; residual."""

    def __init__(self, channels, num_groups, init_scale, skip_scale):
        super().__init__()
        self.skip_scale = skip_scale
        self.norm = GroupNorm(channels, num_groups)
        self.qkv = conv2d(channels, 3 * channels, 1, init_scale=0.2)  # each of q, k, v: 0.1, in terms of its own fans
        self.out = conv2d(channels, channels, 1, init_scale=init_scale)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.chunk(3, dim=-1)  # (N, H W, C) each
        h = attention(q, k, v).mT.reshape(x.shape)
        return self.out(h).add_(x).mul_(self.skip_scale)  # in place: memory traffic is what this costs


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv, twice, with `BlockEmbeddings` added in between; may resample first and attend last.

    BigGAN's block resamples inside (both branches); DDPM's never does.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        emb_channels,
        *,
        dropout,
        num_groups,
        init_scale,
        shortcut_init_scale,
        skip_scale,
        resample=None,
        attention=False,
    ):
        super().__init__()
        self.skip_scale = skip_scale
        self.resample = resample
        self.place = 0  # among the residual blocks of its network
        self.norm1 = GroupNorm(in_channels, num_groups)
        self.conv1 = conv2d(in_channels, out_channels, 3)
        self.emb = linear(emb_channels, out_channels)
        self.norm2 = GroupNorm(out_channels, num_groups)
        self.dropout = Dropout(dropout, inplace=True)  # of SiLU's output, which its gradient does not need
        self.conv2 = conv2d(out_channels, out_channels, 3, init_scale=init_scale)
        self.shortcut = None
        if in_channels != out_channels or resample is not None:
            self.shortcut = conv2d(in_channels, out_channels, 1, init_scale=shortcut_init_scale)
        self.attention = SelfAttention(out_channels, num_groups, init_scale, skip_scale) if attention else None

    def forward(self, x, emb, *size):
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h, *size), self.resample(x, *size)
        h = self.conv1(h).add_(emb(self))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        x = h.add_(x).mul_(self.skip_scale)
        return x if self.attention is None else self.attention(x)


def number_blocks(blocks):
    """The residual blocks of a network as a list, each of which knows its place there; see `BlockEmbeddings`."""
    numbered = list(blocks)
    for place, block in enumerate(numbered):
        block.place = place
    return numbered


class InputSkip(nn.Module):
    """Input pyramid of plain images: the downsampled image, through a 1x1 convolution, joins each level."""

    def __init__(self, image_channels, channels, fir_kernel, combine):
        super().__init__()
        self.combine = combine
        self.downsample = Downsample(fir_kernel)
        self.conv = conv2d(image_channels, channels, 1)

    def forward(self, h, pyramid):
        pyramid = self.downsample(pyramid)
        image = self.conv(pyramid)
        return (torch.cat([image, h], dim=1) if self.combine == "cat" else image + h), pyramid


class InputResidual(nn.Module):
    """Input pyramid of features: a strided convolution of the pyramid is added and goes on from there."""

    def __init__(self, in_channels, out_channels, fir_kernel, skip_scale):
        super().__init__()
        self.skip_scale = skip_scale
        self.downsample = Downsample(fir_kernel, in_channels, out_channels)

    def forward(self, h, pyramid):
        h = self.downsample(pyramid).add_(h).mul_(self.skip_scale)
        return h, h


class OutputSkip(nn.Module):
    """Output pyramid of plain images: what this level has to say, added to the upsampled pyramid (None at first)."""

    def __init__(self, channels, out_channels, num_groups, init_scale, fir_kernel):
        super().__init__()
        self.norm = GroupNorm(channels, num_groups)
        self.conv = conv2d(channels, out_channels, 3, init_scale=init_scale)
        self.upsample = Upsample(fir_kernel)

    def forward(self, h, pyramid):
        out = self.conv(F.silu(self.norm(h)))
        return h, out if pyramid is None else self.upsample(pyramid, h.shape[-2:]) + out


class OutputResidual(nn.Module):
    """Output pyramid of features: an upsampling convolution of the pyramid is added and goes on from there."""

    def __init__(self, in_channels, out_channels, fir_kernel, skip_scale):
        super().__init__()
        self.skip_scale = skip_scale
        self.upsample = Upsample(fir_kernel, in_channels, out_channels)

    def forward(self, h, pyramid):
        h = self.upsample(pyramid, h.shape[-2:]).add_(h).mul_(self.skip_scale)
        return h, h
