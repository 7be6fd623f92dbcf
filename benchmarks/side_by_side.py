"""Measuring side by side: contenders take turns in one run, so that whatever else the machine does hits all alike.

Each contender is a function that does its work once and returns what it took; one that must not share a process with
the others (its allocator, its threads, its compiled code) is a `Worker`. What is reported is the median over the
rounds, with all rounds beside it. Results are written whole: a run that is stopped leaves those of its last write.
"""

import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import matplotlib
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Turns.


def turns(contenders: dict[str, Callable], rounds: int, title: str) -> Iterator[dict]:
    """Let the contenders take turns: yields, after each round, {name: what its function returned}."""
    with tqdm(total=rounds * len(contenders), desc=title, unit="turn") as progress:
        for _ in range(rounds):
            results = {}
            for name, contender in contenders.items():
                progress.set_postfix_str(name)
                results[name] = contender()
                progress.update()
            yield results


def take_turns(contenders: dict[str, Callable[[], float]], rounds: int, title: str) -> dict[str, list[float]]:
    """{name: the numbers that its function returned, one for each round}."""
    results = list(turns(contenders, rounds, title))
    return {name: [result[name] for result in results] for name in contenders}


def medians(rounds: dict[str, list[float]]) -> dict[str, float]:
    """{name: median over its rounds}."""
    return {name: statistics.median(values) for name, values in rounds.items()}


# Contenders with a process of their own.


class Worker:
    """A process that does steps when it is asked to.

    Args:
        function: called in the process as `function(connection, *arguments)`. It sends one object when it is ready,
            and then, unless that says that it cannot work, does its turns by `do_turns`.
    """

    def __init__(self, function: Callable, *arguments):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=function, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()  # so that its death ends our waiting

    def ready(self):
        """Wait for the object that the process sends first."""
        return self.connection.recv()

    def begin(self, steps: int) -> None:
        """Ask for a turn."""
        self.connection.send(steps)

    def seconds(self) -> float:
        """Wait until the turn is over; what it took."""
        return self.connection.recv()

    def turn(self, steps: int) -> float:
        """Seconds that a turn of so many steps takes."""
        self.begin(steps)
        return self.seconds()


def stop(workers: Iterable[Worker]) -> None:
    """End processes: all are told before one is waited for, since those that are connected end together."""
    workers = list(workers)
    for worker in workers:
        worker.begin(0)
    for worker in workers:
        worker.process.join()


def do_turns(connection, step: Callable, untimed: int = 0, wait: Callable = lambda: None) -> None:
    """A worker's side of its turns, until it is stopped: asked for n steps, it answers with the seconds they took.

    Args:
        step: does one.
        untimed: steps before them at each turn, as the others had the caches meanwhile.
        wait: until a device has done what it was told to.
    """
    while steps := connection.recv():
        for _ in range(untimed):
            step()
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        connection.send(time.perf_counter() - start)


# Results.


def bars(rounds: dict[str, list[float]], label: str, colors="tab:blue") -> plt.Figure:
    """Bars of the medians, the first contender on top; the lines span all rounds."""
    figure, axes = plt.subplots(figsize=(8, 0.7 * len(rounds) + 1.2), layout="constrained")
    names, values = list(rounds), medians(rounds)
    widths = [values[name] for name in names]
    spans = [[values[n] - min(rounds[n]) for n in names], [max(rounds[n]) - values[n] for n in names]]
    drawn = axes.barh(names, widths, xerr=spans, color=colors, ecolor="black")
    axes.bar_label(drawn, [f"{width:.1f}" for width in widths], padding=6)
    axes.invert_yaxis()
    axes.set_xlabel(f"{label} (median; lines: all rounds)")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def earlier_rows(folder: Path, name: str, settings: dict, rows: str = "rows") -> list[dict]:
    """The rows of NAME.json that an earlier run left, if there was one; if it had other settings, the program ends."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    other = {key: found.get(key) for key, value in json.loads(json.dumps(settings)).items() if found.get(key) != value}
    if other:
        sys.exit(f"{path} was made with {other}, and not with {settings}: choose another folder.")
    return found[rows]


def write_results(
    folder: Path, name: str, results: dict, table: str | None = None, figure: plt.Figure | None = None
) -> None:
    """Write NAME.json and, if given, a table as NAME.md and a figure as NAME.png; each is whole at any time."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{name}.{os.getpid()}.tmp"  # several processes may share the work, and the folder
    for ending, text in (("json", json.dumps(results, indent=1) + "\n"), ("md", table)):
        if text is not None:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(folder / f"{name}.{ending}")
    if figure is not None:
        figure.savefig(temporary, dpi=150, format="png")
        plt.close(figure)
        temporary.replace(folder / f"{name}.png")
