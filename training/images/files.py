"""Image files of every depth and number of bands: what PIL reads as it is, and TIFF, PNG and arrays that it would not.

PIL rounds PNG and TIFF of three channels with 16 bits to 8, and knows no bands beyond four; here nothing is rounded.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import struct
import threading
import zlib
from collections.abc import Iterator

import datasets
import numpy as np
from PIL import Image

from sde_diffusers.images import known_values, picture_values, standard_picture

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY_MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK\x03\x04"
JPEG_2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")  # a codestream, or in boxes
JPEG_2000_SIZE = b"\xff\x4f\xff\x51"
PNG_SAMPLES = {2: 3, 4: 2, 6: 4}  # of the colour types that PIL would round: RGB, grey and alpha, RGBA
ORIENTATION = 0x0112  # of EXIF and TIFF
NO_COLOURS = ("PALETTE", "SEPARATED", "CIELAB", "ICCLAB", "ITULAB")  # of TIFF: numbers that are no brightness
PAGE_LACKS = "page offset"  # in tifffile's log
PAGES_LACK = "page offset|reshape|shaped series|ImageJ series"  # of pages that are told of
_BLANK = rb"(?:\s|#[^\n]*\n)+"
PNM_HEAD = re.compile(  # kind, width, height and the value that is white, with comments between; then one blank
    rb"(?P<kind>P[2356])%b(?P<width>\d+)%b(?P<height>\d+)%b(?P<white>\d+)\s" % (_BLANK, _BLANK, _BLANK)
)


def read_file(value: dict, channels: int | None = None) -> Image.Image | np.ndarray:
    """An encoded image as a standard picture (8-bit grey or RGB, with the bands that `channels` asks for), or as its
    numbers (C, H, W), one of `VALUE_TYPES`.

    Args:
        value: {"bytes": the file's content or None, "path": where to read it if it is None}, as `datasets` stores it.
        channels: see `standard_picture`; also tells which axis of an array holds the channels.

    Raises:
        Exception: of any kind, as decoders meet broken bytes.
    """
    source = _source(value)
    start = source.read(16)
    source.seek(0)
    if start.startswith(NPY_MAGIC) or start.startswith(ZIP_MAGIC):
        return channels_first(known_values(_array(source)), channels)
    if start.startswith(PNG_MAGIC) and (values := _deep_png(source)) is not None:
        return _on_white(values) if channels not in (2, 4) else values
    source.seek(0)
    if start.startswith(TIFF_MAGICS) and (values := _deep_tiff(source, channels)) is not None:
        return values
    source.seek(0)
    if start[:2] in (b"P2", b"P3", b"P5", b"P6") and (values := _deep_ppm(source)) is not None:
        return values
    source.seek(0)
    shift = _unused_bits(source) if start.startswith(JPEG_2000) else 0
    source.seek(0)
    with Image.open(source) as image:
        image.load()
        if image.mode == "F" or image.mode.startswith("I"):
            values, transparent = picture_values(image), image.info.get("transparency")
            if isinstance(transparent, int):  # of PNG: one shade, which is on white as elsewhere
                values = np.where(values == transparent, np.iinfo(values.dtype).max, values)
            return values >> shift if shift else values
        return standard_picture(image, channels)


def _source(value: dict) -> io.BufferedIOBase:
    """The file, open for reading."""
    if value is None:
        raise ValueError("there is no image")
    if value["bytes"] is not None:
        return io.BytesIO(value["bytes"])
    path = value["path"]
    if "://" in path or "::" in path and not path.startswith("/"):  # in a stream
        return datasets.download.streaming_download_manager.xopen(path, "rb")
    with open(path, "rb") as file:
        return io.BytesIO(file.read())


def _array(source) -> np.ndarray:
    """Of a .npy file, or the only one of a .npz file."""
    content = np.load(source, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return content
    if len(content.files) != 1:
        raise ValueError(f"a .npz file of {len(content.files)} arrays is no single image: {', '.join(content.files)}")
    return content[content.files[0]]


def channels_first(values: np.ndarray, channels: int | None = None) -> np.ndarray:
    """An array (H, W), (C, H, W) or (H, W, C) as (C, H, W); the channels are the outer axis that is the shortest.

    Raises:
        ValueError: on other dimensions, or if that leaves a choice.
    """
    if values.ndim == 2:
        return values[None]
    if values.ndim != 3:
        raise ValueError(f"has the shape {values.shape}, not (H, W), (C, H, W) or (H, W, C)")
    first, last = values.shape[0], values.shape[2]
    least = min(values.shape[1], max(first, last))  # more bands than rows are images on a pile
    candidates = [first == channels, last == channels] if channels is not None else [first < least, last < least]
    if candidates[0] == candidates[1]:
        raise ValueError(f"has the shape {values.shape}: which axis holds the channels? Give data.channels")
    return values if candidates[0] else np.moveaxis(values, 2, 0)


def upright(values: np.ndarray, orientation: int, y: int, x: int) -> np.ndarray:
    """An array whose axes y and x are those of images, turned and mirrored as EXIF's orientation says."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(y, x)
    flipped = [axis for axis, which in ((x, (2, 3, 6, 7)), (y, (3, 4, 7, 8))) if orientation in which]
    return np.flip(values, flipped) if flipped else values


def read_tiff(tiff) -> tuple[np.ndarray, str]:
    """All pages of an open `tifffile.TiffFile`, upright, and the axes of the array as tifffile calls them.

    Pages that were written one by one are joined by an axis Q; smaller copies of others (thumbnails, pyramids) and
    masks of transparency are no pages.

    Raises:
        ValueError: pages differ in shape, type or orientation, or their numbers are no brightness (a palette's, inks).
    """
    import tifffile

    parts = own_pages(tiff)
    for part in parts:
        photometric = tifffile.PHOTOMETRIC(part.keyframe.photometric)
        if photometric.name in NO_COLOURS:
            raise ValueError(
                f"holds {photometric.name} pages, whose numbers are no brightness: save them as RGB or grey"
            )
    turns = [int(part.keyframe.tags.valueof(ORIENTATION, 1)) for part in parts]
    kinds = [
        f"{part.shape} {part.dtype}{'' if turn == 1 else f' of orientation {turn}'}"
        for part, turn in zip(parts, turns, strict=True)
    ]
    if len(set(kinds)) > 1 or len({part.axes for part in parts}) > 1:
        counts = ", ".join(f"{kinds.count(kind)} of {kind}" for kind in dict.fromkeys(kinds))
        raise ValueError(f"has parts that differ, {counts}: pages must have one shape, type and orientation")
    if len(parts) == 1:
        values, axes = parts[0].asarray(), parts[0].axes
    else:
        values, axes = np.stack([part.asarray() for part in parts]), "Q" + parts[0].axes
    if any(part.keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE for part in parts):
        if values.dtype.kind == "u":
            values = (2 ** int(parts[0].keyframe.bitspersample) - 1 - values).astype(values.dtype)
        elif values.dtype.kind == "b":
            values = ~values
        else:
            raise ValueError(f"holds {values.dtype} pages in which 0 is white: save them so that 0 is black")
    return upright(values, turns[0], axes.index("Y"), axes.index("X")), axes


@contextlib.contextmanager
def open_tiff(source) -> Iterator:
    """A `tifffile.TiffFile`; a ValueError for what tifffile only logs, such as pages that are there no more."""
    import tifffile  # takes a quarter of a second

    class Complaints(logging.Handler):
        def emit(self, record):
            if record.thread == threading.get_ident():
                found.append(record.getMessage())

    found: list[str] = []
    handler, logger = Complaints(logging.ERROR), logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        with tifffile.TiffFile(source) as tiff:
            yield tiff
            page, size = tiff.pages.first, tiff.filehandle.size
            behind = size - sum((*page.dataoffsets[-1:], *page.databytecounts[-1:]))  # more pages, if it is a stack
    finally:
        logger.removeHandler(handler)
    lacking = PAGES_LACK if behind >= page.nbytes else PAGE_LACKS  # of a single page others may be told by mistake
    for message in found:
        if re.search(lacking, message):
            raise ValueError(f"is damaged, or was cut: {message}")


def own_pages(tiff) -> list:
    """The series of pages of an open `tifffile.TiffFile`, less smaller copies of others and masks of transparency."""
    return [part for part in tiff.series if not (part.keyframe.is_reduced or part.keyframe.is_mask)] or tiff.series


def _deep_tiff(source, channels: int | None) -> np.ndarray | None:
    """(C, H, W) of a TIFF file that PIL would round, cut or refuse; None for all others."""
    try:
        with Image.open(source) as image:
            single, tags = getattr(image, "n_frames", 1) == 1, image.tag_v2
            single = single or _is_one_page(source)
            bits, samples, kinds = tags.get(258, (1,)), tags.get(277, 1), tags.get(339, (1,))
            bands = 0 in tags.get(338, ())  # beyond the colours, and no transparency
            if single and set(bits) <= {1, 8} and samples in (1, 2, 3, 4) and set(kinds) == {1} and not bands:
                return None
            deep = samples == 1 and image.mode in ("I;16", "I;16B", "I", "F")
            wrapped, negative = (32 in bits and set(kinds) == {1}), tags.get(262) == 0  # which PIL leaves so
            if single and deep and 2 not in kinds and not wrapped and not negative:
                return None
    except (OSError, SyntaxError, ValueError, KeyError):  # PIL does not know this kind
        pass
    import tifffile

    source.seek(0)
    with open_tiff(source) as tiff:
        values, axes = read_tiff(tiff)
        opacities = [extra for extra in tiff.pages.first.extrasamples if extra != tifffile.EXTRASAMPLE.UNSPECIFIED]
    values = known_values(values)
    shape, bands = values.shape, [k for k, axis in enumerate(axes) if axis not in "YX"]
    values = np.transpose(values, [*bands, axes.index("Y"), axes.index("X")])
    wide = [n for n in values.shape[:-2] if n > 1]
    if len(wide) > 1:
        raise ValueError(f"has the axes {axes} of shape {shape}: pages of several bands are no single image")
    values = values.reshape(-1, *values.shape[-2:])
    transparent = opacities and values.dtype in (np.uint8, np.uint16) and channels not in (2, 4)
    return _on_white(values, opacities == [tifffile.EXTRASAMPLE.ASSOCALPHA]) if transparent else values


def _is_one_page(source) -> bool:
    """Whether all pages of a TIFF file but the first are smaller copies or masks."""
    source.seek(0)
    with open_tiff(source) as tiff:
        pages = [page.index for part in own_pages(tiff) for page in part.pages]
    return pages == [0]


def _unused_bits(source) -> int:
    """By how many bits PIL moves up the values of a JPEG 2000 file of 9 to 15 bits.

    Raises:
        ValueError: colours of more than 8 bits, of which PIL keeps 8, or signed values, which it moves.
    """
    content = source.read()
    size = content.find(JPEG_2000_SIZE) + 4  # then its length, 34 bytes of sizes, and the number of components
    if size == 3 or len(content) < size + 39:
        return 0
    components, depth = struct.unpack(">H", content[size + 36 : size + 38])[0], content[size + 38]
    bits = depth % 128 + 1
    if depth >= 128 or (bits > 8 and components > 1) or bits > 16:
        raise ValueError(
            f"a JPEG 2000 file of {components} components with {bits} {'signed ' if depth >= 128 else ''}bits cannot "
            "be read, of which PIL keeps 8 and no sign: save it as TIFF"
        )
    return 16 - bits if bits > 8 else 0


def _deep_ppm(source) -> np.ndarray | None:
    """(C, H, W) uint16 of a binary PGM or PPM file of more than 8 bits, which PIL rounds or stretches; else None.

    Raises:
        ValueError: the file ends too early, or is one of text.
    """
    content = source.read()
    head = PNM_HEAD.match(content)
    if head is None or not 255 < int(head["white"]) < 65536:
        return None
    if head["kind"] in (b"P2", b"P3"):
        raise ValueError("a PGM or PPM file of text with more than 8 bits cannot be read: save it in binary form")
    width, height, colours = int(head["width"]), int(head["height"]), 3 if head["kind"] == b"P6" else 1
    if width * height > (Image.MAX_IMAGE_PIXELS or np.inf) * 2:
        raise Image.DecompressionBombError(f"{width} x {height} pixels exceed the limit of PIL")
    values = np.frombuffer(content, ">u2", width * height * colours, head.end())
    return values.reshape(height, width, colours).transpose(2, 0, 1).astype(np.uint16)


def _deep_png(source) -> np.ndarray | None:
    """(C, H, W) uint16 of a PNG file with 16 bits and several channels; None for all others.

    PNG predicts each byte from that of the pixel to its left, which lies 2 C bytes before it, and from those above.
    So each of the 2 C bytes of a pixel is, over the image, an 8-bit grey image with the same predictors: PIL decodes
    these one by one.
    """
    head = source.read(33)
    if len(head) < 33 or head[12:16] != b"IHDR":
        return None
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", head[16:29])
    if depth != 16 or colour not in PNG_SAMPLES:
        return None
    if interlaced:
        raise ValueError("an interlaced PNG file of 16-bit colours cannot be read: save it without")
    if width * height > (Image.MAX_IMAGE_PIXELS or np.inf) * 2:
        raise Image.DecompressionBombError(f"{width} x {height} pixels exceed the limit of PIL")
    data, tells_exif, transparent = b"", False, None
    while len(start := source.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        content = source.read(length)
        source.read(4)
        data += content if kind == b"IDAT" else b""
        if kind == b"tRNS" and colour == 2:  # one colour
            transparent = np.frombuffer(content, ">u2", 3).astype(np.uint16)[:, None, None]
        tells_exif |= kind == b"eXIf" or content.startswith(b"Raw profile type exif")
    size = 2 * PNG_SAMPLES[colour]
    lines = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width * size)
    planes = []
    for k in range(size):
        plane = np.concatenate([lines[:, :1], lines[:, 1 + k :: size]], axis=1)
        content = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        content += _chunk(b"IDAT", zlib.compress(plane.tobytes(), 0)) + _chunk(b"IEND", b"")
        planes.append(np.asarray(Image.open(io.BytesIO(PNG_MAGIC + content))))
    values = np.stack(planes).astype(np.uint16)
    values = values[0::2] * 256 + values[1::2]
    if transparent is not None:
        values = np.where((values == transparent).all(0), np.uint16(65535), values)
    if tells_exif:
        source.seek(0)
        with Image.open(source) as image:
            values = upright(values, image.getexif().get(ORIENTATION, 1), 1, 2)
    return values


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _on_white(values: np.ndarray, multiplied: bool = False) -> np.ndarray:
    """Grey or RGB of integers, from that with an alpha channel if there is one; `multiplied` by it, or not yet."""
    if len(values) not in (2, 4):
        return values
    white = np.iinfo(values.dtype).max
    opacity = values[-1:].astype(np.float64) / white
    colours = values[:-1] if multiplied else opacity * values[:-1]
    return (colours + (1 - opacity) * white).round().clip(0, white).astype(values.dtype)
