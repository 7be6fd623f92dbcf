"""Networks of EDM (github.com/NVlabs/edm; Karras et al., 2022, arXiv 2206.00364): `from_edm`.

EDM trains its re-implementation of NCSN++ and DDPM++, `SongUNet`, inside one of three wrappers that all answer
D(x; sigma) = E[x_0 | x_0 + sigma noise = x] for images in [-1, 1], F being the network:

    EDMPrecond   c_skip x + c_out F(c_in x; ln(sigma) / 4)            -> preconditioning "edm", answers x_0
    VPPrecond    x - sigma F(x / sqrt(1 + sigma^2); 999 t)            -> the VP SDE's noise, F = E[noise | x_t]
    VEPrecond    x + sigma F(x; ln(sigma / 2))                        -> the VE SDE's score on images in [0, 1], where
                                                                         sigma / 2 is the noise level, 2 F / sigma
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sde_diffusers.class_names import Labels
from sde_diffusers.convert.checkpoints import check_against_recorded, load_converted, read_json, read_tensors
from sde_diffusers.models.layers import FourierFeatures
from sde_diffusers.models.unet_ncsnpp import NCSNppUNet2DModel
from sde_diffusers.parameterization import expand_like
from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline
from sde_diffusers.scalars import real_number, whole_number
from sde_diffusers.schedulers.scheduling_probability_flow import ScoreSdeProbabilityFlowScheduler

logger = logging.getLogger(__name__)

EDM_PICKLE_ADVICE = """\
EDM's .pkl files hold code, which is run when they are read. If you trust the file, take the weights out of it where \
EDM's own code is installed (`pip install safetensors`, then in its folder):

    import json, pickle
    from safetensors.torch import save_file
    with open("network.pkl", "rb") as file:
        net = pickle.load(file)["ema"]
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, "edm.safetensors")
    with open("edm.json", "w") as file:
        json.dump({"class_name": type(net).__name__, **net.init_kwargs}, file)

