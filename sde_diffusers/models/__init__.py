"""Networks."""

from sde_diffusers.models.classifier import NoiseConditionalClassifier
from sde_diffusers.models.unet_ncsnpp import NCSNppUNet2DModel

__all__ = ["NCSNppUNet2DModel", "NoiseConditionalClassifier"]
