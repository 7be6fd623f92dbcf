"""The methods by their names."""

from sde_diffusers.posteriors.dps import DPS
from sde_diffusers.posteriors.mmps import MMPS
from sde_diffusers.posteriors.pigdm import PiGDM
from sde_diffusers.posteriors.projection import Projection

POSTERIOR_METHODS = {"projection": Projection, "dps": DPS, "pigdm": PiGDM, "mmps": MMPS}
