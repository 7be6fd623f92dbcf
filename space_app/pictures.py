"""Images between the network's tensors and what people upload and see."""

import hashlib
import os
import tempfile
from io import BytesIO
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from gradio.components.base import server
from gradio.utils import get_upload_folder
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sde_diffusers.images import PixelFormat, read_images, standard_picture, to_array, visible

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 25_000_000  # of an upload; more is refused before it is decoded
MAX_FILE_SIZE = "10mb"
MAX_BLOBS = 100_000_000  # bytes of what browsers drew and have not yet asked about
LAYERS = 4  # of a canvas, at most: of a value that comes twice, Gradio makes its layer twice
SHOWN_SIZE = 224  # pixels; smaller images are enlarged by a whole factor to at least this

# ---- uploads -------------------------------------------------------------------------------------------------------


def open_picture(source) -> Image.Image:
    """An image file, opened but not yet decoded.

    Args:
        source: its path, or its bytes.

    Raises:
        gr.Error: if it is none of `FORMATS` or too large.
    """
    try:
        picture = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
        width, height = picture.size
    except Image.DecompressionBombError:
        raise too_large("This image") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        kinds = ", ".join(FORMATS[:-1])
        raise friendly(f"This file is not an image that can be read here ({kinds} or {FORMATS[-1]}).") from None
    if width * height > MAX_PIXELS:
        picture.close()
        raise too_large(f"An image of {width:,} x {height:,} pixels")
    return picture


def too_large(what: str) -> gr.Error:
    return friendly(f"{what} is too large: at most {MAX_PIXELS // 10**6} million pixels, please.")


def friendly(message: str) -> gr.Error:
    """An error that is the user's to mend."""
    return gr.Error(message, print_exception=False)


def read_picture(path: str | None, shape: tuple[int, int, int], pixels: PixelFormat, deep: bool = False) -> Tensor:
    """An uploaded image as the network takes it; for the arguments see `fitted`."""
    if path is None:
        raise friendly("There is no image yet: upload one, or take a random one.")
    channels, height, width = shape
    with open_picture(path) as picture:
        try:
            picture.draft(None, (4 * width, 4 * height))  # JPEG: decode it small
            return fitted(picture, shape, pixels, deep)
        except gr.Error:
            raise
        except (OSError, ValueError, SyntaxError):
            raise friendly("This image file is damaged.") from None


def fitted(picture: Image.Image, shape: tuple[int, int, int], pixels: PixelFormat, deep: bool = False) -> Tensor:
    """The middle of a picture as training reads it: (1, C, H, W) in [0, 1], on the levels that the data have.

    Exact for images that were enlarged by a whole factor.

    Args:
        shape: (C, H, W) of the network's images.
        pixels: their format.
        deep: whether the picture must have more than 8 bits where they do.

    Raises:
        gr.Error: if the network's images have other channels than pictures do, or values outside their range.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise friendly(
            f"This model's images have {channels} bands, which no picture has: use its pipeline in Python and arrays."
        )
    picture = standard_picture(picture, channels)
    if picture.mode in ("L", "RGB"):
        if deep and pixels.levels != 256:
            raise friendly(f"This picture has 8 bits, and the model's images have {pixels.dtype} values.")
        white = 255
    else:
        try:
            picture = Image.fromarray(read_images("picture", picture, 1, pixels)[0, 0].numpy())
        except ValueError as error:
            raise friendly(str(error)) from None
        white = 1
    values = np.array(ImageOps.fit(picture, (width, height), Image.Resampling.BOX), dtype=np.float32)
    unit = torch.from_numpy(values).view(height, width, -1).permute(2, 0, 1)[None] / white
    return pixels.to_unit(pixels.from_unit(unit.expand(1, channels, height, width)))


def picture_input(**options) -> gr.Image:
    """An upload whose file is checked before Gradio opens it; handlers get its path."""
    image = gr.Image(
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "clipboard"],
        height=250,
        buttons=[],
        elem_classes="pixels",
        **options,
    )
    return checked(image, lambda payload: [payload.path] if payload.path else [])


def show_what_is_seen(image: gr.Image, model) -> gr.Image:
    """A small picture of what the model sees of an upload: its middle, at the model's size and with its channels."""

    def see(path):
        if path is None:
            return None
        return picture_file(to_picture(read_picture(path, model.image_shape, model.pixels)[0]), "as the model sees it")

    seen = seen_picture(see(image.value["path"]) if image.value else None)
    image.change(see, image, seen, api_visibility="private", show_progress="hidden", trigger_mode="always_last")
    return seen


def seen_picture(value: str | None) -> gr.Image:
    """Where what the model sees is shown."""
    return gr.Image(
        value,
        label="What the model sees",
        format="png",
        interactive=False,
        buttons=[],
        height=140,
        elem_classes=["pixels", "seen"],
    )


def mask_editor(**options) -> gr.ImageEditor:
    """A canvas to paint on; handlers get a dictionary of PIL images, "background" and "layers".

    The background is opened anew: Gradio makes 8 bits of it, by cutting off what is brighter than 255.
    """
    editor = gr.ImageEditor(
        type="pil",
        image_mode="RGBA",
        format="png",
        sources=["upload", "clipboard"],
        buttons=[],
        transforms=[],
        layers=False,
        canvas_size=(280, 280),
        fixed_canvas=True,
        brush=gr.Brush(default_size=44, colors=["#f97316"], default_color="#f97316", color_mode="fixed"),
        eraser=gr.Eraser(default_size=44),
        elem_classes="canvas",
        **options,
    )

    def files(payload):
        stored = editor.blob_storage.get(payload.id) if payload.id else None
        parts = payload if stored is None else stored
        found = [parts.background, parts.composite, *parts.layers]
        return [part if isinstance(part, bytes) else part.path for part in found if part is not None]

    checked(editor, files)
    preprocess = editor.preprocess

    def with_background(payload):
        background = None if payload is None else files(payload)[:1]
        painted = preprocess(payload)
        if painted is not None and painted["background"] is not None:
            painted["background"] = open_picture(background[0])
        return painted

    editor.preprocess = with_background
    return few_blobs(editor)


