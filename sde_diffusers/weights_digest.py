"""What tells networks apart: a digest of their weights."""

import hashlib

import torch
from torch import nn


def weights_digest(network: nn.Module, text: str = "") -> str:
    """The SHA-256 of a network's parameters and buffers: their names and, bit for bit, their values.

    It is the same on every device and in every memory format, and another one in another precision.

    Args:
        text: whatever else is to count, say the network's configuration.

    Returns:
        64 hexadecimal digits; a few of the first ones do for a name.
    """
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
