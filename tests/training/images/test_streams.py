"""Streams whose files are dealt into groups: equal batches for any number of processes, each reading its own files."""

import dataclasses
import re
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import train
from images import streams
from images.loading import load_images
from images.reading_order import interleaved, shuffled
from run.config import read_config
from run.yaml_config import ConfigError

ROOT = Path(__file__).resolve().parents[3]
FILES = (5, 9, 3, 7, 6, 4, 8, 2)  # images in each
STARTS = np.cumsum([0, *FILES])
GROUPS, BATCH = 4, 16


@pytest.fixture(autouse=True)
def quick_streams(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(streams, "SHUFFLE_BUFFER", 16)


@pytest.fixture
def folder(tmp_path):
    """Images of 4 x 4 whose pixels are their own number, which is their label, too."""
    datasets.disable_progress_bars()
    columns = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(sum(FILES))})
    for k, (first, count) in enumerate(zip(STARTS, FILES, strict=False)):
        images = [Image.fromarray(np.full((4, 4), first + i, np.uint8)) for i in range(count)]
        table = datasets.Dataset.from_dict({"image": images, "label": range(first, first + count)}, features=columns)
        table.to_parquet(tmp_path / f"train-{k:05d}-of-{len(FILES):05d}.parquet")
    return tmp_path


def load(folder, groups=GROUPS, **options):
    return load_images(str(folder), streaming=True, stream_shards=groups, **options)


def numbers_of(group):
    """Of the images in a group's files: two neighbouring ones."""
    return list(range(STARTS[2 * group], STARTS[2 * group + 2]))


def take(stream, steps, **options):
    batches = stream.batches(BATCH, seed=5, flip=True, **options)
    return [next(batches) for _ in range(steps)]


