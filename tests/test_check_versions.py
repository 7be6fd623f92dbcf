"""The releases that docs/versions.md records are those that setup.py allows; how the script comes by its numbers."""

import json
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from check_versions import counts_in, lower_bound, oldest_releases, table  # noqa: E402
from constraints import python_of_setup, requirements_of_setup  # noqa: E402

RESULTS = json.loads((ROOT / "docs" / "versions.json").read_text())
HOW = "Run `python scripts/check_versions.py`, and bring its results into docs/versions.json and docs/versions.md"


def test_the_oldest_releases_are_the_lower_bounds_of_setup():
    versions = RESULTS["oldest"]["versions"]
    for requirement in requirements_of_setup():
        assert requirement.name in versions, f"{requirement.name} is not in the record. {HOW}"
        assert Version(versions[requirement.name]) == lower_bound(requirement.specifier), HOW
    assert Version(versions["Python"]).release[:2] == lower_bound(python_of_setup()).release


def test_the_newest_releases_are_allowed():
    versions = RESULTS["newest"]["versions"]
    recorded = [requirement for requirement in requirements_of_setup() if requirement.name in versions]
    assert all(requirement.specifier.contains(versions[requirement.name]) for requirement in recorded)
    assert Version(versions["torch"]) > Version(RESULTS["oldest"]["versions"]["torch"])


def test_all_tests_passed_in_both_and_the_page_says_what_was_found():
    assert all(RESULTS[kind]["passed"] > 2000 and RESULTS[kind]["not_passed"] == [] for kind in ("oldest", "newest"))
    assert table(RESULTS) in (ROOT / "docs" / "versions.md").read_text(), HOW


def test_lower_bounds():
    assert lower_bound(SpecifierSet(">=1.14,<1.18")) == Version("1.14")
    for wrong in ("<1.18", ">1.14", ""):
        with pytest.raises(ValueError, match="must have one lower bound"):
            lower_bound(SpecifierSet(wrong))
    assert len(oldest_releases()) == len({line.split("==")[0] for line in oldest_releases()})


def test_counts_of_pytest():
    assert counts_in("....\n4 passed in 90.00s (0:01:30)\n") == {
        **dict.fromkeys(("failed", "errors", "skipped", "warnings"), 0),
        **{"passed": 4, "minutes": 1.5, "not_passed": []},
    }
    output = (
        "SKIPPED [2] tests/test_gpu.py:78: needs a GPU\nFAILED tests/test_a.py::test_b[c d] - Error\n"
        "ERROR tests/test_c.py - ImportError\n== 1 failed, 3 passed, 2 skipped, 1 warning, 1 error in 6.00s ==\n"
    )
    found = counts_in(output)
    assert found["not_passed"] == ["tests/test_a.py::test_b[c d]", "tests/test_c.py"]
    assert [found[name] for name in ("passed", "failed", "errors", "skipped", "warnings")] == [3, 1, 1, 2, 1]
    with pytest.raises(RuntimeError, match="without counts: 'Killed'"):
        counts_in("...\nKilled\n")
