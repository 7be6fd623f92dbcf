"""A network of one SDE, asked for the states of another.

What the network knows at a ratio of signal to noise it knows under every SDE: a state of the sampling SDE is scaled to
that of the training SDE with the same ratio. Where both are the same, nothing is done.
"""

import torch
from torch import Tensor

from sde_diffusers.parameterization import Parameterization, expand_like
from sde_diffusers.sdes.gaussian import GaussianSDE


class OtherSdeMixin:
    """Of schedulers: how the network is asked, and what its answers say, at a time of the sampling SDE."""

    sde: GaussianSDE
    training_sde: GaussianSDE
    parameterization: Parameterization
    _known_at: dict[float, tuple]

    def _remember(self, times: Tensor) -> None:
        """Compute the factors at these times once, for the loop over them."""
        factors = self.parameterization.factors(self.training_time(times))
        known = (self.input_scale(times).unbind(), zip(*(values.unbind() for values in factors), strict=True))
        self._known_at = dict(zip(times.tolist(), zip(*known, strict=True), strict=True))

    def training_time(self, t: Tensor) -> Tensor:
        """The time of the training SDE that has the signal-to-noise ratio of time t of the sampling SDE."""
        if self.sde is self.training_sde:
            return t
        return self.training_sde.inverse_half_log_snr(self.sde.half_log_snr(t)).clamp(max=1)

    def input_scale(self, t: Tensor) -> Tensor:
        """Factor that turns x_t of the sampling SDE into the training SDE's.

        x / alpha is common to both, and so is x / sqrt(alpha^2 + sigma^2), also where alpha = 0.
        """
        if self.sde is self.training_sde:
            return torch.ones_like(t)
        s = self.training_time(t)
        size = torch.hypot(self.training_sde.alpha(s), self.training_sde.sigma(s))
        return size / torch.hypot(self.sde.alpha(t), self.sde.sigma(t))

    def network_time(self, t: Tensor, between: bool = False) -> Tensor:
        """What the network is conditioned on at time t of the sampling SDE; float64, t's shape.

        `between`: see `Parameterization.network_time`.
        """
        return self.parameterization.network_time(self.training_time(t), between)

    def noise_and_denoised(self, model_output: Tensor, sample: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[noise | x_t] and E[x_0 | x_t] for x_t = `sample` at time t (scalar or (N,)) of the sampling SDE.

        `model_output` is the network's answer to `sample * input_scale(t)` at `network_time(t)`.
        """
        x, (_, factors) = self.network_input(sample, t), self._known(t)
        s = t if factors else self.training_time(t)
        return self.parameterization.noise_and_denoised(model_output, x, s, factors)

    def network_input(self, sample: Tensor, t: Tensor) -> Tensor:
        """The state at time t of the sampling SDE as the network takes it."""
        if self.sde is self.training_sde:
            return sample
        scale, _ = self._known(t)
        return sample * expand_like(self.input_scale(t) if scale is None else scale, sample)

    def _known(self, t: Tensor) -> tuple:
        """The `input_scale` and the parameterization's factors at one of the `times`; else None, None."""
        one = isinstance(t, Tensor) and t.ndim == 0 and t.device.type == "cpu"
        return self._known_at.get(t.item(), (None, None)) if one else (None, None)
