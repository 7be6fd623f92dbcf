"""The source of a class of other code, an SDE of one's own above all, with everything that it refers to.

A saved pipeline's modules must hold such a class as well, wherever it was defined: in a module, a script, a notebook
or a function. What it refers to is looked up where it was defined, and comes along: imports of installed libraries,
plain constants, functions and classes of the same kind.
"""

import ast
import builtins
import contextlib
import functools
import importlib.metadata
import inspect
import linecache
import symtable
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType


class CarriedSource:
    """Collects the definitions of classes and of what they need.

    Args:
        known: names that the module, to which the source is added, defines already.
        own_roots: names of the packages that those names may come from.

    Attributes:
        imports: import statements, of installed libraries.
        definitions: source by name, what is needed first.
        package_modules: those of the package from which something is needed.
    """

    def __init__(self, known: set[str], own_roots: tuple[str, ...]):
        self.known, self.own_roots = known, own_roots
        self.imports: dict[str, None] = {}
        self.definitions: dict[str, str] = {}
        self.package_modules: dict[str, None] = {}
        self._meanings: dict[str, object] = {}  # of all names that come along

    def add(self, thing) -> None:
        """Add a class or function.

        Raises:
            ValueError: if its source, or something that it refers to, cannot be carried; the message says what.
        """
        self._require_free(thing.__name__, thing.__name__)
        self._require_one_meaning(thing.__name__, thing, thing)
        self.definitions[thing.__name__] = ""  # it may refer to itself
        source = definition_of(thing)
        self._require_imports_outside(source, thing)
        for name in free_names(source):
            self._add_reference(name, thing)
        del self.definitions[thing.__name__]
        self.definitions[thing.__name__] = source

    def _add_reference(self, name: str, thing) -> None:
        try:
            value = looked_up(name, thing)
        except LookupError:
            if name in self.known:
                return
            raise ValueError(f"{thing.__name__} can't be saved: it refers to {name}, which is not found.") from None
        if value is getattr(builtins, name, self):
            return
        self._require_one_meaning(name, value, thing)
        if self.definitions.get(name) == "":
            return
        module, original = str(getattr(value, "__module__", None)), name_of(value, name)
        alias = f" as {name}" if name != original else ""
        if isinstance(value, ModuleType):
            self._require_installed(value.__name__, name, thing)
            self.imports[f"import {value.__name__}" + (f" as {name}" if value.__name__ != name else "")] = None
        elif module.split(".")[0] in self.own_roots:
            self.package_modules[module] = None
            if alias:
                self.definitions[name] = f"{name} = {original}"
        elif library := exporting_library(value, original):
            self.imports[f"from {library} import {original}{alias}"] = None
        elif inspect.isfunction(inspect.unwrap(value)) or inspect.isclass(value):
            if alias:
                raise ValueError(f"{thing.__name__} can't be saved: it refers to {original} by the name {name}.")
            if name not in self.definitions:
                self.add(value)
        elif not is_constant(value):
            raise ValueError(
                f"{thing.__name__} can't be saved: it refers to {name}, a {type(value).__name__}. Only numbers, "
                "strings and collections of them come along, beside functions, classes and installed libraries."
            )
        elif name not in self.definitions:
            self._require_free(name, thing.__name__)
            self.definitions[name] = f"{name} = {value!r}"

    def _require_one_meaning(self, name: str, value, thing) -> None:
        """What modules call by one name stands side by side in the file, where the last would be taken for all."""
        known = self._meanings.setdefault(name, value)
        constants = type(known) is type(value) and is_constant(known) and is_constant(value)
        if known is not value and not (constants and known == value):
            raise ValueError(
                f"{thing.__name__} can't be saved: {name} means {known!r} and {value!r} in two places. Rename one of "
                "them."
            )

    def _require_free(self, name: str, owner: str) -> None:
        if name in self.known:
            raise ValueError(f"{owner} can't be saved: the package has a {name} of its own. Choose another name.")

    def _require_imports_outside(self, source: str, thing) -> None:
        """What methods import themselves stays as it is written, and must be there where the file is loaded."""
        for node in needed_imports(ast.parse(source)):
            for module in imported_modules(node):
                if module.split(".")[0] in self.own_roots or not is_installed(module):
                    raise ValueError(
                        f"{thing.__name__} can't be saved: line {node.lineno} of it imports {module}, which is not "
                        "installed everywhere. Import from it what is needed at the top of the file."
                    )

    def _require_installed(self, module: str, name: str, thing) -> None:
        if module.split(".")[0] in self.own_roots or not is_installed(module):
            raise ValueError(
                f"{thing.__name__} can't be saved: it refers to the module {module} as {name}. Import from it what is "
                "needed by name, as in `from my_module import my_function`."
            )


