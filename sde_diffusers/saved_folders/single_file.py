"""Saved pipelines carry their own code: one self-contained module for the pipeline and for each of its components.

diffusers loads such modules with `trust_remote_code=True`, but only one file for each component. So the package's
modules are joined: every `from sde_diffusers.x import Name` (the only form of import between them) is replaced by the
source of x, recursively.

diffusers puts all modules, of whichever folder, into one namespace, and runs a module again whenever it loads it. So a
module's name ends in a digest of its content, and its last line lets what it defined at first stay what it is; or else
a pipeline would compute with the code of one that was loaded later, and could not be pickled.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import json
import logging
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from sde_diffusers.saved_folders.carried_source import CarriedSource
from sde_diffusers.saved_folders.trusted_libraries import TRUSTED_LIBRARIES
from sde_diffusers.sdes.gaussian import GaussianSDE

module_log = logging.getLogger(__name__)

PACKAGE = "sde_diffusers"
REMOTE_PACKAGE = "diffusers_modules"
MODULE_DIGEST = re.compile("_[0-9a-f]{8}$")
RUN_ONCE = "\n\nglobals().update(globals().setdefault('_first_run', dict(globals())))\n"


def source_of(cls: type, others: Iterable[type] = ()) -> str:
    """One self-contained module that defines `cls`.

    For a class that came from a saved folder (a dynamic module) this is that folder's file, verbatim. A scheduler's
    module defines all samplers that are compatible with it, so that they can be swapped without the package, and all
    SDEs.

    Args:
        others: classes of other code that the module must hold as well: an SDE of one's own.

    Raises:
        ValueError: if `cls` belongs neither to this package nor to a dynamic module, or one of the others cannot be
            carried.
    """
    root = cls.__module__.split(".")[0]
    if root == REMOTE_PACKAGE:
        file = Path(str(inspect.getsourcefile(sys.modules[cls.__module__]))).read_text(encoding="utf-8")
        file = file.removesuffix(RUN_ONCE)
        return with_others(file, others, {}, {})
    if root != PACKAGE:
        raise ValueError(f"`cls` must be a class of {PACKAGE}, but {cls.__qualname__} is of {root}.")
    modules = {cls.__module__}
    if hasattr(cls, "_get_compatibles"):
        classes = [*cls._get_compatibles(), *GaussianSDE.registered.values()]
        modules |= {other.__module__ for other in classes if other.__module__.split(".")[0] == PACKAGE}
    externals: dict[str, None] = {}
    bodies: dict[str, str] = {}
    for module in sorted(modules):  # the same file, whichever sampler is in use
        collect(module, externals, bodies)
    return with_others("", others, externals, bodies)


def with_others(text: str, others: Iterable[type], externals: dict[str, None], bodies: dict[str, str]) -> str:
    """A module's text: what there is of it, imports and bodies, and last the sources of classes of other code."""
    others = list(others)
    known = defined_names(text + "".join(bodies.values())) if others else set()  # not parsed in vain: it takes long
    carried = CarriedSource(known, (PACKAGE, REMOTE_PACKAGE))
    for other in others:
        carried.add(other)
    for module in carried.package_modules:
        if module.split(".")[0] == PACKAGE:
            collect(module, externals, bodies)
    externals |= carried.imports
    if bodies:
        text += f"# Generated from the package {PACKAGE}: {', '.join(bodies)}.\n"
    text += "".join(f"{line}\n" for line in sorted(externals)) + "".join(bodies.values())
    return text + "".join(f"\n\n{definition}\n" for definition in carried.definitions.values()) + RUN_ONCE


