"""Checkpoints of other code bases, converted to pipelines: `from_score_sde`, `from_diffusers`.

Pipelines of diffusers keep their network; only the scheduler is translated. Networks of the paper's own code
(github.com/yang-song/score_sde_pytorch, `model.name` "ncsnpp" and "ddpm") keep their layers in one flat list,
`all_modules.<i>`, in the order in which they are used. The conversion walks our network in that order and states,
layer by layer, which of our tensors the next entry of the list holds.
"""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from sde_diffusers.models.layers import FourierFeatures, InputSkip, OutputSkip, ResidualBlock
from sde_diffusers.models.unet_ncsnpp import NCSNppUNet2DModel
from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline
from sde_diffusers.schedulers.scheduling_predictor_corrector import ScoreSdePredictorCorrectorScheduler
from sde_diffusers.schedulers.scheduling_probability_flow import ScoreSdeProbabilityFlowScheduler
from sde_diffusers.sdes import VPSDE


def from_score_sde(state_dict, config):
    """A model of the paper's own code as a pipeline: network, SDE and the sampler of its configuration.

    Args:
        state_dict (`dict[str, torch.Tensor]`): See `unet_from_score_sde`.
        config (`dict`): The reference's configuration, nested.

    Returns:
        `ScoreSdePipeline` with a `ScoreSdePredictorCorrectorScheduler` (`sampling.method` "pc") or a
        `ScoreSdeProbabilityFlowScheduler` ("ode").

    Raises:
        ValueError: If the configuration can't be expressed, or the tensors do not fit it.
    """
    scheduler = ScoreSdePredictorCorrectorScheduler(**scheduler_config_from_score_sde(config))
    if "sampling" in config and _Section(config, "sampling").choice("method", ("pc", "ode")) == "ode":
        scheduler = ScoreSdeProbabilityFlowScheduler.from_config(scheduler.config)
    return ScoreSdePipeline(unet=unet_from_score_sde(state_dict, config), scheduler=scheduler)


def scheduler_config_from_score_sde(config):
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
    continuous = training["continuous"] or sde == "sub_vp"  # sub-VP is conditioned on 999 t in either case
    if not continuous and model.values.get("name") == "ncsnpp":
        # Fourier features of the logarithm of an index would start at log(0); the reference refuses them as well.
        model.choice("embedding_type", ("positional",))
    scheduler_config = {
        "sde": sde,
        "image_range": (-1.0, 1.0) if data["centered"] else (0.0, 1.0),
        "num_train_timesteps": model["num_scales"],
    }
    if sde == "ve":
        scheduler_config |= {"sigma_min": model["sigma_min"], "sigma_max": model["sigma_max"]}
        scheduler_config |= {"time_input": "sigma" if continuous else "index", "prediction_type": "score"}
    elif continuous:
        scheduler_config |= {"beta_min": model["beta_min"], "beta_max": model["beta_max"]}
        scheduler_config |= {"time_input": "999t", "prediction_type": "epsilon"}
    else:  # trained on the DDPM chain: its beta table is the SDE
        betas = VPSDE(model["beta_min"], model["beta_max"]).beta_table(model["num_scales"]).flip(0)
        scheduler_config |= {"sde": "vp_discrete", "trained_betas": betas.tolist(), "prediction_type": "epsilon"}
    if "sampling" in config:
        sampling = _Section(config, "sampling")
        if "probability_flow" in sampling.values:  # the deterministic sampler is another scheduler
            sampling.choice("probability_flow", (False,))
        predictors = ("reverse_diffusion", "euler_maruyama", "ancestral_sampling", "none")
        scheduler_config |= {
            "predictor": sampling.choice("predictor", predictors).removesuffix("_sampling"),
            "corrector": sampling.choice("corrector", ("langevin", "ald", "none")),
            "snr": sampling["snr"],
            "corrector_steps": sampling["n_steps_each"],
            "final_denoise": sampling["noise_removal"],
        }
    return scheduler_config


def from_diffusers(pipe_or_path):
    """A pipeline of diffusers with a DDPM-like scheduler or its `ScoreSdeVeScheduler` as a `ScoreSdePipeline`.

    The network stays as it is; its beta or sigma table becomes the SDE, so that every sampler, the likelihood and
    latent codes work with it.

    Args:
        pipe_or_path: a pipeline with the components `unet` and `scheduler`, or a path or Hub id to load it from.

    Returns:
        `ScoreSdePipeline`, with a `ScoreSdeProbabilityFlowScheduler` for DDPM-like schedulers (DDPM, DDIM and all
        others that hold `betas`) and a `ScoreSdePredictorCorrectorScheduler` for `ScoreSdeVeScheduler`.

    Raises:
        ValueError: if the pipeline has other components, its terminal signal-to-noise ratio is zero (no finite noise
            level then stands for t = 1), its network also predicts variances, or its scheduler is of another kind.
    """
    pipe = pipe_or_path
    if isinstance(pipe, (str, Path)):
        pipe = DiffusionPipeline.from_pretrained(pipe)
    components = set(pipe.components)
    if components != {"unet", "scheduler"}:
        raise ValueError(f"The pipeline must have the components unet and scheduler alone, but has {components}.")
    unet, scheduler = pipe.unet, pipe.scheduler
    if unet.config.out_channels != unet.config.in_channels:
        raise ValueError(
            f"The network turns {unet.config.in_channels} channels into {unet.config.out_channels}: learned variances "
            "(and other inputs than the noisy image) can't be converted."
        )
    config = scheduler.config
    if type(scheduler).__name__ == "ScoreSdeVeScheduler":
        keys = ("sigma_min", "sigma_max", "snr", "sampling_eps", "num_train_timesteps")
        sampler = ScoreSdePredictorCorrectorScheduler(
            sde="ve", corrector_steps=config.correct_steps, **{key: config[key] for key in keys}
        )
        return ScoreSdePipeline(unet=unet, scheduler=sampler)
    betas = getattr(scheduler, "betas", None)
    if betas is None:
        raise ValueError(
            f"The scheduler must be ScoreSdeVeScheduler or hold `betas` as DDPMScheduler does, but is "
            f"{type(scheduler).__name__}."
        )
    if config.get("rescale_betas_zero_snr") or not (betas < 1).all():
        raise ValueError(
            "The scheduler's terminal signal-to-noise ratio is zero (`rescale_betas_zero_snr`, or a beta of 1): "
            "x_1 would hold no trace of x_0, and no finite log(alpha / sigma) stands for it."
        )
    sampler = ScoreSdeProbabilityFlowScheduler(
        sde="vp_discrete",
        trained_betas=betas.double().tolist(),
        prediction_type=config.prediction_type,
        num_train_timesteps=len(betas),
    )
    return ScoreSdePipeline(unet=unet, scheduler=sampler)


