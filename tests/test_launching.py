"""Which launchers leave processes to start; that they are started is shown in test_train.py."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "training"))

from launching import processes_asked_for  # noqa: E402


@pytest.mark.parametrize(
    "command_line, count",
    [
        ("python bin/accelerate launch --cpu --num_processes 2 train.py a.yaml steps=5", 2),
        ("python bin/accelerate launch --num-processes=3 --cpu train.py", 3),
        ("python bin/accelerate launch --cpu train.py --num_processes 2", 1),  # the script's own argument
        ("python bin/accelerate launch --multi_gpu --num_processes 2 train.py", 1),  # accelerate starts them
        ("python bin/accelerate launch --cpu --num_processes 2 --mpirun_hostfile hosts train.py", 1),  # MPI does
        ("python bin/accelerate launch --cpu --num_processes nonsense train.py", 1),
        ("mpirun -n 2 python train.py", 1),
        ("bash", 1),
        ("", 1),
    ],
)
def test_processes_asked_for(command_line, count):
    assert processes_asked_for(command_line.split()) == count
