"""Which precision the network's layers compute in; weights, losses and updates are always float32."""

import os

import torch

from run.yaml_config import ConfigError

PRECISIONS = ("auto", "no", "bf16", "fp16")


def mixed_precision(asked: str) -> str:
    """One of "no", "bf16" and "fp16"; "auto" is bf16 where the GPU or the processor computes in it natively, or "no".

    Args:
        asked: one of `PRECISIONS`.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"
    if asked == "fp16" and not cuda:
        raise ConfigError("mixed_precision=fp16 needs a GPU: choose bf16 or no")
    if asked != "auto":
        return asked
    if cuda:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "no"