def unet_config_from_score_sde(config):
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
    width = model["nf"]
    unet_config = {
        "sample_size": data["image_size"],
        "in_channels": data["num_channels"],
        "block_out_channels": tuple(width * multiple for multiple in model["ch_mult"]),
        "layers_per_block": model["num_res_blocks"],
        "attention_resolutions": tuple(model["attn_resolutions"]),
        "dropout": model["dropout"],
        "resample_with_conv": model["resamp_with_conv"],
        "scale_by_sigma": model["scale_by_sigma"],
        "image_range": (-1.0, 1.0) if data["centered"] else (0.0, 1.0),
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
            fourier_scale=float(model["fourier_scale"]),
            fir=model["fir"],
            fir_kernel=tuple(model["fir_kernel"]),
            resblock_type=model["resblock_type"].lower(),
            skip_rescale=model["skip_rescale"],
            progressive=model["progressive"].lower(),
            progressive_input=model["progressive_input"].lower(),
            progressive_combine=model["progressive_combine"].lower(),
            init_scale=float(model["init_scale"]),
        )
    if unet_config["scale_by_sigma"] and unet_config["time_embedding_type"] == "positional":
        unet_config.update({key: model[key] for key in ("sigma_min", "sigma_max", "num_scales")})
    return unet_config


def unet_from_score_sde(state_dict, config):
    """A network of the paper's own code as a `NCSNppUNet2DModel`.

    Args:
        state_dict (`dict[str, torch.Tensor]`): The reference network's tensors, `all_modules.<i>...` and `sigmas`,
            with or without `module.` in front. The reference's checkpoints hold the EMA weights as a bare list, in
            the order of the parameters: put them in their places first.
        config (`dict`): The reference's configuration, nested.

    Returns:
        `NCSNppUNet2DModel` in evaluation mode; for the same input it returns what the reference does.

    Raises:
        ValueError: If the configuration can't be expressed, or listing every tensor that is missing, left over or
            of the wrong shape.
    """
    unet = NCSNppUNet2DModel(**unet_config_from_score_sde(config))
    source = {key.removeprefix("module."): value for key, value in state_dict.items()}
    problems = []
    table = source.pop("sigmas", None)  # a function of the configuration: compared, not copied
    if table is not None and unet.config.num_scales is not None:
        expected = torch.linspace(0, 1, unet.config.num_scales, dtype=torch.float64)
        expected = unet.config.sigma_max * (unet.config.sigma_min / unet.config.sigma_max) ** expected
        if table.shape != expected.shape or not torch.allclose(table.double(), expected, rtol=1e-5):
            problems.append("sigmas: is not the geometric table of model.sigma_min, sigma_max and num_scales")

    converted, shapes = {}, {key: value.shape for key, value in unet.state_dict().items()}
    for target, keys in _score_sde_layout(unet).items():
        missing = [key for key in keys if key not in source]
        if missing:
            problems += [f"{key}: missing" for key in missing]
            continue
        tensors = [source.pop(key) for key in keys]
        if keys[0].endswith(".W") and target.endswith(".weight"):  # (in, out) -> (out, in, 1, 1)
            tensors = [tensor.t()[:, :, None, None] if tensor.ndim == 2 else tensor for tensor in tensors]
        elif target.endswith("frequency_bits"):
            tensors = [tensor.float().view(torch.int32) for tensor in tensors]
        rows = shapes[target][0] // len(tensors)
        expected = torch.Size([rows, *shapes[target][1:]])
        wrong = [
            f"{key}: shape {tuple(tensor.shape)} (as {target}), expected {tuple(expected)}"
            for key, tensor in zip(keys, tensors, strict=True)
            if tensor.shape != expected
        ]
        problems += wrong
        if not wrong:
            converted[target] = torch.cat(tensors)
    problems += [f"{key}: unexpected" for key in source]
    if problems:
        raise ValueError("The state dict does not fit the configuration:\n  " + "\n  ".join(problems))
    unet.load_state_dict(converted)
    return unet.eval()


class _Section:
    """One section of the reference's configuration, with errors that name what is missing or not expressible."""

    def __init__(self, config, name):
        if name not in config:
            raise ValueError(f"The configuration lacks the section {name!r}; it has {sorted(config)}.")
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
