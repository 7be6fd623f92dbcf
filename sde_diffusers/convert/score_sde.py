"""Checkpoints of the paper's own PyTorch code (github.com/yang-song/score_sde_pytorch).

Its networks (`model.name` "ncsnpp" and "ddpm") keep their layers in one flat list, `all_modules.<i>`, in the order in
which they are used. The conversion walks our network in that order and states, layer by layer, which of our tensors
the next entry of the list holds.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from sde_diffusers.convert.checkpoints import (
    check_against_recorded,
    load_converted,
    network_answer,
    read_json,
    read_tensors,
)
from sde_diffusers.convert.score_sde_configs import SCORE_SDE_CONFIGS
from sde_diffusers.models.layers import FourierFeatures, InputSkip, OutputSkip, ResidualBlock
from sde_diffusers.models.unet_ncsnpp import NCSNppUNet2DModel
from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline
from sde_diffusers.scalars import real_number, whole_number
from sde_diffusers.schedulers.scheduling_predictor_corrector import ScoreSdePredictorCorrectorScheduler
from sde_diffusers.schedulers.scheduling_probability_flow import ScoreSdeProbabilityFlowScheduler
from sde_diffusers.sdes.vp import VPSDE


def from_score_sde(
    state_dict: dict | str | Path, config: dict | str | Path, recorded: dict | str | Path | None = None
):
    """A model of the paper's own code as a pipeline: network, SDE and the sampler of its configuration.

    Args:
        state_dict (`dict`, `str` or `Path`): The network's tensors (see `unet_from_score_sde`), a whole checkpoint
            ("model" and "ema": the EMA weights are taken), or a file that holds either, written by `torch.save` or as
            safetensors. Files are read without running code from them.
        config (`dict`, `str` or `Path`): The reference's configuration, nested; a key of `SCORE_SDE_CONFIGS`, which
            are named as its files ("ve/cifar10_ncsnpp_continuous"); or a JSON file.
        recorded (`dict`, `str` or `Path`, *optional*): What the reference's network answered, to compare with: the
            tensors `x`, `labels` and `y`, or a safetensors file of them.

    Returns:
        `ScoreSdePipeline` with a `ScoreSdePredictorCorrectorScheduler` (`sampling.method` "pc") or a
        `ScoreSdeProbabilityFlowScheduler` ("ode").

    Raises:
        ValueError: If the configuration can't be expressed, the tensors do not fit it, or the answers differ from
            the recorded ones.
        FileNotFoundError: If there is no such file.
    """
    keys = config if isinstance(config, dict) else SCORE_SDE_CONFIGS.get(str(config)) or _read_config(config)
    scheduler = ScoreSdePredictorCorrectorScheduler(**scheduler_config_from_score_sde(keys))
    if "sampling" in keys and _Section(keys, "sampling").choice("method", ("pc", "ode")) == "ode":
        scheduler = ScoreSdeProbabilityFlowScheduler.from_config(scheduler.config)
    unet_config_from_score_sde(keys)  # refuse what can't be expressed before a large file is read
    tensors = read_tensors(state_dict) if isinstance(state_dict, (str, Path)) else state_dict
    pipe = ScoreSdePipeline(unet=unet_from_score_sde(tensors, keys), scheduler=scheduler)
    if recorded is not None:
        check_against_recorded(network_answer(pipe), recorded)
    return pipe


def _read_config(path):
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        raise ValueError(
            f"`config` must be a dictionary, a JSON file or one of {', '.join(SCORE_SDE_CONFIGS)}, but is {path!r}."
        )
    return read_json(path)


def scheduler_config_from_score_sde(config: dict):
    """The configuration of `ScoreSdePredictorCorrectorScheduler` that equals one of the paper's code.

    Args:
        config (`dict`): The reference's configuration, nested; without a section "sampling" the sampler's defaults.

    Returns:
        `dict`: Arguments of `ScoreSdePredictorCorrectorScheduler`.

    Raises:
        ValueError: If a key is missing or the reference's choice can't be expressed.
    """
    model, data, training = (_Section(config, name) for name in ("model", "data", "training"))
    sde = {"vesde": "ve", "vpsde": "vp", "subvpsde": "sub_vp"}[training.choice("sde", ("vesde", "vpsde", "subvpsde"))]
    continuous = training.flag("continuous") or sde == "sub_vp"  # sub-VP is conditioned on 999 t in either case
    if not continuous and model.values.get("name") == "ncsnpp":
        # Fourier features of the logarithm of an index would start at log(0); the reference refuses them as well.
        model.choice("embedding_type", ("positional",))
    scheduler_config = {
        "sde": sde,
        "image_range": (-1.0, 1.0) if data.flag("centered") else (0.0, 1.0),
        "num_train_timesteps": model.count("num_scales"),
    }
    if sde == "ve":
        scheduler_config |= {key: model.number(key) for key in ("sigma_min", "sigma_max")}
        scheduler_config |= {"time_input": "sigma" if continuous else "index", "prediction_type": "score"}
    elif continuous:
        scheduler_config |= {key: model.number(key) for key in ("beta_min", "beta_max")}
        scheduler_config |= {"time_input": "999t", "prediction_type": "epsilon"}
    else:  # trained on the DDPM chain: its beta table is the SDE
        betas = VPSDE(model.number("beta_min"), model.number("beta_max")).beta_table(model.count("num_scales")).flip(0)
        scheduler_config |= {"sde": "vp_discrete", "trained_betas": betas.tolist(), "prediction_type": "epsilon"}
    if "sampling" in config:
        sampling = _Section(config, "sampling")
        if "probability_flow" in sampling.values:  # the deterministic sampler is another scheduler
            sampling.choice("probability_flow", (False,))
        predictors = ("reverse_diffusion", "euler_maruyama", "ancestral_sampling", "none")
        scheduler_config |= {
            "predictor": sampling.choice("predictor", predictors).removesuffix("_sampling"),
            "corrector": sampling.choice("corrector", ("langevin", "ald", "none")),
            "snr": sampling.number("snr"),
            "corrector_steps": sampling.count("n_steps_each"),
            "final_denoise": sampling.flag("noise_removal"),
        }
    return scheduler_config


def unet_config_from_score_sde(config: dict):
    """The configuration of `NCSNppUNet2DModel` that equals a network of the paper's code.

    Args:
        config (`dict`): The reference's configuration, nested: `config["model"]["nf"]`, `config["data"]["centered"]`.

    Returns:
        `dict`: Arguments of `NCSNppUNet2DModel`.

    Raises:
        ValueError: If a key is missing or the reference's choice can't be expressed.
    """
    model, data = _Section(config, "model"), _Section(config, "data")
    ddpm = model.choice("name", ("ncsnpp", "ddpm")) == "ddpm"
    model.choice("nonlinearity", ("swish",))
    model.choice("conditional", (True,))
    width = model.count("nf")
    unet_config = {
        "sample_size": data.count("image_size"),
        "in_channels": data.count("num_channels"),
        "block_out_channels": tuple(width * multiple for multiple in model.numbers("ch_mult")),
        "layers_per_block": model.count("num_res_blocks"),
        "attention_resolutions": model.numbers("attn_resolutions"),
        "dropout": model.number("dropout"),
        "resample_with_conv": model.flag("resamp_with_conv"),
        "scale_by_sigma": model.flag("scale_by_sigma"),
        "image_range": (-1.0, 1.0) if data.flag("centered") else (0.0, 1.0),
    }
    if ddpm:
        unet_config.update(
            time_embedding_type="positional",
            fir=False,
            resblock_type="ddpm",
            skip_rescale=False,
            norm_num_groups=32,
        )
    else:
        unet_config.update(
            time_embedding_type=model.choice("embedding_type", ("fourier", "positional")),
            fir=model.flag("fir"),
            fir_kernel=model.numbers("fir_kernel"),
            resblock_type=model.choice("resblock_type", ("biggan", "ddpm")),
            skip_rescale=model.flag("skip_rescale"),
            progressive=model.choice("progressive", ("none", "output_skip", "residual")),
            progressive_input=model.choice("progressive_input", ("none", "input_skip", "residual")),
            progressive_combine=model.choice("progressive_combine", ("sum", "cat")),
            init_scale=float(model.number("init_scale")),
        )
        if unet_config["time_embedding_type"] == "fourier":
            unet_config["fourier_scale"] = float(model.number("fourier_scale"))
    if unet_config["scale_by_sigma"] and unet_config["time_embedding_type"] == "positional":
        unet_config.update({key: model[key] for key in ("sigma_min", "sigma_max", "num_scales")})
    return unet_config


def unet_from_score_sde(state_dict: dict, config: dict):
    """A network of the paper's own code as a `NCSNppUNet2DModel`.

    Args:
        state_dict (`dict`): The reference network's tensors, `all_modules.<i>...` and `sigmas`, with or without
            `module.` in front; or a whole checkpoint, with the entries "model" and "ema", whose EMA weights are taken.
        config (`dict`): The reference's configuration, nested.

    Returns:
        `NCSNppUNet2DModel` in evaluation mode; for the same input it returns what the reference does.

    Raises:
        ValueError: If the configuration can't be expressed, or listing every tensor that is missing, left over or
            of the wrong shape.
    """
    unet = NCSNppUNet2DModel(**unet_config_from_score_sde(config))
    problems: list[str] = []
    if not all(isinstance(key, str) for key in state_dict):
        raise ValueError("`state_dict` must hold tensors by their names.")
    source = {key.removeprefix("module."): value for key, value in _ema_weights(state_dict, problems).items()}
    table = source.pop("sigmas", None)  # a function of the configuration: compared, not copied
    if table is not None and unet.config.num_scales is not None:
        expected = torch.linspace(0, 1, unet.config.num_scales, dtype=torch.float64)
        expected = unet.config.sigma_max * (unet.config.sigma_min / unet.config.sigma_max) ** expected
        if table.shape != expected.shape or not torch.allclose(table.double(), expected, rtol=1e-5):
            problems.append("sigmas: is not the geometric table of model.sigma_min, sigma_max and num_scales")
    for key, tensor in source.items():
        if ".NIN_" in key and key.endswith(".W") and tensor.ndim == 2:  # (in, out) -> (out, in, 1, 1)
            source[key] = tensor.t()[:, :, None, None]
    load_converted(unet, source, _score_sde_layout(unet), problems)
    return unet.eval()


def _ema_weights(checkpoint, problems):
    """The tensors of a checkpoint by name, with the EMA weights in the places of the parameters.

    The reference keeps them as a bare list of the parameters that are trained, in the order of the network, which is
    also that of its state dict: all entries but the table of sigmas and the fixed Fourier frequencies.
    """
    if "model" not in checkpoint:
        return checkpoint
    if not all(isinstance(checkpoint.get(key), dict) for key in ("model", "ema")):
        raise ValueError(
            "A whole checkpoint must hold the dictionaries `model` and `ema`, as the paper's code has it."
        )
    state, averages = dict(checkpoint["model"]), checkpoint["ema"].get("shadow_params")
    if not isinstance(averages, list) or not all(isinstance(x, torch.Tensor) for x in [*averages, *state.values()]):
        raise ValueError("`ema.shadow_params` must be a list of tensors, and `model` hold tensors alone.")
    trained = [key for key in state if key.removeprefix("module.") not in ("sigmas", "all_modules.0.W")]
    if len(averages) != len(trained):
        problems.append(f"ema.shadow_params: {len(averages)} tensors for {len(trained)} parameters")
        return state
    for i, (key, average) in enumerate(zip(trained, averages, strict=True)):
        if average.shape != state[key].shape:
            problems.append(
                f"ema.shadow_params[{i}]: shape {tuple(average.shape)}, "
                f"but its parameter {key} has {tuple(state[key].shape)}"
            )
        state[key] = average
    return state


class _Section:
    """One section of the reference's configuration, with errors that name what is missing or not expressible."""

    def __init__(self, config, name):
        if not isinstance(config, Mapping):
            raise ValueError(f"`config` must be a nested dictionary, but is {config!r}.")
        if name not in config:
            raise ValueError(f"The configuration lacks the section {name!r}; it has {sorted(map(str, config))}.")
        if not isinstance(config[name], Mapping):
            raise ValueError(f"The configuration's section {name!r} must be a dictionary, but is {config[name]!r}.")
        self.name, self.values = name, config[name]

    def __getitem__(self, key):
        if key not in self.values:
            raise ValueError(f"The configuration lacks {self.name}.{key}.")
        return self.values[key]

    def choice(self, key, allowed):
        value = self[key]
        value = value.lower() if isinstance(value, str) else value
        if value not in allowed:
            raise ValueError(f"{self.name}.{key} must be one of {allowed} to be converted, got {value!r}.")
        return value

    def flag(self, key):
        return self.choice(key, (True, False))  # a text, "no" too, would count as True

    def count(self, key):
        return self._checked(key, "an integer of at least 1", whole_number(self[key]) >= 1)

    def number(self, key):
        return self._checked(key, "a finite number", math.isfinite(real_number(self[key])))

    def numbers(self, key):
        value = self[key]
        finite = isinstance(value, (list, tuple)) and all(math.isfinite(real_number(number)) for number in value)
        return tuple(self._checked(key, "a list of numbers", finite))

    def _checked(self, key, allowed, holds):
        if not holds:
            raise ValueError(f"{self.name}.{key} must be {allowed}, but is {self[key]!r}.")
        return self[key]


