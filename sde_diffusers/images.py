"""Images and masks as people have them (PIL, numpy, tensors), read into tensors."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def read_images(name: str, value, channels: int | None = None) -> Tensor:
    """Images as a float32 tensor (N, C, H, W) in [0, 1].

    Args:
        name: of the argument, for messages.
        value: a PIL image or a list of them (turned into grey or RGB as `channels` says), an array (H, W),
            (H, W, C) or (N, H, W, C), or a tensor (C, H, W) or (N, C, H, W); numbers are uint8, or floating point in
            [0, 1].
        channels: the number of channels C that the result must have.

    Raises:
        ValueError: on another type, shape or range.
    """
    if isinstance(value, Image.Image):
        value = [value]
    if isinstance(value, (list, tuple)) and value and all(isinstance(image, Image.Image) for image in value):
        if channels in (1, 3):
            value = [image.convert("L" if channels == 1 else "RGB") for image in value]
        if len({(image.size, image.mode) for image in value}) > 1:
            raise ValueError(f"`{name}` must be images of one size and mode, but they differ.")
        value = np.stack([np.asarray(image) for image in value])
        value = value[..., None] if value.ndim == 3 else value
    if isinstance(value, np.ndarray):
        value = value[..., None] if value.ndim == 2 else value
        value = torch.from_numpy(np.ascontiguousarray(np.moveaxis(value, -1, -3)))
    if not isinstance(value, Tensor):
        raise ValueError(f"`{name}` must be a PIL image, a list of them, an array or a tensor, but is {type(value)}.")
    images = value[None] if value.ndim == 3 else value
    if images.ndim != 4 or not images.numel() or (channels is not None and images.shape[1] != channels):
        expected = f"{'C' if channels is None else channels} channels"
        raise ValueError(f"`{name}` must hold images with {expected}, but has shape {tuple(value.shape)}.")
    if images.dtype == torch.uint8:
        return images.float() / 255
    low, high = images.min().item(), images.max().item()
    if not images.is_floating_point() or not (low >= 0 and high <= 1):
        raise ValueError(
            f"`{name}` must be uint8, or floating point in [0, 1], but is {images.dtype} from {low} to {high}."
        )
    return images.float()


def read_mask(name: str, value, size: tuple[int, int]) -> Tensor:
    """A mask as a boolean tensor (N or 1, 1 or C, H, W), True (white) where pixels are to be painted.

    Args:
        name: of the argument, for messages.
        value: a PIL image painted by hand (or a list): 1-bit, grey or colour, white where pixels are to be painted; or
            a drawing layer whose opacity (RGBA, LA) is the mask. Soft edges count from one half. Or an array (H, W),
            (H, W, 1) or (N, H, W, 1), or a tensor (H, W), (C, H, W) or (N, C, H, W), which must be binary: booleans,
            0 and 1, or uint8 0 and 255.
        size: (H, W) of the images.

    Raises:
        ValueError: on another type, shape or size, or values in between.
    """
    if isinstance(value, Image.Image):
        value = [value]
    if isinstance(value, (list, tuple)) and value and all(isinstance(image, Image.Image) for image in value):
        sizes = {image.size for image in value}
        if sizes != {(size[1], size[0])}:
            raise ValueError(f"`{name}` must be {size[1]} x {size[0]} pixels as the image, but is {sizes}.")
        mask = torch.from_numpy(np.stack([painted_pixels(image) for image in value]))[:, None]
    else:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value if value.ndim == 2 else np.moveaxis(value, -1, -3)))
        if not isinstance(value, Tensor):
            raise ValueError(f"`{name}` must be a PIL image, an array or a tensor, but is {type(value)}.")
        if value.dtype == torch.uint8 and value.max() > 1:
            binary, mask = ((value == 0) | (value == 255)).all(), value > 0
        else:
            binary, mask = ((value == 0) | (value == 1)).all(), value == 1
        if not binary:
            raise ValueError(
                f"`{name}` must be binary (0 and 1, booleans, or uint8 0 and 255), but has values in between, "
                f"from {value.min().item()} to {value.max().item()}."
            )
    while mask.ndim < 4:
        mask = mask[None]
    if mask.ndim != 4 or mask.shape[2:] != size:
        raise ValueError(f"`{name}` must have the image's size {size}, but has shape {tuple(mask.shape)}.")
    if not mask.any():
        raise ValueError(f"`{name}` marks no pixel to be painted (white, or 1).")
    return mask


def painted_pixels(image: Image.Image) -> np.ndarray:
    """(H, W) booleans: opaque pixels of a layer that is transparent somewhere, else white ones."""
    if image.mode in ("RGBA", "LA"):
        opacity = np.asarray(image.getchannel("A"))
        if (opacity < 128).any():
            return opacity >= 128
        image = image.convert("RGB")
    return np.asarray(image.convert("L")) >= 128
