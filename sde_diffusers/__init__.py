"""Score-based generative modeling through stochastic differential equations, for Hugging Face diffusers."""

import diffusers

# diffusers decides how to load a component by the base classes that it finds beside the component's class.
from diffusers import ModelMixin, SchedulerMixin

from sde_diffusers import convert
from sde_diffusers.losses import DenoisingScoreMatching
from sde_diffusers.models.classifier import NoiseConditionalClassifier
from sde_diffusers.models.unet_ncsnpp import NCSNppUNet2DModel
from sde_diffusers.parameterization import Parameterization
from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline
from sde_diffusers.pipelines.pipeline_score_sde_restoration import ScoreSdeRestorationPipeline
from sde_diffusers.schedulers.scheduling_exponential import ScoreSdeExponentialScheduler
from sde_diffusers.schedulers.scheduling_predictor_corrector import ScoreSdePredictorCorrectorScheduler
from sde_diffusers.schedulers.scheduling_probability_flow import ScoreSdeProbabilityFlowScheduler
from sde_diffusers.sdes import (
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVPSDE,
    ExponentialVESDE,
    FlowSDE,
    GaussianSDE,
    SubVPSDE,
)

# `DiffusionPipeline.from_pretrained` finds the class of a folder without code by its name in diffusers.
diffusers.ScoreSdePipeline = ScoreSdePipeline
diffusers.ScoreSdeRestorationPipeline = ScoreSdeRestorationPipeline

__version__ = "0.1.0"

__all__ = [
    "convert",
    "CosineVPSDE",
    "DenoisingScoreMatching",
    "DiscreteVPSDE",
    "ExponentialVESDE",
    "FlowSDE",
    "GaussianSDE",
    "ModelMixin",
    "NCSNppUNet2DModel",
    "NoiseConditionalClassifier",
    "Parameterization",
    "SchedulerMixin",
    "ScoreSdeExponentialScheduler",
    "ScoreSdePipeline",
    "ScoreSdePredictorCorrectorScheduler",
    "ScoreSdeProbabilityFlowScheduler",
    "ScoreSdeRestorationPipeline",
    "SubVPSDE",
    "VESDE",
    "VPSDE",
]
