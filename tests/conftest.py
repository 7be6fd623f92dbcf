"""What holds for all tests."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("benchmarks", "scripts", "space_app", "tests", "tests/faults", "training")


def pytest_configure(config):
    """A warning is an error if it is given in a file of this repository, say for what a library is about to remove.

    pyproject.toml says so of the package; the other files are modules whose names only their folders tell.
    """
    modules = sorted({path.stem for folder in SCRIPTS for path in (ROOT / folder).glob("*.py")})
    config.addinivalue_line("filterwarnings", f"error:::({'|'.join(modules)})$")
