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

An evaluation at the end of a step can also correct that step, at no further one: it is taken again from where it
began, by the polynomial through the new estimate, too, whose order is one higher (UniC, arXiv 2302.04867). Order 4
(Adams-Bashforth's, as iPNDM, arXiv 2202.09778, takes it) needs that for its first two steps, which have one and two
estimates behind them and whose errors would outweigh all others.

From pure noise (alpha = 0, as at the end of a flow) h is infinite: there the data form leaves
x_s = alpha_s x_0 + sigma_s (x_t / sigma_t or, with eta above 0, z), and the noise form does not exist.

The state forgets its noise at the rate eta^2 in lambda. Estimates that are further apart have different noise, which
a polynomial amplifies, and one estimate lags behind the state: with few steps and much noise no order holds. Every
step being linear in the state and in the estimates, what the steps do to Gaussian images is known before they are
taken. So the order is the highest, up to `solver_order`, that leaves them as wide as the ODE in the same steps does.
"""

import math

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config

from sde_diffusers.parameterization import PURE_NOISE, require_choice
from sde_diffusers.scalars import real_number
from sde_diffusers.schedulers.fitted_steps import fitted_steps
from sde_diffusers.schedulers.scheduling_score_sde import ScoreSdeScheduler
from sde_diffusers.schedulers.time_grids import time_grid

EXPONENTIAL_FORMS = ("data", "noise")
HIGHEST_ORDER = 4
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

    In at most 8 steps the default grid, "few_steps", reaches the further down the more they are. Numbers of steps for
    which `fits` holds steps that were fitted to the network take these, without noise.

    Args:
        solver_order: 1, 2, 3 or 4; the first steps, which have fewer estimates behind them, are of lower order, and
            with more noise than the SDE's own all are where it does not hold (see `held_order`). With order 1, eta = 0
            is DDIM (arXiv 2010.02502) and, with "data", eta = 1 is ancestral sampling.
        eta: amount of noise, at least 0: 0 solves the ODE, 1 the reverse-time SDE. More noise takes more steps, about
            as many as its square says: `set_timesteps` raises a `ValueError` where they are too few.
        algorithm: "data" (as DPM-Solver++) or "noise" (as DEIS and DPM-Solver), what is extrapolated. With eta above 0
            "noise" is unstable in few steps.
        unified_corrector: whether each step of the ODE is corrected by the evaluation at its end; None means not. It
            adds an order in many steps, and with the data form tells from 5 on.
        fits: what `sde_diffusers.fit_sampler` found for one network and these settings, see `fitted_steps.py`. With
            other settings (of the SDE, the sampler, the range of x_0) they are kept, but not used.

    Raises:
        ValueError: on an unknown `algorithm`, an order other than 1, 2, 3, 4, a negative or infinite `eta`, a
            corrector with noise, or `fits` that are none.

    Attributes (after `set_timesteps`):
        held_order: the order that is used, at most `solver_order`.
        fit: the `FittedSteps` that are taken, or None.
    """

    default_num_inference_steps = 20

    @property
    def default_time_grid(self) -> str:  # type: ignore[override]
        """The one for few steps wherever the last of them goes to the data."""
        return "few_steps" if self.final_denoise else "noise_share"

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
        unified_corrector: bool | None = None,
        fits: dict | None = None,
    ):
        self._setup()
        require_choice("solver_order", solver_order, range(1, HIGHEST_ORDER + 1))
        require_choice("unified_corrector", unified_corrector, (None, True, False))
        require_choice("algorithm", algorithm, EXPONENTIAL_FORMS)
        if not 0 <= real_number(eta) < math.inf:
            raise ValueError(f"`eta` must be a finite number of at least 0, but is {eta!r}.")
        if unified_corrector and eta > 0:
            raise ValueError(f"`unified_corrector`=True corrects steps of the ODE, and not with noise: `eta`={eta!r}.")
        self.held_order: int = self.config.solver_order
        self._fits = fitted_steps(self, self.config.fits)

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """See the base; files of older versions, which have neither corrector nor fits, are taken for complete."""
        arguments, unused, kept = super().extract_init_dict(config_dict, **kwargs)
        for key in ("unified_corrector", "fits"):
            arguments.setdefault(key, None)
        return arguments, unused, kept

    def _plan(self, n):
        self.fit = self._fits.get(n)
        if self.fit is not None:
            times = self.fit.times(self.sde)
            self._alphas = [*self.sde.alpha(times).tolist(), 1.0]
            self.held_order = self.config.solver_order
            return times, [True] * n
        points = n if self.final_denoise else n + 1
        times = time_grid(self.time_grid, points, self.sde, self.start_time, self.sampling_eps)
        kernel = (self.sde.alpha(times), self.sde.sigma(times), self.sde.half_log_snr(times))
        self._levels = [*zip(*(values.tolist() for values in kernel), strict=True)]
        if self.final_denoise:  # the data themselves
            self._levels.append((1.0, 0.0, math.inf))
        self.held_order = self._held_order(n)
        return times[:n], [True] * n

    def leave_fit(self):
        """Take the sampler's own steps where others were fitted: those are for whole ways of the network alone."""
        if self.fit is not None:
            fits, self._fits = self._fits, {}
            self.set_timesteps(len(self.fit.levels), self.timesteps.device)
            self._fits = fits

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise from which sampling starts; after `set_timesteps` that at the first time."""
        return self.start_sigma if self.fit is None else self.sde.sigma(self.times[0]).item()

    def _forget(self):
        super()._forget()
        self._estimates: list = []
        self._last_step: tuple | None = None

    def _update(self, k, x, noise, denoised, draw):
        if self.fit is not None:
            self._estimates = [*self._estimates, denoised]
            following = self._alphas[k + 1] * self.fit.step(k, x / self._alphas[k], self._estimates)
            return following, following
        alpha, sigma, _ = self._levels[k]
        if sigma <= alpha * PURE_NOISE:  # from the noise, so that every prediction and older versions round alike
            denoised = (x - sigma * noise) / alpha
        estimates = [*self._estimates, {"data": denoised, "noise": noise}]
        if self._last_step is not None and self._is_corrected(k - 1):
            start, end = self._last_step
            if x is end or torch.equal(x, end):  # and not a state that was replaced meanwhile
                x, _ = self._taken(self._coefficients(k - 1, len(estimates), 0.0, True), start, estimates)
        self._estimates = estimates[-self.held_order :]
        mean, deviation = self._taken(self._coefficients(k, len(self._estimates), self.config.eta), x, self._estimates)
        following = mean + deviation * draw() if deviation > 0 else mean
        self._last_step = (x, following)
        return mean, following

    def _is_corrected(self, k):
        """Whether the evaluation at the end of step k corrects it."""
        of_the_start = self.held_order == HIGHEST_ORDER and k < HIGHEST_ORDER - 2
        return self.config.eta == 0 and (self.config.unified_corrector or of_the_start)

    def _taken(self, coefficients, x, estimates):
        """A step from x by what `_coefficients` gives; the deviation of its noise."""
        form, scale, weights, deviation = coefficients
        mean = scale * x if scale else 0.0
        for weight, estimate in zip(weights, estimates[-len(weights) :], strict=True):
            mean = mean + weight * estimate[form]
        return mean, deviation

    def _coefficients(self, k, order, eta, corrected=False):
        """What step k extrapolates, and the factors of the state, of the last estimates and of new noise: the module's
        two equations. The last estimate is that at the step's start or, where it is `corrected`, at its end."""
        (alpha_t, sigma_t, lambda_t), (alpha_s, sigma_s, lambda_s) = self._levels[k : k + 2]
        form = "noise" if sigma_s == 0 else self.config.algorithm
        form = "data" if sigma_t > alpha_t * PURE_NOISE else form
        if sigma_s == 0 and eta > 0:  # a rough path: its noise cannot be extrapolated
            return "data", 0.0, [1.0], 0.0
        kappa = 1 + eta**2
        last = k + 1 if corrected else k
        nodes = [sigma / (alpha + sigma) for alpha, sigma, _ in self._levels[last + 1 - order : last + 1]]
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
        tame = 1 if self.config.algorithm == "data" and self.config.solver_order < HIGHEST_ORDER else 0
        if eta <= tame:  # stable in any number of steps
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
