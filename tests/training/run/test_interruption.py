"""Signals that arrive at awkward moments, in processes of their own."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import run

DELETED_MEANWHILE = """
import signal, time, weakref
from run.interruption import ends_in_order

class Deleted: pass

try:
    with ends_in_order():
        deleted = Deleted()
        reference = weakref.ref(deleted, lambda reference: signal.raise_signal({number}))
        del deleted
        time.sleep(30)
        print("went on")
finally:
    print("given back")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_while_an_object_is_deleted(name):
    """Python drops what is raised in the callback of a weak reference."""
    number = getattr(signal, name)
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("this signal is ignored, as under nohup")
    command = [sys.executable, "-c", DELETED_MEANWHILE.format(number=int(number))]
    folder = Path(run.__path__[0]).parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60)
    assert done.stdout == "given back\n"
    assert "Exception ignored" not in done.stderr
    assert done.returncode == (-number if name == "SIGINT" else 128 + number)
