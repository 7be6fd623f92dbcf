"""The U-Net of score-based SDEs: NCSN++, DDPM++ and DDPM are configurations of one network.

Architecture: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021
(arXiv 2011.13456), section 4.4 and appendix H; `presets.py` holds the published configurations. In short:

    image -> [-1, 1] -> conv -> levels of residual blocks, each level at half the size of the one before
          -> residual, attention, residual -> the same levels upwards, fed with the skips of the way down
          -> norm, SiLU, conv -> (division by sigma) -> score, noise or x_0

Two optional side paths carry the image itself: the *input pyramid* (`progressive_input`) adds the downsampled image
to every level on the way down, the *output pyramid* (`progressive`) sums outputs of all levels on the way up.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DModel  # noqa: F401 (diffusers' loader of remote code looks for ModelMixin)
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from sde_diffusers.class_names import check_class_names
from sde_diffusers.images import PixelFormat
from sde_diffusers.models.complete_weights import CompleteWeightsMixin
from sde_diffusers.models.conditioning import ConditioningMixin, require_noise
from sde_diffusers.models.group_norm import GroupNorm
from sde_diffusers.models.layers import (
    BlockEmbeddings,
    Downsample,
    FourierFeatures,
    InputResidual,
    InputSkip,
    OutputResidual,
    OutputSkip,
    ResidualBlock,
    SinusoidalFeatures,
    Upsample,
    compute_dtype,
    conv2d,
    crop,
    in_patches,
    linear,
    number_blocks,
)
from sde_diffusers.models.ncsnpp_checks import check_ncsnpp_config
from sde_diffusers.models.pixel_levels import LEVEL_PERIODS, LOWEST_AT_FIRST, level_features, with_levels
from sde_diffusers.models.presets import NCSNPP_PRESETS
from sde_diffusers.scalars import plain_config, require_floating


class NCSNppUNet2DModel(CompleteWeightsMixin, ConditioningMixin, UNet2DModel):
    """Noise-conditional U-Net of Song et al. (2021): NCSN++, DDPM++ and DDPM.

    What it returns is up to its training and configuration: the score (`scale_by_sigma`), noise, or x_0
    (`preconditioning="edm"`). `from_preset` gives the published configurations.

    Args:
        sample_size (`int` or (height, width)): Size of the images. Says at which levels there is attention; the
            network also runs at other sizes, odd ones included.
        in_channels, out_channels (`int`): Image channels; `out_channels=None` means `in_channels`.
        block_out_channels (`tuple[int]`): Channels of each level, from full size down.
        base_channels (`int`, *optional*): Channels of the first convolution and width of the noise-level features;
            `None` means the channels of the first level.
        layers_per_block (`int`): Residual blocks per level (one more on the way up).
        attention_resolutions (`tuple[int]`): Sizes (longer side, after `patch_size`) of the levels with attention:
            after each residual block on the way down, once on the way up. The middle always has it.
        num_class_embeds (`int`, *optional*): Number of classes.
        class_joins: What the class is added to: `"embedding"`, that of the noise level as the blocks take it, or
            `"features"`, of which that embedding is computed (EDM).
        time_embedding_type: `"fourier"` (random features of the logarithm of the given value) or `"positional"`
            (DDPM's sinusoids of the value itself).
        fourier_scale (`float`): Standard deviation of the Fourier frequencies.
        fir (`bool`), fir_kernel: Resample with this FIR filter (Zhang, 2019) instead of averages and copies.
        resblock_type: `"biggan"` (resampling happens in residual blocks) or `"ddpm"` (in separate layers).
        resample_with_conv (`bool`): Whether the separate layers of `"ddpm"` contain a convolution.
        skip_rescale (`bool`): Divide every residual sum by sqrt(2).
        progressive: Output pyramid: `"none"`, `"output_skip"` (of images) or `"residual"` (of features).
        progressive_input: Input pyramid: `"none"`, `"input_skip"` (of images) or `"residual"` (of features).
        progressive_combine: How `"input_skip"` joins: `"sum"` or `"cat"`.
        scale_by_sigma (`bool`): Divide the output by sigma. With Fourier features sigma is the given value; with
            positional ones the value is an index into the descending geometric table of `num_scales` levels from
            `sigma_max` to `sigma_min` (the paper's discrete VE models).
        sigma_min, sigma_max (`float`), num_scales (`int`): That table; needed in that case only.
        image_range (`tuple[float, float]`): Range of the (noise-free) images given; mapped to [-1, 1] inside.
        dropout (`float`): Dropout probability, in [0, 1).
        init_scale (`float`): Initial variance scale of each last convolution; 0 starts as (nearly) the zero function.
        norm_num_groups (`int`, *optional*): Groups of the normalisations; `None` means min(channels // 4, 32).
        patch_size (`int`): Side of the pixel blocks folded into channels before the first convolution and unfolded
            after the last: the U-Net works at `sample_size / patch_size`.
        preconditioning (*optional*): `"edm"`: takes sigma, returns x_0 (Table 1 of Karras et al., 2022, arXiv
            2206.00364): D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4).
        sigma_data (`float`): Standard deviation of the images, for `preconditioning`.
        pixel_levels (`int`, *optional*): With `preconditioning`, tells the network that pixels have so many values,
            evenly spaced (`pixel_levels.py`): 256 for 8 bits. For likelihoods of data that are not dequantized.
        augment_dim (`int`, *optional*): Number of augmentation labels, by which the network knows how an image of its
            training was transformed (appendix F of arXiv 2206.00364); all 0, which is also what None means, asks for
            untransformed ones.
        value_dtype, value_range: Of the data that it was trained on, and of nothing that it computes: their type,
            and the values (low, high) that are 0 and 1 in the range [0, 1]; see `PixelFormat`.
        class_names (`list[str]`, *optional*): Names of its classes.
        label_dropout (`float`, *optional*): Share of the training's images whose class was withheld: at 0 the network
            never learnt what "no class" means. `None` means that it is not known.
        consistency (`bool`): Whether it was tuned to be a consistency model, which returns the end of the probability
            flow ODE through x_t and not E[x_0 | x_t] (`sde_diffusers/consistency.py`).

    Raises:
        ValueError: For values that are not allowed, naming the argument.
    """

    _supports_gradient_checkpointing = True
    size_multiple = 1  # of height and width: whatever is halved is padded
    accepts_float32_input = True  # whatever its dtype: the pipeline then doesn't round noisy images to 16 bits
    # Without accelerate, diffusers would take the dtype of the first entry, integers here, as that of the network.
    _supports_param_buffer_assignment = False

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 32,
        in_channels: int = 3,
        out_channels: int | None = None,
        block_out_channels: Sequence[int] = (32, 64, 64),
        base_channels: int | None = None,
        layers_per_block: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        num_class_embeds: int | None = None,
        class_joins: str = "embedding",
        time_embedding_type: str = "fourier",
        fourier_scale: float = 16.0,
        fir: bool = True,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
        resblock_type: str = "biggan",
        resample_with_conv: bool = True,
        skip_rescale: bool = True,
        progressive: str = "none",
        progressive_input: str = "none",
        progressive_combine: str = "sum",
        scale_by_sigma: bool = True,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        num_scales: int | None = None,
        image_range: Sequence[float] = (0.0, 1.0),
        dropout: float = 0.0,
        init_scale: float = 0.0,
        norm_num_groups: int | None = None,
        patch_size: int = 1,
        preconditioning: str | None = None,
        sigma_data: float = 0.5,
        pixel_levels: int | None = None,
        augment_dim: int | None = None,
        value_dtype: str = "uint8",
        value_range: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
        label_dropout: float | None = None,
        consistency: bool = False,
    ):
        super(UNet2DModel, self).__init__()  # past UNet2DModel, whose constructor would build another network
        self.register_to_config(**plain_config(self.config))
        check_ncsnpp_config(self.config)
        levels_of_data = PixelFormat.of(value_dtype, value_range).levels  # refuses a range that is none
        if pixel_levels not in (None, levels_of_data):
            raise ValueError(
                f"`pixel_levels` must be None or the number of levels of value_dtype={value_dtype!r} and "
                f"value_range={value_range!r}, {levels_of_data}, got {pixel_levels!r}."
            )
        check_class_names(class_names, num_class_embeds)

        biggan = resblock_type == "biggan"
        kernel = tuple(fir_kernel) if fir else None
        skip_scale = math.sqrt(0.5) if skip_rescale else 1.0
        width = base_channels or block_out_channels[0]
        levels = range(len(block_out_channels))
        image_in = in_channels * patch_size**2
        image_out = (out_channels or in_channels) * patch_size**2
        side = -(-max(sample_size if isinstance(sample_size, (list, tuple)) else [sample_size]) // patch_size)
        attends = [-(-side // 2**level) in attention_resolutions for level in levels]
        self.gradient_checkpointing = False

        def block(channels, new_channels, **options):
            return ResidualBlock(
                channels,
                new_channels,
                emb_channels=4 * width,
                dropout=dropout,
                num_groups=norm_num_groups,
                init_scale=init_scale,
                shortcut_init_scale=1.0 if biggan else 0.1,
                skip_scale=skip_scale,
                **options,
            )

        fourier = time_embedding_type == "fourier"
        self.time_proj = FourierFeatures(width, fourier_scale) if fourier else SinusoidalFeatures(width)
        features = 2 * width if fourier else width
        self.time_embedding = nn.Sequential(linear(features, 4 * width), nn.SiLU(), linear(4 * width, 4 * width))
        self.class_embedding = None
        if num_class_embeds:
            self.class_embedding = nn.Embedding(num_class_embeds, features if class_joins == "features" else 4 * width)

        self.augment_embedding: nn.Module | None = None
        if augment_dim:
            self.augment_embedding = linear(augment_dim, features, bias=False)

        # Way down. `skips` holds the channels of what the way up will be fed with.
        self.conv_in = conv2d(image_in, width, 3)
        self.levels_in: nn.Module | None = None
        if pixel_levels:
            self.levels_in = conv2d(2 * len(LEVEL_PERIODS) * image_in, width, 3, init_scale=init_scale)
        self.down_blocks, self.downsamplers = nn.ModuleList(), nn.ModuleList()
        self.input_pyramid = nn.ModuleList()
        channels, pyramid, skips = width, image_in, [width]
        for level in levels:
            self.down_blocks.append(nn.ModuleList())
            for _ in range(layers_per_block):
                self.down_blocks[level].append(block(channels, block_out_channels[level], attention=attends[level]))
                channels = block_out_channels[level]
                skips.append(channels)
            if level == levels[-1]:
                break
            if biggan:
                self.downsamplers.append(block(channels, channels, resample=Downsample(kernel)))
            else:
                self.downsamplers.append(Downsample(kernel, *([channels, channels] if resample_with_conv else [])))
            if progressive_input == "input_skip":
                self.input_pyramid.append(InputSkip(image_in, channels, kernel, progressive_combine))
                channels *= 2 if progressive_combine == "cat" else 1
            elif progressive_input == "residual":
                self.input_pyramid.append(InputResidual(pyramid, channels, kernel, skip_scale))
                pyramid = channels
            skips.append(channels)

        self.mid_blocks = nn.ModuleList([block(channels, channels, attention=True), block(channels, channels)])

        # Way up; the lists count from the coarsest level.
        self.up_blocks, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        self.output_pyramid = nn.ModuleList()
        for level in reversed(levels):
            self.up_blocks.append(nn.ModuleList())
            for layer in range(layers_per_block + 1):
                attention = attends[level] and layer == layers_per_block
                self.up_blocks[-1].append(
                    block(channels + skips.pop(), block_out_channels[level], attention=attention)
                )
                channels = block_out_channels[level]
            if progressive == "output_skip":
                self.output_pyramid.append(OutputSkip(channels, image_out, norm_num_groups, init_scale, kernel))
            elif progressive == "residual":
                first = level == levels[-1]
                self.output_pyramid.append(
                    OutputSkip(channels, channels, norm_num_groups, 1.0, kernel)
                    if first
                    else OutputResidual(pyramid, channels, kernel, skip_scale)
                )
                pyramid = channels
            if level == 0:
                break
            if biggan:
                self.upsamplers.append(block(channels, channels, resample=Upsample(kernel)))
            else:
                self.upsamplers.append(Upsample(kernel, *([channels, channels] if resample_with_conv else [])))

        self._residual_blocks = number_blocks(m for m in self.modules() if isinstance(m, ResidualBlock))

        self.norm_out = self.conv_out = None
        if progressive != "output_skip":
            self.norm_out = GroupNorm(channels, norm_num_groups)
            self.conv_out = conv2d(channels, image_out, 3, init_scale=init_scale)
        self.levels_out: nn.Module | None = None
        if pixel_levels:
            self.levels_out = conv2d(channels, image_out, 3, init_scale=init_scale)
            nn.init.constant_(self.levels_out.bias, LOWEST_AT_FIRST)

    @classmethod
    def from_preset(cls, name: str, **overrides):
        """A new, randomly initialised network of a known configuration.

        Args:
            name (`str`): A key of `NCSNPP_PRESETS`.
            **overrides: Arguments of the constructor that replace the preset's.

        Raises:
            ValueError: If there is no such preset.
        """
        if name not in NCSNPP_PRESETS:
            raise ValueError(f"Unknown preset {name!r}; there are {', '.join(NCSNPP_PRESETS)}.")
        return cls(**{**NCSNPP_PRESETS[name], **overrides})

    def set_attention_backend(self, backend: str, *args, **kwargs):
        """Not available: raises NotImplementedError, where the inherited method would do nothing and say nothing."""
        raise NotImplementedError(f"The attention of {type(self).__name__} has no backends to choose from.")

    def set_use_memory_efficient_attention_xformers(self, valid: bool, *args, **kwargs):
        """Not available: raises NotImplementedError, where the inherited method would do nothing and say nothing."""
        if valid:
            raise NotImplementedError(f"The attention of {type(self).__name__} does not use xformers.")

    def forward(self, sample: Tensor, timestep: float | Tensor, class_labels: Tensor | None = None,
                return_dict: bool = True, augment_labels: Tensor | None = None):  # fmt: skip
        """Evaluate the network.

        Args:
            sample (`torch.Tensor` of shape (N, in_channels, H, W)): Noisy images, on the scale of `image_range`.
            timestep (number or `torch.Tensor` of shape () or (N,)): What the network is conditioned on, per image:
                sigma for VE and EDM, 999 t for VP and sub-VP, an index for tables. Need not be whole.
            class_labels (`torch.Tensor` of shape (N,) or (), *optional*): Integers in [0, num_class_embeds), or -1
                for "no class", which is also what None means.
            return_dict (`bool`): Whether to return a `UNet2DOutput` or a tuple.
            augment_labels (`torch.Tensor` of shape (N, augment_dim), *optional*): How each image was transformed.

        Returns:
            `UNet2DOutput` or `tuple`: `sample` of shape (N, out_channels, H, W), in the dtype of the given one.

        Raises:
            ValueError: If shapes do not fit, a class or noise level does not exist, or the sample holds integers.
        """
        config = self.config
        if sample.ndim != 4 or sample.shape[1] != config.in_channels:
            raise ValueError(f"`sample` must have shape (N, {config.in_channels}, H, W), got {tuple(sample.shape)}.")
        require_floating(sample=sample)
        # Everything outside the layers happens in float32 at least, whatever the dtype of sample and network.
        dtype = torch.promote_types(sample.dtype, torch.float32)
        t = torch.as_tensor(timestep, device=sample.device).to(dtype)
        if t.numel() not in (1, sample.shape[0]) or t.ndim > 1:
            raise ValueError(f"`timestep` must be a number or of shape ({sample.shape[0]},), got {tuple(t.shape)}.")
        fourier = config.time_embedding_type == "fourier"
        if fourier or config.preconditioning:
            require_noise("timestep", t)
        t = t.expand(sample.shape[0])
        x, scale = sample.to(dtype), t.reshape(-1, 1, 1, 1)

        if config.preconditioning == "edm":
            c_in = (scale**2 + config.sigma_data**2).rsqrt()
            levels = level_features(x, scale, config.pixel_levels) if config.pixel_levels else None
            output = self._network(c_in * x, t.log() / 4, class_labels, augment_labels, levels).to(dtype)
            output, lowest = output.chunk(2, dim=1) if config.pixel_levels else (output, None)
            share = config.sigma_data * c_in
            output = torch.addcmul(share**2 * x, scale * share, output)
            if config.pixel_levels:
                output = with_levels(output, x, scale, config.pixel_levels, lowest)
        else:
            low, high = config.image_range
            if (low, high) != (-1, 1):
                x = x * (2 / (high - low)) - (low + high) / (high - low)
            output = self._network(x, t.log() if fourier else t, class_labels, augment_labels).to(dtype)
            if config.scale_by_sigma:
                if not fourier:
                    log_ratio = math.log(config.sigma_min / config.sigma_max)
                    scale = config.sigma_max * torch.exp(scale * (log_ratio / (config.num_scales - 1)))
                output = output / scale
        return UNet2DOutput(sample=output.to(sample.dtype)) if return_dict else (output.to(sample.dtype),)

    def _network(self, x, condition, class_labels, augment_labels=None, levels=None):
        """The bare network: images (N, C, H, W) in [-1, 1] plus noise, embedded noise level (N,), level features."""
        height, width = x.shape[-2:]
        patch, dtype = self.config.patch_size, compute_dtype(self.conv_in)
        emb = BlockEmbeddings(self._embed(condition, class_labels, augment_labels), self._residual_blocks)
        x = in_patches(x.to(dtype), patch)
        # Not by isinstance: diffusers re-executes a saved folder's module at every load, so classes are replaced.
        biggan = self.config.resblock_type == "biggan"
        checkpointing = self.gradient_checkpointing and torch.is_grad_enabled()

        def run(block, *args):
            return self._gradient_checkpointing_func(block, *args) if checkpointing else block(*args)

        h, pyramid = self.conv_in(x), x
        if self.levels_in is not None:
            h = h + self.levels_in(in_patches(levels.to(dtype), patch))
        skips = [h]
        for level, blocks in enumerate(self.down_blocks):
            for block in blocks:
                h = run(block, h, emb)
                skips.append(h)
            if level < len(self.downsamplers):
                downsample = self.downsamplers[level]
                h = run(downsample, h, emb) if biggan else downsample(h)
                if len(self.input_pyramid):
                    h, pyramid = self.input_pyramid[level](h, pyramid)
                skips.append(h)

        for block in self.mid_blocks:
            h = run(block, h, emb)

        pyramid = None
        for level, blocks in enumerate(self.up_blocks):
            for block in blocks:
                h = run(block, torch.cat([h, skips.pop()], dim=1), emb)
            if len(self.output_pyramid):
                h, pyramid = self.output_pyramid[level](h, pyramid)
            if level < len(self.upsamplers):
                upsample, size = self.upsamplers[level], skips[-1].shape[-2:]
                h = run(upsample, h, emb, size) if biggan else upsample(h, size)

        if self.conv_out is None:
            h = pyramid
        else:
            h = F.silu(self.norm_out(h))  # type: ignore[misc]
            h = self.conv_out(h) if self.levels_out is None else torch.cat([self.conv_out(h), self.levels_out(h)], 1)
        return crop(F.pixel_shuffle(h, patch), (height, width)) if patch > 1 else h
