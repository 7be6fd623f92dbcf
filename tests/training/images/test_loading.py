"""Data sets are found, decoded and batched as training/images/loading.py promises."""

import dataclasses
import io
import json
import logging
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from warm_python import run_python

from images import loading, streams
from images.loading import ImageData, StreamedImages, hold_out, load_images, split_names
from images.pixels import UnreadableImage, decode_image, suggest_sigma_max

ROOT = Path(__file__).resolve().parents[3]
EMBEDDED = str(ROOT / "data" / "fashion_mnist")
SHARED = ROOT.parent / "shared" / "data"
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the development data sets are not on this machine")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(image, format="PNG", image_size=None, channels=None, **options):
    return decode_image({"bytes": encoded(image, format, **options), "path": None}, image_size, channels)


def write_parquet(folder, images, split="train", image_column="image", **columns):
    """A data set in the Hub's layout; columns: name=(feature, values)."""
    features = {image_column: datasets.Image()} | {name: feature for name, (feature, _) in columns.items()}
    values = {image_column: images} | {name: values for name, (_, values) in columns.items()}
    folder.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(values, features=datasets.Features(features))
    table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """40 images of 4 x 4 whose pixels are their own number, labelled with the number modulo 4."""
    labels = (datasets.ClassLabel(names=list("abcd")), [i % 4 for i in range(40)])
    images = [Image.fromarray(np.full((4, 4), i, np.uint8)) for i in range(40)]
    return write_parquet(tmp_path_factory.mktemp("numbered"), images, label=labels)


def numbers(batch):
    return batch[0][:, 0, 0, 0].tolist()


# ---- data sets -----------------------------------------------------------------------------------------------------


def test_embedded_sample():
    train, test = load_images(EMBEDDED), load_images(EMBEDDED, "test")
    assert train.images.shape == (10_000, 1, 28, 28) and train.images.dtype == torch.uint8
    assert train.labels.bincount().tolist() == [1000] * 10 and test.labels.bincount().tolist() == [100] * 10
    assert train.class_names[9] == "Ankle boot" and train.skipped == [] and len(train) == train.num_images == 10_000
    assert train.image_shape == (1, 28, 28)
    images, labels = train[torch.tensor([3, 5])]
    assert torch.equal(images, train.images[[3, 5]]) and torch.equal(labels, train.labels[[3, 5]])


@needs_shared_data
def test_embedded_sample_is_unaltered():
    full, sample = (load_images(str(path), "test") for path in (SHARED / "fashion_mnist", EMBEDDED))
    known, drawn = (
        {(image.numpy().tobytes(), int(label)) for image, label in zip(some.images, some.labels, strict=True)}
        for some in (full, sample)
    )
    assert len(drawn) == len(sample) and drawn <= known


@needs_shared_data
def test_image_column_is_found_by_its_type():
    cifar = load_images(str(SHARED / "cifar10"), "test")
    assert cifar.images.shape == (10_000, 3, 32, 32) and cifar.class_names[0] == "airplane"
    cassava = load_images(str(SHARED / "cassava"), "validation", image_size=32)
    assert cassava.images.shape == (132, 3, 32, 32)
    assert split_names(str(SHARED / "cassava")) == ["train", "validation", "test"]


def test_missing_split_lists_those_there_are():
    with pytest.raises(ValueError, match="split 'validation' does not exist in .*; it has 'train', 'test'"):
        load_images(EMBEDDED, "validation")


def test_folder_of_images_with_classes(tmp_path):
    for name, value in (("cat", 10), ("dog", 200)):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (12, 8), (value, value, value)).save(tmp_path / name / f"{i}.jpg")
    loaded = load_images(str(tmp_path))
    assert loaded.images.shape == (6, 3, 8, 12) and loaded.class_names == ["cat", "dog"]
    assert loaded.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (loaded.images[:3].float() - 10).abs().max() <= 2 and (loaded.images[3:].float() - 200).abs().max() <= 2
    streamed = load_images(str(tmp_path), streaming=True)
    images, labels = next(streamed.batches(6, seed=0))
    assert streamed.class_names == ["cat", "dog"] and torch.equal(labels == 1, images[:, 0, 0, 0] > 100)


