"""What all benchmarks share: turns, processes of their own, results that are whole."""

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from side_by_side import (  # noqa: E402
    Worker,
    bars,
    do_turns,
    earlier_rows,
    medians,
    stop,
    take_turns,
    turns,
    write_results,
)


def test_contenders_take_turns():
    calls = []

    def contender(name, numbers):
        def measure():
            calls.append(name)
            return numbers.pop(0)

        return measure

    rounds = take_turns({"a": contender("a", [5.0, 1.0, 3.0]), "b": contender("b", [2.0, 9.0, 4.0])}, 3, "test")
    assert calls == ["a", "b"] * 3
    assert rounds == {"a": [5.0, 1.0, 3.0], "b": [2.0, 9.0, 4.0]}
    assert medians(rounds) == {"a": 3.0, "b": 4.0}


def test_a_round_is_there_as_soon_as_it_is_over():
    calls = []
    rounds = turns({"a": lambda: calls.append("a")}, 2, "test")
    assert next(rounds) == {"a": None} and calls == ["a"]


def work(connection, size):
    """In a process of its own: the turns are of lists that grow."""
    done = []
    connection.send((os.getpid(), size))
    waited = []
    do_turns(connection, lambda: done.append(size), untimed=1, wait=lambda: waited.append(len(done)))
    connection.send((done, waited))


def test_a_worker_is_another_process_and_does_the_steps_that_it_is_asked_for():
    workers = [Worker(work, 7), Worker(work, 8)]
    answers = [worker.ready() for worker in workers]
    assert [size for _, size in answers] == [7, 8] and len({os.getpid(), *(pid for pid, _ in answers)}) == 3
    assert workers[0].turn(3) > 0
    for worker in workers:
        worker.begin(2)
    assert min(worker.seconds() for worker in workers) > 0
    for worker in workers:
        worker.begin(0)
    # One step that is not timed before those that are; the device is waited for around the timed ones.
    assert workers[0].connection.recv() == ([7] * (1 + 3 + 1 + 2), [1, 4, 5, 7])
    assert workers[1].connection.recv() == ([8] * (1 + 2), [1, 3])
    for worker in workers:
        worker.process.join(60)
        assert worker.process.exitcode == 0


def fail(connection):
    raise SystemExit("it could not start")


def test_a_worker_that_dies_is_noticed_and_workers_are_stopped():
    worker, other = Worker(fail), Worker(work, 1)
    with pytest.raises(EOFError):
        worker.ready()
    other.ready()
    stop([other])
    assert other.process.exitcode == 0


def test_bars_show_medians_and_all_rounds():
    axes = bars({"first": [1.0, 4.0, 2.0], "second": [3.0, 3.0, 3.0]}, "images per second").axes[0]
    assert [bar.get_width() for bar in axes.patches] == [2.0, 3.0]
    assert [text.get_text() for text in axes.texts] == ["2.0", "3.0"] and axes.yaxis_inverted()
    (lines,) = axes.collections
    assert [sorted(segment[:, 0]) for segment in lines.get_segments()] == [[1.0, 4.0], [3.0, 3.0]]


def test_results_are_whole_at_any_time(tmp_path):
    folder = tmp_path / "new"
    write_results(folder, "speed", {"a": [1.0]}, "| a |\n", bars({"a": [1.0]}, "images per second"))
    write_results(folder, "other", {})
    assert sorted(path.name for path in folder.iterdir()) == ["other.json", "speed.json", "speed.md", "speed.png"]
    assert json.loads((folder / "speed.json").read_text()) == {"a": [1.0]}
    assert (folder / "speed.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(TypeError):
        write_results(folder, "speed", {"a": object()})
    assert json.loads((folder / "speed.json").read_text()) == {"a": [1.0]}


def test_rows_of_other_settings_are_not_taken_up(tmp_path):
    settings = {"steps": 12, "levels": (0.3, 5.0)}
    assert earlier_rows(tmp_path, "speed", settings) == []
    write_results(tmp_path, "speed", {**settings, "rows": [{"a": 1}]})
    assert earlier_rows(tmp_path, "speed", settings) == [{"a": 1}]
    with pytest.raises(SystemExit, match="was made with {'steps': 12}.*choose another folder"):
        earlier_rows(tmp_path, "speed", {**settings, "steps": 20})
