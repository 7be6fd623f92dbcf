"""The small classifiers whose features evaluation uses offline; `train_feature_network.py` trains them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as pillow converts colours to gray


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv_1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm_1 = nn.BatchNorm2d(channels_out)
        self.conv_2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(channels_out)
        self.skip = nn.Identity()
        if stride > 1:
            projection = nn.Conv2d(channels_in, channels_out, 1, bias=False)
            self.skip = nn.Sequential(nn.AvgPool2d(stride), projection, nn.BatchNorm2d(channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.norm_2(self.conv_2(F.relu(self.norm_1(self.conv_1(x)))))
        return F.relu(self.skip(x) + residual)


class ResidualClassifier(nn.Module):
    """A small residual network (He et al. 2015, arXiv:1512.03385) for images in [0, 1], shape (N, channels, H, W).

    Args:
        widths: channels at full, half and quarter resolution; the last is the number of features.
        num_classes: number of logits.
        channels: of the images, 1 (gray) or 3 (RGB).
    """

    def __init__(self, widths: tuple[int, int, int] = (16, 48, 96), num_classes: int = 10, channels: int = 1):
        super().__init__()
        self.channels = channels
        stem, middle, last = widths
        self.body = nn.Sequential(
            nn.Conv2d(channels, stem, 3, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
            ResidualBlock(stem, middle, stride=2),
            ResidualBlock(middle, middle, stride=1),
            ResidualBlock(middle, last, stride=2),
            ResidualBlock(last, last, stride=1),
        )
        self.head = nn.Linear(last, num_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The penultimate layer, averaged over the image: shape (N, widths[-1])."""
        return self.body((2 * x - 1).contiguous(memory_format=torch.channels_last)).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, shape (N, num_classes)."""
        return self.head(self.features(x))


def load_classifier(folder: str | Path) -> tuple[ResidualClassifier, int]:
    """The classifier that `train_feature_network.py` saved in a folder, and the resolution it was trained at.

    Raises:
        FileNotFoundError: the folder lacks config.json or model.safetensors.
        ValueError: they are not those of a `ResidualClassifier`.
    """
    folder = Path(folder)
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"weights must be a folder with config.json and model.safetensors: no {file} in {folder}"
            )
    try:
        config = json.loads((folder / "config.json").read_text())
        network = ResidualClassifier(tuple(config["widths"]), config["num_classes"], config.get("channels", 1))
        network.load_state_dict(load_file(folder / "model.safetensors"))
        resolution = int(config["resolution"])
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no classifier of train_feature_network.py: {error}") from error
    return network.to(memory_format=torch.channels_last).eval(), resolution


def classifier_pixels(images: torch.Tensor, channels: int, resolution: int) -> torch.Tensor:
    """uint8 images (N, 1 or 3, H, W) in [0, 1], with the channels and the resolution of a classifier.

    Returns:
        float32 of shape (N, channels, resolution, resolution).
    """
    pixels = images / 255
    if pixels.shape[1] == 3 and channels == 1:
        pixels = torch.einsum("nchw,c->nhw", pixels, pixels.new_tensor(LUMA))[:, None]
    pixels = pixels.expand(-1, channels, -1, -1)
    if pixels.shape[2:] != (resolution, resolution):
        pixels = F.interpolate(pixels, (resolution, resolution), mode="bicubic", antialias=True).clamp(0, 1)
    return pixels
