"""Several processes on CPUs by `accelerate launch --cpu --num_processes N script ...`.

accelerate (1.15) starts one process only for this command, unless it is given a hostfile for MPI, and expects the rest
to come from elsewhere. Here the one process turns into torchrun, which starts all N.
"""

import os
import sys

import psutil
from accelerate.commands.launch import launch_command_parser


def processes_asked_for(command_line: list[str]) -> int:
    """How many processes on CPUs an `accelerate launch` command line asks for but will not start; 1 for any other."""
    if "launch" not in command_line or not any("accelerate" in word for word in command_line):
        return 1
    arguments = command_line[command_line.index("launch") + 1 :]
    try:
        options, _ = launch_command_parser().parse_known_args(arguments)
    except SystemExit:  # not what it seemed to be
        return 1
    local = options.mpirun_hostfile is None and (options.num_machines or 1) == 1
    return options.num_processes or 1 if options.cpu and local else 1


def start_all_processes() -> None:
    """Call first in a script: replaces this process by torchrun if its launcher left the other processes to us."""
    if "RANK" in os.environ:
        return  # started by torchrun
    launcher = psutil.Process().parent()
    count = processes_asked_for(launcher.cmdline()) if launcher else 1
    if count > 1:
        sys.stdout.flush()
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        os.execv(sys.executable, [*torchrun, *sys.argv])
