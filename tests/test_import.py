"""What importing the package does: nothing that is heard of outside, and nothing that takes long without need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "pretrained" / "fashion-mnist-ve"
GUARD = """
import sys

NETWORK = {"connect", "getaddrinfo", "gethostbyaddr", "gethostbyname", "getnameinfo", "sendmsg", "sendto"}
used = []

def refuse_network(event, arguments):
    # urllib3 makes a socket at import, to see if there is IPv6, and does nothing with it.
    module, _, function = event.rpartition(".")
    if module == "socket" and function in NETWORK:
        used.append((event, *arguments))  # also by those that try and go on without
        raise OSError(f"the network is used: {event}")

sys.addaudithook(refuse_network)
"""


def run(code):
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)


def test_the_network_would_have_been_noticed():
    for use in (
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
    ):
        done = run(GUARD + use)
        assert done.returncode == 1 and "the network is used" in done.stderr


LAZY = """
{first}
before = set(sys.modules)
import sde_diffusers

assert {{"ScoreSdePipeline", "operators", "__version__"}} <= set(dir(sde_diffusers))
assert not hasattr(sde_diffusers, "VESE")
added = {{name.partition(".")[0] for name in set(sys.modules) - before}}
assert added - sys.stdlib_module_names == {{"sde_diffusers"}}, added
import diffusers
from diffusers import DiffusionPipeline

diffusers.utils.logging.disable_progress_bar()
pipe = DiffusionPipeline.from_pretrained({folder!r})
assert type(pipe) is diffusers.ScoreSdePipeline is sde_diffusers.ScoreSdePipeline
assert {{cls.__name__ for cls in pipe.scheduler.compatibles}} == {{
    "ScoreSdeConsistencyScheduler", "ScoreSdeExponentialScheduler", "ScoreSdePredictorCorrectorScheduler",
    "ScoreSdeProbabilityFlowScheduler",
}}
for name in sde_diffusers.__all__:
    assert getattr(sde_diffusers, name).__name__.rpartition(".")[2] == name
assert not any(type(finder).__module__.startswith("sde_diffusers") for finder in sys.meta_path)
"""


IMPORT_EVERYTHING = """
import importlib, pkgutil

for module in pkgutil.walk_packages(sde_diffusers.__path__, "sde_diffusers."):
    importlib.import_module(module.name)
assert "sde_diffusers.cli" in sys.modules and "sde_diffusers.convert.edm" in sys.modules
added = {name.partition(".")[0] for name in set(sys.modules) - before}
required = {"PIL", "diffusers", "huggingface_hub", "numpy", "safetensors", "torch"}
assert added - sys.stdlib_module_names <= {"sde_diffusers", *required}, added
"""


@pytest.mark.parametrize(
    "first, then",
    [("", ""), ("from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin", IMPORT_EVERYTHING)],
    ids=["the package first", "diffusers first"],
)
def test_names_are_imported_when_they_are_asked_for(first, then):
    """Offline and in silence nothing else comes with the package, and diffusers knows its pipelines.

    Even all modules together load no more than diffusers does.
    """
    done = run(GUARD + LAZY.format(first=first, folder=str(FOLDER)) + then + "assert not used, used")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
