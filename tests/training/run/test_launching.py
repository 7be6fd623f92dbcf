"""Which launchers leave processes to start, and the configurations for several GPUs."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from run.launching import processes_asked_for
from run.sharding import fsdp_options
from run.yaml_config import ConfigError

ROOT = Path(__file__).resolve().parents[3]


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


@pytest.mark.parametrize("machines", [1, 4])
@pytest.mark.parametrize(
    "kind, distributed_type", [("ddp", DistributedType.MULTI_GPU), ("fsdp", DistributedType.FSDP)]
)
def test_configurations_for_several_gpus_are_what_accelerate_reads(kind, distributed_type, machines, monkeypatch):
    """And the trainer takes what `accelerate launch` makes of them."""
    name = f"{kind}_8_gpus" if machines == 1 else f"{kind}_4x8_gpus"
    path = ROOT / "training" / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == distributed_type
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (machines, 8 * machines, "bf16")

    launched = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
    launched, *_ = _validate_launch_command(launched)
    for variable, value in prepare_multi_gpu_env(launched).items():
        if "FSDP" in variable:
            monkeypatch.setenv(variable, value)
    assert fsdp_options() == ({"reshard_after_forward": True} if kind == "fsdp" else None)
    assert fsdp_options() is None  # accelerate must not see it


@pytest.mark.parametrize(
    "variable, value, message",
    [
        ("FSDP_VERSION", "1", "fsdp_version must be 2 for this trainer, but accelerate was given 1"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params must be false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "True", "fsdp_activation_checkpointing must be false"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "fsdp_auto_wrap_policy must be no_wrap"),
    ],
)
def test_what_the_trainer_does_not_do_for_fsdp_is_refused(variable, value, message, monkeypatch):
    for name, given in (("ACCELERATE_USE_FSDP", "true"), (variable, value)):
        monkeypatch.setenv(name, given)
    with pytest.raises(ConfigError, match=message):
        fsdp_options()