def test_folder_without_classes_has_no_labels(tmp_path):
    for i in range(3):
        Image.fromarray(noise(5, 5, seed=i)).save(tmp_path / f"{i}.png")
    loaded = load_images(str(tmp_path))
    assert loaded.labels is None and loaded.class_names is None and loaded.images.shape == (3, 1, 5, 5)
    assert next(loaded.batches(2, seed=0))[1] is None


def test_data_dir(tmp_path):
    write_parquet(tmp_path / "small", [noise(2, 2)])
    write_parquet(tmp_path / "large", [noise(6, 6)])
    assert load_images(str(tmp_path), data_dir="large").image_shape == (1, 6, 6)
    for outside in ("medium", "..", str(tmp_path / "small"), "large/../small"):
        with pytest.raises(FileNotFoundError, match=f"data_dir '{outside}' is not a folder in"):
            load_images(str(tmp_path), data_dir=outside)
    with pytest.raises(ValueError, match="dataset must name a folder, a file or a data set of the Hub, got ''"):
        load_images("")


def test_missing_folder_and_folder_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_images(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="neither a folder of images nor"):
        load_images(str(tmp_path))


def test_max_images_are_spaced_evenly(numbered):
    assert load_images(numbered, max_images=4).images[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert len(load_images(numbered, max_images=100)) == 40
    streamed = load_images(numbered, max_images=4, streaming=True)
    assert sorted(numbers(next(streamed.batches(4, seed=0)))) == [0, 1, 2, 3]  # a stream's first ones


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 0}, "image_size must be an integer of at least 1, got 0"),
        ({"max_images": -1}, "max_images must be an integer of at least 1, got -1"),
        ({"channels": 0}, "channels must be an integer of at least 1, got 0"),
        ({"image_size": (4,)}, r"image_size must be a side, or height and width, got \(4,\)"),
        ({"white_level": 9, "value_range": (0, 9)}, r"white_level is 9 and value_range \[0, 9\]: give one of them"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        load_images("no such data set, and nobody looks for it", **options)


# ---- columns -------------------------------------------------------------------------------------------------------


def test_ambiguous_columns_are_named(tmp_path):
    label = (datasets.ClassLabel(names=["a", "b"]), [0, 1])
    write_parquet(
        tmp_path,
        [noise(4, 4)] * 2,
        "train",
        "photo",
        mask=(datasets.Image(), [noise(2, 2)] * 2),
        fine=label,
        coarse=label,
    )
    with pytest.raises(ValueError, match="photo, mask are all of type Image: choose with image_column"):
        load_images(str(tmp_path))
    with pytest.raises(ValueError, match="fine, coarse are all of type ClassLabel: choose with label_column"):
        load_images(str(tmp_path), image_column="mask")
    assert load_images(str(tmp_path), image_column="mask", label_column="fine").image_shape == (1, 2, 2)
    with pytest.raises(ValueError, match="image_column 'picture' is not a column of type Image; columns: .*photo"):
        load_images(str(tmp_path), image_column="picture")


def test_integer_labels_are_taken_when_named(tmp_path):
    path = write_parquet(tmp_path, [noise(4, 4)] * 2, kind=(datasets.Value("int32"), [5, 7]))
    assert load_images(path).labels is None
    named = load_images(path, label_column="kind")
    assert named.labels.tolist() == [5, 7] and named.labels.dtype == torch.int64 and named.class_names is None


@pytest.mark.parametrize("missing", [None, -1])
def test_labels_are_left_out_where_one_is_missing(tmp_path, missing):
    path = write_parquet(tmp_path, [noise(4, 4)] * 2, label=(datasets.ClassLabel(names=["a"]), [missing, 0]))
    loaded = load_images(path)
    assert loaded.labels is None and loaded.class_names is None
    assert load_images(path, streaming=True).label_column is None


def test_no_image_column(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="no column of type Image; columns: .*text"):
        load_images(str(tmp_path))


# ---- decoding ------------------------------------------------------------------------------------------------------


def test_sixteen_bits_are_scaled():
    gray = Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16))
    assert gray.mode == "I;16"
    assert decoded(gray).tolist() == [[[0, 1, 128, 255]]]
    assert decoded(gray, "TIFF").tolist() == [[[0, 1, 128, 255]]]


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.new("1", (1, 1), 1), [255]),
        (Image.new("L", (1, 1), 7), [7]),
        (Image.new("RGB", (1, 1), (1, 2, 3)), [1, 2, 3]),
        (Image.new("RGB", (1, 1), (1, 2, 3)).quantize(2), [1, 2, 3]),
        (Image.new("RGBA", (1, 1), (1, 2, 3, 255)), [1, 2, 3]),
        (Image.new("RGBA", (1, 1), (1, 2, 3, 0)), [255, 255, 255]),
        (Image.new("RGBA", (1, 1), (0, 0, 0, 51)), [204, 204, 204]),
        (Image.new("LA", (1, 1), (9, 255)), [9]),
        (Image.new("LA", (1, 1), (9, 0)), [255]),
    ],
    ids=[
        "bilevel",
        "gray",
        "rgb",
        "palette",
        "opaque",
        "transparent",
        "translucent",
        "gray opaque",
        "gray transparent",
    ],
)
def test_modes(image, expected):
    assert decoded(image).flatten().tolist() == expected


