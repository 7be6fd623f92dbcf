"""Run the test suite with the oldest and the newest releases that setup.py allows:

    python scripts/check_versions.py FOLDER --oldest python3.10 --newest python3.13 [-- PYTEST_OPTIONS]

Each option names an interpreter, the oldest being of the lowest Python that setup.py allows. FOLDER gets a virtual
environment of it: `oldest` has every package of setup.py at exactly its lower bound (and what they need in turn as new
as pip finds it), `newest` has everything as new as pip finds it. Environments are kept, and brought up to date by the
next call. Results go to FOLDER/versions.json and .md (a table), after each environment, and what pytest says to
FOLDER/oldest.txt and newest.txt. The exit status says whether all tests passed.

To leave the checkout alone meanwhile, run it in a clone.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from constraints import python_of_setup, requirements_of_setup
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("oldest", "newest")
COUNTS = ("passed", "failed", "errors", "skipped", "warnings")
VERSIONS = """
import json, platform, sys
from importlib.metadata import version
print(json.dumps({"Python": platform.python_version()} | {name: version(name) for name in sys.argv[1:]}))
"""


def lower_bound(specifier: SpecifierSet) -> Version:
    """The oldest release that it allows.

    Raises:
        ValueError: unless it has one `>=`.
    """
    bounds = [Version(part.version) for part in specifier if part.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"{str(specifier)!r} must have one lower bound, >=")
    return bounds[0]


def oldest_releases() -> list[str]:
    """For pip: each package of setup.py at its lower bound."""
    return [f"{requirement.name}=={lower_bound(requirement.specifier)}" for requirement in requirements_of_setup()]


def prepare(folder: Path, kind: str, interpreter: str) -> Path:
    """Make the virtual environment, or bring it up to date; its interpreter.

    Raises:
        ValueError: if the interpreter cannot be run, is not the oldest one, or not that of the environment.
        subprocess.CalledProcessError: if pip fails, say because the bounds contradict each other.
    """
    try:
        version, lowest = versions(interpreter, [])["Python"], lower_bound(python_of_setup())
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"--{kind} {interpreter}: {error}") from error
    if kind == "oldest" and Version(version).release[:2] != lowest.release[:2]:
        raise ValueError(f"--oldest {interpreter}: its version is {version}, and the oldest is {lowest}")
    python = folder / kind / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", folder / kind], check=True)
    elif (present := versions(python, [])["Python"]) != version:
        raise ValueError(f"--{kind} {interpreter}: its version is {version}, and {folder / kind} has {present}")
    pip = [python, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "install", "--upgrade", "pip"], check=True)
    if kind == "oldest":
        subprocess.run([*pip, "install", "--editable", ROOT, *oldest_releases()], check=True)
    else:
        newest = ["--upgrade", "--upgrade-strategy", "eager"]
        subprocess.run([*pip, "install", *newest, "--editable", f"{ROOT}[dev]"], check=True)
    subprocess.run([*pip, "check"], check=True)
    return python


def versions(python: str | Path, names: list[str]) -> dict[str, str]:
    """Of Python and these packages in the environment."""
    output = subprocess.run([python, "-I", "-c", VERSIONS, *names], check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output)


def run_tests(python: Path, log: Path, options: list[str]) -> dict:
    """Counts of the suite, its minutes, and the tests that failed.

    Raises:
        RuntimeError: if pytest ended without counts.
    """
    record = ROOT / "tests" / "test_check_versions.py"  # of earlier results
    ours = [ROOT / "tests", f"--ignore={record}", "-p", "no:cacheprovider", "-rfEs", "--color=no"]
    command = [python, "-m", "pytest", *ours, *options]
    with log.open("w", encoding="utf-8") as file:
        pytest = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in pytest.stdout:
            sys.stdout.write(line)
            file.write(line)
            file.flush()
        pytest.wait()
    return counts_in(log.read_text(encoding="utf-8"))


def counts_in(output: str) -> dict:
    """What pytest's last line counts, and the lines that begin with FAILED or ERROR."""
    last = (output.strip().splitlines() or [""])[-1]
    seconds = re.search(r" in ([\d.]+)s", last)
    if not seconds:
        raise RuntimeError(f"pytest ended without counts: {last!r}")
    found = {name: int(number) for number, name in re.findall(r"(\d+) ([a-z]+)", last.split(" in ")[0])}
    found = {{"error": "errors", "warning": "warnings"}.get(name, name): number for name, number in found.items()}
    lines = re.findall(r"^(?:FAILED|ERROR) (.+)", output, re.MULTILINE)
    names = [line.split(" - ")[0] for line in lines]
    return {name: found.get(name, 0) for name in COUNTS} | {
        "minutes": round(float(seconds[1]) / 60, 1),
        "not_passed": names,
    }


def describe_commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def table(results: dict) -> str:
    """Markdown: a column for each environment."""
    kinds = [kind for kind in KINDS if kind in results]
    rows = {"": kinds, "---": ["---"] * len(kinds)}
    for name in ("date", "commit", *COUNTS, "minutes"):
        rows[name] = [str(results[kind][name]) for kind in kinds]
    for name in dict.fromkeys(name for kind in kinds for name in results[kind]["versions"]):
        rows[name] = [results[kind]["versions"].get(name, "") for kind in kinds]
    return "".join(f"| {' | '.join([name, *cells])} |\n" for name, cells in rows.items())


def write(folder: Path, results: dict) -> None:
    """Both files, each whole at any time."""
    for name, text in (("versions.json", json.dumps(results, indent=1) + "\n"), ("versions.md", table(results))):
        temporary = folder / f"{name}.{os.getpid()}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s FOLDER [--oldest INTERPRETER] [--newest INTERPRETER] [-- PYTEST_OPTIONS]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where environments and results are kept")
    for kind in KINDS:
        parser.add_argument(f"--{kind}", metavar="INTERPRETER", help=f"of the {kind} environment")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    pytest_options = sys.argv[end + 1 :]
    arguments = parser.parse_args(sys.argv[1:end])
    interpreters = {kind: getattr(arguments, kind) for kind in KINDS if getattr(arguments, kind)}
    if not interpreters:
        parser.error("--oldest, --newest or both are needed")
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "versions.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    try:
        pythons = {kind: prepare(folder, kind, interpreter) for kind, interpreter in interpreters.items()}
    except ValueError as error:
        parser.error(str(error))
    for kind, python in pythons.items():
        results[kind] = {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "commit": describe_commit(),
            **run_tests(python, folder / f"{kind}.txt", pytest_options),
            "versions": versions(python, [requirement.name for requirement in requirements_of_setup()]),
        }
        write(folder, results)
    print(table(results), end="")
    return 1 if any(results[kind]["failed"] or results[kind]["errors"] for kind in pythons) else 0


if __name__ == "__main__":
    sys.exit(main())
