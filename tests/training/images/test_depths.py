"""Images of every depth and number of bands are read as they are, from every kind of file."""

import io
import logging
import re
import struct
import zlib

import datasets
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from images.files import ORIENTATION
from images.loading import load_images
from images.pixels import UnreadableImage, decode_image, suggest_sigma_data, suggest_sigma_max
from sde_diffusers.images import PixelFormat, read_images

RANDOM = np.random.default_rng(0)
DEEP = {
    "uint16": RANDOM.integers(0, 65536, (3, 6, 9)).astype(np.uint16),
    "int16": RANDOM.integers(-1000, 3000, (3, 6, 9)).astype(np.int16),
    "float32": RANDOM.normal(size=(3, 6, 9)).astype(np.float32),
}
PAGES = RANDOM.integers(0, 65536, (5, 6, 9)).astype(np.uint16)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(values):
    """A 16-bit PNG file of (H, W, C), by the rules of its specification, with each of the five filters."""
    height, width, channels = values.shape
    rows = np.frombuffer(values.astype(">u2").tobytes(), np.uint8).reshape(height, -1).astype(int)
    size, above, lines = 2 * channels, np.zeros(rows.shape[1], int), b""
    for y, row in enumerate(rows):
        left, corner = (np.concatenate([np.zeros(size, int), of[:-size]]) for of in (row, above))
        a, b, c = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
        paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))
        predicted = [0, left, above, (left + above) // 2, paeth][y % 5]
        lines += bytes([y % 5]) + ((row - predicted) % 256).astype(np.uint8).tobytes()
        above = row
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def decoded(content, **options):
    return decode_image({"bytes": content, "path": None}, dtype=None, **options)


def test_png_of_sixteen_bits_and_three_channels_is_exact():
    values = RANDOM.integers(0, 65536, (11, 7, 3))
    assert np.array_equal(decoded(png(values)).permute(1, 2, 0), values)
    opaque = np.concatenate([values, np.full((11, 7, 1), 65535)], 2)
    assert np.array_equal(decoded(png(opaque)).permute(1, 2, 0), values)
    clear = np.concatenate([values, np.zeros((11, 7, 1))], 2)
    assert (decoded(png(clear)) == 65535).all()
    bands = RANDOM.integers(0, 65536, (5, 4, 4))
    assert np.array_equal(decoded(png(bands), channels=4).permute(1, 2, 0), bands)


@pytest.mark.parametrize("dtype", DEEP)
@pytest.mark.parametrize("layout", ["pages", "planes", "gray"])
def test_tiff_files_are_exact(tmp_path, dtype, layout):
    values = DEEP[dtype]
    if layout == "gray":
        values = values[:1]
        tifffile.imwrite(tmp_path / "a.tif", values[0])
    elif layout == "pages":
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    else:
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="separate")
    image = decoded((tmp_path / "a.tif").read_bytes())
    assert np.array_equal(image.numpy(), values) and image.dtype == PixelFormat.of(dtype, (0, 1)).torch_dtype


def test_tiff_of_16_bit_colours_is_exact(tmp_path):
    values = DEEP["uint16"].transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    assert np.array_equal(decoded((tmp_path / "a.tif").read_bytes()).permute(1, 2, 0), values)


def write_pages(path, pages, compressions=(None,), **options):
    with tifffile.TiffWriter(path) as tiff:
        for k, page in enumerate(pages):
            tiff.write(page, photometric="minisblack", compression=compressions[k % len(compressions)], **options)


@pytest.mark.parametrize("compressions", [(None,), (None, "zlib")])
def test_tiff_pages_that_were_written_one_by_one(tmp_path, compressions):
    write_pages(tmp_path / "a.tif", PAGES, compressions)
    assert np.array_equal(decoded((tmp_path / "a.tif").read_bytes()).numpy(), PAGES)
    stack = load_images(str(tmp_path / "a.tif"))
    assert len(stack) == 5 and np.array_equal(stack.images[:, 0].numpy(), PAGES)
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:
        tiff.write(PAGES[0])
        tiff.write(PAGES[0, ::2, ::2].copy(), subfiletype=1)  # a smaller copy
    assert np.array_equal(decoded((tmp_path / "b.tif").read_bytes())[0].numpy(), PAGES[0])


