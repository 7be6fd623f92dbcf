"""Samplers, one file each; importing one imports all, so that each knows which others it can be swapped for."""

import pkgutil
from importlib import import_module

for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