def test_cmyk():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for format in ("TIFF", "JPEG"):
        red, green, blue = decoded(cmyk, format).float().mean((1, 2)).tolist()
        assert red > 250 and green < 5 and blue < 5


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (3, 3), color) for color in ("red", "blue")]
    for format in ("GIF", "PNG", "WEBP"):
        lossless = {"lossless": True} if format == "WEBP" else {}
        first = decoded(frames[0], format, save_all=True, append_images=frames[1:], **lossless)
        assert first[:, 0, 0].tolist() == [255, 0, 0]


def test_exif_rotation():
    image = Image.fromarray(noise(4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # show rotated by 90 degrees clockwise
    expected = torch.from_numpy(np.rot90(np.asarray(image), -1).copy())[None]
    assert torch.equal(decoded(image, exif=exif), expected)


def test_channels_are_converted():
    color = Image.new("RGB", (2, 2), (255, 0, 0))
    assert decoded(color, channels=1).unique().tolist() == [76]  # ITU-R 601 luma
    gray = decoded(Image.fromarray(noise(2, 2)), channels=3)
    assert gray.shape == (3, 2, 2) and torch.equal(gray[0], gray[2])


@pytest.mark.parametrize("sizes", [[(4, 4, 3), (4, 4)], [(4, 4), (4, 4, 3)]], ids=["gray last", "gray first"])
def test_one_coloured_image_makes_all_rgb(tmp_path, sizes):
    arrays = [noise(*size) for size in sizes]
    loaded = load_images(write_parquet(tmp_path, [Image.fromarray(array) for array in arrays]))
    for image, array in zip(loaded.images, arrays, strict=True):
        expected = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_resize_takes_the_centre_and_antialiases():
    stripes = np.zeros((64, 96), np.uint8)
    stripes[:, 16:80:2] = 255  # the centre square alternates, so that plain subsampling gives 0 or 255
    stripes[:, :16] = 255  # cropped away
    small = decoded(Image.fromarray(stripes), image_size=8)
    assert small.shape == (1, 8, 8) and (small[:, :, 1:-1].float() - 127.5).abs().max() < 10
    upright = decoded(Image.fromarray(stripes.T.copy()), image_size=8)
    assert torch.equal(upright, small.transpose(1, 2))
    same = noise(8, 8)
    assert np.array_equal(decoded(Image.fromarray(same), image_size=8)[0].numpy(), same)
    assert decoded(Image.fromarray(same), image_size=20).shape == (1, 20, 20)


def test_different_sizes_ask_for_image_size(tmp_path):
    path = write_parquet(tmp_path, [Image.fromarray(noise(4, 4)), Image.fromarray(noise(4, 5))])
    with pytest.raises(ValueError, match=r"row 1 has shape \(1, 4, 5\) .* \(1, 4, 4\): give image_size"):
        load_images(path)
    with pytest.raises(ValueError, match="give image_size"):
        next(load_images(path, streaming=True).batches(2, seed=0))
    assert load_images(path, image_size=3).images.shape == (2, 1, 3, 3)


# ---- broken images -------------------------------------------------------------------------------------------------


def write_folder(folder, count, broken):
    for i in range(count):
        Image.fromarray(noise(8, 8, 3, seed=i)).save(folder / f"{i:03}.jpg")
    for name, content in broken.items():
        (folder / name).write_bytes(content)


def test_broken_images_are_skipped_and_named(tmp_path, caplog):
    whole = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    write_folder(tmp_path, 400, {"a_empty.jpg": b"", "b_cut.jpg": whole[:500], "c_text.jpg": b"no image"})
    with caplog.at_level(logging.WARNING):
        loaded = load_images(str(tmp_path))
    assert len(loaded) == 400 and {Path(name).name for name in loaded.skipped} == {
        "a_empty.jpg",
        "b_cut.jpg",
        "c_text.jpg",
    }
    assert "skipped 3 of 403 images" in caplog.text and "b_cut.jpg" in caplog.text
    assert torch.equal(loaded.images[7], decoded(Image.open(tmp_path / "007.jpg")))  # the others stay in their place


def test_labels_stay_with_their_images_after_a_broken_one(tmp_path):
    images = [{"bytes": encoded(Image.fromarray(np.full((2, 2), i, np.uint8))), "path": None} for i in range(200)]
    images[50] = {"bytes": images[50]["bytes"][:30], "path": "cut.png"}
    path = write_parquet(tmp_path, images, number=(datasets.Value("int64"), list(range(200))))
    loaded = load_images(path, label_column="number")
    assert loaded.skipped == ["cut.png"] and torch.equal(loaded.images[:, 0, 0, 0].long(), loaded.labels)


def test_too_many_broken_images_are_an_error(tmp_path):
    write_folder(tmp_path, 20, {"cut.jpg": b"\xff\xd8\xff"})
    with pytest.raises(ValueError, match="more than 1 % of 21 images cannot be read, among them .*cut.jpg"):
        load_images(str(tmp_path))


def test_decompression_bombs_are_not_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UnreadableImage, match="DecompressionBombError"):
        decoded(Image.new("L", (10, 10)))


def test_a_stream_replaces_broken_images_for_every_rank_alike(tmp_path):
    images = [{"bytes": encoded(Image.fromarray(np.full((2, 2), i, np.uint8))), "path": f"{i}.png"} for i in range(8)]
    images[3] = {"bytes": b"", "path": "3.png"}
    streamed = load_images(write_parquet(tmp_path, images), streaming=True)
    whole = numbers(next(streamed.batches(8, seed=0)))
    halves = [numbers(next(streamed.batches(8, seed=0, rank=rank, world_size=2))) for rank in range(2)]
    assert streamed.skipped == ["3.png"] and set(whole) == {0, 1, 2, 4, 5, 6, 7} and halves[0] + halves[1] == whole


def test_too_many_broken_images_in_a_stream_are_an_error(tmp_path):
    whole = encoded(Image.fromarray(noise(2, 2)))
    images = [{"bytes": whole if i % 5 else whole[:20], "path": None} for i in range(1, 101)]
    batches = load_images(write_parquet(tmp_path, images), streaming=True).batches(50, seed=0)
    with pytest.raises(ValueError, match="more than 1 % of 1000 images cannot be read, among them an unnamed image"):
        take(batches, 10)


# ---- batches -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "disk", "stream", "stream of known length"])
def source(request, numbered, monkeypatch):
    if request.param == "disk":  # too large for memory
        monkeypatch.setattr(loading, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(streams, "SHUFFLE_BUFFER", 16)
    loaded = load_images(numbered, streaming=True if request.param.startswith("stream") else None)
    assert isinstance(loaded, ImageData if request.param == "memory" else StreamedImages)
    assert loaded.image_shape == (1, 4, 4) and loaded.class_names == list("abcd")
    assert loaded.num_images == 40
    return dataclasses.replace(loaded, sizes=None) if request.param == "stream" else loaded  # as of other files


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_equal(batches, expected):
    for got, want in zip(batches, expected, strict=True):
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_each_epoch_serves_every_image_once_with_its_label(source):
    batches = take(source.batches(16, seed=0), 5)  # two epochs; the third batch runs over the boundary
    order = sum(map(numbers, batches), [])
    assert sorted(order[:40]) == sorted(order[40:]) == list(range(40))
    assert order[:40] != order[40:] and order[:40] != list(range(40))
    for images, labels in batches:
        assert images.shape == (16, 1, 4, 4) and images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert torch.equal(labels, images[:, 0, 0, 0].long() % 4)
    assert numbers(next(source.batches(16, seed=1))) != order[:16]


def test_resumed_batches_equal_uninterrupted_ones(source):
    batches = take(source.batches(16, seed=3, flip=True), 7)
    assert_equal(take(source.batches(16, seed=3, start_step=4, flip=True), 3), batches[4:])
    assert_equal(take(source.batches(16, seed=3, start_step=5, flip=True), 2), batches[5:])  # an epoch's first image


def test_ranks_share_the_global_batch(source):
    whole = take(source.batches(12, seed=0, flip=True), 4)
    ranks = [take(source.batches(12, seed=0, flip=True, rank=rank, world_size=3), 4) for rank in range(3)]
    joined = [tuple(torch.cat(parts) for parts in zip(*batch, strict=True)) for batch in zip(*ranks, strict=True)]
    assert_equal(joined, whole)


def test_batch_larger_than_the_data(source):
    counts = np.bincount(numbers(next(source.batches(100, seed=0))), minlength=40)
    assert counts.min() == 2 and counts.max() == 3 and counts.sum() == 100


def test_images_on_disk_are_served_as_those_in_memory(numbered, monkeypatch):
    in_memory = load_images(numbered)
    monkeypatch.setattr(loading, "MEMORY_LIMIT", 0)
    on_disk = load_images(numbered)
    assert_equal(take(on_disk.batches(16, seed=2, flip=True), 6), take(in_memory.batches(16, seed=2, flip=True), 6))


def test_a_stream_that_announces_another_length_is_an_error(numbered):
    streamed = dataclasses.replace(load_images(numbered, streaming=True), sizes=[41])
    with pytest.raises(ValueError, match="streams 40 images but announces 41"):
        take(streamed.batches(16, seed=0), 3)


def test_flips_mirror_half_of_the_images():
    images = torch.from_numpy(noise(1000, 1, 2, 3))
    plain, flipped = (
        next(ImageData(images, None, None, [], "noise").batches(1000, seed=0, flip=flip))[0] for flip in (False, True)
    )
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    unchanged = (flipped == plain).flatten(1).all(1)
    assert (mirrored | unchanged).all() and 400 < (mirrored & ~unchanged).sum() < 600


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 5, "world_size": 2}, "batch_size must be a multiple of world_size 2, got 5"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"start_step": 1.5}, "start_step must be an integer of at least 0, got 1.5"),
        ({"rank": 2, "world_size": 2}, "rank must be below world_size 2, got 2"),
    ],
)
def test_bad_batch_arguments_fail_at_the_call(source, options, message):
    with pytest.raises(ValueError, match=message):
        source.batches(**{"batch_size": 4, "seed": 0} | options)


