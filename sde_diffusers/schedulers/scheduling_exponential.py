"""Exponential-integrator multistep solvers, for few network evaluations.

Every Gaussian SDE has reverse processes with a free amount of noise, eta (0: the probability flow ODE, 1: the
reverse-time SDE). With lambda = log(alpha/sigma) the half-log-SNR and kappa = 1 + eta^2 their linear part is solved
exactly from t down to s in two ways (data: DPM-Solver++, arXiv 2211.01095, with its SDE form at eta = 1; noise: DEIS,
arXiv 2204.13902):

    data    x_s = (sigma_s / sigma_t) e^(-eta^2 h) x_t + alpha_s  int kappa e^(-kappa (lambda_s - lambda)) x_0 dlambda
                  + sigma_s sqrt(1 - e^(-2 eta^2 h)) z,                              h = lambda_s - lambda_t
    noise   x_s = (alpha_s / alpha_t) x_t + alpha_s  int kappa noise d(sigma/alpha)
                  + alpha_s eta sqrt((sigma_t/alpha_t)^2 - (sigma_s/alpha_s)^2) z

What the network estimates, x_0 or the noise, is replaced under the integral by the polynomial through the last k
estimates: order k with one evaluation a step. The polynomials' variable is free (DEIS takes t or sigma/alpha); here
it is the share of the noise, u = sigma / (alpha + sigma), and not lambda: the estimates hardly change at both ends of
the lambda axis, where u saturates, and so a long step in lambda does not extrapolate far.

From pure noise (alpha = 0, as at the end of a flow) h is infinite: there the data form leaves
x_s = alpha_s x_0 + sigma_s (x_t / sigma_t or, with eta above 0, z), and the noise form does not exist.
"""

import math

import numpy as np
from diffusers.configuration_utils import register_to_config

from sde_diffusers.parameterization import PURE_NOISE, require_choice
from sde_diffusers.schedulers.scheduling_score_sde import ScoreSdeScheduler
from sde_diffusers.schedulers.time_grids import time_grid

EXPONENTIAL_FORMS = ("data", "noise")
GAUSS_LEGENDRE = np.polynomial.legendre.leggauss(64)


def lagrange_integrals(nodes, start, end, density, position) -> list[float]:
    """Integrals of density(w) l_j(position(w)) dw from `start` to `end`, l_j the Lagrange polynomials of `nodes`."""
    points, weights = GAUSS_LEGENDRE
    w = (start + end) / 2 + (end - start) / 2 * points
    measure, u = (end - start) / 2 * weights * density(w), position(w)
    return [
        float((measure * math.prod([(u - other) / (node - other) for other in nodes if other != node])).sum())
        for node in nodes
    ]


