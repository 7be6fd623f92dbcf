"""What holds for all tests."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [ROOT / name for name in ("benchmarks", "scripts", "space_app", "training")]
TESTS = [folder for folder in (ROOT / "tests", *(ROOT / "tests").rglob("*")) if folder.is_dir()]


def pytest_configure(config):
    """A warning is an error if it is given in a file of this repository, say for what a library is about to remove.

    pyproject.toml says so of the package; the other files are modules whose names only their folders tell.
    """
    files = [(folder, path) for folder in (*SCRIPTS, *TESTS) for path in folder.rglob("*.py")]
    modules = sorted({".".join(path.relative_to(folder).with_suffix("").parts) for folder, path in files})
    config.addinivalue_line("filterwarnings", f"error:::({'|'.join(modules)})$")
