# What `import sde_diffusers` offers, and where it is: read by type checkers, and by __init__.py itself.

from diffusers import ModelMixin as ModelMixin
from diffusers import SchedulerMixin as SchedulerMixin

from sde_diffusers import convert as convert
from sde_diffusers import operators as operators
from sde_diffusers import posteriors as posteriors
from sde_diffusers.consistency import ConsistencyTuning as ConsistencyTuning
from sde_diffusers.fitting.sampler_fit import SamplerFit as SamplerFit
from sde_diffusers.fitting.sampler_fit import fit_sampler as fit_sampler
from sde_diffusers.images import PixelFormat as PixelFormat
from sde_diffusers.likelihood.log_likelihood import LikelihoodOutput as LikelihoodOutput
from sde_diffusers.likelihood.log_likelihood import LogProbOutput as LogProbOutput
from sde_diffusers.likelihood.log_likelihood import standard_errors as standard_errors
from sde_diffusers.losses import DenoisingScoreMatching as DenoisingScoreMatching
from sde_diffusers.models.classifier import NoiseConditionalClassifier as NoiseConditionalClassifier
from sde_diffusers.models.unet_ncsnpp import NCSNppUNet2DModel as NCSNppUNet2DModel
from sde_diffusers.parameterization import Parameterization as Parameterization
from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline as ScoreSdePipeline
from sde_diffusers.pipelines.pipeline_score_sde_restoration import (
    ScoreSdeRestorationPipeline as ScoreSdeRestorationPipeline,
)
from sde_diffusers.schedulers.scheduling_consistency import (
    ScoreSdeConsistencyScheduler as ScoreSdeConsistencyScheduler,
)
from sde_diffusers.schedulers.scheduling_exponential import (
    ScoreSdeExponentialScheduler as ScoreSdeExponentialScheduler,
)
from sde_diffusers.schedulers.scheduling_predictor_corrector import (
    ScoreSdePredictorCorrectorScheduler as ScoreSdePredictorCorrectorScheduler,
)
from sde_diffusers.schedulers.scheduling_probability_flow import (
    ScoreSdeProbabilityFlowScheduler as ScoreSdeProbabilityFlowScheduler,
)
from sde_diffusers.sdes.cosine import CosineVPSDE as CosineVPSDE
from sde_diffusers.sdes.discrete_vp import DiscreteVPSDE as DiscreteVPSDE
from sde_diffusers.sdes.exponential_ve import ExponentialVESDE as ExponentialVESDE
from sde_diffusers.sdes.flow import FlowSDE as FlowSDE
from sde_diffusers.sdes.gaussian import GaussianSDE as GaussianSDE
from sde_diffusers.sdes.sub_vp import SubVPSDE as SubVPSDE
from sde_diffusers.sdes.ve import VESDE as VESDE
from sde_diffusers.sdes.vp import VPSDE as VPSDE

__version__: str
