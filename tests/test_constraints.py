"""constraints.txt holds a release of everything that setup.py asks for; how scripts/constraints.py finds them."""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from constraints import releases_needed, requirements_of_setup  # noqa: E402


@pytest.fixture(scope="module")
def releases():
    """The lines of constraints.txt: name -> release."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][a-z0-9.]*", line) for line in lines)  # no addresses, no folders
    releases = dict(line.split("==") for line in lines)
    assert list(releases) == sorted(releases) and len(releases) == len(lines)
    return releases


@pytest.mark.parametrize("requirement", requirements_of_setup(), ids=str)
def test_every_requirement_has_a_release_that_it_allows(requirement, releases):
    assert requirement.specifier.contains(releases[canonicalize_name(requirement.name)])


def test_requirements_of_setup_are_those_of_the_package_and_its_extras():
    names = {requirement.name for requirement in requirements_of_setup()}
    assert {"torch", "accelerate", "clean-fid", "gradio", "furo", "pytest"} <= names


def test_what_packages_need_in_turn_is_found():
    releases = releases_needed([Requirement("huggingface_hub")])
    assert releases["huggingface-hub"] == Version(version("huggingface_hub"))
    assert "tqdm" in releases and "torch" not in releases
    with_extra = releases_needed([Requirement("huggingface_hub[torch]")])
    assert with_extra["torch"] == Version(version("torch")) and releases.keys() < with_extra.keys()