def test_tiff_pages_that_differ_are_refused(tmp_path):
    write_pages(tmp_path / "a.tif", [*PAGES, PAGES[0].astype(np.uint8), PAGES[0].astype(np.uint8)])
    message = r"5 of \(6, 9\) uint16, 2 of \(6, 9\) uint8: pages must have one shape, type and orientation"
    with pytest.raises(UnreadableImage, match=message):
        decoded((tmp_path / "a.tif").read_bytes())
    with pytest.raises(ValueError, match=message):
        load_images(str(tmp_path / "a.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_upright(tmp_path, orientation):
    """As PIL turns images of 8 bits."""
    tag = [(ORIENTATION, "H", 1, orientation, True)]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    colours = PAGES[:3].transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "rgb.tif", colours, photometric="rgb", extratags=tag)
    write_pages(tmp_path / "bands.tif", PAGES, extratags=tag)
    picture = Image.fromarray((PAGES[0] // 256).astype(np.uint8))
    picture.save(tmp_path / "grey.png", exif=exif)
    turned = decoded((tmp_path / "grey.png").read_bytes())
    tells = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    ours = png(colours)
    contents = [(tmp_path / "rgb.tif").read_bytes(), (tmp_path / "bands.tif").read_bytes()]
    contents += [ours[:33] + tells + ours[33:], ours[:-12] + tells + ours[-12:]]
    for content in contents:
        image = decoded(content)
        assert np.array_equal(image[:1] // 256, turned)
        assert np.array_equal(np.sort(image[1].flatten()), np.sort(PAGES[1].flatten()))
    stack = load_images(str(tmp_path / "bands.tif"))
    assert np.array_equal(stack.images[0] // 256, turned) and len(stack) == 5


@pytest.mark.parametrize("dtype, white", [(np.uint8, 255), (np.uint16, 65535)])
@pytest.mark.parametrize("extra, kept", [("unassalpha", 1), ("assocalpha", 0.5)])
def test_transparency_and_a_fourth_band_of_tiff_files(tmp_path, dtype, white, extra, kept):
    colours = np.array([0.2, 0.4, 0.8])
    pixel = np.round([*(kept * colours * white), 0.5 * white]).astype(dtype)  # multiplied by the opacity, or not
    values = np.broadcast_to(pixel, (4, 6, 4))
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[extra])
    on_white = decoded((tmp_path / "a.tif").read_bytes())[:, 0, 0] / white
    assert on_white.tolist() == pytest.approx(0.5 * colours + 0.5, abs=0.01)
    tifffile.imwrite(tmp_path / "b.tif", values, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(decoded((tmp_path / "b.tif").read_bytes()).permute(1, 2, 0), values)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_array_files(tmp_path, kind):
    for k in range(4):
        save = np.save if kind == "npy" else np.savez
        save(tmp_path / f"{k}.{kind}", DEEP["float32"] + k)
    loaded = load_images(str(tmp_path))
    assert loaded.image_shape == (3, 6, 9) and loaded.pixels.dtype == "float32"
    assert np.array_equal(loaded.images[2], DEEP["float32"] + 2)
    assert (loaded.pixels.low, loaded.pixels.high) == (loaded.images.min().item(), loaded.images.max().item())


def test_channels_of_arrays():
    for shape, channels, expected in (
        ((8, 9), None, (1, 8, 9)),
        ((5, 8, 9), None, (5, 8, 9)),
        ((8, 9, 5), None, (5, 8, 9)),
        ((4, 8, 4), None, UnreadableImage),
        ((5, 8, 3), 5, (5, 8, 3)),
        ((4, 4, 4, 4), None, UnreadableImage),
    ):
        values = np.zeros(shape, np.int16)
        if expected is UnreadableImage:
            with pytest.raises(UnreadableImage, match="shape"):
                decode_image(values, channels=channels, dtype=None)
        else:
            assert decode_image(values, channels=channels, dtype=None).shape == expected


def test_medmnist_layout(tmp_path):
    arrays = {}
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        arrays[f"{split}_images"] = RANDOM.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.arange(count)[:, None] % 4
    np.savez(tmp_path / "octmnist.npz", **arrays)
    for path in (tmp_path / "octmnist.npz", tmp_path):
        train, validation = load_images(str(path)), load_images(str(path), "validation")
        assert np.array_equal(train.images[:, 0], arrays["train_images"]) and train.labels.tolist() == [
            0,
            1,
            2,
            3,
            0,
            1,
        ]
        assert validation.image_shape == (1, 28, 28) and validation.labels.tolist() == [0, 1, 2]


def test_npz_of_one_array(tmp_path):
    images, labels = RANDOM.integers(0, 256, (5, 3, 8, 8)).astype(np.uint8), np.array(["b", "a", "b", "a", "c"])
    np.savez(tmp_path / "mine.npz", pictures=images, kinds=labels)
    loaded = load_images(str(tmp_path / "mine.npz"))
    assert np.array_equal(loaded.images, images)
    assert loaded.labels.tolist() == [1, 0, 1, 0, 2] and loaded.class_names == ["a", "b", "c"]
    np.savez(tmp_path / "gaps.npz", pictures=images, kinds=[-1, 0, 1, 0, 1])
    with pytest.raises(ValueError, match="1 of 5 labels of the split train are nothing, or below 0"):
        load_images(str(tmp_path / "gaps.npz"))
    np.savez(tmp_path / "two.npz", a=images, b=images)
    with pytest.raises(
        ValueError, match=r"two\.npz must hold one array of images .* a \(5, 3, 8, 8\), b \(5, 3, 8, 8\)"
    ):
        load_images(str(tmp_path / "two.npz"))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_array_columns_of_parquet(tmp_path, dtype):
    values = RANDOM.integers(0, 200, (3, 5, 8, 8)).astype(dtype)
    feature = datasets.Features({"cube": datasets.Array3D((5, 8, 8), dtype)})
    datasets.Dataset.from_dict({"cube": values.tolist()}, feature).to_parquet(tmp_path / "train.parquet")
    for streaming in (False, True):
        loaded = load_images(str(tmp_path), streaming=streaming, value_range=(0, 200))
        images, _ = next(loaded.batches(3, seed=0))
        assert loaded.pixels.dtype == dtype and sorted(images.sum((1, 2, 3)).tolist()) == sorted(
            values.astype(float).sum((1, 2, 3)).tolist()
        )


def test_white_level_of_twelve_bits(tmp_path, caplog):
    values = RANDOM.integers(0, 4096, (4, 16, 16)).astype(np.uint16)
    values[0, 0, 0] = 4095
    for k, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    with caplog.at_level(logging.WARNING):
        dark = load_images(str(tmp_path))
    assert "white_level=4095" in caplog.text and dark.pixels == PixelFormat.of("uint16")
    loaded = load_images(str(tmp_path), white_level=4095)
    assert loaded.pixels == PixelFormat("uint16", 0, 4095) and loaded.pixels.levels == 4096
    assert loaded.pixels.to_unit(loaded.images).max() == 1 and np.array_equal(loaded.images[:, 0], values)
    with pytest.raises(ValueError, match=r"0\.png holds values beyond the range 0 to 1023; all images: \d+ to 4095"):
        load_images(str(tmp_path), white_level=1023)
    with pytest.raises(ValueError, match=r"\d.png holds values from .* beyond the range 0 to 100"):
        next(load_images(str(tmp_path), white_level=100, streaming=True).batches(4, seed=0))


def test_files_of_several_depths_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="b.png holds uint16 where the images before it hold uint8"):
        load_images(str(tmp_path))


def test_floats_without_a_range(tmp_path):
    for k in range(3):
        Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / f"{k}.tif")
    with pytest.raises(ValueError, match="all values are 0.5, so that their range cannot be measured"):
        load_images(str(tmp_path))
    loaded = load_images(str(tmp_path), value_range=(0, 1))
    assert (loaded.images == 0.5).all()
    with pytest.raises(ValueError, match="streamed need value_range"):
        load_images(str(tmp_path), streaming=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.float32("nan"), np.float64("inf"), np.float64(-1.8e308)])
def test_values_that_are_not_finite_are_unreadable(tmp_path, value):
    """Also those that float32 cannot hold, such as the mark of GeoTIFF files for no data."""
    np.save(tmp_path / "a.npy", np.full((4, 4), value))
    with pytest.raises(ValueError, match="no readable image: a.npy .*not finite"):
        load_images(str(tmp_path))


def test_the_first_five_reasons_are_given(tmp_path):
    for k in range(7):
        (tmp_path / f"{k}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"no readable image: (\d\.png \(UnidentifiedImageError: [^;]*\)(; )?){5}$"):
        load_images(str(tmp_path))


def test_resizing_keeps_depth_and_range():
    values = RANDOM.integers(0, 65536, (1, 40, 60)).astype(np.uint16)
    small = decode_image(values, (10, 12), dtype=None)
    assert small.shape == (1, 10, 12) and small.min() >= values.min() and small.max() <= values.max()
    assert len(small.unique()) > 100  # not rounded to 8 bits
    ramp = np.linspace(-3, 5, 64, dtype=np.float32)[None, None].repeat(64, 1)
    smooth = decode_image(ramp, 16, dtype=None)[0, 8]
    assert torch.allclose(smooth, torch.linspace(-3, 5, 64).view(16, 4).mean(1), atol=0.02)


@pytest.mark.parametrize("size, shape", [((16, 24), (16, 24)), (12, (12, 12))])
def test_rectangles(tmp_path, size, shape):
    for k, sides in enumerate([(48, 32), (60, 40)]):
        Image.effect_noise(sides, 60).save(tmp_path / f"{k}.png")
    assert load_images(str(tmp_path), image_size=size).image_shape == (1, *shape)


def test_palettes_that_are_gray_have_one_channel():
    gray = Image.fromarray(RANDOM.integers(0, 256, (8, 8)).astype(np.uint8)).quantize(16)
    colour = Image.effect_noise((8, 8), 60).convert("RGB").point(lambda v: v // 2, None).quantize(16)
    colour.putpalette([k for i in range(16) for k in (i * 16, 0, 255 - i * 16)])
    for image, channels in ((gray, 1), (colour, 3)):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        assert image.mode == "P" and len(decoded(buffer.getvalue())) == channels


def test_suggestions_are_in_the_unit_range():
    pixels = PixelFormat.of("float32", (-2.0, 6.0))
    images = torch.rand(40, 2, 5, 5) * 8 - 2
    unit = (images.double() + 2) / 8
    assert suggest_sigma_data(images, pixels=pixels) == pytest.approx(unit.std(correction=0).item(), rel=1e-5)
    flat = unit.flatten(1)
    assert suggest_sigma_max(images, pixels=pixels) == pytest.approx(torch.cdist(flat, flat).max().item(), rel=1e-4)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.tif", "a.parquet", "a.arrow", "a.tar"])
def test_files_that_are_broken(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    for dataset in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match=name):
            load_images(str(dataset))


def tiff(tmp_path, values, more=(), **options):
    """A file of an image and of smaller copies of it."""
    with tifffile.TiffWriter(tmp_path / "image.tif") as writer:
        writer.write(values, metadata=None, **options)
        for page in more:
            writer.write(page, metadata=None, subfiletype=1, **options)
    return {"bytes": None, "path": str(tmp_path / "image.tif")}


RAMP = np.array([[0, 1000], [40000, 65535]], np.uint16)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_files_in_which_0_is_white(tmp_path, dtype):
    values = (RAMP >> 8).astype(np.uint8) if dtype == np.uint8 else RAMP
    file = tiff(tmp_path, values, photometric="miniswhite")
    expected = np.iinfo(dtype).max - values.astype(int)
    assert np.array_equal(decode_image(file, dtype=None)[0], expected)
    stack = np.stack([values, values[::-1]])
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="miniswhite")
    assert np.array_equal(
        load_images(str(tmp_path / "stack.tif")).images[:, 0], np.iinfo(dtype).max - stack.astype(int)
    )
    if dtype == np.uint16:
        with Image.open(file["path"]) as image, pytest.raises(ValueError, match="in which 0 is white"):
            read_images("image", image)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_negatives_of_other_numbers_are_refused(tmp_path, dtype):
    with pytest.raises(UnreadableImage, match=f"{np.dtype(dtype)} pages in which 0 is white"):
        decode_image(tiff(tmp_path, np.ones((4, 4), dtype), photometric="miniswhite"), dtype=None)


@pytest.mark.parametrize("options", [{"compression": "zlib"}, {"imagej": True, "metadata": {"axes": "ZYX"}}])
def test_a_stack_that_was_cut_is_no_image(tmp_path, options):
    stack = np.random.default_rng(0).integers(1, 256, (20, 32, 32), dtype=np.uint8)
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, stack, **options)
    whole = path.read_bytes()
    assert np.array_equal(load_images(str(path)).images[:, 0], stack)
    for share in (0.3, 0.6, 0.8):  # of the pixels, too, where what tells of them comes last
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="cannot be read"):
            load_images(str(path))


@pytest.mark.parametrize("told", ["ImageJ=1.11a\nimages=5\nslices=5", '{"shape": [7, 7, 3]}'])
def test_one_page_of_a_stack_is_an_image_whatever_it_tells_of_the_others(tmp_path, told):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "page.tif", values, photometric="rgb", description=told, metadata=None)
    found = decode_image({"bytes": None, "path": str(tmp_path / "page.tif")}, dtype=None)
    assert np.array_equal(found, values.transpose(2, 0, 1))


