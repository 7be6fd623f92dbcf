"""Checkpoints of other code bases, converted to pipelines and back.

`from_score_sde` (the paper's PyTorch code), `from_edm` (NVlabs/edm) and `from_diffusers` return a `ScoreSdePipeline`;
`to_diffusers` writes a plain pipeline of diffusers.
"""

from sde_diffusers.convert.diffusers_pipelines import from_diffusers
from sde_diffusers.convert.edm import edm_denoiser, from_edm
from sde_diffusers.convert.export import to_diffusers
from sde_diffusers.convert.score_sde import (
    from_score_sde,
    scheduler_config_from_score_sde,
    unet_config_from_score_sde,
    unet_from_score_sde,
)
from sde_diffusers.convert.score_sde_configs import SCORE_SDE_CONFIGS

__all__ = [
    "SCORE_SDE_CONFIGS",
    "edm_denoiser",
    "from_diffusers",
    "from_edm",
    "from_score_sde",
    "scheduler_config_from_score_sde",
    "to_diffusers",
    "unet_config_from_score_sde",
    "unet_from_score_sde",
]