def test_skipping_in_a_stream_decodes_nothing(numbered, monkeypatch):
    streamed = load_images(numbered, streaming=True)
    decoded_images = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(
        datasets.Image, "decode_example", lambda *args: decoded_images.append(1) or decode(*args), raising=True
    )
    next(streamed.batches(4, seed=0, start_step=9))
    assert len(decoded_images) <= 8  # the batch and the one read ahead


# ---- the rest ------------------------------------------------------------------------------------------------------


def test_hold_out(numbered):
    loaded = load_images(numbered)
    train, validation = hold_out(loaded, 0.25, seed=1)
    assert len(train) == 30 and len(validation) == 10 and train.class_names == loaded.class_names
    assert sorted(train.images[:, 0, 0, 0].tolist() + validation.images[:, 0, 0, 0].tolist()) == list(range(40))
    assert torch.equal(validation.labels, validation.images[:, 0, 0, 0].long() % 4)
    assert torch.equal(hold_out(loaded, 10, seed=1)[1].images, validation.images)
    assert not torch.equal(hold_out(loaded, 10, seed=2)[1].images, validation.images)
    for size in (0, 40, 0.0, 1.0, 0.001, -3):
        with pytest.raises(ValueError, match=f"size must be .* got {size!r}"):
            hold_out(loaded, size)
    with pytest.raises(ValueError, match="streamed"):
        hold_out(load_images(numbered, streaming=True), 0.1)


