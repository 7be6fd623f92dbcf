"""The pipelines' names in diffusers, where `DiffusionPipeline.from_pretrained` looks for the class of a folder.

diffusers takes seconds to import, so that this does not wait for it: the names are added to its module where that is
there already, and else as soon as it comes.
"""

import sys
from importlib.abc import MetaPathFinder

PIPELINES = ("ScoreSdePipeline", "ScoreSdeRestorationPipeline")


def add_pipelines_to_diffusers() -> None:
    """Let `diffusers.ScoreSdePipeline` be this package's class, now or when diffusers is imported."""
    if "diffusers" in sys.modules:
        answer_for_pipelines(sys.modules["diffusers"])
    else:
        sys.meta_path.insert(0, WhenDiffusersComes())


def answer_for_pipelines(diffusers) -> None:
    """Give the module a `__getattr__` (PEP 562) for the pipelines, which loads them when they are asked for."""

    def find(name: str):
        if name in PIPELINES:
            return getattr(sys.modules[__name__.partition(".")[0]], name)
        raise AttributeError(f"module 'diffusers' has no attribute {name!r}")

    diffusers.__getattr__ = find


class WhenDiffusersComes(MetaPathFinder):
    """Stands before the other finders of modules until diffusers has been imported; it finds what they find."""

    def find_spec(self, name, path=None, target=None):
        if name != "diffusers":
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_answer(module):
                execute(module)
                sys.meta_path.remove(self)
                answer_for_pipelines(sys.modules[name])  # by which diffusers has replaced the given one

            spec.loader.exec_module = execute_and_answer  # type: ignore[method-assign]
        return spec
