"""Folders of images are read by the rule of training/images/folders.py, or refused."""

import json
import logging
import os
import tracemalloc

import datasets
import numpy as np
import pytest
from PIL import Image

from images.folders import read_folder
from images.listing import list_folder
from images.loading import load_images


def write(root, *names):
    """Different images under these relative paths, and empty files under those that are no images."""
    for k, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg"):
            Image.fromarray(np.full((4, 4), k, np.uint8)).save(path)
        else:
            path.write_text("")
    return str(root)


def classes(rows):
    """{class: paths of its images}."""
    found = {}
    for k, label in enumerate(rows.labels):
        found.setdefault(rows.class_names[label], []).append(rows.name(k))
    return found


@pytest.mark.parametrize(
    "names",
    [
        ("pear.png", "plum.png", "toy_train.png", "test_tube.png", "a.validation.png"),
        ("train.png", "test.png", "dev.png"),
        ("some train/0.png", "some train/1.png", "x.png"),
    ],
)
def test_words_in_names_are_no_splits(tmp_path, names):
    contents = read_folder(write(tmp_path, *names))
    assert list(contents.splits) == ["train"] and len(contents.splits["train"]) == len(names)
    assert contents.splits["train"].labels is None


@pytest.mark.parametrize(
    "names", [("bus", "car", "train"), ("normal", "test"), ("dev", "prod"), ("strain", "contest")]
)
def test_a_class_may_be_called_as_a_split(tmp_path, names):
    contents = read_folder(write(tmp_path, *(f"{name}/{k}.png" for name in names for k in range(4))))
    (rows,) = contents.splits.values()
    assert classes(rows) == {name: [f"{name}/{k}.png" for k in range(4)] for name in sorted(names)}


@pytest.mark.parametrize("train, validation, test", [("train", "validation", "test"), ("train", "val", "test")])
def test_splits(tmp_path, train, validation, test):
    names = [
        f"{split}/{kind}/{k}.png" for split in (train, validation, test) for kind in ("cat", "dog") for k in (0, 1)
    ]
    splits = read_folder(write(tmp_path, *names)).splits
    assert list(splits) == ["train", "validation", "test"]
    assert all(rows.labels.tolist() == [0, 0, 1, 1] and rows.class_names == ["cat", "dog"] for rows in splits.values())
    assert splits["validation"].name(3) == f"{validation}/dog/1.png"


def test_deeper_folders_belong_to_their_class(tmp_path):
    names = ("cats/2019/0.png", "cats/2020/a/0.png", "cats/0.png", "dogs/2019/0.png", "dogs/train/0.png")
    rows = read_folder(write(tmp_path, *names)).splits["train"]
    assert {name: sorted(paths) for name, paths in classes(rows).items()} == {
        "cats": ["cats/0.png", "cats/2019/0.png", "cats/2020/a/0.png"],
        "dogs": ["dogs/2019/0.png", "dogs/train/0.png"],
    }


@pytest.mark.parametrize("name", ["scans [2024]", "a::b", "*", "v1.0", ".net", "x.png", "Ünï"])
def test_any_name_is_just_a_name(tmp_path, name):
    root = write(tmp_path / name, f"{name}/0.png", "other/0.png")
    loaded = load_images(root)
    assert len(loaded) == 2 and sorted(loaded.class_names) == sorted([name, "other"])


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "real", "0.png", "1.png")
    root = write(tmp_path / "root", "own/0.png")
    for link, target in (
        ("linked", tmp_path / "real"),
        ("own/circle", tmp_path / "root"),
        ("own/gone", tmp_path / "no"),
    ):
        os.symlink(target, os.path.join(root, link))
    os.symlink(tmp_path / "real" / "0.png", os.path.join(root, "own", "9.png"))
    os.symlink(tmp_path / "no.png", os.path.join(root, "own", "broken.png"))
    contents = read_folder(root)
    assert classes(contents.splits["train"]) == {
        "linked": ["linked/0.png", "linked/1.png"],
        "own": ["own/0.png", "own/9.png"],
    }
    assert sorted(contents.listing.skipped) == [
        ("own/broken.png", "a link to nothing"),
        ("own/circle", "a link to a folder that it lies in"),
        ("own/gone", "a link to nothing"),
    ]


def test_two_links_to_one_another_are_no_endless_way(tmp_path):
    root = write(tmp_path, "a/0.png", "b/0.png")
    os.symlink(tmp_path / "b", tmp_path / "a" / "to_b")
    os.symlink(tmp_path / "a", tmp_path / "b" / "to_a")
    assert sorted(classes(read_folder(root).splits["train"])) == ["a", "b"]