def jpeg_2000(values, bits, signed=False, boxes=False):
    """A file without losses that says its values to be of so many bits."""
    moved = values.astype(np.int64) - 2 ** (bits - 1) + 32768 if bits > 8 else values
    content = io.BytesIO()
    image = Image.fromarray(moved.astype(np.uint16 if bits > 8 and values.ndim == 2 else np.uint8))
    image.save(content, "JPEG2000", no_jp2=not boxes, num_resolutions=1, irreversible=False, mct=0)
    content = bytearray(content.getvalue())
    start = content.index(b"\xff\x4f\xff\x51") + 42
    for k in range(1 if values.ndim == 2 else 3):
        content[start + 3 * k] = bits - 1 + 128 * signed
    return bytes(content)


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("bits", [9, 12, 15, 16])
def test_jpeg_2000_of_more_than_8_bits_is_exact(bits, boxes):
    values = np.linspace(0, 2**bits - 1, 64).round().reshape(8, 8).astype(np.uint16)
    assert np.array_equal(decoded(jpeg_2000(values, bits, boxes=boxes))[0], values)


def test_jpeg_2000_of_which_pil_keeps_a_part_is_refused():
    colours = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    assert np.array_equal(decoded(jpeg_2000(colours, 8)), colours.transpose(2, 0, 1))
    with pytest.raises(UnreadableImage, match="JPEG 2000 file of 3 components with 12 bits cannot be read"):
        decoded(jpeg_2000(colours, 12))
    with pytest.raises(UnreadableImage, match="1 components with 16 signed bits"):
        decoded(jpeg_2000(RAMP, 16, signed=True))


