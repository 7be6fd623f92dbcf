"""Write constraints.txt: the exact release of every package that the development environment needs, for

    pip install --constraint constraints.txt --editable '.[dev]'

which installs what was installed here, with the same version of Python. Run it with the environment's interpreter,

    python scripts/constraints.py

after `make test` has passed there. Packages that the environment has and setup.py does not ask for are left out.
"""

import argparse
import itertools
import os
import platform
import runpy
import sys
from importlib.metadata import distribution
from pathlib import Path
from unittest import mock

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


def arguments_of_setup() -> dict:
    """What setup.py gives to setuptools."""
    setuptools = mock.Mock()
    with mock.patch.dict(sys.modules, setuptools=setuptools):
        runpy.run_path(str(ROOT / "setup.py"))
    return setuptools.setup.call_args.kwargs


def python_of_setup() -> SpecifierSet:
    """The versions of Python that setup.py allows."""
    return SpecifierSet(arguments_of_setup()["python_requires"])


def requirements_of_setup() -> list[Requirement]:
    """What setup.py asks for, extras included, each once."""
    arguments = arguments_of_setup()
    lines = [*arguments["install_requires"], *itertools.chain(*arguments["extras_require"].values())]
    return [Requirement(line) for line in dict.fromkeys(lines)]


def releases_needed(requirements: list[Requirement]) -> dict[str, Version]:
    """The installed releases of these packages, and of those that they need here in turn, by canonical name.

    Raises:
        PackageNotFoundError: if one of them is not installed.
    """
    releases, seen, left = {}, set(), [(r, extra) for r in requirements for extra in ("", *r.extras)]
    while left:
        requirement, extra = left.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        package = distribution(requirement.name)
        releases[name] = Version(package.version)
        for line in package.requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                left += [(needed, extra) for extra in ("", *needed.extras)]
    return releases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    releases = releases_needed(requirements_of_setup())
    lines = [
        "# Written by scripts/constraints.py: what `make test` passed with on",
        f"# Python {platform.python_version()}, {platform.system()}, {platform.machine()}.",
        *(f"{name}=={releases[name].public}" for name in sorted(releases)),
    ]
    temporary = ROOT / f"constraints.{os.getpid()}.tmp"
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(ROOT / "constraints.txt")


if __name__ == "__main__":
    main()
