"""Stochastic differential equations, one file an SDE; `gaussian.py` is the base and says how to add one.

A file put into this folder is found by itself, and its SDE by its `name`.
"""

import pkgutil
from importlib import import_module

from sde_diffusers.sdes.gaussian import Chain, GaussianSDE, function_of_time, require_positive

for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
_classes = {cls.__name__: cls for cls in GaussianSDE.registered.values()}
globals().update(_classes)

__all__ = ["Chain", "GaussianSDE", "function_of_time", "require_positive", *sorted(_classes)]
