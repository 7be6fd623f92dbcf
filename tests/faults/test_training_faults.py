"""Runs of the trainer that are killed, starved of disk space, left by another process or fed with broken data.

KILLS in the environment is how often `test_killed_at_random_moments` kills, 20 unless given, and SOAK_MINUTES how long
`test_soak` disturbs a run, 1 unless given.
"""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_training import (  # noqa: F401 (fixtures)
    ROOT,
    assert_same_bits,
    final_state,
    metrics,
    one_thread,
    run_here,
    start,
    tiny,
    wait_for,
)
from warm_python import ranks

import train
from run import training_run
from run.checkpoints import STATE, list_checkpoints
from run.lock import LOCK
from sde_diffusers import ScoreSdePipeline

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
KILLS, SOAK_MINUTES = int(os.environ.get("KILLS", 20)), float(os.environ.get("SOAK_MINUTES", 1))
CHECKPOINT_EVERY, STEPS_A_LIFE = 5, 20


def last_step(folder):
    """Of the metrics, which may lack the run's first line or end in a line cut short."""
    path = folder / "metrics.jsonl"
    steps = re.findall(r'^{"step": (\d+),.*}$', path.read_text(), re.MULTILINE) if path.exists() else []
    return int(steps[-1]) if steps else 0


def last_saved(folder):
    """The step of the last checkpoint, after all of them were read."""
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        assert {path.name for path in checkpoint.iterdir()} == {
            "network.safetensors",
            "ema.safetensors",
            "optimizer.safetensors",
            STATE,
        }
        for path in checkpoint.glob("*.safetensors"):
            assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    return int(checkpoint.name.removeprefix("step-"))


def test_killed_at_random_moments(tiny, tmp_path):  # noqa: F811
    folder, moments = tmp_path / "run", random.Random(0)
    same = [f"steps={KILLS * STEPS_A_LIFE + CHECKPOINT_EVERY}", "model.dropout=0.1"]
    overrides = [*same, f"checkpoint_every={CHECKPOINT_EVERY}", "resume=latest"]
    process = start(tiny, folder, *overrides)
    wait_for(folder / "checkpoints" / f"step-{CHECKPOINT_EVERY:08d}", process)
    saved, most_lost = CHECKPOINT_EVERY, 0
    for _ in range(KILLS):
        goal = saved + moments.randint(1, STEPS_A_LIFE - CHECKPOINT_EVERY)
        while last_step(folder) < goal:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        time.sleep(0.2 * moments.random())
        process.kill()
        process.communicate()
        saved, lost = last_saved(folder), last_step(folder) - last_saved(folder)
        assert 0 <= lost <= CHECKPOINT_EVERY
        most_lost = max(lost, most_lost)
        process = start(tiny, folder, *overrides)
    process.kill()
    process.communicate()
    run_here(tiny, folder, *overrides)
    twin = run_here(tiny, tmp_path / "twin", *same)
    assert_same_bits(final_state(folder), final_state(twin))
    assert metrics(folder) == metrics(twin)
    print(f"{KILLS} kills, at most {most_lost} steps lost")


@pytest.mark.skipif(int(os.environ.get("KILLS", "20")) < 20, reason="minutes: the whole form alone, make test-faults")
def test_soak():
    """Killed, resumed, started twice and read from; see scripts/soak.py."""
    command = [sys.executable, str(ROOT / "scripts" / "soak.py"), "--minutes", str(SOAK_MINUTES)]
    soak = subprocess.run(command, capture_output=True, text=True)
    assert soak.returncode == 0, soak.stdout + soak.stderr
    assert "the end is that of the undisturbed run, bit for bit" in soak.stdout
    print(soak.stdout)


def test_started_twice(tiny, tmp_path):  # noqa: F811
    """The second process is refused at once, and the first one goes on; killed, it holds nothing."""
    folder, overrides = tmp_path / "run", ["steps=5000", "checkpoint_every=2", "resume=latest"]
    first = start(tiny, folder, *overrides)
    wait_for(folder / "checkpoints" / "step-00000002", first)
    second = start(tiny, folder, *overrides, "optimizer.lr=1e-3")
    output, error = second.communicate(timeout=300)
    assert second.returncode == 1 and "Traceback" not in error
    assert f"output_dir {folder} is in use by process {first.pid} on " in error and "Resumed" not in output
    assert first.poll() is None
    first.kill()
    first.communicate()
    steps = last_saved(folder)
    run_here(tiny, folder, *overrides, f"steps={steps + 2}")
    assert list(metrics(folder)) == list(range(1, steps + 3)) and not (folder / LOCK).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_step(tiny, tmp_path, number):  # noqa: F811
    """While the images are loaded, say; the folder is given back."""
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("this signal is ignored, as under nohup")
    folder = tmp_path / "run"
    process = start(tiny, folder, "validate_every=1")
    wait_for(folder / LOCK, process)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (0, 128 + number) and "Traceback" not in error
    assert not (folder / LOCK).exists()


