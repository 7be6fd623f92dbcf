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

The state forgets its noise at the rate eta^2 in lambda. Estimates that are further apart have different noise, which
a polynomial amplifies, and one estimate lags behind the state: with few steps and much noise no order holds. Every
step being linear in the state and in the estimates, what the steps do to Gaussian images is known before they are
taken. So the order is the highest, up to `solver_order`, that leaves them as wide as the ODE in the same steps does.
"""

import math

import numpy as np
from diffusers.configuration_utils import register_to_config

from sde_diffusers.parameterization import PURE_NOISE, require_choice
from sde_diffusers.scalars import real_number
from sde_diffusers.schedulers.scheduling_score_sde import ScoreSdeScheduler
from sde_diffusers.schedulers.time_grids import time_grid

EXPONENTIAL_FORMS = ("data", "noise")
GAUSS_LEGENDRE = np.polynomial.legendre.leggauss(64)
FORGOTTEN = 40.0  # e^-40 is nothing beside 1 in float64
# By how much noise may change the deviation of Gaussian images, and the deviations for which it is looked at, in units
# of a quarter of the images' range, which is about that of images.
HOLDS_WITHIN, GAUSSIAN_IMAGES, NO_WIDTH = 0.25, (1.0, 0.5), 1e-9


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
        solver_order: 1, 2 or 3; the first steps, which have fewer estimates behind them, are of lower order, and with
            more noise than the SDE's own all are where it does not hold (see `held_order`). With order 1, eta = 0 is
            DDIM (arXiv 2010.02502) and, with "data", eta = 1 is ancestral sampling.
        eta: amount of noise, at least 0: 0 solves the ODE, 1 the reverse-time SDE. More noise takes more steps, about
            as many as its square says: `set_timesteps` raises a `ValueError` where they are too few.
        algorithm: "data" (as DPM-Solver++) or "noise" (as DEIS and DPM-Solver), what is extrapolated. With eta above 0
            "noise" is unstable in few steps.

    Raises:
        ValueError: on an unknown `algorithm`, an order other than 1, 2, 3 or a negative or infinite `eta`.

    Attributes (after `set_timesteps`):
        held_order: the order that is used, at most `solver_order`.
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
        clip_denoised: bool | float | None = None,
        dynamic_thresholding_ratio: float | None = None,
        sample_max_value: float | None = None,
    ):
        self._setup()
        require_choice("solver_order", solver_order, (1, 2, 3))
        require_choice("algorithm", algorithm, EXPONENTIAL_FORMS)
        if not 0 <= real_number(eta) < math.inf:
            raise ValueError(f"`eta` must be a finite number of at least 0, but is {eta!r}.")

    def _plan(self, n):
        points = n if self.final_denoise else n + 1
        times = time_grid(self.time_grid, points, self.sde, self.start_time, self.sampling_eps)
        kernel = (self.sde.alpha(times), self.sde.sigma(times), self.sde.half_log_snr(times))
        self._levels = [*zip(*(values.tolist() for values in kernel), strict=True)]
        if self.final_denoise:  # the data themselves
            self._levels.append((1.0, 0.0, math.inf))
        self.held_order = self._held_order(n)
        self._forms = [self._form(k, self.config.eta) for k in range(n)]
        return times[:n], [True] * n

    def _forget(self):
        super()._forget()
        self._estimates: dict[int, dict] = {}  # by the number of their evaluation

    def _update(self, k, x, noise, denoised, draw):
        alpha, sigma, _ = self._levels[k]
        if sigma <= alpha * PURE_NOISE:  # from the noise, so that every prediction and older versions round alike
            denoised = (x - sigma * noise) / alpha
        estimates = {**self._estimates, k: {"data": denoised, "noise": noise}}
        form, scale, weights, deviation = self._coefficients(k, len(estimates), self.config.eta)
        mean = scale * x if scale else 0.0
        for weight, estimate in zip(weights, [*estimates.values()][-len(weights) :], strict=True):
            mean = mean + weight * estimate[form]
        # What no coming step asks for would only take memory.
        asked = {j: set(self._forms[k + 1 : j + self.held_order]) for j in estimates if j + self.held_order > k + 1}
        self._estimates = {j: {form: estimates[j][form] for form in forms} for j, forms in asked.items()}
        return (mean, mean + deviation * draw()) if deviation > 0 else (mean, mean)

    def _form(self, k, eta):
        """What step k extrapolates."""
        (alpha_t, sigma_t, _), (_, sigma_s, _) = self._levels[k : k + 2]
        # Where noise is drawn the path is rough, and its noise cannot be extrapolated to the end.
        if sigma_t > alpha_t * PURE_NOISE or (sigma_s == 0 and eta > 0):
            return "data"
        return "noise" if sigma_s == 0 else self.config.algorithm

    def _coefficients(self, k, order, eta):
        """What step k extrapolates, and the factors of the state, of the last estimates and of new noise: the module's
        two equations."""
        (alpha_t, sigma_t, lambda_t), (alpha_s, sigma_s, lambda_s) = self._levels[k : k + 2]
        form = self._form(k, eta)
        if sigma_s == 0 and eta > 0:
            return form, 0.0, [1.0], 0.0
        kappa = 1 + eta**2
        nodes = [sigma / (alpha + sigma) for alpha, sigma, _ in self._levels[k + 1 - order : k + 1]]
        while len(nodes) > 1 and nodes[0] == nodes[1]:  # estimates from pure noise are one
            nodes = nodes[1:]
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
                    max(lambda_t, lambda_s - FORGOTTEN / kappa),  # before, the weight is nothing
                    lambda_s,
                    lambda v: kappa * np.exp(kappa * (v - lambda_s)),
                    lambda v: 1 / (1 + np.exp(v)),
                )
            forgotten = eta**2 * h if eta > 0 else 0.0  # h may be infinite
            scale = sigma_s / sigma_t * math.exp(-forgotten)
            deviation = sigma_s * math.sqrt(-math.expm1(-2 * forgotten))
        return form, scale, [alpha_s * integral for integral in integrals], deviation

    # Whether it holds.

    def _held_order(self, n):
        """The highest order up to `solver_order` with which n steps leave Gaussian images their width."""
        eta, found = self.config.eta, {}
        if eta <= (1 if self.config.algorithm == "data" else 0):  # stable in any number of steps
            return self.config.solver_order
        low, high = self.parameterization.image_range
        for order in range(self.config.solver_order, 0, -1):
            widths = [(high - low) / 4 * width for width in GAUSSIAN_IMAGES]
            ratios = [self._width_left(n, order, eta, w) / self._width_left(n, order, 0.0, w) for w in widths]
            found[order] = max(ratios, key=lambda ratio: math.inf if math.isnan(ratio) else abs(ratio - 1))
            if abs(found[order] - 1) <= HOLDS_WITHIN:
                return order
        orders = ", ".join(f"order {order}: {ratio:.3g}" for order, ratio in found.items())
        raise ValueError(
            f"`eta`={eta} is too much noise for {n} steps of the {self.config.algorithm!r} form: images of Gaussian "
            f"noise would come out wider or narrower than without it, by the factor ({orders}). Take more steps, or "
            "less noise."
        )

    def _width_left(self, n, order, eta, width):
        """The deviation in which n steps end whose network is exact for images of white noise of deviation `width`.

        Their answers are multiples of the state, so the last states, newest first, follow a linear recursion.
        """
        levels = self._levels[:n]
        size = [(alpha * width) ** 2 + sigma**2 for alpha, sigma, _ in levels]  # the variances of x_t
        of_state = {
            "data": [alpha * width**2 / v for (alpha, _, _), v in zip(levels, size, strict=True)],
            "noise": [sigma / v for (_, sigma, _), v in zip(levels, size, strict=True)],
        }
        covariance = np.zeros((order, order))
        covariance[0, 0] = self.init_noise_sigma**2
        shift = np.eye(order, k=-1)
        with np.errstate(over="ignore", invalid="ignore"):
            for k in range(n):
                form, scale, weights, deviation = self._coefficients(k, min(order, k + 1), eta)
                for j, weight in enumerate(reversed(weights)):
                    shift[0, j] = weight * of_state[form][k - j]
                shift[0, len(weights) :] = 0
                shift[0, 0] += scale
                covariance = shift @ covariance @ shift.T
                covariance[0, 0] += deviation**2
            return math.hypot(np.sqrt(covariance[0, 0]), NO_WIDTH)
