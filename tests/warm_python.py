"""Python processes that have torch and diffusers imported when they begin: forks of one that imported them once.

Importing them takes longer than what a process does in most tests. All else is as in a new interpreter: arguments,
environment, working folder and streams are the process's own, and neither the package nor a test is imported.
"""

import atexit
import importlib
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "torch._dynamo",
        "diffusers.pipelines.pipeline_utils",
        "diffusers.models.unets.unet_2d",
        "diffusers.schedulers.scheduling_utils",
        "accelerate",
        "datasets",
    ]
)


class WarmPython:
    """`subprocess.Popen([sys.executable, *arguments], env=env, cwd=cwd, ...)` with pipes of text, as far as tests go.

    `arguments` begin with `-c` and code, or with a script. Packages and modules named in `without` are not found.
    """

    def __init__(self, arguments, env=None, cwd=None, without=()):
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for path in self._outputs:
            path.touch()  # the process may be killed before it begins
        given = list(map(str, arguments)), dict(os.environ if env is None else env), str(cwd or Path.cwd())
        self._process = FORKS.Process(target=_run, args=(*given, self._outputs, tuple(without)))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def communicate(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return tuple(path.read_text() for path in self._outputs)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self._process.kill()


def run_python(arguments, env=None, cwd=None, timeout=300, without=()) -> subprocess.CompletedProcess:
    """`subprocess.run`, likewise."""
    process = WarmPython(arguments, env, cwd, without)
    try:
        output = process.communicate(timeout)
        return subprocess.CompletedProcess(arguments, process.returncode, *output)
    finally:
        process.kill()


def ranks(count) -> list[dict[str, str]]:
    """The variables of the environment that a launcher gives to each of `count` processes on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    same = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "ACCELERATE_USE_CPU": "true",
    }
    return [{**same, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


class _NotInstalled:
    """A finder of modules by which those that are named here are missing."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)


def _run(arguments, environment, folder, outputs, without):
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    _read_again(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    assert not {name.partition(".")[0] for name in sys.modules} & set(without)
    sys.meta_path.insert(0, _NotInstalled(without))
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(arguments[1], {"__name__": "__main__", "__builtins__": __builtins__})
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).parent))
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def _read_again(environment):
    """What the libraries read from the environment when they are imported."""
    import datasets.config
    import diffusers.utils.constants
    import diffusers.utils.dynamic_modules_utils
    import huggingface_hub.constants
    import huggingface_hub.hf_api

    if "OMP_NUM_THREADS" in environment:
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    for constants in (huggingface_hub.constants, diffusers.utils.constants, datasets.config):
        importlib.reload(constants)
    diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE = diffusers.utils.constants.HF_MODULES_CACHE
    huggingface_hub.hf_api.api.endpoint = huggingface_hub.constants.ENDPOINT