def definition_of(thing) -> str:
    """Source of a class or function, without indentation, wherever it was defined."""
    kind = ast.ClassDef if inspect.isclass(thing) else ast.FunctionDef
    for code in (function.__code__ for function in functions_of(thing)):
        lines = linecache.getlines(code.co_filename)
        found = [
            node
            for node in ast.walk(ast.parse("".join(lines)))
            if isinstance(node, kind)
            and node.name == thing.__name__
            and first_line(node) <= code.co_firstlineno <= node.end_lineno
        ]
        if found:
            node = max(found, key=first_line)
            return textwrap.dedent("".join(lines[first_line(node) - 1 : node.end_lineno])).rstrip()
    with contextlib.suppress(OSError, TypeError):
        if inspect.isclass(thing):  # without methods of its own, which would tell its lines
            return textwrap.dedent(inspect.getsource(thing)).rstrip()
    raise ValueError(f"{thing.__name__} can't be saved: its source is not found. Put it into a file, and import it.")


def needed_imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements below a node, but for those after `try`, which may fail."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node
    tried = node.body if isinstance(node, ast.Try) and node.handlers else []
    for child in ast.iter_child_nodes(node):
        if child not in tried:
            yield from needed_imports(child)


def imported_modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that a statement imports, or imports from; relative ones begin with a dot."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return ["." * node.level + (node.module or "")]


def first_line(node) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def functions_of(thing) -> list:
    """A function, or those that a class itself defines, without their decorators."""
    if not inspect.isclass(thing):
        return [inspect.unwrap(thing)]
    values = [value.fget if isinstance(value, property) else value for value in vars(thing).values()]
    values = [getattr(value, "__func__", value) for value in values]  # of class and static methods
    functions = [inspect.unwrap(value) for value in values if inspect.isfunction(value)]
    return [function for function in functions if function.__module__ == thing.__module__]  # an Enum has others', too


def free_names(source: str) -> list[str]:
    """The names that a definition does not bind itself."""

    def walk(table):
        top = table.get_type() == "module"
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or top) and not (top and symbol.is_assigned()):
                yield symbol.get_name()
        for child in table.get_children():
            yield from walk(child)

    return sorted(set(walk(symtable.symtable(source, "<carried>", "exec"))))


def looked_up(name: str, thing):
    """What a name means where a class or function was defined."""
    functions = functions_of(thing)
    for function in functions:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if name in cells:
            return cells[name].cell_contents
    for base in getattr(thing, "__bases__", ()):  # known to no method, if the class was defined in a function
        if base.__name__ == name:
            return base
    module = sys.modules.get(thing.__module__)
    for meanings in [*(function.__globals__ for function in functions), vars(module) if module else {}]:
        if name in meanings:
            return meanings[name]
    if hasattr(builtins, name):
        return getattr(builtins, name)
    raise LookupError(name)


def is_installed(module: str) -> bool:
    """Whether a module belongs to Python or to an installed distribution."""
    root = module.split(".")[0]
    return root in sys.stdlib_module_names or root in installed_packages()


@functools.cache
def installed_packages() -> frozenset[str]:
    """Of all installed distributions, whose lists of files take seconds to read."""
    return frozenset(importlib.metadata.packages_distributions())


def name_of(value, name: str) -> str:
    """What a function, class or special form of `typing` calls itself; the given name for anything else."""
    return getattr(value, "__name__", None) or getattr(value, "_name", None) or name


def exporting_library(value, name: str) -> str | None:
    """The installed library from which something can be imported by its name, or None."""
    for module in (getattr(value, "__module__", None), "torch"):  # what is torch's own does not always tell
        if module in sys.modules and is_installed(module) and getattr(sys.modules[module], name, None) is value:
            return module
    return None


def is_constant(value) -> bool:
    """Whether a value can be written down."""
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        return False
