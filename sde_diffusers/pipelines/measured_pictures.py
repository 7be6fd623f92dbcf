"""What restoration asks of pictures and tensors before it takes them for measurements."""

import torch
from PIL import Image
from torch import Tensor

from sde_diffusers.images import (
    PixelFormat,
    image_values,
    integer_format,
    picture_values,
    read_mask,
    unit_values,
)
from sde_diffusers.operators.masks import Mask


def require_grey(name: str, value) -> None:
    """Raise a `ValueError` if a PIL image of one or several has colours."""
    for image in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(image, Image.Image):
            values = picture_values(image, 3)
            if (values != values[:1]).any():
                raise ValueError(
                    f"`{name}` must be grey, but has colours: `image.convert('L')` is, by the weights "
                    "(0.299, 0.587, 0.114)."
                )


def rounding_std(name: str, images: Tensor, pixels: PixelFormat) -> float:
    """Deviation, in units of [0, 1], of the rounding of `image_values` to the integers that they are; to 8 bits, if
    they are floating point."""
    held = held_format(name, images, pixels)
    return 1 / ((held.high - held.low) * 12**0.5)


def held_format(name: str, images: Tensor, pixels: PixelFormat) -> PixelFormat:
    """That of the integers that `image_values` are; of 8 bits, if they are floating point, or booleans."""
    whole = not images.is_floating_point() and images.dtype != torch.bool
    return integer_format(name, images, pixels) if whole else PixelFormat()


def masked_images(image, mask, channels: int, pixels: PixelFormat) -> tuple[Tensor, Mask]:
    """Images (N, C, H, W) in [0, 1], 0 where they are masked, whatever they hold there, and the mask as an operator.

    Raises:
        ValueError: on images or masks that `read_images` and `read_mask` refuse, or that do not fit one another.
    """
    values, pictures = image_values("image", image, channels, pixels)
    in_units = pictures and pixels.dtype == "float32"
    given = tuple(mask.shape) if isinstance(mask, Tensor) and mask.ndim == 3 else ()
    if given and given[0] == channels == len(values) > 1:
        raise ValueError(
            f"`mask` of shape {given} may be one for each image or one for each channel: give (N, 1, H, W) or "
            "(1, C, H, W)."
        )
    operator = Mask(read_mask("mask", mask, tuple(values.shape[2:])))
    values = values.expand(len(operator.mask), -1, -1, -1) if len(values) == 1 else values
    operator.measurement_shape(tuple(values.shape))
    held = pixels if in_units else held_format("image", values, pixels)
    allowed = min(max(0, held.low), held.high)
    wide = values if values.is_floating_point() else values.long()  # torch has not all operations for uint16
    values = torch.where(operator.mask.to(values.device), allowed, wide).to(values.dtype)
    return operator(unit_values("image", values, pixels, in_units)), operator


def require_brightness(operator) -> None:
    """Raise a `ValueError` if the kernel of a blur, if it is given as one, makes images more than twice as bright, or
    less than half."""
    total = operator.kernel.sum().item() if hasattr(operator, "kernel") else 1.0
    if not 0.5 <= total <= 2:
        raise ValueError(
            f"`kernel` must have the sum 1 (0.5 to 2), as blurs do, but has {total:.6g}: divide it by that (a kernel "
            "that changes the brightness is a `Convolution`, for the call of the pipeline)."
        )


def held_elsewhere(y: Tensor) -> str:
    """ "sparse " or "meta " for tensors that hold no values in the common way, and else nothing."""
    return "meta " if y.is_meta else "" if y.layout == torch.strided else "sparse "