def test_keras_arrays_with_capitals(tmp_path):
    images, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2
    np.savez(tmp_path / "d.npz", X_train=images, y_train=labels, X_test=images[:2], y_test=labels[:2])
    data = load_images(str(tmp_path / "d.npz"), "test")
    assert len(data) == 2 and data.labels.tolist() == [0, 1]


def test_tiff_of_32_bits_does_not_wrap(tmp_path):
    values = np.array([[0, 1000], [300, 65000]], np.uint32)
    assert np.array_equal(decode_image(tiff(tmp_path, values), dtype=None)[0], values)
    values[1, 1] = 2**32 - 1
    with pytest.raises(UnreadableImage, match="more than 16 bits"):
        decode_image(tiff(tmp_path, values), dtype=None)


def test_copies_of_a_page_change_nothing(tmp_path):
    """As pyramids and thumbnails are; PIL counts them as pages."""
    palette = np.zeros((3, 256), np.uint16)
    palette[:, 7] = 65535, 32768, 0
    kinds = [
        (np.full((8, 8), 7, np.uint8), {"photometric": "palette", "colormap": palette}),
        (np.full((8, 8, 4), (255, 0, 0, 0), np.uint8), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        (np.full((8, 8, 4), (255, 0, 0, 0), np.uint8), {"photometric": "separated"}),
        (np.full((8, 8, 3), (9, 8, 7), np.uint8), {"photometric": "rgb"}),
    ]
    for values, options in kinds:
        alone = decode_image(tiff(tmp_path, values, **options), dtype=None)
        with_copy = decode_image(tiff(tmp_path, values, [values[::2, ::2].copy()], **options), dtype=None)
        assert torch.equal(alone, with_copy) and len(alone) in (1, 3), options


def test_numbers_that_are_no_brightness_are_refused(tmp_path):
    inks = np.zeros((8, 8, 4), np.uint16)
    with pytest.raises(UnreadableImage, match="SEPARATED pages, whose numbers are no brightness"):
        decode_image(tiff(tmp_path, inks, photometric="separated"), dtype=None)
    indices = {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 8, 8), np.uint8), **indices)
    with pytest.raises(ValueError, match="PALETTE pages, whose numbers are no brightness"):
        load_images(str(tmp_path / "stack.tif"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_bands_do_not_weigh_each_other_when_they_are_resized(tmp_path, mode):
    """PIL takes the last one for opacity."""
    values = np.full((16, 16, len(mode)), 200, np.uint8)
    values[:, :8, -1] = 0
    Image.fromarray(values, mode).save(tmp_path / "bands.png")
    image = decode_image(
        {"bytes": None, "path": str(tmp_path / "bands.png")}, image_size=8, channels=len(mode), dtype=None
    )
    assert (image[:-1] == 200).all() and image[-1].unique().numel() > 1


def test_ppm_files_of_16_bits_are_exact(tmp_path):
    values = np.array([[[0, 100, 200], [256, 300, 511]]], np.uint16)
    for white in (65535, 4095):
        head = b"P6\n# a comment\n2 1\n%d\n" % white
        assert np.array_equal(decoded(head + values.astype(">u2").tobytes()), values.transpose(2, 0, 1))
        grey = b"P5 2 1 %d " % white + values[..., 2].astype(">u2").tobytes()
        assert decoded(grey).tolist() == [[[200, 511]]]
    (tmp_path / "image.ppm").write_bytes(b"P6 2 1 65535 " + values.astype(">u2").tobytes())
    with Image.open(tmp_path / "image.ppm") as image, pytest.raises(ValueError, match="16 bits, of which PIL keeps 8"):
        read_images("image", image, 3)
    with pytest.raises(UnreadableImage):  # too short
        decoded(b"P6 2 1 65535 " + values.astype(">u2").tobytes()[:-2])
    with pytest.raises(UnreadableImage, match="of text with more than 8 bits"):
        decoded(b"P2 2 1 4095 100 200")
    assert decoded(b"P6 1 1 255 " + bytes([1, 2, 3])).flatten().tolist() == [1, 2, 3]


def test_stacks_of_splits(tmp_path):
    """One .npy file in the folder of each split is that split's images, as one alone is those of all."""
    for split, count in (("train", 60), ("test", 20)):
        (tmp_path / "stacks" / split).mkdir(parents=True)
        np.save(tmp_path / "stacks" / split / "images.npy", RANDOM.integers(0, 255, (count, 28, 28)).astype(np.uint8))
    for split, count in (("train", 60), ("test", 20)):
        data = load_images(str(tmp_path / "stacks"), split)
        assert data.images.shape == (count, 1, 28, 28)
    (tmp_path / "photo").mkdir()
    np.save(tmp_path / "photo" / "0.npy", np.zeros((24, 32, 3), np.uint8))
    assert load_images(str(tmp_path / "photo")).images.shape == (1, 3, 24, 32)
    for shape in ((60, 28, 28), (9, 9, 20)):
        with pytest.raises(UnreadableImage, match="which axis holds the channels"):
            decode_image(np.zeros(shape, np.uint8), dtype=None)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "dtype, low, high, message",
    [
        (np.int16, -1000, 3000, "in a range from -32768 to 32767, .* value_range=\\[-1000,3000\\]"),
        (np.uint16, 0, 4095, "white_level=4095"),
        (np.uint8, 0, 1, "white_level=1 "),
        (np.uint8, 0, 200, None),
    ],
)
def test_values_that_hardly_use_their_type_are_warned_of(tmp_path, caplog, streaming, dtype, low, high, message):
    values = np.linspace(low, high, 64).round().astype(dtype).reshape(8, 8)
    for k in range(4):
        np.save(tmp_path / f"{k}.npy", values)
    with caplog.at_level("WARNING"):
        load_images(str(tmp_path), streaming=streaming)
    assert re.search(message, caplog.text) if message else "value_range" not in caplog.text


def test_a_file_of_one_image_is_not_many(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="is that of one image, .H, W, C.: give a folder of such files"):
        load_images(str(tmp_path / "one.npy"))
    values = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)
    tifffile.imwrite(tmp_path / "planar.tif", values, photometric="rgb", planarconfig="separate")
    loaded = load_images(str(tmp_path / "planar.tif"))
    assert len(loaded) == 1 and np.array_equal(loaded.images[0], values)


