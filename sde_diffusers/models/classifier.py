"""A classifier of noisy images, conditioned on their noise level (section 5 of arXiv 2011.13456).

It is the way down of the score network's U-Net: convolution, levels of residual blocks, each level at half the size of
the one before, then a mean over the image and a linear layer. Like a denoiser (arXiv 2206.00364) it sees

    u + noise_level * white noise,    u in [0, 1],

scaled to unit variance: x_t of any SDE is of that form once divided by alpha, with noise_level = sigma / alpha.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from sde_diffusers.class_names import check_class_names
from sde_diffusers.images import PixelFormat
from sde_diffusers.models.complete_weights import CompleteWeightsMixin
from sde_diffusers.models.conditioning import require_noise
from sde_diffusers.models.group_norm import GroupNorm
from sde_diffusers.models.layers import (
    BlockEmbeddings,
    Downsample,
    FourierFeatures,
    ResidualBlock,
    compute_dtype,
    conv2d,
    in_patches,
    linear,
    number_blocks,
)
from sde_diffusers.scalars import plain_config, real_number, require_floating, whole_number, whole_numbers


class NoiseConditionalClassifier(CompleteWeightsMixin, ModelMixin, ConfigMixin):
    """p(class | noisy image) at every noise level, for `ScoreSdePipeline(..., classifier=...)`.

    Args:
        sample_size (`int` or (height, width)): Size of the images; others work as well.
        in_channels (`int`): Channels of the images.
        num_classes (`int`): Number of classes K.
        block_out_channels (`tuple[int]`): Channels of each level, from full size down.
        layers_per_block (`int`): Residual blocks per level.
        patch_size (`int`): Side of the pixel blocks folded into channels before the first convolution.
        dropout (`float`): Dropout probability, in [0, 1).
        sigma_data (`float`): Standard deviation of the images in [0, 1].
        value_dtype, value_range, class_names: Of the data that it was trained on; see `NCSNppUNet2DModel`.

    Raises:
        ValueError: For values that are not allowed, naming the argument.
    """

    # Without accelerate, diffusers would take the dtype of the first entry, integers here, as that of the network.
    _supports_param_buffer_assignment = False

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 32,
        in_channels: int = 3,
        num_classes: int = 10,
        block_out_channels: Sequence[int] = (32, 64, 64),
        layers_per_block: int = 2,
        patch_size: int = 1,
        dropout: float = 0.0,
        sigma_data: float = 0.35,
        value_dtype: str = "uint8",
        value_range: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
    ):
        super().__init__()
        self.register_to_config(**plain_config(self.config))
        counts = {"in_channels": in_channels, "layers_per_block": layers_per_block, "patch_size": patch_size}
        for name, value in counts.items():
            if not whole_number(value) >= 1:
                raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
        sides = whole_numbers(sample_size) or [whole_number(sample_size)] * 2
        if len(sides) != 2 or not all(side >= 1 for side in sides):
            raise ValueError(f"`sample_size` must be a positive integer, or two of them, got {sample_size!r}.")
        if not whole_number(num_classes) >= 2:
            raise ValueError(f"`num_classes` must be an integer above 1, got {num_classes!r}.")
        widths = whole_numbers(block_out_channels)
        if not widths or any(not n >= 2 for n in widths):
            raise ValueError(f"`block_out_channels` must be integers above 1, got {block_out_channels!r}.")
        if not 0 <= real_number(dropout) < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {dropout!r}.")
        if not 0 < real_number(sigma_data) < math.inf:
            raise ValueError(f"`sigma_data` must be positive, got {sigma_data!r}.")
        PixelFormat.of(value_dtype, value_range)  # refuses what is none
        check_class_names(class_names, num_classes)
        width = block_out_channels[0]
        self.time_proj = FourierFeatures(width, scale=1.0)
        self.time_embedding = nn.Sequential(linear(2 * width, 4 * width), nn.SiLU(), linear(4 * width, 4 * width))
        self.conv_in = conv2d(in_channels * patch_size**2, width, 3)
        self.blocks = nn.ModuleList()
        channels = width
        for level, level_channels in enumerate(block_out_channels):
            for layer in range(layers_per_block):
                self.blocks.append(
                    ResidualBlock(
                        channels,
                        level_channels,
                        emb_channels=4 * width,
                        dropout=dropout,
                        num_groups=None,
                        init_scale=0.0,
                        shortcut_init_scale=1.0,
                        skip_scale=0.5**0.5,
                        resample=Downsample() if level > 0 and layer == 0 else None,
                    )
                )
                channels = level_channels
        number_blocks(self.blocks)
        self.norm_out = GroupNorm(channels)
        self.head = linear(channels, num_classes)

    def forward(self, sample: Tensor, noise_level: Tensor):
        """Evaluate the classifier.

        Args:
            sample (`torch.Tensor` of shape (N, in_channels, H, W)): Images in [0, 1] plus white noise.
            noise_level (number or `torch.Tensor` of shape () or (N,)): The deviation of that noise, above 0.

        Returns:
            `torch.Tensor` of shape (N, num_classes): Logits, at least float32.

        Raises:
            ValueError: If shapes do not fit, the sample holds integers, or noise is not above 0.
        """
        dtype = torch.promote_types(sample.dtype, torch.float32)
        return self.head(F.silu(self.norm_out(self.feature_maps(sample, noise_level)[-1])).mean((2, 3))).to(dtype)

    def feature_maps(self, sample: Tensor, noise_level: float | Tensor) -> list[Tensor]:
        """What each residual block makes of the images, (N, C', H', W'), from full size down; arguments and errors
        are those of `forward`."""
        config = self.config
        if sample.ndim != 4 or sample.shape[1] != config.in_channels:
            raise ValueError(f"`sample` must have shape (N, {config.in_channels}, H, W), got {tuple(sample.shape)}.")
        require_floating(sample=sample)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        level = torch.as_tensor(noise_level, device=sample.device).to(dtype)
        if level.numel() not in (1, len(sample)) or level.ndim > 1:
            raise ValueError(f"`noise_level` must be a number or ({len(sample)},) of them, got {tuple(level.shape)}.")
        require_noise("noise_level", level)
        level = level.expand(len(sample))

        scale = (level**2 + config.sigma_data**2).rsqrt()
        x = (sample.to(dtype) - 0.5) * scale[:, None, None, None]
        x = in_patches(x, config.patch_size)
        working = compute_dtype(self.conv_in)
        emb = F.silu(self.time_embedding(self.time_proj(level.log() / 4).to(working)))
        h = self.conv_in(x.to(working))
        emb, maps = BlockEmbeddings(emb, self.blocks), []
        for block in self.blocks:
            h = block(h, emb)
            maps.append(h)
        return maps