class ScoreSdeExponentialScheduler(ScoreSdeScheduler):
    """Few-step sampler, one network evaluation a step; the shared arguments are those of `ScoreSdeScheduler`.

    With `final_denoise` (the default) n steps take n evaluations, at n times from 1 to eps, and end at noise level 0:
    the ODE's last step integrates the noise to the end, the SDE's returns E[x_0 | x]. Without, they end at eps.

    Args:
        solver_order: 1, 2 or 3; the first steps, which have fewer estimates behind them, are of lower order. With
            order 1, eta = 0 is DDIM (arXiv 2010.02502) and, with "data", eta = 1 is ancestral sampling.
        eta: amount of noise, at least 0: 0 solves the ODE, 1 the reverse-time SDE.
        algorithm: "data" (as DPM-Solver++) or "noise" (as DEIS and DPM-Solver), what is extrapolated. With eta above 0
            "noise" is unstable in few steps.

    Raises:
        ValueError: on an unknown `algorithm`, an order other than 1, 2, 3 or a negative or infinite `eta`.
    """

    default_time_grid = "noise_share"
    default_num_inference_steps = 20

    @register_to_config
    def __init__(
        self,
        sde: str = "vp",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma: float | None = None,
        beta_min: float | None = None,
        beta_max: float | None = None,
        trained_betas: list[float] | None = None,
        sde_parameters: dict | None = None,
        prediction_type: str | None = None,
        time_input: str | None = None,
        image_range: tuple[float, float] | None = None,
        num_train_timesteps: int = 1000,
        sampling_sde: str | None = None,
        sampling_sde_parameters: dict | None = None,
        sampling_eps: float | None = None,
        time_grid: str | None = None,
        final_denoise: bool | None = None,
        solver_order: int = 3,
        eta: float = 0.0,
        algorithm: str = "data",
    ):
        self._setup()
        require_choice("solver_order", solver_order, (1, 2, 3))
        require_choice("algorithm", algorithm, EXPONENTIAL_FORMS)
        if not 0 <= eta < math.inf:
            raise ValueError(f"`eta` must be a finite number of at least 0, but is {eta!r}.")

    def _plan(self, n):
        points = n if self.final_denoise else n + 1
        times = time_grid(self.time_grid, points, self.sde, self.start_time, self.sampling_eps)
        kernel = (self.sde.alpha(times), self.sde.sigma(times), self.sde.half_log_snr(times))
        self._levels = [*zip(*(values.tolist() for values in kernel), strict=True)]
        if self.final_denoise:  # the data themselves
            self._levels.append((1.0, 0.0, math.inf))
        self._estimates = []
        return times[:n], [True] * n

    def _update(self, k, x, noise, denoised, draw):
        (alpha, sigma, _), (_, following_sigma, _) = self._levels[k : k + 2]
        pure_noise = sigma > alpha * PURE_NOISE
        if not pure_noise:  # from the noise, so that every prediction and older versions round alike
            denoised = (x - sigma * noise) / alpha
        self._estimates = [*self._estimates, {"data": denoised, "noise": noise}][-self.config.solver_order :]
        if following_sigma == 0 and self.config.eta > 0:  # a rough path: its noise cannot be extrapolated
            return denoised, denoised
        form = "noise" if following_sigma == 0 else self.config.algorithm
        form = "data" if pure_noise else form
        scale, weights, deviation = self._coefficients(k, form)
        mean = scale * x
        for weight, estimate in zip(weights, self._estimates, strict=True):
            mean = mean + weight * estimate[form]
        return (mean, mean + deviation * draw()) if deviation > 0 else (mean, mean)

    def _coefficients(self, k, form):
        """Of the state, the last estimates and new noise in step k: the module's two equations."""
        eta, kappa = self.config.eta, 1 + self.config.eta**2
        (alpha_t, sigma_t, lambda_t), (alpha_s, sigma_s, lambda_s) = self._levels[k : k + 2]
        nodes = [sigma / (alpha + sigma) for alpha, sigma, _ in self._levels[k + 1 - len(self._estimates) : k + 1]]
        if form == "noise":
            start, end = sigma_t / alpha_t, sigma_s / alpha_s
            integrals = lagrange_integrals(nodes, start, end, lambda s: kappa, lambda s: s / (1 + s))
            scale, deviation = alpha_s / alpha_t, alpha_s * eta * math.sqrt(start**2 - end**2)
        else:
            h = lambda_s - lambda_t
            if len(nodes) == 1:
                integrals = [-math.expm1(-kappa * h)]
            else:
                integrals = lagrange_integrals(
                    nodes,
                    lambda_t,
                    lambda_s,
                    lambda v: kappa * np.exp(kappa * (v - lambda_s)),
                    lambda v: 1 / (1 + np.exp(v)),
                )
            forgotten = eta**2 * h if eta > 0 else 0.0  # h may be infinite
            scale = sigma_s / sigma_t * math.exp(-forgotten)
            deviation = sigma_s * math.sqrt(-math.expm1(-2 * forgotten))
        return scale, [alpha_s * integral for integral in integrals], deviation
