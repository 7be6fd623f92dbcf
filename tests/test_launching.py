"""Which launchers leave processes to start (test_train.py shows that they are started), and their configurations."""

import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

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


@pytest.mark.parametrize("name, machines", [("ddp_8_gpus", 1), ("ddp_4x8_gpus", 4)])
def test_configurations_for_several_gpus_are_what_accelerate_reads(name, machines):
    config = load_config_from_file(str(ROOT / "training" / "accelerate" / f"{name}.yaml"))
    assert config.distributed_type == DistributedType.MULTI_GPU
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (machines, 8 * machines, "bf16")