def few_blobs(editor: gr.ImageEditor) -> gr.ImageEditor:
    """Let a canvas forget what browsers sent long ago: it would keep that until they ask for something."""
    accept, kept = editor.accept_blobs, editor.blob_storage

    def size(blobs):
        return sum(len(part) for part in (blobs.background, blobs.composite, *blobs.layers) if part is not None)

    @server
    def accept_blobs(data):
        if data.data["index"] not in ("null", *map(str, range(LAYERS))):
            raise ValueError(f"There are {LAYERS} layers at most.")
        accept(data)
        while sum(map(size, kept.values())) > MAX_BLOBS:
            del kept[next(iter(kept))]

    editor.accept_blobs = accept_blobs
    return editor


def checked(component, files):
    """Let a component refuse bad files before it decodes them.

    The instance is changed and no subclass made, because Gradio writes a file beside the source of each subclass.
    """
    decode = component.preprocess

    def preprocess(payload):
        for file in [] if payload is None else files(payload):
            open_picture(file).close()
        return decode(payload)

    component.preprocess = preprocess
    return component


# ---- what is shown -------------------------------------------------------------------------------------------------


def to_picture(image: Tensor, pixels: PixelFormat = PixelFormat(), size: int = SHOWN_SIZE) -> Image.Image:  # noqa: B008 (frozen)
    """One image (C, H, W), uint8 or in [0, 1]; of many bands, the first three.

    Args:
        pixels: of the picture: 8 bits to look at, or a deeper format for grey ones.
        size: of its longer side at least, in pixels; smaller ones are enlarged by a whole factor.
    """
    image = visible(image)
    unit = image.cpu().clamp(0, 1) if image.is_floating_point() else image / 255
    factor = max(1, -(-size // max(image.shape[1:])))
    values = to_array(unit[None], pixels)[0].repeat(factor, 0).repeat(factor, 1)
    return Image.fromarray(values[..., 0] if len(image) == 1 else values)


def picture_file(picture: Image.Image, name: str) -> str:
    """The path of a PNG file of this name, which a browser may fetch."""
    png = BytesIO()
    picture.save(png, "PNG")
    return kept_file(png.getvalue(), f"{name}.png")


def kept_file(data: bytes, name: str) -> str:
    """The path of a file in Gradio's cache, in a folder of its content.

    One that is there already is replaced as a whole. Gradio writes it anew where it is, and a browser that is just
    fetching the same picture then gets half of it.
    """
    folder = Path(get_upload_folder()) / hashlib.sha256(data).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(data)
    os.replace(file.name, folder / name)
    return str(folder / name)


def visible_states(x: Tensor, scheduler, t: Tensor) -> Tensor:
    """States x_t (N, C, H, W) of the sampling SDE as images in [0, 1]: signal and noise in their true ratio.

    With images in [-1, 1], x_t / sqrt(alpha^2 + sigma^2).
    """
    low, high = scheduler.parameterization.image_range
    half, middle = (high - low) / 2, (high + low) / 2
    alpha, sigma = scheduler.sde.alpha(t).item(), scheduler.sde.sigma(t).item() / half
    return ((x - alpha * middle) / half / (alpha**2 + sigma**2) ** 0.5 + 1) / 2


def seconds(value: float) -> str:
    return f"{value:.1f} s"


def counted(evaluations: int) -> str:
    return f"{evaluations} evaluation" + ("" if evaluations == 1 else "s")


def status_line(text: str) -> gr.Markdown:
    """Where a tab says how far its work is; page.js lets it be spoken, too."""
    return gr.Markdown(text, label="status", elem_classes=["status", "progress"])


def status_of(work) -> str:
    """A line while work is going on."""
    return f"{work.share:.0%} · {seconds(work.seconds)} …"


# ---- numbers -------------------------------------------------------------------------------------------------------


def number_input(label: str, low: float, high: float, value: float, **options) -> gr.Number:
    """A field for a number; what is out of range is refused. (A slider of Gradio's changes it without a word.)"""
    info = options.pop("info", "")
    info = f"{low} to {high}" + (f". {info}" if info else "")
    return gr.Number(value, label=label, minimum=low, maximum=high, info=info, min_width=100, **options)


def whole_number(name: str, value, low: int, high: int) -> int:
    """`value` as an integer; a friendly error unless it is one from `low` to `high`."""
    if not isinstance(value, (int, float)) or value != value or value != value // 1 or not low <= value <= high:
        raise friendly(f"{name} must be a whole number from {low:,} to {high:,}, but is {value}.")
    return int(value)


def checked_seed(value) -> int:
    return whole_number("The seed", value, 0, 2**32 - 1)


def generators(seed: int, count: int) -> list[torch.Generator]:
    """One source of noise for each image, with the seeds `seed`, `seed` + 1, ..."""
    return [torch.Generator().manual_seed(seed + k) for k in range(count)]
