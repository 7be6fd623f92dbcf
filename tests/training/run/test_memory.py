"""Memory that a training process frees stays with it."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

TRAINING = Path(__file__).resolve().parents[3] / "training"
SCRIPT = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from run.memory import keep_freed_memory
keep_freed_memory()
import torch
image = torch.ones(2**22)  # 16 MiB
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        several = [image + i for i in range(6)]
        del several
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults(), [line for line in open("/proc/self/status") if line.startswith("VmRSS")][0])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_and_reserved_memory_costs_nothing():
    script = [sys.executable, "-c", SCRIPT, str(TRAINING)]
    pages, _, resident = subprocess.run(script, check=True, capture_output=True, text=True).stdout.split()[:3]
    assert int(pages) < 500  # of 4096 bytes; every tensor has 4096 of them
    assert int(resident) < 2**21  # KiB: the addresses that are reserved hold nothing