def test_images_outside_the_classes_are_named(tmp_path):
    root = write(tmp_path, "cat/0.png", "dog/0.png", "stray.png", "other.jpg")
    with pytest.raises(ValueError, match=r"outside its classes cat, dog: other\.jpg, stray\.png.*data\.labels=none"):
        load_images(root)
    loaded = load_images(root, labels="none")
    assert len(loaded) == 4 and loaded.labels is None
    with pytest.raises(ValueError, match=r"outside its splits test, train, such as x\.png"):
        load_images(write(tmp_path / "splits", "train/0.png", "test/0.png", "x.png"))


def test_labels_stay_where_they_are(tmp_path, caplog):
    root = write(tmp_path, "train/cat/0.png", "train/dog/0.png", "test/0.png", "test/1.png")
    with caplog.at_level(logging.WARNING):
        train, test = load_images(root), load_images(root, "test")
    assert train.labels.tolist() == [0, 1] and test.labels is None and len(test) == 2
    assert "the split test has no folders of classes" in caplog.text


def test_labels_are_not_invented(tmp_path):
    splits = read_folder(write(tmp_path / "a", "train/0.png", "test/0.png")).splits
    assert {split: rows.labels for split, rows in splits.items()} == {"train": None, "test": None}
    contents = read_folder(write(tmp_path / "b", "images/0.png", "images/1.png"))
    assert contents.splits["train"].labels is None and "is no class" in contents.notes[0]


def test_classes_of_all_splits_have_one_numbering(tmp_path):
    splits = read_folder(write(tmp_path, "train/b/0.png", "train/c/0.png", "test/a/0.png", "test/c/0.png")).splits
    assert splits["train"].class_names == splits["test"].class_names == ["a", "b", "c"]
    assert splits["train"].labels.tolist() == [1, 2] and splits["test"].labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    "names, message",
    [
        (("Train/a/0.png", "Test/a/0.png"), "splits or classes\\? Splits are named exactly train"),
        (("train/a/0.png", "Test/a/0.png"), "splits or classes\\? Splits are named exactly train"),
        (("train/a/0.png", "dev/a/0.png"), "splits or classes\\? Splits are named exactly train"),
        (("training/0.png", "dev/0.png"), "splits or classes\\? Splits are named exactly train"),
        (("train2017/0.png", "val2017/0.png"), "splits or classes\\? Splits are named exactly train"),
        (("train_images/0.png", "test_images/0.png"), "splits or classes\\? Splits are named exactly train"),
        (("train/a/0.png", "train/b/0.png", "new/a/0.png", "new/b/0.png"), "splits or classes\\? Read one of them"),
        (("leaves/a/0.png", "leaves/b/0.png"), "leaves, with folders of its own, a, b: .*data_dir=leaves"),
        (("train/a/0.png", "train/b/0.png", "test/a/0.png", "extra/0.png"), "splits or classes\\? Read one of them"),
        (("val/0.png", "valid/0.png"), "several folders for one split"),
        (("notes.txt", "a/b.zip"), "it holds notes.txt .*; a/b.zip .an archive: unpack it"),
    ],
)
def test_what_could_mean_two_things_is_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        load_images(write(tmp_path, *names))


def test_what_is_left_out_is_named(tmp_path):
    root = write(tmp_path, "0.png", "notes.txt", "._0.png", "__MACOSX/._0.png", "a/.DS_Store")
    skipped = dict(read_folder(root).listing.skipped)
    assert skipped == {
        "notes.txt": "no image by its name",
        "._0.png": "what macOS keeps beside a file",
        "__MACOSX": "what macOS adds to archives",
        "a/.DS_Store": "no image by its name",
    }


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_metadata_adds_columns_and_takes_nothing_away(tmp_path, ending, caplog):
    root = write(tmp_path, *(f"{kind}/{k}.png" for kind in ("cat", "dog") for k in range(4)))
    rows = [{"file_name": f"cat/{k}.png", "side": "left" if k % 2 else "right"} for k in range(4)]
    rows.append({"file_name": "gone.png", "side": "left"})

    def save():
        lines = ["file_name,side", *(",".join(row.values()) for row in rows)]
        text = "\n".join(lines if ending == "csv" else map(json.dumps, rows))
        (tmp_path / f"metadata.{ending}").write_text(text)

    save()
    with caplog.at_level(logging.WARNING):
        loaded = load_images(root)
    assert len(loaded) == 8 and loaded.class_names == ["cat", "dog"]
    assert "describes 4 images, with the columns side" in caplog.text and "gone.png" in caplog.text
    with pytest.raises(ValueError, match="4 of 8 images of the split train have no 'side', among them dog/0.png"):
        load_images(root, label_column="side")
    rows += [{"file_name": f"dog/{k}.png", "side": "up"} for k in range(4)]
    save()
    sides = load_images(root, label_column="side")
    assert sides.class_names == ["left", "right", "up"] and sides.labels.tolist() == [1, 0, 1, 0, 2, 2, 2, 2]
    with pytest.raises(ValueError, match="'breed' is not a column of .*: its metadata has side"):
        load_images(root, label_column="breed")


