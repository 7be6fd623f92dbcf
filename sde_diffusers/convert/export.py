"""The other way: a VP model as a plain pipeline of diffusers, `to_diffusers`.

diffusers' `UNet2DModel` expresses the networks of the original DDPM. One difference remains: it attends after every
residual block on the way up, where ours attends once per level, after the last. The attention layers that ours lacks
get an output projection of zeros, so that they add nothing.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from sde_diffusers.convert.checkpoints import check_against_recorded
from sde_diffusers.images import PixelFormat, pixel_format
from sde_diffusers.network_fit import require_own_scheduler
from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline

TRAINING_EPS = 1e-5  # the smallest time of the paper's training


def to_diffusers(pipe: ScoreSdePipeline, folder: str | Path):
    """Write a pipeline as a plain `DDPMPipeline` of diffusers, which `DDIMPipeline.from_pretrained` reads as well.

    A network of diffusers' own (`from_diffusers`) goes out as it is, a compiled one as what was compiled. The exported
    network is compared with the original on a random input before anything is written, both in float32 and eval mode;
    it is written in the precision of the original.

    A continuous VP network, conditioned on 999 t, becomes a table of 1000 levels at t = k / 999; the first, where
    there would be no noise, is at t = 1e-5.

    Args:
        pipe (`ScoreSdePipeline`): The pipeline.
        folder (`str` or `Path`): Where to write; must not exist.

    Returns:
        `DDPMPipeline`: What was written.

    Raises:
        ValueError: If diffusers can't express the model, naming the first option that it lacks.
        FileExistsError: If the folder exists.
    """
    folder = Path(folder).expanduser()
    if folder.exists():
        raise FileExistsError(f"{folder} exists.")
    require_own_scheduler(pipe.scheduler)
    for part in ("guide", "classifier"):
        kind = getattr(pipe, part, None)
        _require(kind is None, part, kind and type(kind).__name__, f"None (`pipe.{part} = None` leaves it out)")
    scheduler = _ddpm_scheduler(pipe.scheduler)
    unet: Any = getattr(pipe.unet, "_orig_mod", pipe.unet)  # a compiled network is wrapped
    kind = type(unet).__name__
    _require(kind in ("UNet2DModel", "NCSNppUNet2DModel"), "unet", kind, "'UNet2DModel' or 'NCSNppUNet2DModel'")
    consistency = unet.config.get("consistency", False)
    _require(not consistency, "consistency", consistency, "False, since these pipelines take E[x_0 | x_t]")
    values = getattr(unet.config, "value_dtype", None) or "uint8"
    _require(values == "uint8", "value_dtype", values, "'uint8', as these pipelines give 8 bits")
    levels = getattr(unet.config, "value_range", None)
    _require(pixel_format(unet) == PixelFormat(), "value_range", levels, "None or (0, 255), the whole of 8 bits")
    classes = unet.config.num_class_embeds
    _require(classes is None, "num_class_embeds", classes, "None, since these pipelines give no classes")
    if kind != "UNet2DModel":
        original = torch.nn.Module.to(copy.deepcopy(unet), torch.float32).eval()
        exported = _unet2d(original)
        _compare(exported, original, len(scheduler.betas))
        unet = torch.nn.Module.to(exported, unet.dtype)
    exported = DDPMPipeline(unet=unet, scheduler=scheduler)
    write_pipeline(exported, folder)
    return exported


def write_pipeline(pipe, folder):
    """Save a pipeline to a new folder, under a temporary name until it is complete.

    Raises:
        FileExistsError: If the folder exists.
    """
    folder = Path(folder).expanduser()
    if folder.exists():
        raise FileExistsError(f"{folder} exists.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        pipe.save_pretrained(Path(temporary) / folder.name)
        (Path(temporary) / folder.name).rename(folder)


def _require(condition, name, value, allowed):
    if not condition:
        raise ValueError(f"diffusers' pipelines can't express `{name}`={value!r}; it must be {allowed}.")


def _ddpm_scheduler(scheduler):
    """The noise table of diffusers' `DDPMScheduler` that holds the levels on which the network is conditioned."""
    config, parameterization = scheduler.config, scheduler.parameterization
    _require(config.sde in ("vp", "vp_discrete"), "sde", config.sde, "'vp' or 'vp_discrete'")
    prediction, labels = parameterization.prediction_type, parameterization.time_input
    predictions = ("epsilon", "sample", "v_prediction")
    _require(prediction in predictions, "prediction_type", prediction, "'epsilon', 'sample' or 'v_prediction'")
    _require(parameterization.image_range == (-1, 1), "image_range", parameterization.image_range, "(-1, 1)")
    if config.sde == "vp":
        _require(labels == "999t", "time_input", labels, "'999t' with 'vp'")
        t = torch.linspace(0, 1, 1000, dtype=torch.float64)
        t[0] = TRAINING_EPS
        log_signal = 2 * scheduler.training_sde.alpha(t).log()  # of the cumulative product of 1 - beta
        betas = -torch.expm1(torch.cat([log_signal[:1], log_signal.diff()]))
    else:
        _require(labels == "index", "time_input", labels, "'index' with 'vp_discrete'")
        betas = scheduler.betas
    return DDPMScheduler(
        num_train_timesteps=len(betas),
        trained_betas=betas.tolist(),
        prediction_type=prediction,
        **_bounds_given_back(scheduler),
        timestep_spacing="trailing",  # begins at the noisiest level, as our samplers do
    )


