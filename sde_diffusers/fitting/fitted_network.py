"""What a sampler was fitted to: the weights of one network, and how it was asked.

Fits outlive both: a network is trained further, another guidance is wanted. Then they are still samplers, but not the
best ones, and this is said.
"""

import hashlib
import logging

import torch
from torch import nn

stale_fit_log = logging.getLogger(__name__)

# To which weights are rounded before they are digested: a copy in fewer bits is the same network.
DIGESTED = {"float16": torch.float16, "bfloat16": torch.bfloat16}
ASKED = ("guidance_scale", "guide_scale", "classifier_scale", "interval")


def rounded_digest(network: nn.Module, dtype: torch.dtype) -> str:
    """8 hexadecimal digits of the SHA-256 of a network's floating-point parameters and buffers, rounded."""
    digest = hashlib.sha256()
    for _, tensor in sorted(network.state_dict().items()):
        if tensor.is_floating_point():
            rounded = tensor.detach().to(dtype).cpu().contiguous().flatten()
            digest.update(rounded.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


def rounded_digests(network: nn.Module) -> dict[str, str]:
    """Those of a network's weights in each of the two formats of 16 bits; copies in either share one."""
    return {name: rounded_digest(network, dtype) for name, dtype in DIGESTED.items()}


def how_asked(guidance) -> dict:
    """What of a `Guidance` a fit depends on, as JSON has it."""
    values = {key: getattr(guidance, key) for key in ASKED}
    if guidance.guidance_scale == guidance.guide_scale == 1:
        values["interval"] = None  # of what is not done
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def warn_of_other_fit(scheduler, network: nn.Module, guidance) -> None:
    """Log a warning if the steps that the scheduler is about to take were fitted to other weights or guidance.

    The weights are digested when they change, and else the last answer holds.
    """
    fit = scheduler.fit
    if fit is None:
        return
    if how_asked(guidance) != dict(fit.guidance):
        stale_fit_log.warning(
            "%s steps were fitted to the guidance %s, but are taken with %s: `fit_sampler` fits them to it.",
            len(fit.levels), dict(fit.guidance), how_asked(guidance),
        )  # fmt: skip
    tensors = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    if any(tensor.is_meta for tensor in tensors):  # offloaded: they are elsewhere
        return
    state = [(t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype, str(t.device)) for t in tensors]
    if fit.seen != state:
        fit.seen = state
        if not any(rounded_digest(network, dtype) == fit.network.get(name) for name, dtype in DIGESTED.items()):
            stale_fit_log.warning(
                "%s steps were fitted to other weights than the network's: `fit_sampler` fits them again.",
                len(fit.levels),
            )
