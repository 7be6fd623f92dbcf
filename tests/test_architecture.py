"""The house: which room may import which, no circle, and no file too long to be read in one sitting."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("images", "run", "evaluation", "commands")  # of training/, from the ground up; a file imports no higher one
LONGEST = 400  # lines
PLACES = {"sde_diffusers": ROOT, "training": ROOT / "training"}  # what the names of a tree's modules begin at


def files(tree):
    return sorted((ROOT / tree).rglob("*.py"))


def module_name(tree, path):
    return ".".join(path.relative_to(PLACES[tree]).with_suffix("").parts)


def imports(path):
    """The dotted names that a file imports from anywhere, functions included; of a module's names, both readings."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, in line {node.lineno}"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(tree):
    """{module: the modules of the same tree that it imports}; a package is its `__init__`."""
    modules = {module_name(tree, path): path for path in files(tree)}

    def known(name):
        return name if name in modules else f"{name}.__init__"

    return {
        module: {known(name) for name in imports(path)} & modules.keys() - {module} for module, path in modules.items()
    }


def floor(module):
    wing, _, inside = module.partition(".")
    return FLOORS.index(wing) if inside else FLOORS.index("commands")


def test_every_room_of_training_is_on_a_floor():
    folders = {path.parent.relative_to(ROOT / "training").as_posix() for path in files("training")}
    assert folders == {".", *FLOORS[:-1]}


def test_no_import_of_training_runs_upwards():
    found = arrows("training")
    assert sum(map(len, found.values())) > 50  # the names were understood
    upwards = [(a, b) for a, targets in found.items() for b in targets if floor(b) > floor(a)]
    assert not upwards


def test_the_package_does_not_know_its_trainers():
    rooms = {module.partition(".")[0] for module in arrows("training")}
    known = {name for path in files("sde_diffusers") for name in imports(path) if name.partition(".")[0] in rooms}
    assert not known


@pytest.mark.parametrize("tree", PLACES)
def test_no_import_runs_in_a_circle(tree):
    found = arrows(tree)
    assert sum(map(len, found.values())) > 50
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("tree", PLACES)
def test_every_file_is_read_in_one_sitting(tree):
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files(tree)}
    assert not {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > LONGEST}