and convert edm.safetensors with the configuration edm.json."""

# Values of EDM's constructors (`training/networks.py`) for what a configuration does not say.
_SONG_UNET = {
    "model_channels": 128,
    "channel_mult": (1, 2, 2, 2),
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": (16,),
    "dropout": 0.10,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": (1, 1),
    "label_dim": 0,
    "augment_dim": 0,
    "label_dropout": 0,
    "use_fp16": False,
}
_WRAPPERS = {
    "EDMPrecond": {"sigma_min": 0, "sigma_max": float("inf"), "sigma_data": 0.5, "model_type": "DhariwalUNet"},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5, "model_type": "SongUNet"},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100, "model_type": "SongUNet"},
}
_EDM_RULES = {
    "an integer of at least 1": lambda value: whole_number(value) >= 1,
    "an integer of at least 0": lambda value: whole_number(value) >= 0,
    "a number": lambda value: not math.isnan(real_number(value)),
    "a list of numbers": lambda value: (
        isinstance(value, (list, tuple)) and all(math.isfinite(real_number(number)) for number in value)
    ),
}
_EDM_KINDS = {
    **dict.fromkeys(("img_resolution", "img_channels", "model_channels", "num_blocks"), "an integer of at least 1"),
    **dict.fromkeys(("label_dim", "augment_dim"), "an integer of at least 0"),
    **dict.fromkeys(("dropout", "label_dropout", "sigma_min", "sigma_max", "sigma_data"), "a number"),
    **dict.fromkeys(("beta_d", "beta_min", "epsilon_t"), "a number"),
    **dict.fromkeys(("channel_mult", "attn_resolutions", "resample_filter"), "a list of numbers"),
}
_ENCODERS = {"standard": "none", "skip": "input_skip", "residual": "residual"}
_DECODERS = {"standard": "none", "skip": "output_skip"}
EDM_SIGMAS = (0.002, 80.0)  # where its sampler begins and ends, for networks without bounds of their own


def from_edm(state_dict: dict | str | Path, config: dict | str | Path, recorded: dict | str | Path | None = None):
    """A network of EDM with its preconditioning as a pipeline.

    The layer for augmentation labels (`augment_dim`) is left out, with a warning: EDM's own sampling gives no such
    labels, which is the same as zeros.

    Args:
        state_dict (`dict`, `str` or `Path`): The wrapper's tensors, `model.enc...`, or a file of them (safetensors,
            or what `torch.save` wrote). EDM's .pkl files are refused, with the way to convert them.
        config (`dict`, `str` or `Path`): The arguments of the wrapper's constructor and "class_name" ("EDMPrecond",
            which is the default, "VPPrecond" or "VEPrecond"; modules in front of it are ignored), or a JSON file.
        recorded (`dict`, `str` or `Path`, *optional*): What the original answered, to compare with: `x`, `labels`
            (its sigmas), `y` = net(x, sigma) and, if it has classes, `class_labels` as integers.

    Returns:
        `ScoreSdePipeline` with EDM's deterministic sampler, a `ScoreSdeProbabilityFlowScheduler` (Heun).

    Raises:
        ValueError: If the configuration can't be expressed, the tensors do not fit it, or the answers differ from
            the recorded ones.
        FileNotFoundError: If there is no such file.
    """
    wrapper, config = _edm_config(read_json(config) if isinstance(config, (str, Path)) else config)
    unet = NCSNppUNet2DModel(**_edm_unet_config(wrapper, config))
    if isinstance(state_dict, (str, Path)):
        state_dict = read_tensors(state_dict, advice=EDM_PICKLE_ADVICE)
    load_converted(unet, *_edm_tensors(unet, state_dict, config))
    scheduler = ScoreSdeProbabilityFlowScheduler(**_edm_scheduler_config(wrapper, config))
    pipe = ScoreSdePipeline(unet=unet.eval(), scheduler=scheduler)
    if recorded is not None:
        check_against_recorded(lambda x, sigma, classes: edm_denoiser(pipe, x, sigma, classes), recorded)
    return pipe


def edm_denoiser(pipe: ScoreSdePipeline, x: Tensor, sigma: Tensor, class_labels: Labels = None):
    """EDM's D(x; sigma) = E[x_0 | x_0 + sigma noise = x] for images in [-1, 1], by any pipeline.

    Args:
        pipe (`ScoreSdePipeline`): The pipeline.
        x (`torch.Tensor` of shape (N, C, H, W)): Noisy images.
        sigma (`torch.Tensor` of shape (N,)): Their noise levels, within those of the pipeline's SDE.
        class_labels: As the pipeline takes them.

    Returns:
        `torch.Tensor` of shape (N, C, H, W): Denoised images in [-1, 1].
    """
    parameterization, sde = pipe.scheduler.parameterization, pipe.scheduler.sde
    low, high = parameterization.image_range
    level = sigma.double().cpu() * (high - low) / 2
    t = sde.inverse_half_log_snr(-level.log())
    x_t = parameterization.to_model_range((x + 1) / 2) * expand_like(sde.alpha(t), x)
    return 2 * parameterization.to_unit_range(pipe.denoise(x_t, t, class_labels)) - 1


def _edm_config(config):
    """The name of the wrapper and its configuration with EDM's defaults, checked."""
    if not isinstance(config, Mapping):
        raise ValueError(f"`config` must be a dictionary or a JSON file of one, but is {config!r}.")
    config = dict(config)
    wrapper = str(config.pop("class_name", "EDMPrecond")).split(".")[-1]
    if wrapper not in _WRAPPERS:
        raise ValueError(f"class_name must be one of {tuple(_WRAPPERS)} to be converted, got {wrapper!r}.")
    missing = [key for key in ("img_resolution", "img_channels") if key not in config]
    if missing:
        raise ValueError(f"The configuration lacks {', '.join(missing)}.")
    known = {"img_resolution", "img_channels", *_SONG_UNET, *_WRAPPERS[wrapper]}
    unknown = [key for key in config if key not in known]
    if unknown:
        raise ValueError(f"{wrapper} with a SongUNet has no arguments {', '.join(unknown)}.")
    config = {**_SONG_UNET, **_WRAPPERS[wrapper], **config}
    fourier = config["embedding_type"] == "fourier"
    allowed = {
        "model_type": ("SongUNet",),
        "embedding_type": {"VPPrecond": ("positional",), "VEPrecond": ("fourier",)}.get(
            wrapper, ("positional", "fourier")
        ),
        "channel_mult_noise": (2 if fourier else 1,),
        "channel_mult_emb": (4,),
        "encoder_type": tuple(_ENCODERS),
        "decoder_type": tuple(_DECODERS),
        "M": (1000,),
    }
    for key, what in _EDM_KINDS.items():
        if key in config and not _EDM_RULES[what](config[key]):
            raise ValueError(f"{key} must be {what}, but is {config[key]!r}.")
    for key, choices in allowed.items():
        if key in config and config[key] not in choices:
            raise ValueError(f"{key} must be one of {choices} for {wrapper} to be converted, got {config[key]!r}.")
    return wrapper, config


