"""What saving and loading are asked for, checked before anything is written or read."""

import os
import re

import torch

from sde_diffusers.scalars import whole_number

NOT_IN_VARIANTS = "./\\"  # part names of files, where the first two end a variant or a folder
SHARD_SIZE = re.compile(r"\s*(?=[\d.]*[1-9])(\d+\.?\d*|\.\d+)\s*[KMGT]B\s*", re.IGNORECASE)


def require_path(argument: str, path, what: str = "the path of a folder") -> None:
    """Raise a ValueError that names the argument unless a path is given; "" would be the current folder."""
    if not isinstance(path, (str, os.PathLike)) or not str(path).strip():
        raise ValueError(f"`{argument}` must be {what}, but is {path!r}.")


def require_save_options(variant: str | None, max_shard_size: int | str | None) -> None:
    """Raise a ValueError on a variant that files could not be found by, and on shards of no bytes."""
    if variant is not None and not (
        isinstance(variant, str) and variant.strip() and not set(variant) & set(NOT_IN_VARIANTS)
    ):
        raise ValueError(
            f'`variant` must be None or a text such as "fp16", without {" ".join(NOT_IN_VARIANTS)}, but is '
            f"{variant!r}."
        )
    sized = SHARD_SIZE.fullmatch(max_shard_size) if isinstance(max_shard_size, str) else None
    if max_shard_size is not None and not sized and not whole_number(max_shard_size) >= 1:
        raise ValueError(
            '`max_shard_size` must be None, a number of bytes of at least 1 or a size such as "5GB", but is '
            f"{max_shard_size!r}."
        )


def require_dtypes(options: dict) -> None:
    """Raise a ValueError on a text in the place of a dtype among the options of loading: diffusers takes float32."""
    for name in ("dtype", "torch_dtype"):
        value = options.get(name)
        dtypes = value.values() if isinstance(value, dict) else [value]
        if not all(dtype is None or isinstance(dtype, torch.dtype) for dtype in dtypes):
            raise ValueError(
                f"`{name}` must be a dtype of torch, such as torch.bfloat16, or {{component: dtype}}, but is "
                f"{value!r}."
            )
