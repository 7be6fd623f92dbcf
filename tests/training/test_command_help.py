"""`--help` of the commands that take keys: all keys, and nothing imported that takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "command, key",
    [
        ("train", "lr: float = 2e-4"),
        ("train_classifier", "sigma_max: float = 40.0"),
        ("evaluate", "probes: int = 1  # of the trace estimator"),
        ("evaluate_checkpoints", "guidance_scale: float = 1.0"),
    ],
)
def test_help_lists_keys_without_importing_torch(command, key):
    program = f"""
import runpy, sys
sys.argv = ["{command}.py", "--help"]
sys.path.insert(0, "{ROOT / "training"}")
try:
    runpy.run_path("{ROOT / "training" / command}.py", run_name="__main__")
except SystemExit as end:
    assert not end.code and not {{"torch", "accelerate", "matplotlib"}} & {{*sys.modules}}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert key in done.stdout