def _edm_unet_config(wrapper, config):
    """Arguments of `NCSNppUNet2DModel`."""
    fourier = config["embedding_type"] == "fourier"
    taps = tuple(config["resample_filter"])
    preconditioning = {
        "EDMPrecond": {"preconditioning": "edm", "sigma_data": float(config.get("sigma_data", 0.5))},
        "VPPrecond": {},
        "VEPrecond": {"scale_by_sigma": True, "image_range": (0.0, 1.0)},
    }[wrapper]
    return {
        "sample_size": config["img_resolution"],
        "in_channels": config["img_channels"],
        "base_channels": config["model_channels"],
        "block_out_channels": tuple(config["model_channels"] * multiple for multiple in config["channel_mult"]),
        "layers_per_block": config["num_blocks"],
        "attention_resolutions": tuple(config["attn_resolutions"]),
        "dropout": config["dropout"],
        "num_class_embeds": config["label_dim"] or None,
        "label_dropout": config["label_dropout"] if config["label_dim"] else None,
        "class_joins": "features",
        "time_embedding_type": config["embedding_type"],
        # Averages and copies, except in the pyramid of features, where EDM has another border than DDPM's.
        "fir": taps != (1, 1) or config["encoder_type"] == "residual",
        "fir_kernel": taps,
        "progressive_input": _ENCODERS[config["encoder_type"]],
        "progressive": _DECODERS[config["decoder_type"]],
        "scale_by_sigma": False,
        "image_range": (-1.0, 1.0),
        **({"fourier_scale": 16.0} if fourier else {}),
        **preconditioning,
    }


def _edm_scheduler_config(wrapper, config):
    """Arguments of `ScoreSdeProbabilityFlowScheduler`: the SDE whose network this is, EDM's steps."""
    if wrapper == "VPPrecond":
        beta_min = config["beta_min"]
        return {"sde": "vp", "beta_min": beta_min, "beta_max": beta_min + config["beta_d"]}
    low, high = config["sigma_min"] or EDM_SIGMAS[0], config["sigma_max"]
    high = high if high < float("inf") else EDM_SIGMAS[1]
    if wrapper == "VEPrecond":
        return {"sde": "ve", "sigma_min": low / 2, "sigma_max": high / 2}
    return {
        "sde": "ve",
        "sigma_min": low,
        "sigma_max": high,
        "prediction_type": "sample",
        "image_range": (-1.0, 1.0),
    }


def _edm_tensors(unet, state_dict, config):
    """EDM's tensors in our axes, which of them make up each of ours, and what is wrong with the rest."""
    others = [
        key for key, value in state_dict.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))
    ]
    if others:
        raise ValueError(f"`state_dict` must hold tensors alone, but {', '.join(map(str, others))} is something else.")
    source = {key.removeprefix("model."): value.float() for key, value in state_dict.items()}
    problems = []
    taps = torch.tensor(config["resample_filter"], dtype=torch.float32)
    fir = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    for key in [key for key in source if key.endswith("resample_filter")]:  # said by the configuration: compared
        recorded = source.pop(key)
        if recorded.shape != fir.shape or not torch.allclose(recorded, fir):
            problems.append(f"{key}: is not the filter {list(config['resample_filter'])} of the configuration")
    if config["augment_dim"] and source.pop("map_augment.weight", None) is not None:
        logger.warning("map_augment.weight is left out: the network is that for augmentation labels of zero.")
    for key, tensor in source.items():
        if ".qkv." in key and len(tensor) % 3 == 0:  # rows (channel, q k v) -> (q k v, channel)
            source[key] = tensor.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)
    if config["label_dim"]:
        _fold_labels(source, problems)
    return source, _edm_layout(unet), problems


