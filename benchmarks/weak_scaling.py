"""How many images a second the trainer trains with one process and with more, each of which adds its own batch.

    python benchmarks/weak_scaling.py results/weak_scaling

Steps are those of training/train.py, on CPUs, one thread to a process: P processes, connected by gloo (DDP), train
batches P times as large as one. As many processes apart, each training for itself, show what the machine has to give
if nothing is said between them: two processes on the two hardware threads of one core are not twice as fast as one.
All take turns, so that whatever else the machine does hits all alike; medians over the rounds are reported. Writes
`weak_scaling.json` and `weak_scaling.png` into the output folder, and prints a table.
"""

import argparse
import os
import platform
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from side_by_side import Worker, bars, do_turns, medians, stop, take_turns, write_results

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "training")]

from run.config import read_config  # noqa: E402
from run.memory import keep_freed_memory  # noqa: E402
from run.precision import mixed_precision  # noqa: E402
from run.score_model import check_score_model  # noqa: E402
from run.yaml_config import ConfigError  # noqa: E402
from train import Training  # noqa: E402

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
    """A process of a team: answers its number of parameters, then does its turns."""
    keep_freed_memory()
    if world_size > 1:
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, **address}
        os.environ.update({name: str(value) for name, value in variables.items()})
    config = read_config(arguments)
    run = Training(config, Accelerator(mixed_precision=mixed_precision(config.mixed_precision), cpu=True))
    torch.set_num_threads(1)  # now: accelerate gives more to connected processes, unless a launcher has chosen
    batches = run.data.batches(config.batch_size, config.seed, rank=rank, world_size=world_size)

    def step():
        loss, _ = run.train_step(*next(batches))
        run.step += 1
        return loss.item()

    step()
    connection.send(sum(p.numel() for p in run.network.parameters()))
    do_turns(connection, step)


def start(team, arguments, batch_size, folder):
    """The workers of a team."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world_size = team.processes if team.connected else 1
    workers = []
    for number in range(team.processes):
        output = folder / f"{team.name}, {number // world_size}"
        keys = [f"output_dir={output}", f"batch_size={batch_size * world_size}"]
        workers.append(Worker(train_in_turns, [*arguments, *keys], number % world_size, world_size, port))
    return workers


def measure(teams, arguments, batch_size, rounds, steps):
    """({team's name: images per second, one number per round}, number of parameters); the teams take turns."""

    def rate(workers):
        def turn():
            for worker in workers:
                worker.begin(steps)
            return len(workers) * batch_size * steps / max([worker.seconds() for worker in workers])

        return turn

    started = {}
    with tempfile.TemporaryDirectory() as folder:
        for team in teams:
            started[team.name] = start(team, arguments, batch_size, Path(folder))
            parameters = [worker.ready() for worker in started[team.name]][0]
        rates = take_turns({name: rate(workers) for name, workers in started.items()}, rounds, "weak scaling")
        stop(worker for workers in started.values() for worker in workers)
    return rates, parameters


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
    rate = medians(rates)
    efficiency = rate[connected.name] / (args.processes * rate[alone.name])
    results = {
        "images_per_second": rate,
        "rounds": rates,
        "efficiency": efficiency,
        "efficiency_of_the_machine": rate[apart.name] / (args.processes * rate[alone.name]),
        "efficiency_of_communication": rate[connected.name] / rate[apart.name],
        "processes": args.processes,
        "batch_size_of_a_process": args.batch_size,
        "parameters": parameters,
        "config": Path(args.config).name,
        "keys": args.keys,
        "mixed_precision": mixed_precision(read_config([*arguments, "output_dir=none"]).mixed_precision),
        "cpus": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    figure = bars(rates, "images per second, full training step")
    write_results(args.output, "weak_scaling", results, figure=figure)
    print("| processes | images/s | of as many times one process |\n| --- | --- | --- |")
    for team in (alone, apart, connected):
        share = rate[team.name] / (team.processes * rate[alone.name])
        print(f"| {team.name} | {rate[team.name]:.1f} | {share:.0%} |")
    print(f"Connected processes reach {results['efficiency_of_communication']:.0%} of those apart.")


if __name__ == "__main__":
    main()