def _score_sde_layout(unet):
    """Which of the reference's tensors make up each of ours: {our key: [their keys]}, stacked along the rows."""
    names = {module: name for name, module in unet.named_modules()}
    layout, index = {}, 0

    def take(**parts):
        """The next entry of the list; `parts` maps names inside it ("itself" for the entry) to modules of ours."""
        nonlocal index
        for name, module in parts.items():
            prefix = f"all_modules.{index}" + (f".{name}" if name != "itself" else "")
            if name.startswith("NIN"):
                # q, k and v are three layers there and one here
                entries = [f"all_modules.{index}.NIN_{i}" for i in range(3)] if name == "NIN_qkv" else [prefix]
                layout[f"{names[module]}.weight"] = [f"{entry}.W" for entry in entries]
                layout[f"{names[module]}.bias"] = [f"{entry}.b" for entry in entries]
            else:
                layout[f"{names[module]}.weight"] = [f"{prefix}.weight"]
                layout[f"{names[module]}.bias"] = [f"{prefix}.bias"]
        index += 1

    def take_block(block):
        parts = {"GroupNorm_0": block.norm1, "Conv_0": block.conv1, "Dense_0": block.emb}
        parts |= {"GroupNorm_1": block.norm2, "Conv_1": block.conv2}
        if block.shortcut is not None:
            parts["Conv_2" if unet.config.resblock_type == "biggan" else "NIN_0"] = block.shortcut
        take(**parts)
        if block.attention is not None:
            take(GroupNorm_0=block.attention.norm, NIN_qkv=block.attention.qkv, NIN_3=block.attention.out)

    def take_resampler(module):
        """Separate down- and upsampling layers; those without weights still have a place in the list."""
        if isinstance(module, ResidualBlock):
            take_block(module)
        elif module.conv is None:
            take()
        elif module.fir_kernel:
            take(Conv2d_0=module.conv)
        else:
            take(Conv_0=module.conv)

    if isinstance(unet.time_proj, FourierFeatures):
        layout["time_proj.frequency_bits"] = ["all_modules.0.W"]
        index += 1
    take(itself=unet.time_embedding[0])
    take(itself=unet.time_embedding[2])
    take(itself=unet.conv_in)
    for level, blocks in enumerate(unet.down_blocks):
        for block in blocks:
            take_block(block)
        if level < len(unet.downsamplers):
            take_resampler(unet.downsamplers[level])
            if len(unet.input_pyramid):
                pyramid = unet.input_pyramid[level]
                if isinstance(pyramid, InputSkip):
                    take(Conv_0=pyramid.conv)
                else:
                    take_resampler(pyramid.downsample)
    for block in unet.mid_blocks:
        take_block(block)
    for level, blocks in enumerate(unet.up_blocks):
        for block in blocks:
            take_block(block)
        if len(unet.output_pyramid):
            pyramid = unet.output_pyramid[level]
            if isinstance(pyramid, OutputSkip):
                take(itself=pyramid.norm)
                take(itself=pyramid.conv)
            else:
                take_resampler(pyramid.upsample)
        if level < len(unet.upsamplers):
            take_resampler(unet.upsamplers[level])
    if unet.conv_out is not None:
        take(itself=unet.norm_out)
        take(itself=unet.conv_out)
    return layout