def test_suggest_sigma_max():
    images = torch.from_numpy(noise(700, 3, 4, 4))
    points = images.double().flatten(1) / 255
    assert suggest_sigma_max(images) == pytest.approx(torch.cdist(points, points).max().item(), rel=1e-5)
    assert 0 < suggest_sigma_max(images, max_images=50) <= suggest_sigma_max(images)
    black_and_white = torch.stack([torch.zeros(1, 5, 5), torch.full((1, 5, 5), 255)]).to(torch.uint8)
    assert suggest_sigma_max(black_and_white) == pytest.approx(5)
    for bad in (images.float(), images[:1], images[0]):
        with pytest.raises(ValueError, match="images must be uint8"):
            suggest_sigma_max(bad)


# ---- the Hub -------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as it takes to serve the files of `folder` as the data set org/name."""

    protocol_version = "HTTP/1.1"
    commit = "c" * 40
    folder: Path

    def do_GET(self):
        path = self.path.split("?")[0]
        prefix, _, name = path.partition(f"/resolve/{self.commit}/")
        files = list(self.folder.iterdir())
        if re.fullmatch("/api/datasets/org/name(/revision/[^/]+)?", path):
            siblings = [{"rfilename": file.name} for file in files]
            self.answer(json.dumps({"id": "org/name", "sha": self.commit, "tags": [], "siblings": siblings}).encode())
        elif path.startswith("/api/datasets/org/name/tree/"):
            entries = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]
            self.answer(json.dumps(entries).encode())
        elif prefix == "/datasets/org/name" and (self.folder / name).is_file():
            content = (self.folder / name).read_bytes()
            start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-")).groups()
            part = content[int(start) : int(end or len(content)) + 1]
            status = 206 if "Range" in self.headers else 200
            span = f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}"
            self.answer(part, status, {"Content-Range": span, "ETag": f'"{name}"'})
        else:
            missing = "EntryNotFound" if "/org/name/" in path else "RepoNotFound"
            self.answer(b"{}", 404, {"X-Error-Code": missing})

    do_HEAD = do_GET

    def answer(self, body, status=200, headers=None):
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "X-Repo-Commit": self.commit, **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


