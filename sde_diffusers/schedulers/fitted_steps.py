"""Steps of a multistep solver that were fitted to one network, as a scheduler's configuration holds them.

In y = x / alpha, which is x_0 plus noise of level s = sigma / alpha whatever the SDE, n steps from the levels
s_1 > ... > s_n are

    y_{k+1} = a_k y_k + sum_{j <= k} w_kj D_j,    D_j = E[x_0 | y_j; s_j],    y_1 = s_1 z,    x_0 = y_{n+1},

with z standard normal noise, so that 2 n + n (n + 1) / 2 numbers are the whole sampler:

    "fits": {
        "network": digests of the weights, "guidance": how it was asked, "settings": a digest of the other keys,
        "steps": {"2": {"levels": [s_1, s_2], "state": [a_1, a_2], "estimates": [[w_11], [w_21, w_22]],
                        "error": 0.18, "default_error": 0.43}}
    }

The errors are those on latents that the fit did not see.
"""

import hashlib
import inspect
import json
import logging
import math

import torch
from torch import Tensor

from sde_diffusers.scalars import plain_config, real_number

FIT_KEYS = ("network", "guidance", "settings", "steps")
STEP_KEYS = ("levels", "state", "estimates", "error", "default_error")
fits_log = logging.getLogger(__name__)


class FittedSteps:
    """n steps of a fit.

    Args:
        fits: what the scheduler's configuration holds, of whose "steps" these are one.
        entry: with the keys above.

    Attributes:
        network, guidance: what the steps were fitted to.
        seen: which weights the network had when it was last compared with those.
    """

    def __init__(self, fits: dict, entry: dict):
        self.network, self.guidance = fits["network"], fits["guidance"]
        self.levels, self.state, self.estimates = (entry[key] for key in STEP_KEYS[:3])
        self.seen: list | None = None

    def times(self, sde) -> Tensor:
        """(n,) float64, when the network is evaluated."""
        return sde.inverse_half_log_snr(-torch.tensor(self.levels, dtype=torch.float64).log())

    def step(self, k: int, y: Tensor, estimates: list[Tensor]) -> Tensor:
        """y_{k+1} from y_k and D_1, ..., D_k."""
        following = self.state[k] * y
        for weight, estimate in zip(self.estimates[k], estimates, strict=True):
            following = following + weight * estimate
        return following


def settings_digest(scheduler) -> str:
    """What tells a scheduler's settings, but its fits, apart: 8 hexadecimal digits."""
    parameters = inspect.signature(type(scheduler)).parameters.values()
    config = plain_config(scheduler.config)
    if config["num_train_timesteps"] == getattr(scheduler.training_sde, "num_betas", None):
        config["num_train_timesteps"] = 1000  # as it stood when the table alone told its length
    settings = {p.name: config[p.name] for p in parameters if p.name != "fits" and config[p.name] != p.default}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def fits_in_short(fits: dict) -> str:
    """For which numbers of steps there are fits, and 8 hexadecimal digits that tell them from others."""
    digest = hashlib.sha256(json.dumps(fits, sort_keys=True).encode()).hexdigest()[:8]
    return f"{', '.join(sorted(fits['steps'], key=int))} steps ({digest})"


def fitted_steps(scheduler, fits: dict | None) -> dict[int, FittedSteps]:
    """The steps by their number that a scheduler takes of the `fits` in its configuration: of those for its settings.

    Raises:
        ValueError: if they are not of the form above, or at levels that the scheduler does not reach.
    """
    if fits is None:
        return {}
    if not isinstance(fits, dict) or sorted(fits) != sorted(FIT_KEYS) or not isinstance(fits["steps"], dict):
        raise ValueError(f"`fits` must be None or a dictionary of {', '.join(FIT_KEYS)}, but is {fits!r}.")
    ends = torch.tensor([scheduler.start_time, scheduler.sampling_eps], dtype=torch.float64)
    noisiest, cleanest = (-scheduler.sde.half_log_snr(ends)).exp().tolist()
    for n, entry in fits["steps"].items():
        require_steps(str(n), entry)
    if fits["settings"] != settings_digest(scheduler):
        fits_log.info("`fits` are not used: they were made for other settings than %r.", dict(scheduler.config))
        return {}
    for n, entry in fits["steps"].items():
        if not cleanest / 1.01 <= entry["levels"][-1] < entry["levels"][0] <= noisiest * 1.01:
            raise ValueError(
                f"`fits` for {n} steps have noise levels from {entry['levels'][0]} to {entry['levels'][-1]}, but the "
                f"scheduler samples from {noisiest:.4g} to {cleanest:.4g}."
            )
    return {int(n): FittedSteps(fits, entry) for n, entry in fits["steps"].items()}


def require_steps(n: str, entry: dict) -> None:
    """Raise a ValueError unless an entry of `fits` is n steps."""
    try:
        levels, state, estimates = (entry[key] for key in STEP_KEYS[:3])
        sizes = [len(levels), len(state), *map(len, estimates)]
        numbers = [*levels, *state, *(weight for weights in estimates for weight in weights)]
        sound = sizes == [int(n), int(n), *range(1, int(n) + 1)] and sorted(entry) == sorted(STEP_KEYS)
        sound &= all(math.isfinite(real_number(number)) for number in numbers)
        sound &= all(a > b > 0 for a, b in zip(levels, levels[1:], strict=False)) and int(n) >= 2
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(
            f"`fits` for {n} steps must be descending levels above 0, as many factors of the state and 1, 2, ... of "
            f"the estimates, at least for 2 steps, but are {entry!r}."
        )