def defined_names(text: str) -> set[str]:
    """The functions, classes and constants at the top level of a module."""
    nodes = ast.parse(text).body
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    defined = [node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return {*defined, *(target.id for target in targets if isinstance(target, ast.Name))}


def sdes_of_others(component) -> list[type]:
    """The classes of a scheduler's SDEs that neither this package nor the scheduler's own file defines."""
    classes = dict.fromkeys(type(getattr(component, name, None)) for name in ("training_sde", "sde"))
    there = (type(component).__module__, type(None).__module__)
    return [cls for cls in classes if cls.__module__.split(".")[0] != PACKAGE and cls.__module__ not in there]


def collect(module: str, externals: dict[str, None], bodies: dict[str, str]) -> None:
    """Add the imports from outside and the body of a module to the given dictionaries, what it needs first."""
    if module in bodies:
        return
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"{module} is not found, whose source is to be carried.")
    needed, outside, body = module_parts(Path(spec.origin).read_text(encoding="utf-8"))
    externals |= dict.fromkeys(outside)
    for other in needed:
        collect(other, externals, bodies)
    bodies[module] = f"\n\n# {'-' * 20} {module}\n\n{body}\n"


@functools.cache  # every component of every save needs most modules, and parsing takes long
def module_parts(source: str) -> tuple[list[str], list[str], str]:
    """What a module of this source imports of the package and from outside, and the rest of it."""
    lines: list[str | None] = [*source.splitlines()]
    needed, outside = [], []
    for node in ast.parse(source).body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            needed.append(node.module)
        else:
            outside.append(ast.unparse(node))
        last = node.end_lineno or node.lineno
        lines[node.lineno - 1 : last] = [None] * (last - node.lineno + 1)
    return needed, outside, "\n".join(line for line in lines if line is not None).strip()


def module_name(cls: type, source: str) -> str:
    """Name of the file of this content that holds a class in a saved folder, without ".py"."""
    return f"{plain_module_name(cls)}_{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def plain_module_name(cls: type) -> str:
    """The same without the digest of the content, as older versions had it."""
    name = MODULE_DIGEST.sub("", cls.__module__.split(".")[-1])
    return "scheduling_score_sde" if name.startswith("scheduling_") else name  # all schedulers share one


def is_module_of(cls, library: str) -> bool:
    """Whether a pipeline's index that has `library` for a class of this name means this one, of the package.

    It does by the package's name and by that of a generated module. A module of somebody else may have a class of the
    same name, which is another one.
    """
    named = library.split(".")[0] == PACKAGE or MODULE_DIGEST.search(library) is not None
    return isinstance(cls, type) and (named or library == plain_module_name(cls))


def is_ours(cls: type) -> bool:
    """Whether a class needs its code saved with it: it is this package's or came with a saved folder."""
    return cls.__module__.split(".")[0] in (PACKAGE, REMOTE_PACKAGE)


def carry_code(index: dict, classes: dict[str, type], others: dict[str, list[type]]) -> dict[str, str]:
    """Modules that define classes, {path in a pipeline's folder: source}; the folder's index is made to name them.

    Args:
        index: what model_index.json holds.
        classes: by component; "_class_name" is the pipeline's own.
        others: by component, classes of other code that go with them; see `source_of`.
    """
    modules = {}
    for key, cls in classes.items():
        source = source_of(cls, others.get(key, ()))
        name = module_name(cls, source)
        index[key] = [name, cls.__name__]
        modules[f"{'' if key == '_class_name' else key + '/'}{name}.py"] = source
    return modules


def save_modules(pipeline, folder) -> None:
    """Complete a folder written by `DiffusionPipeline.save_pretrained`: modules, and their names in the index."""
    folder = Path(folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index.pop("_name_or_path", None)  # a path of this machine
    classes, others = {"_class_name": type(pipeline)}, {}
    for name, component in pipeline.components.items():
        classes[name] = cls = type(getattr(component, "_orig_mod", component))  # a compiled network is wrapped
        others[name] = sdes_of_others(component)
        if component is not None and not is_ours(cls) and index[name][0] not in TRUSTED_LIBRARIES:
            module_log.warning(
                "The code of `%s`, %s of %s, is not saved: who loads the pipeline has to give it, as in "
                "`from_pretrained(folder, %s=%s.from_pretrained(folder + '/%s'))`.",
                *(name, cls.__name__, cls.__module__, name, cls.__name__, name),
            )
    # A user's subclass of the pipeline is saved as diffusers saves it.
    for path, source in carry_code(index, {key: cls for key, cls in classes.items() if is_ours(cls)}, others).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(source, encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