def test_names_take_few_bytes(tmp_path):
    for k in range(40):
        (tmp_path / f"class_{k}").mkdir()
        for i in range(100):
            (tmp_path / f"class_{k}" / f"image_{i:06}.png").touch()
    tracemalloc.start()
    contents = read_folder(str(tmp_path))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    rows = contents.splits["train"]
    assert len(rows) == 4000 and held < 300 * len(rows)
    assert rows.name(3999) == "class_9/image_000099.png" and list_folder(str(tmp_path)).num_images == 4000
    with pytest.raises(IndexError):
        rows.name(4000)


@pytest.mark.parametrize(
    "values, message",
    [
        ([[1], [2]], "integers, text or booleans, but holds .'lists'"),
        ([float("inf"), 1], "'fraction', 'integer'"),
        ([1, -1], "1 of 2 images of the split train have no 'kind', among them 1.png. .*no class is below 0"),
        ([None, None], "no image has a value of 'kind' that is a class"),
    ],
)
def test_columns_that_are_no_labels(tmp_path, values, message):
    root = write(tmp_path, "0.png", "1.png")
    lines = [json.dumps({"file_name": f"{k}.png", "kind": value}) for k, value in enumerate(values)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        load_images(root, label_column="kind")


@pytest.mark.parametrize("files", [{"": ["01", "1", "2"]}, {"a/": ["01", "2"], "b/": ["1"]}])
def test_one_class_in_two_spellings_is_refused(tmp_path, files):
    for folder, kinds in files.items():
        root = write(tmp_path, *(f"{folder}{k}.png" for k in range(len(kinds))))
        lines = ["file_name,kind", *(f"{k}.png,{kind}" for k, kind in enumerate(kinds))]
        (tmp_path / folder / "metadata.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="label_column 'kind' of .* holds '01' and '1', which are one number"):
        load_images(root, label_column="kind")


def test_two_rows_about_one_image_are_refused(tmp_path):
    root = write(tmp_path, "0.png")
    (tmp_path / "metadata.csv").write_text("file_name,kind\n0.png,a\n0.png,b\n")
    with pytest.raises(ValueError, match="has two rows about 0.png that differ"):
        load_images(root, label_column="kind")


def test_splits_within_classes_are_told_of(tmp_path):
    root = write(tmp_path, *(f"{kind}/{split}/0.png" for kind in ("cat", "dog") for split in ("train", "test")))
    contents = read_folder(root)
    assert (
        len(contents.splits["train"]) == 4
        and "train, test within classes are not taken as splits" in contents.notes[0]
    )


def test_files_that_are_left_out_are_told_of(tmp_path, caplog):
    root = write(tmp_path, "0.png", "1.png", "2.heic", "more.zip", "README.md")
    with caplog.at_level(logging.WARNING):
        assert len(load_images(root)) == 2
    assert (
        "3 files are left out, such as 2.heic (no image by its name), more.zip (an archive: unpack it)" in caplog.text
    )


def test_columns_of_several_metadata_files(tmp_path):
    root = write(tmp_path, "0.png", "1.png")
    (tmp_path / "metadata.csv").write_text("file_name,kind\n0.png,a\n1.png,b\n")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "caption": "none"}))
    assert load_images(root, label_column="kind").class_names == ["a", "b"]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "kind": "c"}))
    with pytest.raises(ValueError, match="label_column 'kind' of .*: 0.png is 'a' and 'c'"):
        load_images(root, label_column="kind")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("file_name,kind\n0.png,a, small\n1.png,b, large\n", "line 2 has more values than there are columns"),
        ("file_name,kind,kind\n0.png,a,1\n1.png,b,2\n", "two of its columns are called kind"),
        ("file_name,kind\n0.png,0\n1.png,NA\n", "column kind: it holds NA among 0 and the like"),
        ("file_name,kind\n0.png,true\n1.png, NA\n", "column kind: it holds  NA among true and the like"),
        ("file_name,kind,note,note\n0.png,a,1,2\n1.png,b,3,4\n", None),
        ("file_name,kind,\n0.png,a,,\n1.png,b,,\n", None),
        ("file_name,kind\n0.png,NA\n1.png,EU\n", None),
    ],
)
def test_a_table_of_text_says_one_thing_of_each_image(tmp_path, rows, message):
    root = write(tmp_path, "0.png", "1.png")
    (tmp_path / "metadata.csv").write_text(rows)
    if message is None:
        assert len(load_images(root, label_column="kind").class_names) == 2
    else:
        with pytest.raises(ValueError, match=message):
            load_images(root, label_column="kind")