def test_a_transparent_shade_of_sixteen_bits_is_white(tmp_path):
    for dtype, white in ((np.uint8, 255), (np.uint16, 65535)):
        image = Image.fromarray(np.array([[0, 7], [white // 2, white]], dtype))
        (tmp_path / dtype.__name__).mkdir()
        image.save(tmp_path / dtype.__name__ / "0.png", transparency=0)
        assert load_images(str(tmp_path / dtype.__name__)).images[0, 0].tolist() == [[white, 7], [white // 2, white]]


def test_one_picture_is_no_stack_of_slices(tmp_path):
    """Neither in a .npz file than in a .npy file, nor alone in its folder."""
    np.savez(tmp_path / "one.npz", np.zeros((16, 20, 3), np.uint8))
    for place in (tmp_path / "one.npz", tmp_path):
        with pytest.raises(ValueError, match=r"its shape \(16, 20, 3\) is that of one image"):
            load_images(str(place))


def test_two_arrays_for_one_split_are_refused(tmp_path):
    images = np.zeros((2, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, val_images=images, valid_images=images)
    with pytest.raises(ValueError, match="valid_images and another array for the split validation"):
        load_images(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("options", [{"image_column": "x"}, {"data_dir": "x"}, {"label_column": "x"}])
def test_what_arrays_do_not_have_is_refused(tmp_path, options):
    for split in ("train", "test"):
        (tmp_path / "splits" / split).mkdir(parents=True)
        np.save(tmp_path / "splits" / split / "x.npy", np.zeros((3, 8, 8), np.uint8))
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8), np.uint8))
    for place in (tmp_path / "x.npy", tmp_path / "splits"):
        with pytest.raises((ValueError, FileNotFoundError), match=next(iter(options))):
            load_images(str(place), **options)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
@pytest.mark.parametrize("negative", [0, 3])
def test_the_order_of_images_does_not_decide_on_their_type(tmp_path, dtype, negative):
    values = RANDOM.integers(0, 100, (4, 8, 8)).astype(dtype)
    values[negative, 0, 0] = -5
    np.save(tmp_path / "s.npy", values)
    data = load_images(str(tmp_path / "s.npy"))
    assert data.pixels.dtype == "int16" and np.array_equal(data.images[:, 0], values)
    np.save(tmp_path / "t.npy", abs(values))  # without a sign, in the format of those with one
    others = load_images(str(tmp_path / "t.npy"), pixels=data.pixels)
    assert others.pixels == data.pixels and np.array_equal(others.images[:, 0], abs(values))
    np.save(tmp_path / "u.npy", np.full((2, 8, 8), 40000, np.uint16))
    with pytest.raises(ValueError, match="holds uint16 where the images before hold int16"):
        load_images(str(tmp_path / "u.npy"), pixels=data.pixels)


def test_a_transparent_colour_of_sixteen_bits_is_on_white():
    values = RANDOM.integers(1, 60000, (5, 6, 3)).astype(np.uint16)
    values[2, 3] = (7, 300, 2)
    content = png(values)
    place = content.index(b"IDAT") - 4
    content = content[:place] + chunk(b"tRNS", struct.pack(">3H", 7, 300, 2)) + content[place:]
    expected = values.copy()
    expected[2, 3] = 65535
    assert np.array_equal(decoded(content), expected.transpose(2, 0, 1))


def test_stacks_named_after_splits(tmp_path):
    for split, count in (("train", 10), ("test", 7)):
        np.save(tmp_path / f"{split}.npy", RANDOM.integers(0, 255, (count, 28, 28)).astype(np.uint8))
    for split, count in (("train", 10), ("test", 7)):
        assert load_images(str(tmp_path), split).images.shape == (count, 1, 28, 28)


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_a_test_split_alone_is_not_trained_on(tmp_path, ending):
    save = np.save if ending == "npy" else np.savez
    for name, path in (("a", "test/x"), ("b", "test")):
        (tmp_path / name / path).parent.mkdir(parents=True)
        save(tmp_path / name / f"{path}.{ending}", RANDOM.integers(0, 255, (9, 8, 8)).astype(np.uint8))
        folder = str(tmp_path / name)
        with pytest.raises(ValueError, match="split 'train' does not exist in .*; it has 'test'"):
            load_images(folder)
        assert len(load_images(folder, "test")) == 9


def test_arrays_beside_images_are_told_of(tmp_path):
    images = RANDOM.integers(0, 256, (4, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images, scores=np.array([0.5, 0.25, 1, 2]))
    data = load_images(str(tmp_path / "a.npz"))
    assert data.labels is None and data.notes == [
        "an array that could be labels: scores (choose with data.label_column)"
    ]
    np.savez(tmp_path / "b.npz", images=images, ids=np.arange(4))
    data = load_images(str(tmp_path / "b.npz"))
    assert data.labels.tolist() == [0, 1, 2, 3] and "the array ids is taken as labels" in data.notes[0]
    for name in ("labels", "y", "y_true", "arr_1", "Class"):
        np.savez(tmp_path / "c.npz", arr_0=images, **{name: np.arange(4)})
        assert load_images(str(tmp_path / "c.npz")).notes == []
