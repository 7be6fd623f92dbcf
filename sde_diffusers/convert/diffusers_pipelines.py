"""Pipelines of diffusers: their network stays, their noise table or path becomes the SDE."""

import os
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DModel

from sde_diffusers.convert.checkpoints import VERIFICATION_TOLERANCE, check_against_recorded, network_answer
from sde_diffusers.hub.pull import cached_copy, unreachable_hub
from sde_diffusers.models.complete_weights import load_complete
from sde_diffusers.network_fit import require_network_fits
from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline
from sde_diffusers.saved_folders.single_file import PACKAGE
from sde_diffusers.saved_folders.trusted_libraries import require_no_code_named, require_trusted_libraries
from sde_diffusers.schedulers.scheduling_predictor_corrector import ScoreSdePredictorCorrectorScheduler
from sde_diffusers.schedulers.scheduling_probability_flow import ScoreSdeProbabilityFlowScheduler

TABLE_PREDICTIONS = ("epsilon", "sample", "v_prediction")
# Options of diffusers' schedulers that a conversion would lose, with the only values that it can take: what the
# network is conditioned on or answers, the path of the noise, or steps that no sampler of this package takes.
TABLE_OPTIONS = {
    "prediction_type": TABLE_PREDICTIONS,
    "use_flow_sigmas": (None, False),
    "use_beta_sigmas": (None, False),
    "timestep_type": (None, "discrete"),
    "interpolation_type": (None, "linear"),
    **dict.fromkeys(("sigma_min", "sigma_max", "shift_terminal"), (None,)),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
FLOW_OPTIONS = {
    "num_train_timesteps": (1000,),
    "prediction_type": (None, "flow_prediction"),
    **dict.fromkeys(("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas"), (None, False)),
    **dict.fromkeys(("use_beta_sigmas", "invert_sigmas", "stochastic_sampling"), (None, False)),
    "shift_terminal": (None,),
}
NETWORK_OPTIONS = {"time_embedding_type": (None, "positional", "fourier"), "class_embed_type": (None,)}
# The options that only say where steps lie, and our grid that lies alike.
GRID_OPTIONS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "log_snr", "use_lu_lambdas": "log_snr"}
OLD_COPIES = ("time_proj.W",)  # of `time_proj.weight`, which diffusers once wrote beside it
DISTILLED_SCHEDULERS = ("LCMScheduler", "TCDScheduler")
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


