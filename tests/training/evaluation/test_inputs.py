"""The reference images are those that the pipeline's run has trained on, or more where these cannot be known."""

import dataclasses

import datasets
import numpy as np
import pytest
from PIL import Image

from evaluation.inputs import SplitsOfRun
from images.loading import load_images
from images.sources import open_source
from run.record import ImageRecord


def pictures(folder, number, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(number):
        values = np.random.default_rng(1000 * seed + k).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{seed}_{k}.png")
    return str(folder)


def trained(dataset, max_images=10, **options):
    data = load_images(dataset, max_images=max_images, **options)
    return data, ImageRecord.of(data, "train", None, max_images, options.get("data_dir"))


def reference(dataset, record, data_dir=None):
    source = open_source(dataset, data_dir=data_dir)
    data = SplitsOfRun(source, record, None, None, {"streaming": False}, data_dir).load("train")
    return [data.name_of(k) for k in range(len(data))]


def test_the_same_images_are_chosen_again(tmp_path, capsys):
    data, record = trained(pictures(tmp_path, 40))
    assert reference(str(tmp_path), record) == [data.name_of(k) for k in range(10)]
    assert reference(str(tmp_path), record.gone_on(trained(str(tmp_path))[1])) == [data.name_of(k) for k in range(10)]
    assert not capsys.readouterr().out


def test_all_are_compared_with_when_the_folder_has_grown(tmp_path, capsys):
    data, record = trained(pictures(tmp_path, 40))
    pictures(tmp_path, 20, seed=1)
    names = reference(str(tmp_path), record)
    assert len(names) == 60 and {data.name_of(k) for k in range(10)} <= set(names)
    assert "it chose among 40 images, and here are 60 images: all are compared with" in capsys.readouterr().out


@pytest.mark.parametrize("now", [{"max_images": None}, {"max_images": 20}, {"data_dir": "b"}])
def test_all_are_compared_with_when_a_resumed_run_has_chosen_others(tmp_path, now):
    for name in "ab":
        pictures(tmp_path / name, 40)
    then = {"max_images": 10, "data_dir": "a"}
    record = trained(str(tmp_path), **then)[1].gone_on(trained(str(tmp_path), **then | now)[1])
    assert record.max_images is None and len(reference(str(tmp_path), record, "a")) == 40
    again = record.gone_on(trained(str(tmp_path), **then)[1])
    assert again.max_images is None


def test_all_are_compared_with_in_another_part_of_the_data(tmp_path, capsys):
    for seed, name in enumerate("ab"):
        pictures(tmp_path / name, 40, seed)
    record = trained(str(tmp_path), data_dir="a")[1]
    assert len(reference(str(tmp_path), record, "a")) == 10
    assert len(reference(str(tmp_path), record, "b")) == 40
    said = capsys.readouterr().out
    assert "it chose among 40 images in data.data_dir=a, and here are 40 images in data.data_dir=b: all" in said


def test_all_are_compared_with_after_a_stream_and_older_releases(tmp_path, capsys):
    images = [Image.fromarray(np.full((8, 8), k, np.uint8)) for k in range(40)]
    table = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    table.to_parquet(str(tmp_path / "train.parquet"))
    streamed, loaded = (trained(str(tmp_path), streaming=streaming)[1] for streaming in (True, False))
    assert len(reference(str(tmp_path), loaded)) == 10
    for record in (streamed, dataclasses.replace(loaded, num_found=None)):
        assert len(reference(str(tmp_path), record)) == 40
        assert "has read a stream, or is of an older release: all are compared with" in capsys.readouterr().out
