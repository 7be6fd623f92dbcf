"""Random probes v with E[v v^T] = 1, by which a trace is estimated: E[v^T A v] = tr A (Hutchinson and Skilling)."""

import numpy as np
import torch
from torch import Tensor

from sde_diffusers.parameterization import require_choice
from sde_diffusers.scalars import whole_number

PROBE_DISTRIBUTIONS = ("rademacher", "gaussian")


def draw(distribution, like: Tensor, generator) -> Tensor:
    """`distribution(shape, generator=...)` in float64 and `like`'s shape; with a list, each image from its own."""
    if isinstance(generator, list):
        return torch.cat([draw(distribution, one, g) for one, g in zip(like.split(1), generator, strict=True)])
    device = like.device if generator is None else generator.device
    return distribution(like.shape, generator=generator, device=device, dtype=torch.float64).to(
        like.device, non_blocking=True
    )


def rademacher(shape, **kwargs) -> Tensor:
    """Independent signs."""
    return 2 * torch.randint(2, shape, **kwargs) - 1


def drawn_probes(probes, distribution: str, like: Tensor, generator) -> Tensor:
    """The probes (P, N, C, H, W) in float64; all unit vectors for "exact"."""
    if isinstance(probes, str):
        d = like[0].numel()
        return torch.eye(d, dtype=torch.float64, device=like.device).view(d, 1, *like.shape[1:]).expand(d, *like.shape)
    if isinstance(probes, Tensor) and probes.ndim:
        return probes.to(like.device, torch.float64).clone().view(-1, *like.shape)  # perhaps of `inference_mode`
    source = rademacher if distribution == "rademacher" else torch.randn
    return torch.stack([draw(source, like, generator) for _ in range(int(probes))])


def are_drawn(probes) -> bool:
    """Whether `probes` is a number of them, and not "exact" or given ones."""
    return not isinstance(probes, str) and not (isinstance(probes, Tensor) and probes.ndim)


def check_probes(probes, distribution, shape) -> None:
    """Raise a ValueError unless `probes` is a positive integer, "exact", or probes for images of this shape."""
    require_choice("probe_distribution", distribution, PROBE_DISTRIBUTIONS)
    if isinstance(probes, Tensor) and probes.ndim:
        good = probes.ndim in (4, 5) and probes.shape[-4:] == shape and probes.numel() > 0
        got = f"a tensor of shape {tuple(probes.shape)}"
        if good and (probes.is_complex() or not probes.isfinite().all()):
            raise ValueError(f"`probes` must be finite real numbers, but are {probes.dtype} or not finite.")
    elif isinstance(probes, str):
        good, got = probes == "exact", repr(probes)
    else:
        good = whole_number(probes) >= 1
        got = f"an array of shape {probes.shape}" if isinstance(probes, np.ndarray) else repr(probes)
    if not good:
        size = ", ".join(map(str, shape))
        raise ValueError(
            f'`probes` must be a positive integer, "exact" or a tensor of shape ({size}) or (P, {size}), not {got}.'
        )