@pytest.mark.parametrize("on_write_error", ["stop", "continue"])
def test_no_space_for_a_checkpoint(tiny, tmp_path, capsys, monkeypatch, on_write_error):  # noqa: F811
    """After steps 4 to 11, files are limited to 80,000 bytes: the weights fit, the optimizer's moments do not."""
    folder, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(run):
        limit = 80_000 if 4 <= run.step < 12 else limits[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))

    monkeypatch.setattr(train.Training, "draw_start", lambda run: None)  # its picture alone is larger
    monkeypatch.setattr(train.Training, "after_step", fill_disk)
    arguments = [str(tiny), f"output_dir={folder}", "checkpoint_every=3", f"on_write_error={on_write_error}"]
    try:
        status = train.main(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert re.search(r"step-00000006 cannot be written: .*File too large", error)
    assert last_saved(folder) == 3 and not list((folder / "checkpoints").glob(".*"))
    if on_write_error == "stop":
        assert status == 1 and "WriteError" in error and "Traceback" not in error
        assert last_step(folder) == 6
    else:
        assert status == 0 and error.count("Goes on without it") == 3 and last_step(folder) == 12
        ScoreSdePipeline.from_pretrained(folder / "pipeline")
        shutil.rmtree(folder / "pipeline")

    monkeypatch.undo()
    run_here(tiny, folder, "resume=latest")
    assert_same_bits(final_state(folder), final_state(run_here(tiny, tmp_path / "twin")))


def test_no_space_at_all(tiny, tmp_path, capsys, monkeypatch):  # noqa: F811
    """Not even for a line of metrics."""
    folder, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(run):
        if run.step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    monkeypatch.setattr(train.Training, "after_step", fill_disk)
    try:
        status = train.main([str(tiny), f"output_dir={folder}", "checkpoint_every=3"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert status == 1 and f"Nothing more can be written into {folder}: " in error and "File too large" in error
    assert last_saved(folder) == 3


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted, which root can on Linux: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # lazy: after an error, files may still be open


def test_a_full_disk(tiny, small_disk, tmp_path, capsys, monkeypatch):  # noqa: F811
    """After steps 4 to 11, 200,000 bytes are left: less than a checkpoint has, and more than any file of it."""
    folder, others = small_disk / "run", small_disk / "others"

    def free():
        return shutil.disk_usage(small_disk).free

    def fill_disk(run):
        if run.step == 4:
            others.write_bytes(bytes(free() - 200_000))
        elif run.step == 10:  # two checkpoints were begun, and have given back what they took
            assert 150_000 < free() <= 200_000
        elif run.step == 12:
            others.unlink()

    monkeypatch.setattr(train.Training, "draw_start", lambda run: None)  # its picture alone is larger
    monkeypatch.setattr(train.Training, "after_step", fill_disk)
    overrides = ["checkpoint_every=3", "on_write_error=continue"]
    assert train.main([str(tiny), f"output_dir={folder}", *overrides]) == 0
    error = capsys.readouterr().err
    assert re.search(r"step-00000006 cannot be written: .*No space left on device", error)
    assert error.count("Goes on without it") == 3 and last_step(folder) == 12
    assert last_saved(folder) == 3 and not list((folder / "checkpoints").glob(".*"))
    checkpoint = folder / "checkpoints" / "step-00000003"
    sizes = [path.stat().st_size for path in checkpoint.iterdir()]
    assert max(sizes) < 200_000 < sum(sizes)
    ScoreSdePipeline.from_pretrained(folder / "pipeline")
    shutil.rmtree(folder / "pipeline")

    monkeypatch.undo()
    run_here(tiny, folder, "resume=latest")
    assert_same_bits(final_state(folder), final_state(run_here(tiny, tmp_path / "twin")))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_dies(tiny, tmp_path, victim):  # noqa: F811
    """One of two; then one process alone takes up where the two were, as if it had done everything."""
    folder = tmp_path / "run"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    overrides = ["steps=60", "checkpoint_every=5"]
    process = start(tiny, folder, *overrides, launcher=torchrun)
    wait_for(folder / "checkpoints" / "step-00000005", process)
    workers = {child.environ().get("RANK"): child for child in psutil.Process(process.pid).children()}
    workers[str(victim)].kill()
    output = process.communicate(timeout=120)
    assert process.returncode == 1 and not workers[str(1 - victim)].is_running()
    assert f"Process {1 - victim} has lost another one" in output[1] or "SIGTERM" in output[1], output
    assert "in train_step" not in output[1], output
    assert 5 <= last_saved(folder) < 60

    run_here(tiny, folder, *overrides, "resume=latest")
    twin = run_here(tiny, tmp_path / "twin", *overrides)
    ours, theirs = metrics(folder), metrics(twin)
    assert ours.keys() == theirs.keys() and max(abs(ours[step] - theirs[step]) for step in ours) < 1e-3


def test_a_process_hangs(tiny, tmp_path):  # noqa: F811
    """One of two is stopped; the other one waits for `process_timeout` and ends with a message."""
    folder, timeout = tmp_path / "run", 10
    words = ["steps=5000", "checkpoint_every=5", f"process_timeout={timeout}"]
    processes = waiting, hanging = [start(tiny, folder, *words, **rank) for rank in ranks(2)]
    try:
        wait_for(folder / "checkpoints" / "step-00000005", waiting)
        hanging.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        _, error = waiting.communicate(timeout=120)
        assert timeout - 1 < time.monotonic() - stopped
    finally:
        for process in processes:
            process.kill()
    assert waiting.returncode == 1 and "Traceback" not in error, error
    assert "Process 0 has lost another one" in error and f"not answered for process_timeout={timeout} s" in error
    assert 5 <= last_saved(folder)


@pytest.mark.parametrize("damage", ["network.safetensors", "ema.safetensors", "optimizer.safetensors", STATE])
def test_a_damaged_checkpoint(tiny, tmp_path, capsys, damage):  # noqa: F811
    folder = run_here(tiny, tmp_path / "run", "steps=4", "checkpoint_every=2")
    shutil.rmtree(folder / "pipeline")
    path = folder / "checkpoints" / "step-00000004" / damage
    path.write_bytes(path.read_bytes()[:-9])
    assert train.main([str(tiny), f"output_dir={folder}", "steps=4", "resume=latest"]) == 1
    assert f"{path} is damaged" in capsys.readouterr().err
    run_here(tiny, folder, "steps=4", f"resume={folder}/checkpoints/step-00000002")
    assert last_saved(folder) == 4


def test_nan_in_one_batch(tiny, tmp_path, capsys, monkeypatch):  # noqa: F811
    """The step is named, its weights are never saved, and without the fault the run goes on from the checkpoint."""

    def draw_examples(images, labels, objective, key, **options):
        examples = draw(images, labels, objective, key, **options)
        if key[1] == 7:  # the eighth step
            examples.x_0[0, 0, 0, 0] = torch.nan
        return examples

    draw = training_run.draw_examples
    monkeypatch.setattr(training_run, "draw_examples", draw_examples)
    folder, overrides = tmp_path / "run", ["checkpoint_every=3", "log_every=100"]
    assert train.main([str(tiny), f"output_dir={folder}", *overrides]) == 1
    error = capsys.readouterr().err
    assert "no finite number since step 8" in error and "step-00000006. Try" in error
    assert last_saved(folder) == 6 and not (folder / "pipeline").exists()
    monkeypatch.undo()
    run_here(tiny, folder, *overrides, "resume=latest")
    assert_same_bits(final_state(folder), final_state(run_here(tiny, tmp_path / "twin", *overrides)))


def test_resumes_with_another_configuration(tiny, tmp_path, capsys):  # noqa: F811
    folder = run_here(tiny, tmp_path / "run", "steps=2")
    shutil.rmtree(folder / "pipeline")
    run_here(tiny, folder, "steps=4", "optimizer.lr=1e-3", "batch_size=6", "resume=latest")
    output = capsys.readouterr().out
    for change in ("steps: 4, was 2", "optimizer.lr: 0.001, was 0.002", "batch_size: 6, was 12"):
        assert f"Changed since the checkpoint was written: {change}" in output
    shutil.rmtree(folder / "pipeline")
    for key, value, was in (
        ("model.sigma_data", 0.5, 0.7),
        ("scheduler.sigma_min", 0.01, 0.002),
        ("data.image_size", 16, None),
    ):
        extra = ["objective.sigma_data=0.7"] if key == "model.sigma_data" else []
        assert train.main([str(tiny), f"output_dir={folder}", f"{key}={value}", "resume=latest", *extra]) == 1
        error = capsys.readouterr().err
        assert f"{key} was {was!r} when the checkpoint was written and is {value!r} now" in error, error


def test_a_folder_of_strange_images(tiny, tmp_path, capsys):  # noqa: F811
    """Truncated, empty, mislabelled and of every mode, among 400 good ones; the run names what it leaves out."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()

    def noise(*shape, dtype=np.uint8):
        return rng.integers(np.iinfo(dtype).max, size=shape, dtype=dtype)

    for i in range(400):
        Image.fromarray(noise(8, 8, 3)).save(folder / f"{i:03d}.png")
    Image.fromarray(noise(9, 12, 4), mode="CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise(12, 9, dtype=np.uint16)).save(folder / "sixteen_bits.png")
    Image.fromarray(noise(8, 8, 3)).quantize(16).save(folder / "palette.png")
    frames = [Image.fromarray(noise(8, 8, 3)) for _ in range(3)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(noise(8, 8, 3)).save(folder / "really_a_png.jpg", format="PNG")
    whole = (folder / "000.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "really_a_text.png").write_text("no image")

    overrides = [f"data.dataset={folder}", "data.max_images=null", "data.image_size=8", "data.channels=3"]
    arguments = [*overrides, "model.num_class_embeds=null", "label_dropout=0", "steps=40"]
    # Values of two depths do not compare: the file is named, and nothing is trained.
    assert train.main([str(tiny), f"output_dir={tmp_path / 'run'}", *arguments]) == 1
    assert "sixteen_bits.png holds uint16" in capsys.readouterr().err and not (tmp_path / "run").exists()
    (folder / "sixteen_bits.png").unlink()
    run = run_here(tiny, tmp_path / "run", *arguments)
    assert "Images: 404" in capsys.readouterr().out and last_saved(run) == 40
