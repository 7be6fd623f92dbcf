"""Averages of the weights whose length is chosen after the training (Karras et al. 2023, arXiv 2312.02696, section 3).

The average of the weights theta(tau) until time t with the power function as its profile (eq. 121 of the paper),

    theta_gamma(t) = int_0^t p(tau) theta(tau) dtau,    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),

has a width that is a fixed share sigma_rel of the training. Of two such averages, kept at intervals, any other one is
made afterwards as a linear combination: the one whose profile is nearest to the wanted profile.

Time is counted in steps, and the weights after step k are those of all times in (k - 1, k]. With these the update of
eq. 127 is exact: step k has the weight (k^(gamma + 1) - (k - 1)^(gamma + 1)) / t^(gamma + 1).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from run.checkpoints import checkpoint_path
from run.config import WIDEST
from run.folder import AVERAGES
from run.sharding import local_part, shard_of, whole
from run.written_folder import written_folder

FILE = "averages.safetensors"  # of a snapshot


def gamma_of(sigma_rel: float) -> float:
    """Exponent of the profile whose standard deviation is `sigma_rel` of the training (algorithm 2 of the paper).

    With sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (eq. 123) it is a root of a cubic.

    Raises:
        ValueError: `sigma_rel` is not in (0, 12^-1/2].
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"sigma_rel must be above 0 and at most {WIDEST:.4f}, but is {sigma_rel!r}")
    precision = sigma_rel**-2
    return float(np.roots([1, 7, 16 - precision, 12 - precision]).real.max())


def overlap(time: Tensor, gamma: Tensor, other_time: Tensor, other_gamma: Tensor) -> Tensor:
    """int p q dtau of the profiles p = (time, gamma) and q = (other_time, other_gamma); float64, broadcast (eq. 151).

    Of the profile that ends first let a be the time and g the exponent, b and h those of the other one; the integral
    until a is (g + 1)(h + 1) / (g + h + 1) (a / b)^h / b.
    """
    time, gamma, other_time, other_gamma = torch.broadcast_tensors(time, gamma, other_time, other_gamma)
    later_gamma = torch.where(time < other_time, other_gamma, gamma)
    earlier, later = torch.minimum(time, other_time), torch.maximum(time, other_time)
    scale = (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1)
    return scale * (earlier / later) ** later_gamma / later


@dataclass(frozen=True)
class Fit:
    """Coefficients (n,) of the kept averages, of sum 1, and the error |profile - wanted| / |wanted| they leave."""

    coefficients: Tensor
    error: float


def fit_profile(times: Sequence[float], sigma_rels: Sequence[float], time: float, sigma_rel: float) -> Fit:
    """How kept averages combine into the average until `time` of width `sigma_rel` (algorithm 3 of the paper).

    Args:
        times, sigma_rels: of each of the kept averages.

    Raises:
        ValueError: as `gamma_of`.
    """
    kept_times = torch.tensor(times, dtype=torch.float64)
    gammas = torch.tensor([gamma_of(value) for value in sigma_rels], dtype=torch.float64)
    wanted = torch.tensor([time, gamma_of(sigma_rel)], dtype=torch.float64)
    matrix = overlap(kept_times[:, None], gammas[:, None], kept_times, gammas)
    right = overlap(kept_times, gammas, wanted[0], wanted[1])
    # Neighbouring averages are nearly parallel: by singular values, since the smallest of them are rounding.
    coefficients = torch.linalg.lstsq(matrix, right[:, None], driver="gelsd").solution[:, 0]
    coefficients = coefficients / coefficients.sum()  # an average of equal weights is these weights
    norm = overlap(wanted[0], wanted[1], wanted[0], wanted[1])
    square = coefficients @ matrix @ coefficients - 2 * coefficients @ right + norm
    return Fit(coefficients, (square / norm).clamp(min=0).sqrt().item())


