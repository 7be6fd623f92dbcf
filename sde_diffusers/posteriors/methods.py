"""The methods by their names."""

from sde_diffusers.posteriors.base import PosteriorMethod
from sde_diffusers.posteriors.daps import DAPS
from sde_diffusers.posteriors.diffpir import DiffPIR
from sde_diffusers.posteriors.dps import DPS
from sde_diffusers.posteriors.mmps import MMPS
from sde_diffusers.posteriors.pigdm import PiGDM
from sde_diffusers.posteriors.projection import Projection
from sde_diffusers.posteriors.tmpd import TMPD

POSTERIOR_METHODS: dict[str, type[PosteriorMethod]] = {
    "projection": Projection,
    "dps": DPS,
    "pigdm": PiGDM,
    "mmps": MMPS,
    "tmpd": TMPD,
    "diffpir": DiffPIR,
    "daps": DAPS,
}
