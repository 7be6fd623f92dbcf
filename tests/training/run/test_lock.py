"""The lock of a run's folder: who is refused, and what a dead process holds."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from run import lock
from run.lock import HOLDER, LOCK, PATIENCE, FolderLock, FolderLost
from run.yaml_config import ConfigError

HOLD = """
import sys, time
from pathlib import Path
from run.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds tmp_path / "run"."""
    folder = tmp_path / "run"
    command, environment = [sys.executable, "-c", HOLD, str(folder)], {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    assert process.stdout.readline() == "held\n"
    yield folder, process
    process.kill()
    process.wait()
    process.stdout.close()


def refused(folder):
    with pytest.raises(ConfigError) as caught, FolderLock(folder):
        pass
    return str(caught.value)


def age(folder, seconds):
    """Make the last heartbeat so much older."""
    past = time.time() - seconds
    os.utime(folder / LOCK / HOLDER, (past, past))


def rewrite(folder, **values):
    path = folder / LOCK / HOLDER
    times = path.stat().st_mtime
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    os.utime(path, (times, times))


def test_one_at_a_time_and_nothing_left_behind(tmp_path):
    folder = tmp_path / "new" / "run"
    for _ in range(2):
        with FolderLock(folder) as held:
            held.require_held()
            message = refused(folder)
            assert f"output_dir {folder} is in use by process {os.getpid()} on " in message
            assert [path.name for path in folder.iterdir()] == [LOCK]
        assert not folder.exists() and folder.parent.exists()  # as a folder that it made and that holds nothing
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt), FolderLock(folder):
        raise KeyboardInterrupt
    assert not list(folder.iterdir())


def test_a_signal_at_the_moment_of_taking_it(tmp_path, monkeypatch):
    def interrupted(thread):
        raise KeyboardInterrupt

    monkeypatch.setattr(lock.threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), FolderLock(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_another_process_is_named(other):
    folder, process = other
    age(folder, 10 * PATIENCE)  # it may be suspended, but it is there
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(psutil.Process(process.pid).create_time()))
    message = refused(folder)
    assert f"process {process.pid} on " in message and f"started {started}" in message
    assert "last sign of life 3000 s ago" in message


def test_a_killed_process_holds_nothing(other):
    folder, process = other
    process.kill()  # and is not waited for: a zombie is dead as well
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with FolderLock(folder):
        pass
    assert not list(folder.iterdir())


def test_a_number_that_another_process_got(other):
    folder, process = other
    rewrite(folder, started=time.time() - 1e6)
    assert f"process {process.pid}" in refused(folder)  # or the clock of this machine was set
    age(folder, PATIENCE + 1)
    with FolderLock(folder) as held:
        held.require_held()


@pytest.mark.parametrize("silence", [0, PATIENCE - 30, PATIENCE + 1])
def test_another_machine_is_judged_by_its_heartbeat(other, monkeypatch, silence):
    folder, process = other
    monkeypatch.setattr(lock, "machine", lambda: "another one")
    age(folder, silence)
    if silence < PATIENCE:
        assert f"process {process.pid} on " in refused(folder)
    else:
        with FolderLock(folder) as held:
            held.require_held()


def test_a_lock_without_content(other):
    """As a machine leaves it that lost its power."""
    folder, _ = other
    (folder / LOCK / HOLDER).write_text("")
    assert "process (unknown) on an unknown host" in refused(folder)
    age(folder, PATIENCE + 1)
    with FolderLock(folder):
        pass


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    with FolderLock(tmp_path):
        age(tmp_path, 1000)
        while (tmp_path / LOCK / HOLDER).stat().st_mtime < time.time() - 500:
            time.sleep(0.01)


def test_who_lost_the_folder_writes_nothing_more(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "is_alive", lambda holder, silence: False)
    with FolderLock(tmp_path) as first:
        with FolderLock(tmp_path) as second:
            second.require_held()
            with pytest.raises(FolderLost, match="writes nothing more"):
                first.require_held()
        assert not (tmp_path / LOCK).exists()
    with FolderLock(tmp_path) as second:
        first.__exit__(None, None, None)  # leaves the other's lock alone
        second.require_held()


def test_remains_of_killed_processes_go(tmp_path):
    old, new, foreign = (tmp_path / name for name in (f"{LOCK}.old", f"{LOCK}.new", ".locked"))
    for path in (old, new, foreign):
        path.mkdir()
    for path in (old, foreign):
        os.utime(path, (0, 0))
    with FolderLock(tmp_path):
        assert not old.exists() and new.exists() and foreign.exists()


def _contend(folder, start, end, results):
    start.wait()
    try:
        with FolderLock(folder):
            results.put(True)
            end.wait()
    except ConfigError:
        results.put(False)


def test_of_many_that_break_a_dead_lock_at_once_one_gets_it(other):
    folder, process = other
    process.send_signal(signal.SIGKILL)
    process.wait()
    context = multiprocessing.get_context("spawn")
    start, end, results = context.Event(), context.Event(), context.Queue()
    contenders = [context.Process(target=_contend, args=(folder, start, end, results)) for _ in range(4)]
    for contender in contenders:
        contender.start()
    start.set()
    got = [results.get(timeout=60) for _ in contenders]
    end.set()
    for contender in contenders:
        contender.join()
    assert sorted(got) == [False] * 3 + [True]
