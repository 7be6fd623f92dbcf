"""Pipelines of diffusers: their network stays, their noise table becomes the SDE."""

from pathlib import Path

from diffusers import DiffusionPipeline

from sde_diffusers.convert.checkpoints import check_against_recorded, network_answer
from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline
from sde_diffusers.schedulers.scheduling_predictor_corrector import ScoreSdePredictorCorrectorScheduler
from sde_diffusers.schedulers.scheduling_probability_flow import ScoreSdeProbabilityFlowScheduler


def from_diffusers(pipe_or_path, recorded=None):
    """A pipeline of diffusers with a DDPM-like scheduler or its `ScoreSdeVeScheduler` as a `ScoreSdePipeline`.

    The network stays as it is; its beta or sigma table becomes the SDE, so that every sampler, the likelihood and
    latent codes work with it.

    Args:
        pipe_or_path: a pipeline with the components `unet` and `scheduler`, or a path or Hub id to load it from.
        recorded: what the network answered elsewhere, to compare with: the tensors `x`, `labels` (what it was
            conditioned on), `y` and, if it has classes, `class_labels`, or a safetensors file of them.

    Returns:
        `ScoreSdePipeline`, with a `ScoreSdeProbabilityFlowScheduler` for DDPM-like schedulers (DDPM, DDIM and all
        others that hold `betas`) and a `ScoreSdePredictorCorrectorScheduler` for `ScoreSdeVeScheduler`.

    Raises:
        ValueError: if the pipeline has other components, its terminal signal-to-noise ratio is zero (no finite noise
            level then stands for t = 1), its network also predicts variances, its scheduler is of another kind, or
            the answers differ from the recorded ones.
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
    converted = ScoreSdePipeline(unet=unet, scheduler=_sampler_for(scheduler))
    if recorded is not None:
        check_against_recorded(network_answer(converted), recorded)
    return converted


def _sampler_for(scheduler):
    """The sampler of this package whose SDE is the noise table of diffusers' scheduler."""
    config = scheduler.config
    if type(scheduler).__name__ == "ScoreSdeVeScheduler":
        keys = ("sigma_min", "sigma_max", "snr", "sampling_eps", "num_train_timesteps")
        return ScoreSdePredictorCorrectorScheduler(
            sde="ve", corrector_steps=config.correct_steps, **{key: config[key] for key in keys}
        )
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
    return ScoreSdeProbabilityFlowScheduler(
        sde="vp_discrete",
        trained_betas=betas.double().tolist(),
        prediction_type=config.get("prediction_type", "epsilon"),  # RePaintScheduler knows no other
        num_train_timesteps=len(betas),
    )