class PowerAverages:
    """Running averages of a network's parameters, one for each width; in float32, in shards where these are.

    Args:
        network: whose parameters are averaged; named in the averages as there.
        sigma_rels: widths of the profiles.

    Raises:
        ValueError: as `gamma_of`.
    """

    def __init__(self, network: nn.Module, sigma_rels: Sequence[float]):
        self.exponents = {sigma_rel: gamma_of(sigma_rel) + 1 for sigma_rel in sigma_rels}
        self._parameters = dict(network.named_parameters())
        self._averages = {
            sigma_rel: {name: p.detach().clone() for name, p in self._parameters.items()} for sigma_rel in sigma_rels
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after the step with this number, from 1, into the averages (eq. 127 of the paper)."""
        for sigma_rel, averages in self._averages.items():
            decay = (1 - 1 / step) ** self.exponents[sigma_rel]
            own, weights = [*map(local_part, averages.values())], [*map(local_part, self._parameters.values())]
            torch._foreach_lerp_(own, weights, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Whole tensors by "sigma_rel/parameter"; to be called by all processes."""
        return {name: whole(average) for name, average in self._named().items()}

    def _named(self) -> dict[str, Tensor]:
        return {f"{s:g}/{name}": average for s, own in self._averages.items() for name, average in own.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Raises ValueError if they are averages of another network, or of other widths."""
        own = self._named()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in tensors.items()}:
            found = sorted({name.partition("/")[0] for name in tensors})
            raise ValueError(f"it holds power-function averages of another network, or of other widths: {found}")
        for name, average in own.items():
            local_part(average).copy_(local_part(shard_of(tensors[name], like=average)))


def save_snapshot(run: Path, step: int, tensors: dict[str, Tensor]) -> None:
    """Keep the averages after `step`, as `PowerAverages.state_dict` gives them, in the run's folder."""
    with written_folder(checkpoint_path(run / AVERAGES, step)) as folder:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / FILE)


def list_snapshots(run: Path) -> dict[int, Path]:
    """The files of the kept averages of a run, by step, in order."""
    found = {
        p.parent: p for p in (run / AVERAGES).glob(f"step-*/{FILE}") if re.fullmatch(r"step-\d{8,}", p.parent.name)
    }
    return dict(sorted((int(folder.name[5:]), path) for folder, path in found.items()))


def drop_snapshots(run: Path, after: int) -> None:
    """Delete what an earlier course of a run kept after the step from which it is resumed."""
    for step, path in list_snapshots(run).items():
        if step > after:
            shutil.rmtree(path.parent)


def average_of_any_width(run: Path, sigma_rel: float, step: int | None = None) -> tuple[dict[str, Tensor], Fit, int]:
    """Parameters of a network averaged until `step` (None: the last one kept) with the width `sigma_rel`.

    Returns:
        The parameters by name, in float32; how well the kept averages give that profile; the step.

    Raises:
        ValueError: `sigma_rel` is out of range, or the run has kept no averages, or none at that step.
    """
    snapshots = list_snapshots(run)
    if not snapshots:
        raise ValueError(f"{run} has kept no averages: train with power_averages.snapshot_every=STEPS")
    step = max(snapshots) if step is None else step
    if step not in snapshots:
        raise ValueError(f"step must be one of {', '.join(map(str, snapshots))}, but is {step}")
    kept = []  # (time, sigma_rel as it was written, file)
    for time, path in snapshots.items():
        try:
            with safe_open(path, framework="pt") as file:
                widths = dict.fromkeys(name.partition("/")[0] for name in file.keys())
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        kept += [(time, width, path) for width in widths if time <= step]
    fit = fit_profile([time for time, _, _ in kept], [float(width) for _, width, _ in kept], step, sigma_rel)
    total: dict[str, Tensor] = {}
    for coefficient, (_, width, path) in zip(fit.coefficients.tolist(), kept, strict=True):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                if key.startswith(f"{width}/"):
                    name, value = key.removeprefix(f"{width}/"), coefficient * file.get_tensor(key).double()
                    total[name] = total[name] + value if name in total else value
    return {name: value.float() for name, value in total.items()}, fit, step