def _fold_labels(source, problems):
    """EDM's label layer, a one-hot vector times sqrt(label_dim), as a table of classes.

    Its bias is there without a class too, so it belongs to the layer that follows.
    """
    needed = ("map_label.weight", "map_label.bias", "map_layer0.weight", "map_layer0.bias")
    if any(key not in source for key in needed):
        problems += [f"{key}: missing" for key in needed[:2] if key not in source]
        return
    weight, bias, next_weight, next_bias = (source[key] for key in needed)
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or next_weight.shape[1:] != bias.shape:
        problems.append(f"map_label: shapes {tuple(weight.shape)} and {tuple(bias.shape)} do not fit map_layer0")
        return
    source["map_label.weight"] = weight.t() * weight.shape[1] ** 0.5
    del source["map_label.bias"]
    source["map_layer0.bias"] = next_bias + next_weight @ bias


def _edm_layout(unet):
    """Which of EDM's tensors make up each of ours: {our key: [its key]}."""
    names = {module: name for name, module in unet.named_modules()}
    layout = {}

    def take(module, theirs):
        layout[f"{names[module]}.weight"] = [f"{theirs}.weight"]
        layout[f"{names[module]}.bias"] = [f"{theirs}.bias"]

    def take_block(block, theirs):
        parts = {"norm0": block.norm1, "conv0": block.conv1, "affine": block.emb, "norm1": block.norm2}
        parts |= {"conv1": block.conv2, "skip": block.shortcut}
        if block.attention is not None:
            parts |= {"norm2": block.attention.norm, "qkv": block.attention.qkv, "proj": block.attention.out}
        for name, module in parts.items():
            if module is not None:
                take(module, f"{theirs}.{name}")

    def size(level):
        side = unet.config.sample_size >> level
        return f"{side}x{side}"

    if isinstance(unet.time_proj, FourierFeatures):
        layout["time_proj.frequency_bits"] = ["map_noise.freqs"]
    if unet.class_embedding is not None:
        layout["class_embedding.weight"] = ["map_label.weight"]
    take(unet.time_embedding[0], "map_layer0")
    take(unet.time_embedding[2], "map_layer1")
    take(unet.conv_in, f"enc.{size(0)}_conv")
    last = len(unet.down_blocks) - 1
    for level, blocks in enumerate(unet.down_blocks):
        for i, block in enumerate(blocks):
            take_block(block, f"enc.{size(level)}_block{i}")
        if level < last:
            take_block(unet.downsamplers[level], f"enc.{size(level + 1)}_down")
            if unet.config.progressive_input == "input_skip":
                take(unet.input_pyramid[level].conv, f"enc.{size(level + 1)}_aux_skip")
            elif unet.config.progressive_input == "residual":
                take(unet.input_pyramid[level].downsample.conv, f"enc.{size(level + 1)}_aux_residual")
    for i, block in enumerate(unet.mid_blocks):
        take_block(block, f"dec.{size(last)}_in{i}")
    for step, blocks in enumerate(unet.up_blocks):
        level = last - step
        for i, block in enumerate(blocks):
            take_block(block, f"dec.{size(level)}_block{i}")
        if unet.config.progressive == "output_skip":
            take(unet.output_pyramid[step].norm, f"dec.{size(level)}_aux_norm")
            take(unet.output_pyramid[step].conv, f"dec.{size(level)}_aux_conv")
        if level > 0:
            take_block(unet.upsamplers[step], f"dec.{size(level - 1)}_up")
    if unet.conv_out is not None:
        take(unet.norm_out, f"dec.{size(0)}_aux_norm")
        take(unet.conv_out, f"dec.{size(0)}_aux_conv")
    return layout
