"""How many images a second the trainer trains with one process and with more, each of which adds its own batch.

    python benchmarks/weak_scaling.py results/weak_scaling

Steps are those of training/train.py, on CPUs, one thread to a process: P processes, connected by gloo (DDP), train
batches P times as large as one. As many processes apart, each training for itself, show what the machine has to give
if nothing is said between them: two processes on the two hardware threads of one core are not twice as fast as one.
All take turns, so that whatever else the machine does hits all alike; medians over the rounds are reported. Writes
`weak_scaling.json` and `weak_scaling.png` into the output folder, and prints a table.
"""

import argparse
import json
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from tqdm import tqdm

from accelerate import Accelerator

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "training")]

from run.config import ConfigError, read_config  # noqa: E402
from run.memory import keep_freed_memory  # noqa: E402
from run.precision import mixed_precision  # noqa: E402
from run.score_model import check_score_model  # noqa: E402
from train import Training  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

KEYS = (f"data.dataset={ROOT}/data/fashion_mnist", "data.max_images=2000", "validate_every=0")


@dataclass(frozen=True)
class Team:
    """One bar of the chart: processes that train together, or each for itself."""

    processes: int
    connected: bool

    @property
    def name(self):
        if self.processes == 1:
            return "1 process"
        return f"{self.processes} processes, {'connected' if self.connected else 'apart'}"


def train_in_turns(connection, arguments, rank, world_size, port):
    """A process of a team: answers its number of parameters, then n with the seconds that n steps took."""
    keep_freed_memory()
    if world_size > 1:
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, **address}
        os.environ.update({name: str(value) for name, value in variables.items()})
    config = read_config(arguments)
    run = Training(config, Accelerator(mixed_precision=mixed_precision(config), cpu=True))
    torch.set_num_threads(1)  # now: accelerate gives more to connected processes, unless a launcher has chosen
    batches = run.data.batches(config.batch_size, config.seed, rank=rank, world_size=world_size)

    def step():
        loss, _ = run.train_step(*next(batches))
        run.step += 1
        return loss.item()

    step()
    connection.send(sum(p.numel() for p in run.network.parameters()))
    while steps := connection.recv():
        start = time.perf_counter()
        for _ in range(steps):
            step()
        connection.send(time.perf_counter() - start)


def start(team, arguments, batch_size, folder):
    """The processes of a team, connections to them, and their network's number of parameters."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world_size = team.processes if team.connected else 1
    connections, processes = [], []
    for number in range(team.processes):
        output = folder / f"{team.name}, {number // world_size}"
        keys = [f"output_dir={output}", f"batch_size={batch_size * world_size}"]
        connection, theirs = context.Pipe()
        options = (theirs, [*arguments, *keys], number % world_size, world_size, port)
        process = context.Process(target=train_in_turns, args=options, daemon=True)
        process.start()
        theirs.close()  # so that its death ends our waiting
        connections.append(connection)
        processes.append(process)
    return processes, connections, [connection.recv() for connection in connections][0]


def measure(teams, arguments, batch_size, rounds, steps):
    """({team's name: images per second, one number per round}, number of parameters); the teams take turns."""
    rates, started = {team.name: [] for team in teams}, []
    with tempfile.TemporaryDirectory() as folder, tqdm(total=rounds * len(teams), desc="weak scaling") as progress:
        for team in teams:
            started.append(start(team, arguments, batch_size, Path(folder)))
        for _ in range(rounds):
            for team, (_, connections, _) in zip(teams, started, strict=True):
                for connection in connections:
                    connection.send(steps)
                seconds = max(connection.recv() for connection in connections)
                rates[team.name].append(team.processes * batch_size * steps / seconds)
                progress.update()
        for processes, connections, _ in started:
            for connection in connections:
                connection.send(0)
            for process in processes:
                process.join()
    return rates, started[0][2]


def plot(medians, rates, path):
    """Bars of the medians; the lines span all rounds."""
    figure, axes = plt.subplots(figsize=(8, 0.7 * len(medians) + 1.2), layout="constrained")
    names = list(medians)[::-1]
    errors = [[medians[n] - min(rates[n]) for n in names], [max(rates[n]) - medians[n] for n in names]]
    bars = axes.barh(names, [medians[n] for n in names], xerr=errors, color="tab:blue", ecolor="black")
    axes.bar_label(bars, [f"{medians[n]:.1f}" for n in names], padding=6)
    axes.set_xlabel("images per second, full training step (median; lines: all rounds)")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the JSON file and the figure")
    parser.add_argument(
        "--config", default=str(ROOT / "training" / "configs" / "fashion_mnist.yaml"), help="of train.py"
    )
    parser.add_argument("--keys", nargs="*", default=[], help="key=value words, as train.py takes them")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=32, help="images of each process")
    parser.add_argument("--rounds", type=int, default=7, help="times that each team gets its turn")
    parser.add_argument("--steps", type=int, default=4, help="training steps per turn")
    args = parser.parse_args()
    for name, least in (("processes", 2), ("batch_size", 1), ("rounds", 1), ("steps", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    arguments = [args.config, *KEYS, *args.keys]
    try:
        check_score_model(read_config([*arguments, "output_dir=none"]))
    except ConfigError as error:
        parser.error(str(error))
    args.output.mkdir(parents=True, exist_ok=True)

    alone, apart, connected = Team(1, False), Team(args.processes, False), Team(args.processes, True)
    rates, parameters = measure((alone, apart, connected), arguments, args.batch_size, args.rounds, args.steps)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    efficiency = medians[connected.name] / (args.processes * medians[alone.name])
    results = {
        "images_per_second": medians,
        "rounds": rates,
        "efficiency": efficiency,
        "efficiency_of_the_machine": medians[apart.name] / (args.processes * medians[alone.name]),
        "efficiency_of_communication": medians[connected.name] / medians[apart.name],
        "processes": args.processes,
        "batch_size_of_a_process": args.batch_size,
        "parameters": parameters,
        "config": Path(args.config).name,
        "keys": args.keys,
        "mixed_precision": mixed_precision(read_config([*arguments, "output_dir=none"])),
        "cpus": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    (args.output / "weak_scaling.json").write_text(json.dumps(results, indent=2))
    plot(medians, rates, args.output / "weak_scaling.png")
    print("| processes | images/s | of as many times one process |\n| --- | --- | --- |")
    for team in (alone, apart, connected):
        share = medians[team.name] / (team.processes * medians[alone.name])
        print(f"| {team.name} | {medians[team.name]:.1f} | {share:.0%} |")
    print(f"Connected processes reach {results['efficiency_of_communication']:.0%} of those apart.")


if __name__ == "__main__":
    main()
