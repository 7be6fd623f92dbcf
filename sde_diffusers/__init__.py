"""Score-based generative modeling through stochastic differential equations, for Hugging Face diffusers."""

from sde_diffusers.losses import DenoisingScoreMatching
from sde_diffusers.models.unet_ncsnpp import NCSNppUNet2DModel
from sde_diffusers.parameterization import Parameterization
from sde_diffusers.schedulers.scheduling_predictor_corrector import ScoreSdePredictorCorrectorScheduler
from sde_diffusers.schedulers.scheduling_probability_flow import ScoreSdeProbabilityFlowScheduler
from sde_diffusers.sdes import VESDE, VPSDE, DiscreteVPSDE, ExponentialVESDE, SubVPSDE

__version__ = "0.1.0"
