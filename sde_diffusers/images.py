"""Images and masks as people have them (PIL, numpy, tensors), read into tensors: the one reader of all parts.

A picture is upright (EXIF), on white where it is transparent, and keeps its depth: 8 bits, 16 bits or floating point.
What its numbers mean is its `PixelFormat`: the value v of a pixel is (v - low) / (high - low) in the range [0, 1] of
which everything else speaks.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sde_diffusers.scalars import plain_array
from sde_diffusers.whole_pictures import require_whole

INTEGER_RANGES = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-32768, 32767)}
VALUE_TYPES = (*INTEGER_RANGES, "float32")
# torch computes next to nothing with uint16: tensors hold such values as int32.
TENSOR_TYPES = {"uint8": torch.uint8, "uint16": torch.int32, "int16": torch.int16, "float32": torch.float32}

Images = Image.Image | Sequence[Image.Image] | np.ndarray | Tensor  # as `read_images` reads them


# ---- what numbers mean ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PixelFormat:
    """The type of a data set's pixels, and which of its values are 0 and 1 in the range [0, 1].

    Args:
        dtype: "uint8", "uint16", "int16" or "float32".
        low, high: these values; integers have high - low + 1 levels.
    """

    dtype: str = "uint8"
    low: float = 0
    high: float = 255

    @classmethod
    def of(cls, dtype: str, value_range: Sequence[float] | None = None) -> "PixelFormat":
        """The format with the given range (low, high); None is that of the type, which floating point lacks.

        Raises:
            ValueError: on another type, a range that is none, or fractions and values that an integer type lacks.
        """
        if dtype not in VALUE_TYPES:
            raise ValueError(f"`value_dtype` must be one of {', '.join(VALUE_TYPES)}, but is {dtype!r}.")
        if value_range is None:
            if dtype == "float32":
                raise ValueError("`value_range` must be given for float32 images: they have no range of their own.")
            return cls(dtype, *INTEGER_RANGES[dtype])
        low, high = value_range
        if dtype == "float32":  # as its values are kept
            low, high = torch.tensor([low, high], dtype=torch.float32).tolist()
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise ValueError(
                f"`value_range` must be finite numbers (low, high) with low < high, but is {value_range}."
            )
        if dtype == "float32":
            return cls(dtype, low, high)
        least, most = INTEGER_RANGES[dtype]
        if low != int(low) or high != int(high) or low < least or high > most:
            raise ValueError(
                f"`value_range` must hold integers in [{least}, {most}] for {dtype}, but is {value_range}."
            )
        return cls(dtype, int(low), int(high))

    @property
    def levels(self) -> int | None:
        """Number of values of a pixel; None for floating point."""
        return None if self.dtype == "float32" else int(self.high - self.low) + 1

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of tensors that hold such values."""
        return TENSOR_TYPES[self.dtype]

    def to_unit(self, values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values -> [0, 1]."""
        return (values.to(dtype) - self.low) / (self.high - self.low)

    def dequantized(self, values: Tensor, uniform: Tensor) -> Tensor:
        """Values, plus uniform noise in [0, 1), in levels -> [0, 1)."""
        return (values.float() - self.low + uniform) / self.levels

    def from_unit(self, unit: Tensor) -> Tensor:
        """[0, 1] -> values, a tensor of `torch_dtype`; integers are rounded, and clipped to (low, high)."""
        values = self.low + (self.high - self.low) * unit.float()
        if self.dtype == "float32":
            return values.clamp(self.low, self.high)  # but for rounding, they lie between
        return values.round().clamp(self.low, self.high).to(self.torch_dtype)


def pixel_format(network) -> PixelFormat:
    """The format of the images that a network was trained on, as its configuration says; 8 bits by default."""
    config = network.config
    return PixelFormat.of(getattr(config, "value_dtype", "uint8"), getattr(config, "value_range", None))


def known_values(values: np.ndarray) -> np.ndarray:
    """Numbers of any type as one of `VALUE_TYPES`, exactly but for float64, which becomes float32.

    Raises:
        ValueError: integers beyond 16 bits, values that are not finite (as float32) or not real numbers.
    """
    kind = values.dtype.kind
    if kind == "b":
        return values.astype(np.uint8) * 255
    if kind == "f":
        if not (np.abs(values) <= np.finfo(np.float32).max).all():
            raise ValueError("holds values that are not finite (NaN, infinite, or beyond 3.4e38)")
        return values.astype(np.float32, copy=False)
    if kind not in "iu":
        raise ValueError(f"holds {values.dtype}, and no numbers that can be pixels")
    if values.dtype.name in INTEGER_RANGES:
        return values.astype(values.dtype.name, copy=False)  # in the machine's byte order
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for dtype in ("uint16", "int16"):
        if INTEGER_RANGES[dtype][0] <= low and high <= INTEGER_RANGES[dtype][1]:
            return values.astype(dtype)
    raise ValueError(f"holds integers from {low} to {high}, more than 16 bits: save them as float32")


# ---- pictures ------------------------------------------------------------------------------------------------------


def standard_picture(image: Image.Image, channels: int | None = None) -> Image.Image:
    """A picture upright and opaque, in one of the modes L, RGB, I (16 bits) and F.

    Transparency is on white, and colours that are all grey (as palettes may be) are one channel. With 2 or 4
    `channels`, the bands of LA and RGBA stay as they are: they are then no transparency.
    """
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return image
    if channels in (2, 4) and image.mode == {2: "LA", 4: "RGBA"}[channels]:
        return image
    grey = image.mode in ("1", "L", "LA", "La")
    palette = image.mode in ("P", "PA")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if palette:
        colours = image.convert("RGB")
        red, green, blue = (np.asarray(band) for band in colours.split())
        grey, image = np.array_equal(red, green) and np.array_equal(green, blue), colours
    if channels in (1, 3):
        return image.convert("L" if channels == 1 else "RGB")
    return image.convert("L" if grey else "RGB")


def picture_values(image: Image.Image, channels: int | None = None) -> np.ndarray:
    """(C, H, W): the numbers of a picture at their own depth, one of `VALUE_TYPES`; see `standard_picture`.

    Raises:
        ValueError: values that are not finite, or integers beyond 16 bits.
    """
    values = known_values(np.array(standard_picture(image, channels)))
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def with_channels(values: np.ndarray, channels: int | None) -> np.ndarray:
    """(C, H, W) with as many channels: grey becomes RGB, and RGB grey by ITU-R 601, as in PIL.

    Raises:
        ValueError: for other numbers of channels.
    """
    if channels in (None, len(values)):
        return values
    if len(values) == 1 and channels == 3:
        return np.repeat(values, 3, axis=0)
    if len(values) == 3 and channels == 1:
        grey = np.tensordot(np.array([0.299, 0.587, 0.114]), values.astype(np.float64), 1)[None]
        return (grey if values.dtype.kind == "f" else grey.round()).astype(values.dtype)
    raise ValueError(f"has {len(values)} channels, where {channels} are asked for")


def require_pil_mode(pixels: PixelFormat, channels: int) -> None:
    """Raise a ValueError unless PIL has a mode for such images."""
    if channels not in ((1, 2, 3, 4) if pixels.dtype == "uint8" else (1,)):
        raise ValueError(
            f"`output_type` 'pil' cannot hold {pixels.dtype} images of {channels} channels: ask for 'np' or 'pt'."
        )


def to_pil(unit: Tensor, pixels: PixelFormat = PixelFormat()) -> list[Image.Image]:  # noqa: B008 (frozen)
    """Images (N, C, H, W) in [0, 1] as PIL images of the data's own depth and units: modes L, LA, RGB, RGBA for 8
    bits, I;16 for uint16, I for int16, F for floating point."""
    require_pil_mode(pixels, unit.shape[1])
    values = to_array(unit, pixels)
    values = values[..., 0] if values.shape[3] == 1 else values
    return [Image.fromarray(image.astype(np.int32) if pixels.dtype == "int16" else image) for image in values]


def to_array(unit: Tensor, pixels: PixelFormat) -> np.ndarray:
    """Images (N, C, H, W) in [0, 1] as an array (N, H, W, C) of the data's own type and units."""
    return pixels.from_unit(unit.cpu()).permute(0, 2, 3, 1).numpy().astype(pixels.dtype, copy=False)


def visible(unit: Tensor) -> Tensor:
    """Images of any number of channels as grey or RGB to look at: the first three bands, or the first of two."""
    return unit[..., : (1 if unit.shape[-3] < 3 else 3), :, :]


# ---- arguments -----------------------------------------------------------------------------------------------------


def read_images(name: str, value, channels: int | None = None, pixels: PixelFormat | None = None) -> Tensor:
    """Images as a float32 tensor (N, C, H, W) in [0, 1].

    Args:
        name: of the argument, for messages.
        value: a PIL image or a list of them (grey becomes RGB as `channels` says, but colours never grey), an array
            (H, W), (H, W, C) or (N, H, W, C), or a tensor (C, H, W) or (N, C, H, W). Numbers are of the type of
            `pixels`, or other integers, and mean what it says; or uint8 or uint16, whose largest value is white; or
            floating point in [0, 1]. A floating point PIL image is in the units of `pixels` where those are float32,
            as files are.
        channels: the number of channels C that the result must have.
        pixels: the format of the model's images; None is uint8.

    Raises:
        ValueError: on another type, shape or range.
    """
    pixels = pixels or PixelFormat()
    images, pictures = image_values(name, value, channels, pixels)
    return unit_values(name, images, pixels, in_units=pictures and pixels.dtype == "float32")


def image_values(
    name: str, value, channels: int | None = None, pixels: PixelFormat | None = None
) -> tuple[Tensor, bool]:
    """Images as `read_images` takes them: their numbers as they are, (N, C, H, W), and whether PIL images held them.

    Raises:
        ValueError: on another type or shape.
    """
    if isinstance(value, Image.Image):
        value = [value]
    if isinstance(value, (list, tuple)) and not (value and all(isinstance(image, Image.Image) for image in value)):
        held = ", ".join(dict.fromkeys(type(image).__name__ for image in value)) or "nothing"
        raise ValueError(f"`{name}` must be a list of PIL images, or one array or tensor, but the list holds {held}.")
    pictures = isinstance(value, (list, tuple))
    given = tuple(getattr(value, "shape", ()))
    if pictures:
        arrays = [values_named(name, image, channels, pixels) for image in value]
        if len({(array.shape, array.dtype) for array in arrays}) > 1:
            raise ValueError(f"`{name}` must be images of one size and mode, but they differ.")
        value = torch.from_numpy(np.stack(arrays))
    value = plain_array(name, value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            raise ValueError(f"`{name}` must hold numbers, but is an array of {value.dtype}.")
        value = value[..., None] if value.ndim == 2 else value
        value = np.moveaxis(value.astype(value.dtype.newbyteorder("=")), -1, -3)  # FITS files are in the other order
        value = torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, Tensor):
        raise ValueError(f"`{name}` must be a PIL image, a list of them, an array or a tensor, but is {type(value)}.")
    images = value[None] if value.ndim == 3 else value
    if images.is_complex():
        raise ValueError(f"`{name}` must hold real numbers, but is {images.dtype}.")
    if images.ndim != 4 or not images.numel() or (channels is not None and images.shape[1] != channels):
        expected = f"{'C' if channels is None else channels} channels"
        raise ValueError(f"`{name}` must hold images with {expected}, but has shape {given or tuple(value.shape)}.")
    return images, pictures


def told_values(name: str, image: Image.Image, channels: int | None, pixels: PixelFormat | None) -> np.ndarray:
    """`picture_values` of the only picture of a file; warns where its colours become grey, as they do in training."""
    values = picture_values(image, 3 if channels == 1 else channels)
    if image.mode == "I" and pixels is not None and pixels.dtype == "int16" and values.max() <= 32767:
        return values.astype(np.int16)[: None if channels != 1 else 1]  # PIL's mode has signed numbers only
    if channels != 1:
        return values
    if (values != values[:1]).any():
        warnings.warn(f"`{name}` has colours, but the model's images are grey: its luminance is read.", stacklevel=2)
        return picture_values(image, 1)
    return values[:1]


def values_named(name: str, image: Image.Image, channels: int | None, pixels: PixelFormat | None) -> np.ndarray:
    """`told_values` with as many channels; errors name the argument."""
    require_whole(name, image)
    try:
        return with_channels(told_values(name, image, channels, pixels), channels)
    except ValueError as error:
        raise ValueError(f"`{name}` {error}.") from None


def unit_values(name: str, images: Tensor, pixels: PixelFormat, in_units: bool = False) -> Tensor:
    """A tensor of numbers in [0, 1], float32, as `read_images` describes them; `in_units`: floats are the data's."""
    if images.is_floating_point():
        unit = pixels.to_unit(images) if in_units else images.float()
        low, high = unit.min().item(), unit.max().item()
        if not (low >= 0 and high <= 1):
            what = f"in the model's {pixels.low} to {pixels.high}" if in_units else "in [0, 1]"
            low, high = images.min().item(), images.max().item()
            raise ValueError(
                f"`{name}` must be integers, or floating point {what}, but is {images.dtype} from {low} to {high}."
            )
        return unit
    if images.dtype == torch.bool:  # black and white
        return images.float()
    own_format, wide = integer_format(name, images, pixels), images.to(torch.int64)
    low, high = wide.min().item(), wide.max().item()
    if low < own_format.low or high > own_format.high:
        raise ValueError(
            f"`{name}` must lie in [{own_format.low}, {own_format.high}], as the model's images do, but reaches "
            f"from {low} to {high}."
        )
    return own_format.to_unit(images)


def integer_format(name: str, images: Tensor, pixels: PixelFormat) -> PixelFormat:
    """What a tensor's integers mean, as `read_images` describes it.

    Raises:
        ValueError: if the model's images are floating point and the integers neither uint8 nor uint16.
    """
    dtype = str(images.dtype).removeprefix("torch.")
    if dtype != pixels.dtype and dtype in ("uint8", "uint16"):
        return PixelFormat.of(dtype)
    if pixels.levels is None:
        raise ValueError(f"`{name}` must be uint8, uint16, or floating point in [0, 1], but is {images.dtype}.")
    return pixels


def read_mask(name: str, value, size: tuple[int, int]) -> Tensor:
    """A mask as a boolean tensor (N or 1, 1 or C, H, W), True (white) where pixels are to be painted.

    Args:
        name: of the argument, for messages.
        value: a PIL image painted by hand (or a list): 1-bit, grey or colour, white where pixels are to be painted; or
            a drawing layer whose opacity (RGBA, LA) is the mask. Soft edges count from one half of the depth's white.
            Or an array (H, W), (H, W, 1) or (N, H, W, 1), or a tensor (H, W), (C, H, W) or (N, C, H, W), which must
            be binary: booleans, 0 and 1, or 0 and white in uint8 (255) or uint16 (65535).
        size: (H, W) of the images.

    Raises:
        ValueError: on another type, shape or size, or values in between.
    """
    if isinstance(value, Image.Image):
        value = [value]
    given = tuple(getattr(value, "shape", ()))
    if isinstance(value, (list, tuple)) and value and all(isinstance(image, Image.Image) for image in value):
        for image in value:
            require_whole(name, image)
        painted = [painted_pixels(image) for image in value]
        sizes = {(mask.shape[1], mask.shape[0]) for mask in painted}
        if sizes != {(size[1], size[0])}:
            of = " and ".join(f"{width} x {height}" for width, height in sorted(sizes))
            raise ValueError(f"`{name}` must be {size[1]} x {size[0]} pixels as the image, but is {of}.")
        mask = torch.from_numpy(np.stack(painted))[:, None]
    else:
        numbers = isinstance(value, Tensor) and not value.is_complex()
        value = plain_array(name, value)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            numbers, value = True, value.astype(value.dtype.newbyteorder("="))
        if not numbers or not 2 <= value.ndim <= 4 or 0 in value.shape:
            what = f"{value.dtype} {given}" if isinstance(value, (np.ndarray, Tensor)) else type(value)
            raise ValueError(f"`{name}` must be a PIL image, or an array or tensor of 2 to 4 axes, but is {what}.")
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.array(value if value.ndim == 2 else np.moveaxis(value, -1, -3), order="C"))
        white = {torch.uint8: 255, torch.uint16: 65535}.get(value.dtype, 1)
        value = value.to(torch.int32) if value.dtype == torch.uint16 else value
        white = white if value.max() > 1 else 1
        if not ((value == 0) | (value == white)).all():
            raise ValueError(
                f"`{name}` must be binary (0 and 1, booleans, or uint8 0 and 255), but has values in between, "
                f"from {value.min().item()} to {value.max().item()}."
            )
        mask = value == white
    while mask.ndim < 4:
        mask = mask[None]
    if mask.ndim != 4 or mask.shape[2:] != size:
        raise ValueError(f"`{name}` must have the image's size {size}, but has shape {given or tuple(mask.shape)}.")
    if not mask.any():
        raise ValueError(f"`{name}` marks no pixel to be painted (white, or 1).")
    return mask


def painted_pixels(image: Image.Image) -> np.ndarray:
    """(H, W) booleans: opaque pixels of a layer that is transparent somewhere, else those from half white on."""
    if image.mode in ("RGBA", "LA", "PA") or image.has_transparency_data:
        image = ImageOps.exif_transpose(image.convert("RGBA"))
        opacity = np.asarray(image.getchannel("A"))
        if (opacity < 128).any():
            return opacity >= 128
        image = image.convert("RGB")
    values = picture_values(image, 1)[0]
    white = 1.0 if values.dtype.kind == "f" else INTEGER_RANGES[values.dtype.name][1]
    if values.dtype.kind == "f" and not (0 <= values.min() and values.max() <= 1):
        raise ValueError(
            f"a floating point mask must lie in [0, 1], but reaches from {values.min()} to {values.max()}."
        )
    return values >= white / 2