def _bounds_given_back(scheduler):
    """What bounds x_0, under the names of diffusers."""
    bounds = scheduler.denoised_range
    if bounds.ratio is not None:
        names = {"dynamic_thresholding_ratio": bounds.ratio, "sample_max_value": bounds.largest}
        return {"clip_sample": False, "thresholding": True, **names}
    return {"clip_sample": True, "clip_sample_range": bounds.width} if bounds.bounded else {"clip_sample": False}


def _unet2d(unet):
    """Our network as a `UNet2DModel`, with the same weights, in float32."""
    config = unet.config
    levels = len(config.block_out_channels)
    for name, allowed in {
        "preconditioning": (None,),
        "patch_size": (1,),
        "image_range": ((-1.0, 1.0),),
        "scale_by_sigma": (False,),
        "time_embedding_type": ("positional",),
        "resblock_type": ("ddpm",),
        "fir": (False,),
        "resample_with_conv": (True,),
        "skip_rescale": (False,),
        "progressive": ("none",),
        "progressive_input": ("none",),
        "base_channels": (None, config.block_out_channels[0]),
    }.items():
        value = tuple(config[name]) if isinstance(config[name], list) else config[name]
        _require(value in allowed, name, value, " or ".join(map(repr, allowed)))
    groups = {module.num_groups for module in unet.modules() if isinstance(module, torch.nn.GroupNorm)}
    _require(len(groups) == 1, "norm_num_groups", config.norm_num_groups, f"one number for all layers, not {groups}")
    sides = [config.sample_size] if isinstance(config.sample_size, int) else config.sample_size
    fits = all(side % 2 ** (levels - 1) == 0 for side in sides)
    _require(fits, "sample_size", config.sample_size, f"a multiple of {2 ** (levels - 1)}")

    attends = [blocks[0].attention is not None for blocks in unet.down_blocks]
    theirs = UNet2DModel(
        sample_size=config.sample_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels or config.in_channels,
        block_out_channels=tuple(config.block_out_channels),
        layers_per_block=config.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=None,  # one head
        norm_num_groups=groups.pop(),
        norm_eps=1e-6,
        downsample_padding=0,
        dropout=config.dropout,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    theirs.load_state_dict(_unet2d_tensors(unet))
    return theirs.to(unet.device).eval()


def _unet2d_tensors(unet):
    """Our weights under the names of `UNet2DModel`."""
    tensors = {}

    def put(name, module):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = module.weight, module.bias

    def put_attention(name, attention):
        put(f"{name}.group_norm", attention.norm)
        for part, layer in {"to_q to_k to_v": attention.qkv, "to_out.0": attention.out}.items():
            parts = part.split()
            weights, biases = layer.weight.flatten(1).chunk(len(parts)), layer.bias.chunk(len(parts))
            for key, weight, bias in zip(parts, weights, biases, strict=True):
                tensors[f"{name}.{key}.weight"], tensors[f"{name}.{key}.bias"] = weight, bias

    def put_blocks(name, blocks):
        for i, block in enumerate(blocks):
            parts = {"norm1": block.norm1, "conv1": block.conv1, "time_emb_proj": block.emb, "norm2": block.norm2}
            parts |= {"conv2": block.conv2, "conv_shortcut": block.shortcut}
            for part, module in parts.items():
                if module is not None:
                    put(f"{name}.resnets.{i}.{part}", module)

    put("conv_in", unet.conv_in)
    put("time_embedding.linear_1", unet.time_embedding[0])
    put("time_embedding.linear_2", unet.time_embedding[2])
    for level, blocks in enumerate(unet.down_blocks):
        put_blocks(f"down_blocks.{level}", blocks)
        for i, block in enumerate(blocks):
            if block.attention is not None:
                put_attention(f"down_blocks.{level}.attentions.{i}", block.attention)
        if level < len(unet.downsamplers):
            put(f"down_blocks.{level}.downsamplers.0.conv", unet.downsamplers[level].conv)
    put_blocks("mid_block", unet.mid_blocks)
    put_attention("mid_block.attentions.0", unet.mid_blocks[0].attention)
    for step, blocks in enumerate(unet.up_blocks):
        put_blocks(f"up_blocks.{step}", blocks)
        attention = blocks[-1].attention
        if attention is not None:
            for i in range(len(blocks)):
                name = f"up_blocks.{step}.attentions.{i}"
                put_attention(name, attention)
                if i < len(blocks) - 1:  # attention that ours does not have
                    for key in (f"{name}.to_out.0.weight", f"{name}.to_out.0.bias"):
                        tensors[key] = torch.zeros_like(tensors[key])
        if step < len(unet.upsamplers):
            put(f"up_blocks.{step}.upsamplers.0.conv", unet.upsamplers[step].conv)
    put("conv_norm_out", unet.norm_out)
    put("conv_out", unet.conv_out)
    return tensors


@torch.no_grad()
def _compare(exported, original, table_length):
    """Both networks, in float32, on a random input; a ValueError if their answers differ."""
    config = original.config
    size = [config.sample_size] * 2 if isinstance(config.sample_size, int) else config.sample_size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, config.in_channels, *size), generator=generator).to(original.device)
    labels = torch.randint(table_length, (2,), generator=generator).to(original.device)
    recorded = {"x": x, "labels": labels, "y": original(x, labels).sample}
    check_against_recorded(lambda x, labels, _: exported(x, labels).sample, recorded)
