"""`python SCRIPT`, `accelerate` and `sde-diffusers` that have torch and diffusers imported when they begin.

Importing them takes longer than what most recipes do, so one process imports them once, and each command is a fork of
it. All else is the command's own: arguments, environment, folder and streams, and what it imports of this repository.
Anything else that `python` is asked for, say `-c` or `-m`, is done by the interpreter itself.

    with warm_commands() as folder:  # which holds them; to be put first on PATH
        ...
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORTED = (
    "torch._dynamo",
    "torch.utils.tensorboard",
    "torchvision.transforms.v2",
    "diffusers.pipelines.pipeline_utils",
    "diffusers.models.unets.unet_2d",
    "diffusers.schedulers.scheduling_utils",
    "accelerate.commands.accelerate_cli",
    "datasets",
    "matplotlib.backends.backend_agg",
)
COMMAND = """#!{python} -IS
import sys
sys.path.insert(0, {folder!r})
import warm_commands
warm_commands.run_by({address!r})
"""


@contextlib.contextmanager
def warm_commands():
    """Starts the process that imports, and yields the folder of the commands; at the end both are gone."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        address = os.path.join(folder, "socket")
        for name in ("python", "accelerate", "sde-diffusers"):
            path = Path(folder, name)
            text = COMMAND.format(python=sys.executable, folder=str(Path(__file__).resolve().parent), address=address)
            path.write_text(text)
            path.chmod(0o755)
        # In a session of its own: Ctrl-C is for the commands, which pass it on.
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(address)
            door.listen(64)  # commands that come while it still imports wait
            command = [sys.executable, __file__, str(door.fileno()), os.path.join(folder, "python")]
            server = subprocess.Popen(command, pass_fds=[door.fileno()], start_new_session=True)
        try:
            yield folder
        finally:
            server.kill()
            server.wait()


def run_by(address):
    """What a command does: it hands over what it was given, passes signals on, and ends as its fork ends."""
    path, *words = sys.argv
    options = words[:1] if words[:1] == ["-u"] else []
    script = words[len(options) :]
    if Path(path).name != "python":
        script = [str(Path(sys.executable).with_name(Path(path).name)), *words]
    elif not script or script[0].startswith("-"):
        os.execv(sys.executable, [sys.executable, *words])
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [b"."], [0, 1, 2])
        order = {"arguments": script, "environment": dict(os.environ), "folder": os.getcwd()}
        server.sendall(json.dumps(order).encode())
        server.shutdown(socket.SHUT_WR)
        answer = server.makefile()
        process = int(answer.readline())
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: os.kill(process, number))
        status = int(answer.readline())
    sys.exit(status if status >= 0 else 128 - status)  # as a shell says that a signal ended it


def serve(door, python):
    """Imports, then forks for each command that comes in at the socket `door`."""
    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    while True:
        client, _ = door.accept()
        if os.fork():
            client.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        door.close()
        _, streams, _, _ = socket.recv_fds(client, 1, 3)
        order = json.loads(client.makefile("rb").read())
        process = os.fork()
        if process == 0:
            client.close()
            sys.executable = python  # the processes that it starts are warm as well
            return run(streams, **order)
        for stream in streams:
            os.close(stream)
        client.sendall(f"{process}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        with contextlib.suppress(BrokenPipeError):  # the command was killed
            client.sendall(f"{status}\n".encode())
        os._exit(0)


def run(streams, arguments, environment, folder):
    import torch

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = arguments
    sys.path[:1] = [str(Path(arguments[0]).parent), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
