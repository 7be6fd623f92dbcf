"""Score-based generative modeling through stochastic differential equations, for Hugging Face diffusers.

`__init__.pyi` says in which module each name is; the module is imported when the name is first asked for, and so are
torch and diffusers, which take seconds.
"""

import ast
from importlib import import_module
from pathlib import Path

from sde_diffusers.names_in_diffusers import add_pipelines_to_diffusers

__version__ = "0.1.0"

_places = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
# diffusers' own, which it looks up beside the class of a component to decide how that is loaded, are not offered.
__all__ = sorted(name for name, module in _places.items() if module != "diffusers")


def __getattr__(name: str) -> object:
    if name not in _places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _places[name]
    value = import_module(f"{module}.{name}") if module == __name__ else getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_places})


add_pipelines_to_diffusers()
