"""All that the app writes lies in one folder, and that goes when the app ends, in whichever way it does."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

ENDS = {signal.SIGTERM, signal.SIGINT} | {
    getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name)
}


def temporary_folder() -> Path:
    """A new folder; it is removed when Python ends."""
    folder = Path(tempfile.mkdtemp(prefix="sde-diffusers-space-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def attended_folder() -> Path:
    """A new folder for all temporary files of the program, to be asked for before anything large is loaded.

    Here the process divides in two. This function returns in the child alone. The parent is what a signal reaches: it
    ends the child at once, whatever that is doing, and removes the folder when nobody is left to write into it. Should
    the parent be killed outright, the child removes the folder and ends.
    """
    if not hasattr(os, "fork"):
        return temporary_folder()
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDS, signal.SIGCHLD})
    folder = Path(tempfile.mkdtemp(prefix="sde-diffusers-space-"))
    parent_lives, held_by_parent = os.pipe()
    child = os.fork()
    if child:
        os.close(parent_lives)
        sys.exit(attend(child, folder))
    os.close(held_by_parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both; the parent acts on it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ENDS, signal.SIGCHLD})
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    threading.Thread(target=end_with_parent, args=(parent_lives, folder), daemon=True).start()
    return folder


def attend(child: int, folder: Path) -> int:
    """Wait for the child's end, bring it about if a signal says so, and remove the folder; the exit status."""
    told = False
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if signal.sigwait({*ENDS, signal.SIGCHLD}) != signal.SIGCHLD:
            told = True
            os.kill(child, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    status = os.waitstatus_to_exitcode(ended[1])
    return 0 if told else status if status >= 0 else 128 - status


def end_with_parent(parent_lives: int, folder: Path) -> None:
    """Wait until the other end of the pipe is closed; then remove the folder, as the last thing that the process does.

    It becomes another program for that: no other thread of it goes on writing.
    """
    os.read(parent_lives, 1)
    program = "import shutil, sys; shutil.rmtree(sys.argv[1], ignore_errors=True)"
    os.execv(sys.executable, [sys.executable, "-c", program, str(folder)])
