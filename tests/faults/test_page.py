"""docs/reliability.md names the tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def faults_in(path: Path) -> set[str]:
    names = re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    return {f"{path.relative_to(ROOT).as_posix()}::{name}" for name in names}


def test_every_fault_is_in_the_table_and_every_test_of_the_table_exists():
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|") and "::" in line]
    named = {re.fullmatch(r"\| .+ \| `(tests/[\w/]+\.py::test_\w+)` \| .+ \|", row)[1] for row in rows}
    files = sorted((ROOT / "tests" / "faults").glob("test_*_faults.py"))
    assert len(files) == 2 and set.union(*map(faults_in, files)) <= named
    assert named <= set.union(*(faults_in(ROOT / name.split("::")[0]) for name in named))
