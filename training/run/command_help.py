"""`--help` of the commands that take keys, before they import anything that takes seconds.

The keys are read from the sources of the classes that hold them, where defaults and meanings stand side by side.
"""

import ast
import sys
from pathlib import Path

TRAINING = Path(__file__).resolve().parents[1]


def help_if_asked(description: str, *files: str) -> None:
    """If -h or --help is asked, print `description` and the keys that `files` of training/ hold, and exit."""
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(description.strip(), *map(keys_in, files), sep="\n\n")
        sys.exit()


def keys_in(file: str) -> str:
    """The fields of a file's dataclasses, as their source has them, under the names of their classes."""
    source = (TRAINING / file).read_text(encoding="utf-8")
    lines, shown = source.splitlines(), [f"Keys ({file}):"]
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.decorator_list:
            shown += ["", f"{node.name}: {(ast.get_docstring(node) or '').strip()}".strip(" :")]
            for part in node.body:
                if isinstance(part, ast.AnnAssign):
                    shown += lines[part.lineno - 1 : part.end_lineno]
    return "\n".join(shown)
