"""What an installation takes on disk, by what asks for it: sizes of the packages in the environment that runs this.

    python scripts/install_sizes.py

Each extra is counted with all that its packages need, less what the package alone needs. What is not installed here is
named.
"""

import argparse
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

NAME = "sde-diffusers"
LARGEST = 6  # packages that are named for each extra


def needed(name: str, extras=(), seen=None) -> dict[str, int | None]:
    """{package: bytes} of a package and, recursively, of what it needs here; None for what is not installed."""
    seen = {} if seen is None else seen
    for requirement in distribution(name).requires or ():
        found = re.match(r"([A-Za-z0-9._-]+)(?:\[(.*?)\])?", requirement)
        marker = re.search(r"extra\s*==\s*['\"](.*?)['\"]", requirement)
        if marker and marker[1] not in extras:
            continue
        package = re.sub(r"[-_.]+", "-", found[1]).lower()
        if package in seen:
            continue
        try:
            seen[package] = size(package)
            needed(package, (found[2] or "").split(","), seen)
        except PackageNotFoundError:  # on this platform it may not be needed
            seen[package] = None
    return seen


def size(package: str) -> int:
    """Bytes of the files that a package has installed."""
    files = distribution(package).files or ()
    paths = {Path(file.locate()) for file in files}
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    base = needed(NAME)
    print("| what | MB | the largest |", "| --- | --- | --- |", sep="\n")
    for extra in ("", "train", "eval", "space", "docs", "dev"):
        packages = {name: n for name, n in needed(NAME, [extra]).items() if not extra or name not in base}
        known = {name: n for name, n in packages.items() if n is not None}
        largest = sorted(known, key=known.get, reverse=True)[:LARGEST]
        named = ", ".join(f"{name} {known[name] / 1e6:.0f}" for name in largest)
        what = f"`[{extra}]` adds" if extra else "the package and what it needs"
        print(f"| {what} | {sum(known.values()) / 1e6:,.0f} | {named} |")
        missing = packages.keys() - known
        if missing:
            print(f"{extra or 'base'}: not installed here: {', '.join(sorted(missing))}", file=sys.stderr)


if __name__ == "__main__":
    main()