def from_diffusers(pipe_or_path: DiffusionPipeline | str | Path, recorded: dict | str | Path | None = None):
    """A pipeline of diffusers with a DDPM-like or flow-matching scheduler, or its `ScoreSdeVeScheduler`, as a
    `ScoreSdePipeline`.

    The network stays as it is; its beta or sigma table, or the flow's path, becomes the SDE, so that every sampler,
    the likelihood and latent codes work with it.

    Args:
        pipe_or_path: a pipeline with the components `unet` (a `UNet2DModel`) and `scheduler`, or a path or Hub id to
            load it from.
        recorded: what the network answered elsewhere, to compare with: the tensors `x`, `labels` (what it was
            conditioned on), `y` and, if it has classes, `class_labels`, or a safetensors file of them.

    Returns:
        `ScoreSdePipeline`, with a `ScoreSdeProbabilityFlowScheduler` for DDPM-like schedulers (DDPM, DDIM and all
        others that hold `betas`; what counts are their `alphas_cumprod`, SNR-shifted ones too) and for flow-matching
        ones, whose `shift` becomes that of the SDE it is sampled with (its Euler steps are theirs), and a
        `ScoreSdePredictorCorrectorScheduler` for `ScoreSdeVeScheduler`. Bounds on x_0 (`clip_sample`, `thresholding`)
        are taken over; `from_config(..., clip_denoised=None)` takes them off.

    Raises:
        ValueError: if a folder names other libraries than this package, diffusers and transformers; if the pipeline
            has other components, its weights are not all finite, or those in its folder not those of its network's
            configuration, its terminal signal-to-noise ratio is zero (no finite noise level then stands for
            t = 1), its network also predicts variances, its scheduler is of another kind, an option of network or
            scheduler cannot be taken over, which is named, or the answers differ from the recorded ones.
        OSError: if there is no such folder or repository, or neither the Hub nor a copy of it can be reached.
    """
    pipe = pipe_or_path
    if isinstance(pipe, (str, Path)):
        pipe = os.path.expanduser(pipe)
        if not Path(pipe).is_dir() and (unreachable := unreachable_hub(str(pipe))):
            pipe = cached_copy(str(pipe), unreachable)
        index = DiffusionPipeline.load_config(pipe)
        require_trusted_libraries(index, pipe, PACKAGE)
        folder = pipe if Path(pipe).is_dir() else DiffusionPipeline.download(pipe)
        require_no_code_named(folder, index)
        pipe = DiffusionPipeline.from_pretrained(folder, **_complete_network(folder, index))
    if not isinstance(pipe, DiffusionPipeline):
        raise ValueError(
            "`pipe_or_path` must be a pipeline of diffusers, or a folder or id of one, but is "
            f"{'None' if pipe is None else type(pipe).__name__}."
        )
    components = set(pipe.components)
    if components != {"unet", "scheduler"}:
        raise ValueError(f"The pipeline must have the components unet and scheduler alone, but has {components}.")
    unet, scheduler = getattr(pipe.unet, "_orig_mod", pipe.unet), pipe.scheduler  # a compiled network is wrapped
    if not isinstance(unet, UNet2DModel):
        raise ValueError(f"The network must be a UNet2DModel, but is a {type(unet).__name__}.")
    _require_finite(unet)
    _require_options("network", unet.config, NETWORK_OPTIONS)
    if unet.config.out_channels != unet.config.in_channels:
        raise ValueError(
            f"The network turns {unet.config.in_channels} channels into {unet.config.out_channels}: learned variances "
            "(and other inputs than the noisy image) can't be converted."
        )
    sampler = _sampler_for(scheduler)
    require_network_fits(unet.config, sampler.parameterization)
    converted = ScoreSdePipeline(unet=unet, scheduler=sampler)
    if recorded is not None:
        # Of weights in half precision, the original's answers are rounded as well.
        tolerance = max(VERIFICATION_TOLERANCE, 4 * torch.finfo(unet.dtype).eps)
        check_against_recorded(network_answer(converted), recorded, tolerance)
    return converted


def _complete_network(folder, index):
    """The component `unet` of a pipeline's folder by name, if it is a `UNet2DModel`; its weights are all there."""
    name = UNet2DModel.__name__
    if index.get("unet") != ["diffusers", name]:
        return {}  # others are refused when they are loaded
    path = os.path.join(folder, "unet")
    path = path if os.path.isdir(path) else folder  # as diffusers has it
    return {"unet": load_complete(UNet2DModel.from_pretrained, path, name, OLD_COPIES)[0]}


def _require_finite(unet):
    """Raise a ValueError that names the first of the weights that are not finite, as far as they are in memory."""
    for name, tensor in unet.state_dict().items():
        values = tensor.float() if tensor.element_size() == 1 else tensor  # torch cannot tell of all 8-bit types
        if not tensor.is_meta and not values.isfinite().all():
            raise ValueError(f"The network's weights must be finite, but {name} is not.")


def _require_options(owner, config, options):
    """Raise a ValueError that names the first option with a value that is not among those allowed."""
    for name, allowed in options.items():
        if config.get(name) not in allowed and name in config:
            raise ValueError(
                f"The {owner} has `{name}`={config[name]!r}, which can't be converted; it must be "
                f"{' or '.join(repr(value) for value in allowed if value is not None) or None}."
            )


