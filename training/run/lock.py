"""One process at a time in a run's folder, also where several machines share it.

The lock is a folder, `.lock`, that gets its name by a rename, which fails if another one has it: atomic on network
file systems too, where fcntl is not to be relied on. It tells who holds it, and the time of its file is the holder's
heartbeat. A dead process holds nothing: on the same machine it is seen to be gone, and elsewhere its silence tells,
of `PATIENCE` seconds by the file system's own clock.
"""

import contextlib
import errno
import json
import os
import shutil
import socket
import threading
import uuid
from datetime import datetime
from pathlib import Path

import psutil

from run.yaml_config import ConfigError

LOCK, HOLDER = ".lock", "holder.json"
HEARTBEAT, PATIENCE = 20.0, 300.0  # seconds; network file systems may show a time a minute late
CLOCK_TOLERANCE = 5.0  # seconds by which two readings of a process's start may differ


class FolderLost(RuntimeError):
    """Another process has taken this one's folder: nothing more may be written there."""


class FolderLock:
    """Holds `folder`, which is made if necessary, while in its `with` block.

    Raises:
        ConfigError: another process holds it (the message says which), or it cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder, self._token = folder, uuid.uuid4().hex
        self._lock, self._own = folder / LOCK, folder / f"{LOCK}.{self._token}"
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "FolderLock":
        self._made = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._acquire()
            self._heart.start()
        except BaseException as error:  # a signal may come when the lock is taken already
            self._release()
            if isinstance(error, OSError):
                raise ConfigError(f"output_dir {self.folder} cannot be written: {error}") from error
            raise
        return self

    def __exit__(self, *exception) -> None:
        self._released.set()
        self._heart.join()
        self._release()

    def _release(self) -> None:
        with contextlib.suppress(OSError):  # a file in the place of the folder, a network that is away
            if self._holds():
                self._lock.rename(self._own)
        shutil.rmtree(self._own, ignore_errors=True)
        if self._made:
            with contextlib.suppress(OSError):  # it is not empty
                self.folder.rmdir()

    def require_held(self) -> None:
        """Raise `FolderLost` if another process has taken the folder, say while this one was suspended."""
        if not self._holds():
            raise FolderLost(
                f"{self._lock} was taken over or deleted, as by another process when this one had given no sign of "
                f"life for {PATIENCE:g} s: this one ends and writes nothing more into {self.folder}"
            )

    def _acquire(self) -> None:
        self._own.mkdir()
        process = psutil.Process()
        holder = {"token": self._token, "host": socket.gethostname(), "machine": machine(), "process": process.pid}
        (self._own / HOLDER).write_text(json.dumps({**holder, "started": process.create_time()}, indent=2))
        now = (self._own / HOLDER).stat().st_mtime  # on the same clock as the others' heartbeats
        while not self._moved(self._own, self._lock):
            self._break(now)
        for remains in self.folder.glob(f"{LOCK}.*"):  # of processes that were killed while they came or went
            with contextlib.suppress(OSError):
                if now - remains.stat().st_mtime > PATIENCE:
                    shutil.rmtree(remains)

    def _break(self, now: float) -> None:
        """Take the lock away from a dead process; ConfigError if its holder is alive."""
        try:
            silence = now - (self._lock / HOLDER).stat().st_mtime
        except FileNotFoundError:  # released a moment ago
            return
        holder = read_holder(self._lock)
        if is_alive(holder, silence):
            since = datetime.fromtimestamp(holder["started"]).strftime(", started %Y-%m-%d %H:%M:%S") if holder else ""
            raise ConfigError(
                f"output_dir {self.folder} is in use by process {holder.get('process', '(unknown)')} on "
                f"{holder.get('host', 'an unknown host')}{since}, last sign of life {max(silence, 0):.0f} s ago. Wait "
                "for it, stop it, or choose another folder; if it died on another machine, its folder is free "
                f"{PATIENCE:g} s after that"
            )
        away = self.folder / f"{LOCK}.{uuid.uuid4().hex}"
        if not self._moved(self._lock, away):
            return
        if read_holder(away) == holder or not self._moved(away, self._lock):
            shutil.rmtree(away, ignore_errors=True)
        # Otherwise another process had been quicker to break the same lock, and has its own back.

    @staticmethod
    def _moved(source: Path, target: Path) -> bool:
        """Whether `source` was there, and `target` was not, so that the one could become the other."""
        try:
            source.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
            return False
        return True

    def _holds(self) -> bool:
        return read_holder(self._lock).get("token") == self._token

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # of a network, for a while
                if self._holds():
                    os.utime(self._lock / HOLDER)


def machine() -> str:
    """What processes that see each other share: host name, boot and, in containers, the space of their numbers."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # only Linux has them
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def read_holder(lock: Path) -> dict:
    """Who holds a lock; empty if nobody does, or a crash of the machine has left the file without its content."""
    try:
        return json.loads((lock / HOLDER).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def is_alive(holder: dict, silence: float) -> bool:
    """Whether a process, as `read_holder` gives it, still runs; `silence` is the age of its heartbeat in seconds."""
    if holder.get("machine") != machine():
        return silence < PATIENCE
    try:
        process = psutil.Process(holder["process"])
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        same = abs(process.create_time() - holder["started"]) < CLOCK_TOLERANCE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        same = False
    # Another process may have got its number; or the machine's clock, from which its start is reckoned, was set.
    return same or silence < PATIENCE
