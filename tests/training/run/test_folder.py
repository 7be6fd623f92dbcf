"""The folder of a run holds one history, of one run."""

# ruff: noqa: F401, F811 (fixtures)

import json
import re
import shutil
import sys
import time
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import assert_same_bits, final_state, metrics, one_thread, run_here, tiny

import train
from run import training_run
from run.checkpoints import checkpoint_path, delete_oldest, list_checkpoints
from run.config import read_config
from run.folder import mend_folder
from run.lock import LOCK, FolderLock
from run.record import ImageRecord
from run.splits import load_splits
from run.written_folder import WriteError
from run.yaml_config import ConfigError

EVERYTHING = ["steps=12", "checkpoint_every=3", "checkpoints_limit=null", "validate_every=3", "sample_every=6"]


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def steps(folder):
    return [int(name.removeprefix("step-")) for name in names(folder / "checkpoints")]


def refused(capsys, config, folder, *overrides):
    assert train.main([str(config), f"output_dir={folder}", *overrides]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]  # after the bars of runs before it


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run of twelve steps, with everything that a run can write."""
    torch.set_num_threads(1)  # as `one_thread` does, which comes after fixtures of a module
    return run_here(tiny, tmp_path_factory.mktemp("runs") / "finished", *EVERYTHING)


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_what_a_resumed_run_cannot_do_is_refused_by_its_keys(tiny, run, capsys):
    before = metrics(run)
    for resume in ("latest", f"{run}/checkpoints/step-00000006"):
        error = refused(capsys, tiny, run, *EVERYTHING, f"resume={resume}", "overwrite=true")
        assert f"resume={resume} goes on with the run in output_dir={run}, which overwrite=true deletes" in error
    error = refused(capsys, tiny, run, *EVERYTHING, "resume=latest", "steps=2")
    assert "steps must be at least 12, of the checkpoint" in error and error.endswith("but is 2")
    assert steps(run) == [3, 6, 9, 12] and metrics(run) == before


def test_going_back_begins_another_history(tiny, run, capsys):
    old = metrics(run)
    lower = [*EVERYTHING[1:], "optimizer.lr=1e-4"]
    run_here(tiny, run, *lower, "steps=5", f"resume={run}/checkpoints/step-00000003")
    output = capsys.readouterr().out
    aside = run / "abandoned" / "1"
    assert f"Set aside in {aside}, since they came after step 3: step-00000006, step-00000009, step-00000012" in output
    assert steps(run) == [3, 5] and steps(aside) == [6, 9, 12]
    assert list(metrics(run)) == [1, 2, 3, 4, 5] and metrics(aside) == old
    assert names(aside) == ["best", "checkpoints", "figures", "images.json", "metrics.jsonl", "pipeline"]
    assert names(aside / "figures") == ["samples-00000006.png", "samples-00000012.png"]
    assert names(run / "figures") == ["loss.png", "noising.png", "samples-00000005.png"]
    assert json.loads((run / "best" / "validation_loss.json").read_text())["step"] == 5
    assert (run / "pipeline").exists()

    time.sleep(1)  # the board reads its files by name, which is the second at which each began, then a number as text
    run_here(tiny, run, *EVERYTHING[1:], "steps=7", f"resume={run}/checkpoints/step-00000003/")
    assert steps(run) == [3, 6, 7] and steps(run / "abandoned" / "2") == [5] and steps(aside) == [6, 9, 12]
    assert list(metrics(run)) == list(range(1, 8))
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert {event.step: event.value for event in board.Scalars("loss")} == pytest.approx(metrics(run))


def test_results_go_aside_without_their_checkpoints(tiny, run, capsys):
    """Had somebody deleted those, the pipeline of another history would stay as that of the new one."""
    for step in (9, 12):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    (run / "pipeline" / "README.md").write_text("Mine")
    run_here(tiny, run, *EVERYTHING[1:], "steps=8", "resume=latest")
    output = capsys.readouterr().out
    assert "since they came after step 6: the figures and results of then" in output
    assert "pipeline" in names(run / "abandoned" / "1") and steps(run / "abandoned" / "1") == []
    (run / "pipeline" / "README.md").write_text("Mine")
    run_here(tiny, run, *EVERYTHING[1:], "steps=9", "resume=latest")
    assert (
        f"{run}/pipeline was replaced, and with it went what others had put there: README.md"
        in capsys.readouterr().out
    )


def test_the_same_steps_again_are_the_same(tiny, run, finished):
    """Also the best model, which had to be written once more."""
    run_here(tiny, run, *EVERYTHING, f"resume={run}/checkpoints/step-00000006")
    assert_same_bits(final_state(run), final_state(finished))
    assert metrics(run) == metrics(finished) and metrics(run, "validation_loss") == metrics(
        finished, "validation_loss"
    )
    for path in (finished / "best").rglob("*.safetensors"):
        assert (run / path.relative_to(finished)).read_bytes() == path.read_bytes()
    assert names(run / "figures") == names(finished / "figures")


def test_the_limit_keeps_the_new_ones(tiny, run):
    run_here(tiny, run, *EVERYTHING, "steps=5", "checkpoints_limit=2", f"resume={run}/checkpoints/step-00000003")
    assert steps(run) == [3, 5] and steps(run / "abandoned" / "1") == [6, 9, 12]


def test_checkpoints_are_counted_not_spelled(tmp_path):
    for step in (99_999_999, 100_000_000, 5):
        checkpoint_path(tmp_path, step).mkdir()
        (checkpoint_path(tmp_path, step) / "state.json").touch()
    delete_oldest(tmp_path, 2)
    assert names(tmp_path) == ["step-100000000", "step-99999999"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-99999999", "step-100000000"]


@pytest.mark.parametrize("damage", ["network.safetensors", "state.json"])
def test_the_remedy_for_a_damaged_checkpoint_holds(tiny, run, capsys, damage):
    (run / "checkpoints" / "step-00000012" / damage).unlink()
    if damage != "state.json":  # without it, it counts as none
        assert "is damaged" in refused(capsys, tiny, run, *EVERYTHING, "resume=latest")
        assert steps(run) == [3, 6, 9, 12]
    run_here(tiny, run, *EVERYTHING, "steps=10", f"resume={run}/checkpoints/step-00000009")
    run_here(tiny, run, *EVERYTHING, "steps=11", "resume=latest")
    assert f"Resumed from {run}/checkpoints/step-00000010" in capsys.readouterr().out
    assert steps(run) == [3, 6, 9, 10, 11] and steps(run / "abandoned" / "1") == [12]


def test_another_runs_folder_is_refused(tiny, run, finished, capsys):
    checkpoint, before = finished / "checkpoints" / "step-00000003", metrics(run)
    error = refused(capsys, tiny, run, *EVERYTHING, f"resume={checkpoint}")
    assert f"resume={checkpoint} is a checkpoint of another run than the one that output_dir={run} holds" in error
    assert steps(run) == [3, 6, 9, 12] and metrics(run) == before and not (run / LOCK).exists()
    shutil.rmtree(run / "checkpoints")  # whatever else is left of it
    assert "another run" in refused(capsys, tiny, run, *EVERYTHING, f"resume={checkpoint}")
    run_here(tiny, run, *EVERYTHING, f"resume={checkpoint}", "overwrite=true", "steps=4")
    assert steps(run) == [3, 4] and steps(finished) == [3, 6, 9, 12]


def test_a_checkpoint_that_was_set_aside_goes_on_elsewhere(tiny, run, tmp_path, capsys):
    run_here(tiny, run, *EVERYTHING, "steps=4", f"resume={run}/checkpoints/step-00000003")
    aside = run / "abandoned" / "1" / "checkpoints" / "step-00000009"
    for more in ([], ["overwrite=true"]):
        error = refused(capsys, tiny, run, *EVERYTHING, f"resume={aside}", *more)
        assert "not of its history" in error and steps(run / "abandoned" / "1") == [6, 9, 12]
    run_here(tiny, tmp_path / "other", *EVERYTHING, f"resume={aside}", "steps=10")
    assert steps(tmp_path / "other") == [9, 10]


def test_a_run_that_begins_with_anothers_checkpoint_owns_it(tiny, finished, tmp_path, capsys, monkeypatch):
    """Killed before its first checkpoint, it goes on from there and not from nothing."""

    def die(run):
        raise KeyboardInterrupt

    folder, checkpoint = tmp_path / "new", finished / "checkpoints" / "step-00000006"
    monkeypatch.setattr(train.Training, "after_step", die)
    with pytest.raises(KeyboardInterrupt):
        train.main([str(tiny), f"output_dir={folder}", *EVERYTHING, f"resume={checkpoint}"])
    assert f"{checkpoint} is copied to {folder}/checkpoints/step-00000006" in capsys.readouterr().out
    monkeypatch.undo()
    run_here(tiny, folder, *EVERYTHING, "resume=latest")
    assert f"Resumed from {folder}/checkpoints/step-00000006" in capsys.readouterr().out
    assert list(metrics(folder)) == list(range(7, 13)) and (folder / "best").exists()
    assert_same_bits(final_state(folder), final_state(finished))


def test_a_folder_in_use_is_refused(tiny, run, tmp_path, capsys):
    present = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with FolderLock(run):
        for more in ([], ["resume=latest"], ["overwrite=true"]):
            assert "is in use by process" in refused(capsys, tiny, run, *EVERYTHING, *more)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")}.keys() == present.keys()
    with FolderLock(tmp_path / "new"):
        assert "is in use by process" in refused(capsys, tiny, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(capsys, tiny, tmp_path / "file")


@pytest.mark.parametrize("config", [None, "a: [", "notes", "steps: 5\ndata: {dataset: mine}\noutput_dir: here\n"])
def test_a_folder_that_was_never_a_runs_loses_nothing(tiny, finished, tmp_path, capsys, config):
    """Whatever its names are; and neither is it taken for a run."""
    folder = tmp_path / "mine"
    kept = [
        "figures/thesis.pdf",
        "checkpoints/mine.ckpt",
        "best/b.txt",
        "averages/a.txt",
        "tensorboard/t",
        "notes.txt",
    ]
    for name in [*kept, "metrics.jsonl", "images.json", "pipeline/model.txt"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    if config is not None:
        (folder / "config.yaml").write_text(config)
    before = {path: path.is_file() and path.read_text() for path in folder.rglob("*")}
    for words in (
        [],
        ["resume=latest"],
        ["overwrite=true"],
        [f"resume={finished}/checkpoints/step-00000003", "overwrite=true"],
    ):
        error = refused(capsys, tiny, folder, *EVERYTHING, *words)
        assert "nothing in it is deleted" in error, error
        assert {path: path.is_file() and path.read_text() for path in folder.rglob("*")} == before


@pytest.mark.parametrize("again", ["resume=latest", "overwrite=true"])
def test_a_run_that_died_before_its_first_checkpoint_can_begin_again(tiny, tmp_path, monkeypatch, again):
    """Also if it died while it deleted an earlier one, or before it had written more than its configuration."""

    def die(*arguments):
        raise KeyboardInterrupt

    def begin(*words):
        with pytest.raises(KeyboardInterrupt):
            train.main([str(tiny), f"output_dir={tmp_path}/run", "steps=2", *words])

    for died_in in ("run.training_run.TrainingRun.train_step", "run.training_run.describe_run", "run.folder.discard"):
        with monkeypatch.context() as patch:
            patch.setattr(died_in, die)
            begin(again)
        assert names(tmp_path / "run"), died_in
    run_here(tiny, tmp_path / "run", "steps=2", again)
    assert list(metrics(tmp_path / "run")) == [1, 2]


def test_a_run_that_lost_its_folder_writes_nothing_more(tiny, tmp_path, capsys, monkeypatch):
    def lose(run):
        if run.step == 4:
            shutil.rmtree(run.folder / LOCK)

    monkeypatch.setattr(train.Training, "after_step", lose)
    assert "FolderLost" in refused(capsys, tiny, tmp_path / "run", "checkpoint_every=3")
    assert steps(tmp_path / "run") == [3]


def test_what_killed_processes_leave_is_put_right(tmp_path):
    """Of any step, and caught between two renames; what is not ours stays."""
    folder, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    gone = [checkpoints / ".step-00000007.incomplete", checkpoints / ".step-00000003.replaced"]
    gone += [folder / f".{name}.incomplete" for name in ("best", "pipeline", "checkpoints", "pushed")]
    back = [checkpoints / ".step-00000005.replaced", folder / ".best.replaced"]
    kept = [
        checkpoints / name for name in ("step-00000003", ".step-5.incomplete", ".mine.incomplete", ".step-00000003")
    ]
    kept += [folder / ".mine.replaced"]
    for path in (*gone, *back, *kept):
        path.mkdir(parents=True)
        (path / "file").write_text(path.name)
    (folder / ".metrics.jsonl.incomplete").touch()
    (folder / "figures").mkdir()
    (folder / "figures" / ".loss.png.incomplete").touch()
    lines = mend_folder(folder)
    assert len(lines) == len(gone) + len(back) + 2
    assert names(checkpoints) == sorted([*(path.name for path in kept[:-1]), "step-00000005"])
    assert names(folder) == [".mine.replaced", "best", "checkpoints", "figures"] and not names(folder / "figures")
    assert (folder / "best" / "file").read_text() == ".best.replaced"
    assert (checkpoints / "step-00000005" / "file").read_text() == ".step-00000005.replaced"
    assert mend_folder(folder) == [] == mend_folder(tmp_path / "nowhere")


def test_a_checkpoint_caught_between_two_renames_is_the_latest_again(tiny, run, capsys):
    last = run / "checkpoints" / "step-00000012"
    last.rename(last.with_name(".step-00000012.replaced"))
    shutil.copytree(run / "checkpoints" / "step-00000009", run / "checkpoints" / ".step-00000012.incomplete")
    run_here(tiny, run, *EVERYTHING, "resume=latest", "steps=13")
    assert f"Resumed from {last}" in capsys.readouterr().out and steps(run) == [3, 6, 9, 12, 13]


def test_held_out_images_stay_held_out(tiny, tmp_path):
    """Whatever validates a resumed run, or whether anything does; of what is trained on nothing is held out later."""

    def splits(record, *overrides):
        return load_splits(read_config([str(tiny), f"output_dir={tmp_path}/run", *overrides]), record)

    train, validation = splits(None, "validate_every=4")
    record = ImageRecord.of(train, "train", validation)
    assert len(record.held_out) == len(validation) == 30
    for overrides in (["validate_every=0"], ["validate_every=4", "data.validation=test"], ["validate_every=4"]):
        again, other = splits(record, *overrides)
        assert sorted(map(again.name_of, range(len(again)))) == sorted(map(train.name_of, range(len(train))))
        assert (other is None) == (overrides == ["validate_every=0"])
    with pytest.raises(ConfigError, match="would set images aside that this run has trained on"):
        splits(ImageRecord.of(train, "train"), "validate_every=4")


def test_another_split_is_another_run(tiny, run, capsys):
    error = refused(capsys, tiny, run, *EVERYTHING, "resume=latest", "steps=13", "data.split=test")
    assert "data.split was 'train' when the checkpoint was written and is 'test' now: it cannot change" in error


def test_the_best_model_is_the_best_of_what_compares(tiny, tmp_path):
    """Losses of another objective are no worse ones."""
    options = ["validate_every=2", "checkpoint_every=2"]
    folder = run_here(tiny, tmp_path / "run", *options, "steps=4")
    loss = json.loads((folder / "best" / "validation_loss.json").read_text())["loss"]
    other = ["objective.objective=likelihood", "objective.sigma_data=0.5"]
    run_here(tiny, folder, *options, "steps=8", "resume=latest", *other)
    best = json.loads((folder / "best" / "validation_loss.json").read_text())
    later = {step: value for step, value in metrics(folder, "validation_loss").items() if step > 4}
    assert min(later.values()) > loss and best == {"step": min(later, key=later.get), "loss": min(later.values())}


def test_a_best_model_that_was_not_written_is_not_the_best(tiny, tmp_path, monkeypatch):
    losses, write = iter((1.0, 0.8, 0.9, 0.95)), training_run.written_folder
    monkeypatch.setattr(training_run.Validation, "mean", lambda *_: [next(losses)])

    def full_at_first(target):
        if target.name == "best" and full_at_first.left:
            full_at_first.left -= 1
            if full_at_first.left == 0:
                raise WriteError("the disk is full")
        return write(target)

    full_at_first.left = 2  # the second one fails
    monkeypatch.setattr(training_run, "written_folder", full_at_first)
    folder = run_here(tiny, tmp_path / "run", "steps=8", "validate_every=2", "on_write_error=continue")
    assert json.loads((folder / "best" / "validation_loss.json").read_text()) == {"step": 6, "loss": 0.9}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["tracker_options.wandb.project=mine"], "tracker_options.wandb is given, but log_with"),
        (["log_with=[wandb]", "tracker_options.wandb=offline"], "tracker_options.wandb must be a section"),
        (["log_with=[wandb]"], r"log_with: wandb can't be started \(ValueError: no key"),
    ],
)
def test_a_tracker_that_does_not_start_deletes_nothing(tiny, run, capsys, monkeypatch, options, message):
    def init(**_):
        raise ValueError("no key")

    wandb = ModuleType("wandb")
    wandb.__spec__, wandb.init = ModuleSpec("wandb", None), init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    before = names(run)
    assert re.search(message, refused(capsys, tiny, run, *EVERYTHING, "overwrite=true", *options))
    assert names(run) == before


def test_a_renamed_checkpoint_is_none_of_another_step(tiny, run, capsys):
    (run / "checkpoints" / "step-00000003").rename(run / "checkpoints" / "step-00000015")
    error = refused(capsys, tiny, run, *EVERYTHING, "steps=20", "resume=latest")
    assert "step-00000015 is the checkpoint of step 3: give the folder the name of that step" in error


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"step": 12}'])
def test_a_state_that_tells_nothing_is_damaged(tiny, run, capsys, content):
    (run / "checkpoints" / "step-00000012" / "state.json").write_text(content)
    assert "state.json is damaged" in refused(capsys, tiny, run, *EVERYTHING, "resume=latest")


@pytest.mark.parametrize("content", ["nothing", "a part", "network"])
def test_moments_are_those_of_the_network(tiny, run, capsys, content):
    checkpoint = run / "checkpoints" / "step-00000012"
    if content != "network":
        moments = load_file(checkpoint / "optimizer.safetensors") if content == "a part" else {}
        part = {key: value for key, value in moments.items() if "conv_in" not in key}
        assert not moments or 0 < len(part) < len(moments)
        save_file(part, checkpoint / "optimizer.safetensors")
    else:
        shutil.copy(checkpoint / "network.safetensors", checkpoint / "optimizer.safetensors")
    error = refused(capsys, tiny, run, *EVERYTHING, "steps=14", "resume=latest")
    assert "optimizer.safetensors is damaged: it holds no optimizer's state of this network" in error


def test_files_that_hold_something_else_are_passed_over(tiny, run):
    (run / "best" / "validation_loss.json").write_text("[]")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("3\nnull\n")
    run_here(tiny, run, *EVERYTHING, "steps=13", "resume=latest")
    assert 13 in metrics(run)


@pytest.mark.parametrize("place", ["pipeline", "checkpoints", "figures/more"])
def test_a_run_within_a_run_is_refused(tiny, run, capsys, place):
    options = [f"resume={run}/checkpoints/step-00000003"] if place == "figures/more" else []
    error = refused(capsys, tiny, run / place, *EVERYTHING, *options)
    assert f"lies in {place.split('/')[0]}/ of the run in {run}" in error