@pytest.mark.parametrize(
    "names", [("trainA", "trainB", "testA", "testB"), ("catsTrain", "catsHoldOut"), ("ATrain", "ATest")]
)
def test_splits_with_capitals_are_no_classes(tmp_path, names):
    with pytest.raises(ValueError, match="are they splits or classes"):
        read_folder(write(tmp_path, *(f"{name}/{k}.png" for name in names for k in range(2))))


def test_a_readme_does_not_bring_innermost_folders_back(tmp_path):
    root = write(tmp_path, *(f"{kind}/{year}/0.png" for kind in ("cats", "dogs") for year in (2019, 2020)))
    configs = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '**/*.png'\n"
    (tmp_path / "README.md").write_text(f"---\n{configs}---\n")
    with pytest.raises(ValueError, match="2019 lies in .*cats and in .*dogs. Take `configs` out of the README.md"):
        load_images(root)
    assert len(load_images(root, labels="none")) == 4


def test_class_folders_have_names_that_are_text(tmp_path):
    write(tmp_path, "tea/0.png")
    os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9")
    os.replace(tmp_path / "tea" / "0.png", os.fsencode(tmp_path) + b"/caf\xe9/0.png")
    root = write(tmp_path, "tea/0.png")
    with pytest.raises(ValueError, match="whose name is no text .UTF-8.: rename it"):
        load_images(root)


def test_classes_that_are_numbers_stand_in_their_order(tmp_path):
    names = [*map(str, range(12))]
    splits = read_folder(write(tmp_path / "folders", *(f"{name}/a.png" for name in names))).splits
    assert splits["train"].class_names == names
    words = read_folder(write(tmp_path / "words", *(f"{name}/a.png" for name in (*names, "ten")))).splits
    assert words["train"].class_names == sorted([*names, "ten"])
    padded = read_folder(write(tmp_path / "padded", "01/a.png", "1/a.png", "2/a.png")).splits
    assert padded["train"].class_names == ["01", "1", "2"]


def test_names_that_differ_in_the_word_of_a_split_alone(tmp_path):
    for first, second in (("seg_train", "seg_test"), ("images-train", "images-val")):
        names = [f"{top}/{kind}/0.png" for top in (first, second) for kind in ("a", "b")]
        for more in ([], [f"{second}/c/0.png"], ["seg_pred/0.png"]):
            with pytest.raises(ValueError, match="are they splits or classes"):
                read_folder(write(tmp_path / f"{first} {len(more)} {more[:1]}".replace("/", " "), *names, *more))
    contents = read_folder(write(tmp_path / "b", "toy_train/0.png", "test_tube/0.png"))
    assert contents.splits["train"].class_names == ["test_tube", "toy_train"]


@pytest.mark.parametrize("trash", [".Trash-1000", "$RECYCLE.BIN", "#recycle"])
def test_trash_is_no_class(tmp_path, trash):
    contents = read_folder(write(tmp_path, "cat/0.png", "dog/0.png", f"{trash}/files/1.png"))
    assert contents.splits["train"].class_names == ["cat", "dog"] and contents.listing.num_skipped == 1


def test_metadata_of_a_table(tmp_path):
    """metadata.parquet, as `datasets` writes it, is no table of images."""
    root = write(tmp_path, *(f"{k}.png" for k in range(3)))
    rows = {"file_name": [f"{k}.png" for k in range(3)], "kind": ["b", "a", "b"]}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "metadata.parquet"))
    assert load_images(root, label_column="kind").labels.tolist() == [1, 0, 1]
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 broken PAR1")
    assert "metadata.parquet cannot be read" in load_images(root).notes[0]


def test_whole_numbers_as_pandas_writes_them(tmp_path):
    root = write(tmp_path, *(f"{k}.png" for k in range(4)))
    lines = ["file_name,kind", *(f"{k}.png,{kind}" for k, kind in enumerate(["0.0", "1.0", "10.0", "2.0"]))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    assert load_images(root, label_column="kind").labels.tolist() == [0, 1, 10, 2]


def test_metadata_about_no_image(tmp_path):
    root = write(tmp_path, "deeper/0.png", "deeper/1.png")
    (tmp_path / "metadata.csv").write_text("file_name,kind\n0.png,a\n1.png,b\n")
    with pytest.raises(ValueError, match="none of its rows is about an image.*such as 0.png, 1.png"):
        load_images(root, label_column="kind")