def assert_equal(batches, expected):
    for got, want in zip(batches, expected, strict=True):
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_each_slice_of_a_batch_serves_the_epochs_of_its_own_group(folder):
    batches = take(load(folder), 12)
    for group in range(GROUPS):
        served = torch.cat([labels.view(GROUPS, -1)[group] for _, labels in batches]).tolist()
        own, epochs = numbers_of(group), []
        for start in range(0, len(served) - len(own), len(own)):
            epochs.append(served[start : start + len(own)])
            assert sorted(epochs[-1]) == own
        assert epochs[0] != own and (len(epochs) < 2 or epochs[0] != epochs[1])
    assert all(torch.equal(images[:, 0, 0, 0], labels) for images, labels in batches)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_number_of_processes_serves_the_same_batches_and_opens_its_own_files(folder, world_size):
    whole = take(load(folder), 6)
    served = []
    for rank in range(world_size):
        stream = load(folder)
        own = range(rank * GROUPS // world_size, (rank + 1) * GROUPS // world_size)
        files = sorted(folder.glob("*.parquet"))
        contents = [file.read_bytes() for file in files]
        for k, file in enumerate(files):
            if k // 2 not in own:
                file.write_bytes(b"")  # whoever opens it fails
        served.append(take(stream, 6, rank=rank, world_size=world_size))
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
    joined = [tuple(torch.cat(parts) for parts in zip(*batch, strict=True)) for batch in zip(*served, strict=True)]
    assert_equal(joined, whole)


@pytest.mark.parametrize("groups", [1, GROUPS])
@pytest.mark.parametrize("rank, world_size", [(0, 1), (1, 2)])
def test_resumed_streams_equal_uninterrupted_ones(folder, groups, rank, world_size):
    options = {"rank": rank, "world_size": world_size}
    batches = take(load(folder, groups), 24, **options)
    for step in (1, 3, 4, 11, 22):
        assert_equal(take(load(folder, groups), 2, start_step=step, **options), batches[step : step + 2])


@pytest.mark.parametrize("counted, most", [(True, 3), (False, 4)])
def test_epochs_of_known_length_are_not_read_in_vain(folder, monkeypatch, counted, most):
    """Besides that of the batch and two that reading ahead may begin: the first one, which tells the length."""
    epochs, epoch = [], streams.StreamedImages._epoch
    monkeypatch.setattr(streams.StreamedImages, "_epoch", lambda *about: epochs.append(about[1]) or epoch(*about))
    data = load(folder)
    take(data if counted else dataclasses.replace(data, sizes=None), 1, start_step=1000)
    assert len(epochs) <= most * GROUPS, epochs


def test_by_size_every_image_has_one_turn_in_an_epoch_of_all_groups(folder):
    steps = sum(FILES) * 2 // np.gcd(sum(FILES), BATCH)
    data = load(folder, stream_by_size=True)
    batches = take(data, int(steps))
    counts = torch.bincount(torch.cat([labels for _, labels in batches]), minlength=sum(FILES))
    assert counts.unique().tolist() == [steps * BATCH // sum(FILES)]
    for step in (0, 3):  # with two processes, from the middle on
        parts = [
            take(load(folder, stream_by_size=True), 6, start_step=step, rank=rank, world_size=2) for rank in (0, 1)
        ]
        joined = [tuple(torch.cat(part) for part in zip(*batch, strict=True)) for batch in zip(*parts, strict=True)]
        assert_equal(joined, batches[step : step + 6])


def test_unequal_groups_are_said(folder, caplog):
    data = load(folder)
    said = "groups of its files hold 14, 10, 10, 10 images and have equal shares"
    assert said in caplog.text and "1.4 times" in caplog.text and data.num_images == sum(FILES)
    caplog.clear()
    load(folder, stream_by_size=True)
    load(folder, groups=1)
    assert not caplog.text
    take(dataclasses.replace(data, sizes=None), 4)  # of files that do not tell, once they have been read
    assert caplog.text.count("groups of its files hold") == 1
    with pytest.raises(ValueError, match="stream_shards is 1"):
        load(folder, groups=1, stream_by_size=True)


def test_no_end_of_files_is_waited_for(folder, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"sleeps for {seconds} s"))
    take(load(folder), 12)
    take(load(folder, groups=1), 12)


def test_a_buffer_and_several_files_shuffle_whole_epochs():
    files = [lambda k=k: range(100 * k, 100 * k + 50) for k in range(6)]
    rows = list(interleaved(files, 3, np.random.default_rng(0)))
    assert sorted(rows) == sorted(x for file in files for x in file())
    assert len({row // 100 for row in rows[:30]}) == 3  # of the three open files
    order = list(shuffled(range(1000), 100, np.random.default_rng(0)))
    assert sorted(order) == list(range(1000)) and max(row - place for place, row in enumerate(order)) < 101
    assert abs(np.corrcoef(order[:100], range(100))[0, 1]) < 0.7


def test_a_slice_without_readable_images_is_filled_from_its_group(folder, tmp_path_factory):
    """The first file of group 1 is broken but for its first image; a stand-in has its own label."""
    path = sorted(folder.glob("*.parquet"))[2]
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path_factory.mktemp("rows")))
    values = rows.cast_column("image", datasets.Image(decode=False)).to_dict()
    values["image"] = [values["image"][0], *({"bytes": b"broken", "path": f"{i}.png"} for i in (1, 2))]
    datasets.Dataset.from_dict(values, features=rows.features).to_parquet(path)
    stream = load(folder, groups=8)
    batches = stream.batches(8, seed=0)  # one image from each file
    labels = torch.stack([next(batches)[1] for _ in range(6)])
    assert set(labels[:, 2].tolist()) == {STARTS[2]} and set(stream.skipped) == {"1.png", "2.png"}


def test_refuses_more_groups_than_files(folder):
    with pytest.raises(ValueError, match="stream_shards is 9, but .* has 8 files"):
        load(folder, groups=9)
    with pytest.raises(ValueError, match="stream_shards is 2, but .* is not streamed"):
        load_images(str(folder), stream_shards=2)
    with pytest.raises(ValueError, match="stream_shards must be an integer of at least 1, got 0"):
        load(folder, groups=0)


@pytest.mark.parametrize("shards, batch_size, processes", [(4, 12, 3), (5, 12, 1), (2, 12, 4)])
def test_refuses_groups_that_processes_or_batches_cannot_share(tmp_path, shards, batch_size, processes):
    keys = [f"output_dir={tmp_path}", f"batch_size={batch_size}", f"data.stream_shards={shards}"]
    config = read_config([str(ROOT / "training" / "configs" / "demo.yaml"), *keys])
    message = f"processes ({processes}) that divides batch_size ({batch_size}), but is {shards}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        train.Training(config, SimpleNamespace(process_index=0, num_processes=processes, is_main_process=True))
