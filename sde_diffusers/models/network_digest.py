"""One way to tell networks apart by their weights."""

import hashlib
import json

import torch
from torch import nn


def network_digest(network: nn.Module, configuration: dict | None = None) -> str:
    """64 hexadecimal digits (SHA-256) of a network's weights and buffers: their names, in order, and their bytes.

    Args:
        network: on any device. In another dtype the same weights are others.
        configuration: also counts, less keys with a leading underscore (say where the network was loaded from).
    """
    text = ""
    if configuration is not None:
        public = {key: value for key, value in configuration.items() if not key.startswith("_")}
        text = json.dumps(public, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