HUB_SCRIPT = """
import logging, sys, time
import datasets
logging.basicConfig()
from images.loading import load_images
for dataset, streaming in (("org/name", True), ("org/name", None), ("org/other", None), ("fashion_mnist", None)):
    start = time.monotonic()
    try:
        loaded = load_images(dataset, streaming=streaming)
        print(type(loaded).__name__, loaded.name, sorted(next(loaded.batches(6, seed=0))[1].tolist()))
    except (FileNotFoundError, ConnectionError) as error:
        print(type(error).__name__, round(time.monotonic() - start), "s:", error)
"""


def run_hub_script(endpoint, home, offline_mode="0"):
    """In a new process, since the libraries read the endpoint and the place of the cache when they begin."""
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": offline_mode}
    environment = (
        os.environ | environment | {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "PYTHONPATH": "training"}
    )
    result = run_python(["-c", HUB_SCRIPT], environment, ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), result.stderr


def test_hub_with_and_without_connection(tmp_path):
    labels = (datasets.ClassLabel(names=list("abcdef")), list(range(6)))
    Hub.folder = Path(write_parquet(tmp_path / "hub", [noise(4, 4)] * 6, label=labels))
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        (streamed, downloaded, absent, _), _ = run_hub_script(endpoint, tmp_path / "home")
        server.shutdown()
    assert streamed == "StreamedImages org/name [0, 1, 2, 3, 4, 5]"
    assert downloaded == "ImageData org/name [0, 1, 2, 3, 4, 5]"
    assert absent.startswith("FileNotFoundError") and "neither a folder nor a data set of the Hub" in absent

    for offline_mode in ("0", "1"):  # nobody listens to the endpoint any more; then nobody asks
        (streamed, cached, absent, embedded), log = run_hub_script(endpoint, tmp_path / "home", offline_mode)
        assert streamed == "StreamedImages org/name [0, 1, 2, 3, 4, 5]"
        assert cached == "ImageData org/name [0, 1, 2, 3, 4, 5]"
        seconds = re.match(r"ConnectionError (\d+) s: .* cannot be reached .* Give a local folder", absent)[1]
        assert int(seconds) < 5
        assert embedded.startswith("ImageData fashion_mnist (embedded sample)")
        assert "10,000 training images rather than 60,000" in log
