"""Denoising score matching (Vincent 2011; eq. 7 of arXiv 2011.13456), one objective for every SDE and network.

With x_t = alpha x_0 + sigma noise, each image contributes

    weight(t) |E_network[noise | x_t] - noise|^2,    t ~ p(t),

and the objectives differ in the weight and the density of t alone:

    sigma2      weight 1, t uniform in [eps, 1]: lambda(t) = sigma^2 of the paper (its default)
    likelihood  weight g^2 / sigma^2 at uniform t (arXiv 2101.09258). Since g^2 / sigma^2 = -2 d half_log_snr / dt,
                drawing t uniformly in half_log_snr leaves a constant weight: importance sampling without a table
    edm         weight (s^2 + sigma_data^2) / sigma_data^2 with s = sigma / alpha, log s normal (arXiv 2206.00364,
                table 1; their lambda(s) multiplies |x_0 error|^2 = s^2 |noise error|^2)
    velocity    weight (alpha s')^2 at uniform t: the squared error of the velocity (arXiv 2210.02747, eq. 23)
    discrete    weight 1, t uniform on the table of a network with time input "index": the SMLD (VE) and DDPM (VP)
                objectives (eq. 1 and 3 of arXiv 2011.13456)

An SDE that ends in pure noise (alpha = 0) has no uniform half_log_snr. There "likelihood" draws t uniformly in
log(1 + alpha^2 / sigma^2) / 2, which is the same where images are to be seen, and weighs by 1 + s^2 more.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sde_diffusers.generators import require_draws
from sde_diffusers.network_fit import config_of, require_consistency, require_network_fits
from sde_diffusers.parameterization import (
    PURE_NOISE,
    Parameterization,
    expand_like,
    require_choice,
    require_times,
)
from sde_diffusers.scalars import real_number, require_floating

OBJECTIVES = ("sigma2", "likelihood", "edm", "velocity", "discrete")


class DenoisingScoreMatching:
    """Training objective of a score network.

    Args:
        parameterization: how the network is asked and what it answers; holds the SDE.
        objective: one of `OBJECTIVES`.
        reduce_mean: average the squared error over the dimensions of an image (True) or take half its sum (False, as
            the paper does for its VE models; the learning rate has to fit).
        eps: smallest time drawn (1e-5 in the paper, for every SDE).
        sigma_data, log_sigma_mean, log_sigma_std: of "edm": deviation of the images in the network's range, and mean
            and deviation of the natural logarithm of sigma / alpha.

    Raises:
        ValueError: on an unknown objective, or "discrete" for a network that is not conditioned on an index.
    """

    def __init__(
        self,
        parameterization: Parameterization,
        objective: str = "sigma2",
        reduce_mean: bool = True,
        eps: float = 1e-5,
        sigma_data: float = 0.5,
        log_sigma_mean: float = -1.2,
        log_sigma_std: float = 1.2,
    ):
        if not hasattr(parameterization, "smallest_time"):  # its class may be loaded twice
            raise ValueError(
                "`parameterization` must be that of a scheduler, `scheduler.parameterization`, but is "
                f"{type(parameterization).__name__}."
            )
        require_choice("objective", objective, OBJECTIVES)
        require_choice("reduce_mean", reduce_mean, (True, False))
        if objective == "discrete" and parameterization.time_input != "index":
            raise ValueError(
                '`objective`="discrete" draws entries of a noise table: the network must have `time_input`="index", '
                f"but has {parameterization.time_input!r}."
            )
        if not 0 < real_number(eps) < 1:
            raise ValueError(f"`eps` must lie in (0, 1), but is {eps!r}.")
        if not (0 < real_number(sigma_data) < math.inf and 0 < real_number(log_sigma_std) < math.inf):
            raise ValueError(
                "`sigma_data` and `log_sigma_std` must be finite and above 0, but are "
                f"{sigma_data!r} and {log_sigma_std!r}."
            )
        self.parameterization = parameterization
        self.sde = parameterization.sde
        self.objective = objective
        self.reduce_mean = reduce_mean
        if not -math.inf < real_number(log_sigma_mean) < math.inf:
            raise ValueError(f"`log_sigma_mean` must be a finite number, but is {log_sigma_mean!r}.")
        self.eps = max(real_number(eps), parameterization.smallest_time)
        self.sigma_data, self.log_sigma_mean, self.log_sigma_std = map(
            real_number, (sigma_data, log_sigma_mean, log_sigma_std)
        )
        self.ends = torch.tensor([self.eps, 1.0], dtype=torch.float64)
        self.to_pure_noise = (-self.sde.half_log_snr(self.ends[1])).exp() > PURE_NOISE

    def draw_times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n times from the objective's density: (n,) float64 on the CPU; a ValueError on an n that is no count."""
        require_draws(n, generator)
        if self.objective == "discrete":
            table_length = self.parameterization.table_length
            entries = torch.randint(table_length, (n,), generator=generator)
            return self.sde.time_of_index(entries.double(), table_length)
        if self.objective == "edm":
            log_s = torch.randn(n, generator=generator, dtype=torch.float64) * self.log_sigma_std + self.log_sigma_mean
            return self.sde.inverse_half_log_snr(-log_s).clamp(self.eps, 1)
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        if self.objective == "likelihood":
            evenly = torch.lerp(*self._importance(self.ends), u)
            half_log_snr = 0.5 * torch.expm1(2 * evenly).log() if self.to_pure_noise else evenly
            return self.sde.inverse_half_log_snr(half_log_snr).clamp(self.eps, 1)
        return torch.lerp(*self.ends, u)

    def _importance(self, t: Tensor) -> Tensor:
        """The function of time in which "likelihood" draws uniformly."""
        half_log_snr = self.sde.half_log_snr(t)
        return 0.5 * torch.nn.functional.softplus(2 * half_log_snr) if self.to_pure_noise else half_log_snr

    def output_weight(self, t: Tensor) -> Tensor:
        """Factor of the output's squared error at times drawn by `draw_times`; float64, t's shape.

        As |x_0 error|^2 = s^2 |noise error|^2, terms of s^2 stand as those of x_0's error, which is finite also where
        s is not.
        """
        p = self.parameterization
        if self.objective == "velocity":
            return (p.velocity_scale(t) / self.sde.sigma(t) * p.denoised_error_scale(t)) ** 2
        of_noise = p.noise_error_scale(t) ** 2
        if self.objective == "edm":
            return of_noise + (p.denoised_error_scale(t) / self.sigma_data) ** 2
        if self.objective == "likelihood":
            cleanest, noisiest = self._importance(self.ends)
            if self.to_pure_noise:
                of_noise = of_noise + p.denoised_error_scale(t) ** 2
            return 2 * (cleanest - noisiest) / (1 - self.eps) * of_noise
        return of_noise

    def __call__(
        self, network: Callable, x_0: Tensor, noise: Tensor, t: Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        """Loss of each image.

        Args:
            network: a `UNet2DModel`-like module: `network(x_t, network_time, class_labels).sample`.
            x_0: (N, C, H, W) images in `parameterization.image_range`.
            noise: (N, C, H, W) standard normal.
            t: (N,) float64 times from `draw_times`.
            class_labels: (N,) or None.

        Returns:
            (N,) losses, in float32 (float64 if the images are).

        Raises:
            ValueError: the network cannot be asked as `parameterization` asks (see `require_network_fits`), or is a
                consistency model; `x_0` or `noise` hold integers; shapes or times are others.
        """
        require_floating(x_0=x_0, noise=noise)
        require_times(x_0, noise, t)
        config = config_of(network)
        require_network_fits(config, self.parameterization)
        require_consistency(config, False)
        alpha, sigma = self.parameterization.kernel(x_0, t)
        precision = torch.promote_types(x_0.dtype, torch.float32)
        network_time = self.parameterization.network_time(t).to(precision).to(x_0.device, non_blocking=True)
        output = network(torch.addcmul(alpha * x_0, sigma, noise), network_time, class_labels).sample
        # At fixed x_t the noise estimate is linear in the output, so the output's own error, rescaled, is the noise's.
        target = self.parameterization.target(x_0.to(precision), noise.to(precision), t)
        if output.shape != target.shape:
            raise ValueError(
                f"`network` must answer in the shape {tuple(target.shape)}, but gave {tuple(output.shape)}."
            )
        error = torch.nn.functional.mse_loss(output.to(precision), target, reduction="none").flatten(1)
        per_image = error.mean(1) if self.reduce_mean else 0.5 * error.sum(1)
        return per_image * expand_like(self.output_weight(t), per_image)
