"""Tables keep their splits, columns and labels as they were meant."""

import io
import os
import tarfile

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from images.loading import load_images
from images.sources import open_source


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def table(count, **columns):
    images = {"image": [Image.new("L", (4, 4), k) for k in range(count)]}
    return datasets.Dataset.from_dict(images | columns).cast_column("image", datasets.Image())


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / (name.replace("__", "/") + ".parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        content.to_parquet(str(path))
    return str(folder)


def counts(folder):
    return {split: len(rows) for split, rows in open_source(folder).splits.items()}


def test_words_in_file_names_are_no_splits(tmp_path):
    assert counts(write(tmp_path, a=table(3), my_test_images=table(2), constrained=table(1))) == {"train": 6}


def test_the_hubs_layouts(tmp_path):
    files = {"data__train-00000-of-00002": table(3), "data__train-00001-of-00002": table(2)}
    files |= {"data__valid-00000-of-00001": table(1), "data__extra-00000-of-00001": table(4)}
    assert counts(write(tmp_path / "a", **files)) == {"train": 5, "validation": 1, "extra": 4}
    assert counts(write(tmp_path / "b", default__train__0000=table(3), default__test__0000=table(2))) == {
        "train": 3,
        "test": 2,
    }


def test_files_of_no_split_beside_others_are_refused(tmp_path):
    with pytest.raises(ValueError, match="belong to none, such as other.parquet"):
        counts(write(tmp_path, train=table(3), other=table(2)))


@pytest.mark.parametrize("name", ["plain", "scans [2024]", "a::b", "star *"])
def test_any_folder_name(tmp_path, name):
    written = write(tmp_path / "here", train=table(3))
    (tmp_path / "here").rename(tmp_path / name)
    assert written and counts(str(tmp_path / name)) == {"train": 3}
    (tmp_path / name / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: t*.parquet\n---\n"
    )
    if name == "plain":
        assert counts(str(tmp_path / name)) == {"test": 3}
    else:  # which `datasets`, asked to follow the README, would not find
        with pytest.raises(ValueError, match="Rename the folder"):
            counts(str(tmp_path / name))


def test_saved_to_disk(tmp_path):
    table(3).save_to_disk(str(tmp_path / "one [1]"))
    assert len(load_images(str(tmp_path / "one [1]"))) == 3
    datasets.DatasetDict({"train": table(3), "test": table(2)}).save_to_disk(str(tmp_path / "two"))
    assert counts(str(tmp_path / "two")) == {"train": 3, "test": 2}


@pytest.mark.parametrize(
    "values, labels, names",
    [
        (["dog", "cat", "dog"], [1, 0, 1], ["cat", "dog"]),
        ([True, False, True], [1, 0, 1], ["False", "True"]),
        ([2.0, 0.0, 1.0], [2, 0, 1], None),
        ([2, 0, 1], [2, 0, 1], None),
    ],
)
def test_labels_of_any_type(tmp_path, values, labels, names, caplog):
    for streaming in (False, True):
        folder = write(tmp_path / str(streaming), train=table(3, kind=values))
        caplog.clear()
        with caplog.at_level("WARNING"):
            loaded = load_images(folder, streaming=streaming)
        assert loaded and "columns that could be labels: kind" in caplog.text
    assert load_images(folder).labels is None
    loaded = load_images(folder, label_column="kind")
    assert loaded.labels.tolist() == labels and loaded.class_names == names
    assert load_images(folder, labels="none").labels is None


def test_text_is_numbered_over_all_splits(tmp_path):
    folder = write(tmp_path, train=table(2, kind=["b", "a"]), test=table(2, kind=["c", "b"]))
    train, test = (load_images(folder, split, label_column="kind") for split in ("train", "test"))
    assert train.class_names == test.class_names == ["a", "b", "c"]
    assert train.labels.tolist() == [1, 0] and test.labels.tolist() == [2, 1]
    with pytest.raises(ValueError, match="once all of it is known: streaming=false"):
        load_images(folder, label_column="kind", streaming=True)


@pytest.mark.parametrize("values, message", [([0.5, 1.0], "fraction"), (["a", None], "1 of 2 images .* row 1")])
def test_values_that_are_no_labels(tmp_path, values, message):
    folder = write(tmp_path, train=table(2, kind=values))
    with pytest.raises(ValueError, match=message):
        load_images(folder, label_column="kind")
    if message == "fraction":
        with pytest.raises(ValueError, match="has the label .*, which is no whole number"):
            next(load_images(folder, label_column="kind", streaming=True).batches(2, seed=0))


def classes(names, values):
    """A table of one image for each value; image k is all k."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    images = [Image.new("L", (4, 4), k) for k in range(len(values))]
    return datasets.Dataset.from_dict({"image": images, "label": values}, features=features)


def test_classes_in_another_order_keep_their_names(tmp_path):
    """Splits of a saved data set have names of their own; `datasets` gives parquet files those of the first one."""
    splits = {"train": classes(["cat", "dog"], ["cat", "dog"]), "test": classes(["dog", "cat", "cow"], ["cat", "cow"])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    for split, names in (("train", ["cat", "dog"]), ("test", ["cat", "cow"])):
        data = load_images(str(tmp_path / "saved"), split)
        assert [data.class_names[k] for k in data.labels] == names
        assert data.class_names[:2] == ["cat", "dog"]
    folder = write(tmp_path / "files", **splits)
    for streaming in (False, True):
        with pytest.raises(ValueError, match="the classes of .*.parquet are .*, but those of .*.parquet are"):
            load_images(folder, "train", streaming=streaming)
    same = write(tmp_path / "same", train=splits["train"], test=classes(["cat", "dog"], ["dog"]))
    assert load_images(same, "test").labels.tolist() == [1]


@pytest.mark.parametrize("readme", [False, True])
def test_files_that_number_their_classes_otherwise_are_refused(tmp_path, readme):
    """Also beside another column of classes, and where a README.md names the files."""

    def rows(names):
        table = classes(names, ["cat", "dog"])
        return table.add_column("coarse", [0, 0]).cast_column("coarse", datasets.ClassLabel(names=["pet", "toy"]))

    first, second = rows(["cat", "dog"]), rows(["dog", "cat"])
    for k, table in enumerate((first, second)):
        table.to_parquet(str(tmp_path / f"train-0000{k}-of-00002.parquet"))
    if readme:
        (tmp_path / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train-*\n---\n"
        )
    for streaming in (False, True):
        with pytest.raises(ValueError, match="the classes of .* are .*, but those of .* are"):
            load_images(str(tmp_path), label_column="label", streaming=streaming)
        assert load_images(str(tmp_path), label_column="coarse", streaming=streaming).class_names == ["pet", "toy"]
        assert load_images(str(tmp_path), labels="none", streaming=streaming).class_names is None


@pytest.mark.parametrize(
    "train, test",
    [
        ("Train", "Test"),
        ("training", "testing"),
        ("train_part1", "test_part1"),
        ("mnist_train", "mnist_test"),
        ("train_images", "test_images"),
        ("Train__0000", "Test__0000"),
        ("my_train", "my_dev"),
        ("catsTrain", "catsTest"),
        ("trainA", "testA"),
    ],
)
def test_names_that_are_likely_splits_are_refused(tmp_path, train, test):
    with pytest.raises(ValueError, match="are they splits\\?"):
        counts(write(tmp_path, **{train: table(3), test: table(2)}))


def test_a_folder_of_a_split_tells_more_than_parts_of_any_name(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        table(count).save_to_disk(str(tmp_path / "saved" / split))
    assert counts(str(tmp_path / "saved")) == {"train": 3, "test": 2}
    files = {"train__part-00000-of-00001": table(3), "test__part-00000-of-00001": table(2)}
    assert counts(write(tmp_path / "parts", **files)) == {"train": 3, "test": 2}


def test_two_data_sets_are_not_one(tmp_path):
    files = {f"{name}__train-00000-of-00001": table(2) for name in ("small", "full")}
    with pytest.raises(ValueError, match="of several data sets\\? Read one of them with data_dir"):
        counts(write(tmp_path, **files))


def test_labels_that_can_be_no_classes(tmp_path):
    folder = write(tmp_path / "ids", train=table(2, patient=[7, 10**12]))
    with pytest.raises(ValueError, match="holds 1,000,000,000,000, but classes are numbers below 2,147,483,648"):
        load_images(folder, label_column="patient")
    content = classes(["cat", "dog"], [0, 1]).cast_column("label", datasets.Value("int64"))
    content = datasets.concatenate_datasets([content, content.map(lambda row: {"label": row["label"] + 4})])
    path = tmp_path / "beyond"
    path.mkdir()
    schema = classes(["cat", "dog"], [0, 1]).features.arrow_schema
    pq.write_table(content.data.table.cast(schema), path / "train.parquet")
    with pytest.raises(ValueError, match="'label' of the split train is 4, but has 2 names"):
        load_images(str(path))


def test_paths_that_datasets_takes_for_addresses_are_refused(tmp_path):
    folder = write(tmp_path, ab__train=table(2))
    (tmp_path / "ab").rename(tmp_path / "a::b")
    with pytest.raises(ValueError, match="takes :: in a path for an address. Rename it"):
        counts(folder)


def test_folders_with_a_readme_are_not_taken_for_one_another(tmp_path):
    """`datasets` keeps what it has read by the folder's last name, whatever lies in it."""
    configs = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.parquet\n"
    for place, count in (("one", 2), ("two", 3), ("one", 4)):
        folder = write(tmp_path / place / "data", train=table(count))
        (tmp_path / place / "data" / "README.md").write_text(f"---\n{configs}---\n")
        assert len(load_images(folder)) == count


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_arrays_that_are_nothing_are_no_black_images(tmp_path, dtype):
    values = [[[k % 100 + 1] * 4] * 4 for k in range(200)]
    values[1] = None
    features = datasets.Features({"image": datasets.Array2D((4, 4), dtype)})
    rows = datasets.Dataset.from_dict({"image": values}, features)
    folder = write(tmp_path, train=rows)
    data = load_images(folder, value_range=(0, 128))
    assert len(data) == 199 and data.skipped == ["row 1"] and data.images.min() == 1
    assert data.images[:3, 0, 0, 0].tolist() == [1, 3, 4] and data.pixels.dtype == dtype
    stream = load_images(folder, value_range=(0, 128), streaming=True)
    assert all((next(stream.batches(100, seed=0, start_step=k))[0] > 0).all() for k in range(2))


@pytest.mark.parametrize(
    "files, message",
    [
        (["train-00000-of-00004", "train-00002-of-00004"], "lacks 2 of the 4 parts of train, .* 00001"),
        (["data__train-00000-of-00001", "data__test-00001-of-00002"], "lacks 1 of the 2 parts of data/test"),
        (["train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"], "several versions"),
        (["train", "train-00000-of-00001"], "train.parquet, train-00000-of-00001.parquet: are they several versions"),
    ],
)
def test_parts_of_a_table_are_all_there(tmp_path, files, message):
    folder = write(tmp_path, **{name: table(2) for name in files})
    with pytest.raises(ValueError, match=message):
        counts(folder)
    one = next(tmp_path.rglob("*.parquet"))
    assert counts(str(one))  # which is asked for by its name


def test_parts_that_are_counted_from_one(tmp_path):
    folder = write(tmp_path, **{f"train-0000{k}-of-00002": table(2) for k in (1, 2)})
    assert counts(folder) == {"train": 4}
    folder = write(tmp_path / "b", **{"shard-00000-of-00001__a": table(1), "shard-00000-of-00001__b": table(2)})
    assert counts(folder) == {"train": 3}


def test_two_names_of_one_split_are_two_data_sets(tmp_path):
    folder = write(tmp_path, train=table(1), val=table(3), validation=table(4))
    with pytest.raises(ValueError, match="val.parquet and validation.parquet of the split validation"):
        counts(folder)


def test_a_table_may_be_called_metadata(tmp_path):
    assert counts(write(tmp_path, metadata=table(3))) == {"train": 3}


def test_a_link_to_nothing_is_told_of_beside_tables(tmp_path):
    folder = write(tmp_path, train=table(2))
    (tmp_path / "more.parquet").symlink_to(tmp_path / "nowhere")
    assert ["a link to nothing" in note for note in open_source(folder).notes] == [True]


@pytest.mark.parametrize("files", [("a__train", "b__train"), ("a__train__0000", "b__train__0000")])
def test_two_folders_of_one_split_are_two_data_sets(tmp_path, files):
    folder = write(tmp_path, **{name: table(2) for name in files})
    with pytest.raises(ValueError, match="of several data sets"):
        counts(folder)
    assert counts(write(tmp_path / "c", train__2020__part=table(1), train__2021__part=table(2))) == {"train": 3}


def test_what_datasets_keeps_is_no_part_of_a_data_set(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        table(count).save_to_disk(str(tmp_path / split))
        datasets.load_from_disk(str(tmp_path / split)).filter(lambda row: True)
    assert len([*tmp_path.glob("*/cache-*.arrow")]) == 2
    assert counts(str(tmp_path)) == {"train": 4, "test": 2}


@pytest.mark.parametrize("format", ["torch", "arrow", "numpy"])
def test_saved_with_a_format(tmp_path, format):
    rows = table(3, label=[0, 1, 1]).cast_column("label", datasets.ClassLabel(names=["a", "b"]))
    rows.set_format(format, columns=["image"])
    rows.save_to_disk(str(tmp_path / "one"))
    assert load_images(str(tmp_path / "one")).labels.tolist() == [0, 1, 1]
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        load_images(str(tmp_path / "one"))


def test_splits_that_differ(tmp_path):
    content = {
        "train": table(3, kind=["b", "a", "b"]),
        "test": table(2),
        "captions": datasets.Dataset.from_dict({"text": ["x"]}),
    }
    datasets.DatasetDict(content).save_to_disk(str(tmp_path / "one"))
    source = open_source(str(tmp_path / "one"), label_column="kind")
    assert {split: len(rows) for split, rows in source.splits.items()} == {"train": 3, "test": 2}
    assert source["train"].labels.tolist() == [1, 0, 1] and source["test"].labels is None
    assert "captions" in source.notes[0] and "the split test has no kind" in source.notes[1]
    named = table(2, label=[0, 1]).cast_column("label", datasets.ClassLabel(names=["a", "b"]))
    datasets.DatasetDict({"train": named, "test": table(3, label=[0, 5, 1])}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(ValueError, match="split test has the label 5, but the classes of the others have 2 names"):
        open_source(str(tmp_path / "two"), label_column="label")


@pytest.mark.parametrize("text, expected", [("---\n{}---", {"train": 4, "test": 6}), ("\ufeff---\n{}---\n", None)])
def test_every_readme_that_datasets_reads(tmp_path, text, expected):
    folder = write(tmp_path / "here", x__one=table(4), x__two=table(6))
    configs = (
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: x/one.parquet\n"
        "  - split: test\n    path: x/two.parquet\n"
    )
    (tmp_path / "here" / "README.md").write_text(text.format(configs), encoding="utf-8")
    if expected:
        assert counts(folder) == expected
    else:
        with pytest.raises(ValueError, match="byte order mark"):
            counts(folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_that_was_replaced_is_read_anew(tmp_path, streaming):
    """Also by one of the same time, as archives and copies keep it; `datasets` looks at nothing else."""
    for count in (2, 3):
        folder = write(tmp_path, train=table(count))
        os.utime(tmp_path / "train.parquet", (1e9, 1e9))
        data = load_images(folder, streaming=streaming)
        assert data.num_images == count and len(next(data.batches(count, 0))[0]) == count


def png(value):
    content = io.BytesIO()
    Image.new("L", (4, 4), value).save(content, "PNG")
    return content.getvalue()


def write_tar(path, *names, **links):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for k, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = len(content := png(k))
            archive.addfile(member, io.BytesIO(content))
        for name, target in links.items():
            member = tarfile.TarInfo(f"{name}.png")
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_a_tar_file_is_read_whole_or_not_at_all(tmp_path, streaming):
    names = [f"{k}.png" for k in range(4)]
    whole = write_tar(tmp_path / "whole" / "train.tar", *names, "._0.png").read_bytes()
    read = load_images(str(tmp_path / "whole"), streaming=streaming)
    assert len(next(read.batches(4, 0))[0]) == 4

    def refused(content, message):
        (tmp_path / "cut").mkdir(exist_ok=True)
        (tmp_path / "cut" / "train.tar").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_images(str(tmp_path / "cut"), streaming=streaming)

    for length in (1024, 1024 + 300, 3 * 1024, 3 * 1024 + 700, 4 * 1024 + 100):
        refused(whole[:length], "train.tar .*cut, or is damaged|no whole tar file")
    refused(whole + whole, "holds another archive behind its end")
    refused(write_tar(tmp_path / "x.tar", "0.png", a="0.png").read_bytes(), "1 images that are links.* such as a.png")
    refused(write_tar(tmp_path / "x.tar", "0.png", "__1.png").read_bytes(), "left out, such as __1.png")


def test_texts_that_are_nearly_numbers_are_classes(tmp_path):
    names = ["1.1", "1.10", "1e1", "10", "1_0", "1234567890123456788", "1234567890123456789", "inf", "Infinity"]
    data = load_images(write(tmp_path, train=table(9, label=names)), label_column="label")
    assert sorted(data.class_names) == sorted(names)


def test_a_folder_with_a_readme_may_be_given_by_a_relative_path(tmp_path, monkeypatch):
    write(tmp_path / "a" / "b", train=table(2))
    configs = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.parquet\n"
    (tmp_path / "a" / "b" / "README.md").write_text(f"---\n{configs}---\n")
    monkeypatch.chdir(tmp_path)
    assert len(load_images("a/b")) == 2


def test_a_stream_without_the_labels_that_were_asked_for_is_refused(tmp_path):
    folder = write(tmp_path, train=table(3, label=[-1, 0, 1]))
    for streaming in (False, True):
        with pytest.raises(ValueError, match="no 'label'.* Complete the column|no 'label': complete the column"):
            load_images(folder, label_column="label", streaming=streaming)


@pytest.mark.parametrize("values", [["cat", " cat"], ["dog\n", "dog"], ["01", "1"], ["+1", "1"]])
def test_two_spellings_of_one_class_are_refused(tmp_path, values):
    with pytest.raises(ValueError, match="'label' holds .* and .*: if these are one class, write them alike"):
        load_images(write(tmp_path, train=table(2, label=values)), label_column="label")
