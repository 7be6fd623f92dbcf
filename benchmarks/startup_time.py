"""How long the command's help and the import take, beside those of an earlier state of this repository:

    python benchmarks/startup_time.py results/startup_time [--before REVISION] [--rounds 3]

Each is a new process of Python, whose processor time is read when it has ended, so that other programs do not count;
states and commands take turns. REVISION is by default the last one that imported torch and diffusers with the package.
Writes `startup_time.json` and `.md`: medians, and all rounds in brackets.
"""

import argparse
import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path

from side_by_side import medians, take_turns, write_results

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "56dc7d0f"
COMMANDS = {
    "`sde-diffusers --help`": ["-m", "sde_diffusers.cli", "--help"],
    "`import diffusers`": ["-c", "import diffusers"],
    "`import diffusers, sde_diffusers`": ["-c", "import diffusers, sde_diffusers"],
    "`from diffusers import DDPMPipeline`": ["-c", "from diffusers import DDPMPipeline"],
    "the same, and `from sde_diffusers import ScoreSdePipeline`": [
        "-c",
        "from diffusers import DDPMPipeline; from sde_diffusers import ScoreSdePipeline",
    ],
}


def processor_seconds(folder: Path, words: list[str]) -> float:
    """Of Python with these arguments, which imports the package from a folder."""

    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    environment = os.environ | {"PYTHONPATH": str(folder)}
    subprocess.run([sys.executable, *words], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return used() - before


def extract(revision: str, folder: Path) -> None:
    """The package as it was, in a folder."""
    command = ["git", "archive", revision, "sde_diffusers"]
    archive = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--before", default=BEFORE, metavar="REVISION")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        extract(options.before, Path(temporary))
        states = {"before": Path(temporary), "now": ROOT}
        contenders = {
            (state, name): partial(processor_seconds, folder, words)
            for name, words in COMMANDS.items()
            for state, folder in states.items()
        }
        for state in states:
            contenders[state, [*COMMANDS][-1]]()  # imports most: later turns find all of it compiled
        rounds = take_turns(contenders, options.rounds, "Starts")
    lines = ["| seconds of processor time | before | now |", "| --- | --- | --- |"]
    for name in COMMANDS:
        cells = [
            f"{medians(rounds)[state, name]:.2f} ({min(rounds[state, name]):.2f} to {max(rounds[state, name]):.2f})"
            for state in states
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    table = "\n".join(lines) + "\n"
    results = {name: {state: rounds[state, name] for state in states} for name in COMMANDS}
    write_results(options.output, "startup_time", {"before": options.before, "seconds": results}, table)
    print(table)


if __name__ == "__main__":
    main()