def _sampler_for(scheduler):
    """The sampler of this package whose SDE is the noise table, or the path, of diffusers' scheduler."""
    kind = type(scheduler).__name__
    if kind == "ScoreSdeVeScheduler":
        config = scheduler.config
        keys = ("sigma_min", "sigma_max", "snr", "sampling_eps", "num_train_timesteps")
        return ScoreSdePredictorCorrectorScheduler(
            sde="ve", corrector_steps=config.correct_steps, **{key: config[key] for key in keys}
        )
    if kind in FLOW_SCHEDULERS:
        return _flow_sampler(scheduler)
    if getattr(scheduler, "betas", None) is None or "beta_schedule" not in scheduler.config:
        raise ValueError(
            f"The scheduler must be ScoreSdeVeScheduler, one of {', '.join(FLOW_SCHEDULERS)}, or hold `betas` as "
            f"DDPMScheduler does, but is {kind}."
        )
    if kind in DISTILLED_SCHEDULERS:
        raise ValueError(
            f"The scheduler is {kind}, whose networks are distilled: they answer with the ends of paths and not with "
            "means of x_0, so that there is no score."
        )
    return _table_sampler(scheduler)


def _flow_sampler(scheduler):
    """Of a scheduler whose networks take 1000 sigma and predict noise - x_0 on the straight path between them."""
    config = scheduler.config
    _require_options("scheduler", config, FLOW_OPTIONS)
    shift = scheduler.shift if isinstance(getattr(type(scheduler), "shift", None), property) else config.shift
    return ScoreSdeProbabilityFlowScheduler(
        sde="flow",
        prediction_type="velocity",
        time_input="1000t",
        sampling_sde=None if shift == 1 else "flow",
        sampling_sde_parameters=None if shift == 1 else {"shift": float(shift)},
        sampling_eps=scheduler.sigma_min,
    )


def _own_betas(scheduler):
    """(N,) float64, the table whose products are the scheduler's own `alphas_cumprod`.

    Usually that is its `betas`, but SNR-shifted schedulers, and whoever sets them, change the products alone.
    """
    betas = scheduler.betas.double()
    products = getattr(scheduler, "alphas_cumprod", None)
    if products is None or torch.allclose(products.double(), (1 - betas).cumprod(0), rtol=1e-3, atol=0):
        return betas
    products = torch.cat([torch.ones(1, dtype=torch.float64), products.double().cpu()])
    if not (products[1:] < products[:-1]).all():
        raise ValueError("The scheduler's `alphas_cumprod` do not fall from below 1: they can't be converted.")
    return 1 - products[1:] / products[:-1]


def _table_sampler(scheduler):
    """Of a scheduler with a table of betas."""
    config, betas = scheduler.config, _own_betas(scheduler)
    if config.get("rescale_betas_zero_snr") or not (betas < 1).all():
        raise ValueError(
            "The scheduler's terminal signal-to-noise ratio is zero (`rescale_betas_zero_snr`, or a beta of 1): "
            "x_1 would hold no trace of x_0, and no finite log(alpha / sigma) stands for it."
        )
    _require_options("scheduler", config, TABLE_OPTIONS)
    grids = [grid for option, grid in GRID_OPTIONS.items() if config.get(option)]
    return ScoreSdeProbabilityFlowScheduler(
        sde="vp_discrete",
        trained_betas=betas.tolist(),
        prediction_type=config.get("prediction_type", "epsilon"),  # RePaintScheduler knows no other
        num_train_timesteps=len(betas),
        time_grid=grids[0] if grids else None,
        **_bounds_taken_over(config),
    )


def _bounds_taken_over(config):
    """The bounds on x_0 with which networks are sampled there; thresholding comes before clipping."""
    if config.get("thresholding"):
        return {key: config[key] for key in ("dynamic_thresholding_ratio", "sample_max_value")}
    return {"clip_denoised": config.get("clip_sample_range") or 1.0} if config.get("clip_sample") else {}
