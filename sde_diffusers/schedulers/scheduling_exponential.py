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
it is the share of the noise, u = sigma / (c alpha + sigma) with c the unit of noise levels, and not lambda:
the estimates hardly change at both ends of the lambda axis, where u saturates, and so a long step in lambda does not
extrapolate far.

An evaluation at the end of a step can also correct that step, at no further one: it is taken again from where it
began, by the polynomial through the new estimate, too, whose order is one higher (UniC, arXiv 2302.04867). Order 4
(Adams-Bashforth's, as iPNDM, arXiv 2202.09778, takes it) needs that for its first two steps, which have one and two
estimates behind them and whose errors would outweigh all others.

From pure noise (alpha = 0, as at the end of a flow) h is infinite: there the data form leaves
x_s = alpha_s x_0 + sigma_s (x_t / sigma_t or, with eta above 0, z), and the noise form does not exist.

The state forgets its noise at the rate eta^2 in lambda. Estimates that are further apart have different noise, which
a polynomial amplifies, and one estimate lags behind the state: with few steps and much noise no order holds. Every
step being linear in the state and in the estimates, what the steps do to Gaussian images is known before they are
taken. So the order is the highest, up to `solver_order`, that leaves them as wide as the ODE in the same steps does,
whatever their width: images hardly vary in most directions, and there the noise form is the least stable.
"""

import logging
import math

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config

from sde_diffusers.parameterization import PURE_NOISE, require_choice
from sde_diffusers.scalars import real_number
from sde_diffusers.schedulers.fitted_steps import fitted_steps
from sde_diffusers.schedulers.kept_batch import History, LeftState, histories_of
from sde_diffusers.schedulers.scheduling_score_sde import ScoreSdeScheduler

EXPONENTIAL_FORMS = ("data", "noise")
HIGHEST_ORDER = 4
GAUSS_LEGENDRE = np.polynomial.legendre.leggauss(64)
FORGOTTEN = 40.0  # e^-40 is nothing beside 1 in float64
# The deviations of Gaussian images for which it is looked at what noise does, in units of a quarter of the images'
# range, which is about that of images; the share of them by which it may change them; and the least deviation that is
# seen: below, a change may be as large as there.
GAUSSIAN_IMAGES = (2.0, 0.5, 0.2, 0.05, 0.01)
HOLDS_WITHIN, SEEN = 0.2, 0.1
MOST_NOISE = 1e6  # eta, whose square counts
exponential_log = logging.getLogger(__name__)


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
        if not 0 <= real_number(eta) <= MOST_NOISE:
            raise ValueError(f"`eta` must be a finite number of at least 0 (and at most {MOST_NOISE:g}), not {eta!r}.")
        if unified_corrector and eta > 0:
            raise ValueError(f"`unified_corrector`=True corrects steps of the ODE, and not with noise: `eta`={eta!r}.")
        self.held_order: int = self.config.solver_order
        self._fits = fitted_steps(self, self.config.fits)

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs):
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
        times = self._grid(points)
        self._levels = [*zip(self.sde.alpha(times).tolist(), self.sde.sigma(times).tolist(), strict=True)]
        self._half_log_snr = self.sde.half_log_snr(times).tolist()
        if self.final_denoise:  # the data themselves
            self._levels.append((1.0, 0.0))
            self._half_log_snr.append(math.inf)
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
        self._histories = [History()]
        self._left: LeftState | None = None

    def _update(self, k, x, noise, denoised, draw):
        still = True if self._left is None else self._left.is_still(x)
        if self.fit is not None:
            following = self._fitted(self.fit, k, x, denoised, still)
            self._left = LeftState(following)
            return following, following
        alpha, sigma = self._levels[k]
        if sigma <= alpha * PURE_NOISE:  # from the noise, so that every prediction and older versions round alike
            denoised = (x - sigma * noise) / alpha
        self._histories = histories_of(still, self._histories)
        if len(self._histories) == 1:
            mean, deviation = self._advance(self._histories[0], k, x, noise, denoised)
        else:
            mean = torch.empty_like(x)
            for history in self._histories:
                rows = history.rows
                mean[rows], deviation = self._advance(history, k, x[rows], noise[rows], denoised[rows])
        following = mean + deviation * draw() if deviation > 0 else mean
        self._left = LeftState(following) if any(history.estimates for history in self._histories) else None
        return mean, following

    def _advance(self, history, k, x, noise, denoised):
        """A step of the images of a history, which goes on by the estimates at its start: its mean and deviation."""
        estimates = [*history.estimates, {"data": denoised, "noise": noise}]
        if history.start is not None:
            form = self._form(k - 1, 0.0)
            corrected = self._coefficients(k - 1, form, len(estimates), 0.0, corrected=True)
            x, _ = self._taken(form, corrected, history.start, estimates)
        estimates, form = estimates[-self.held_order :], self._form(k, self.config.eta)
        mean, deviation = self._taken(form, self._coefficients(k, form, len(estimates)), x, estimates)
        history.start = self._own(x) if self._is_corrected(k, len(estimates)) else None
        history.estimates = self._asked_later(k, estimates)
        return mean, deviation

    def _fitted(self, fit, k, x, denoised, still):
        """The state after a fitted step; `still`: the images whose state nobody has changed."""
        if still is not True:
            exponential_log.warning(
                "The state was changed between two of %d steps that were fitted to whole ways of the network: take "
                "the sampler's own, by `from_config(scheduler.config, fits=None)`.",
                self.num_inference_steps,
            )
        (history,) = self._histories
        history.estimates.append(self._own(denoised))
        return self._alphas[k + 1] * fit.step(k, x / self._alphas[k], history.estimates)

    def _is_corrected(self, k, count):
        """Whether the evaluation at the end of step k, of `count` estimates, corrects it."""
        of_the_start = self.held_order == HIGHEST_ORDER and count < HIGHEST_ORDER - 1
        corrected = self.config.unified_corrector or of_the_start
        return self.config.eta == 0 and corrected and k + 1 < self.num_inference_steps

    def _asked_later(self, k, estimates):
        """What the evaluations after step k ask for of the estimates; the rest would only take memory."""
        corrected = self._is_corrected(k, len(estimates))
        coming = range(k + 1, min(k + self.held_order, self.num_inference_steps))
        forms = {self._form(j, self.config.eta) for j in ([k, *coming] if corrected else coming)}
        kept = estimates[max(0, len(estimates) - self.held_order + (not corrected)) :]
        return [{form: self._own(estimate[form]) for form in forms & estimate.keys()} for estimate in kept]

    def _taken(self, form, coefficients, x, estimates):
        """A step from x by what `_coefficients` gives; the deviation of its noise."""
        scale, weights, deviation = coefficients
        mean = scale * x if scale else 0.0
        for weight, estimate in zip(weights, estimates[-len(weights) :], strict=True):
            mean = mean + weight * estimate[form]
        return mean, deviation

    def _form(self, k, eta):
        """What step k extrapolates: "data" or "noise"."""
        (alpha_t, sigma_t), (_, sigma_s) = self._levels[k : k + 2]
        if sigma_t > alpha_t * PURE_NOISE:
            return "data"
        if sigma_s == 0:  # of the SDE's rough path the noise cannot be extrapolated
            return "data" if eta > 0 else "noise"
        return self.config.algorithm

    def _coefficients(self, k, form, order, eta=None, corrected=False):
        """The factors of the state, of the last estimates and of new noise in step k: the module's two equations.

        Of `order` estimates, with the configuration's noise unless `eta` says otherwise. The last estimate is that at
        the step's start or, where it is `corrected`, at its end.
        """
        eta = self.config.eta if eta is None else eta
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self._levels[k : k + 2]
        lambda_t, lambda_s = self._half_log_snr[k : k + 2]
        if sigma_s == 0 and form == "data":
            return 0.0, [1.0], 0.0
        kappa = 1 + eta**2
        last = k + 1 if corrected else k
        unit = self.parameterization.noise_unit
        nodes = [sigma / (unit * alpha + sigma) for alpha, sigma in self._levels[last + 1 - order : last + 1]]
        while len(nodes) > 1 and nodes[0] == nodes[1]:  # estimates from pure noise are one
            nodes = nodes[1:]
        if form == "noise":
            start, end = sigma_t / alpha_t, sigma_s / alpha_s
            integrals = lagrange_integrals(nodes, start, end, lambda s: kappa, lambda s: s / (unit + s))
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
                    lambda v: 1 / (1 + unit * np.exp(v)),
                )
            forgotten = eta**2 * h if eta > 0 else 0.0  # h may be infinite
            scale = sigma_s / sigma_t * math.exp(-forgotten)
            deviation = sigma_s * math.sqrt(-math.expm1(-2 * forgotten))
        return scale, [alpha_s * integral for integral in integrals], deviation

    # Whether it holds.

    def _held_order(self, n):
        """The highest order up to `solver_order` with which n steps leave Gaussian images their width.

        Raises:
            ValueError: if noise changes it by more than `HOLDS_WITHIN` in every order.
        """
        eta = self.config.eta
        tame = 1 if self.config.algorithm == "data" and self.config.solver_order < HIGHEST_ORDER else 0
        if eta <= tame:  # stable in any number of steps
            return self.config.solver_order
        low, high = self.parameterization.image_range
        widths = (high - low) / 4 * np.array(GAUSSIAN_IMAGES)
        tolerated = np.maximum(widths, (high - low) / 4 * SEEN)
        found = {}
        for order in range(self.config.solver_order, 0, -1):
            change = self._widths_left(n, order, eta, widths) - self._widths_left(n, order, 0.0, widths)
            found[order] = np.nan_to_num(abs(change) / tolerated, nan=math.inf).max()
            if found[order] <= HOLDS_WITHIN:
                return order
        orders = ", ".join(f"order {order}: {worst:.3g}" for order, worst in found.items())
        raise ValueError(
            f"`eta`={eta} is too much noise for {n} steps of the {self.config.algorithm!r} form: it would change the "
            f"deviation of Gaussian images, by the share ({orders}). Take more steps, or less noise."
        )

    def _widths_left(self, n, order, eta, widths):
        """The deviations in which n steps end, with networks exact for images of white noise of each of the `widths`.

        Their answers are multiples of the state, so the last states, newest first, follow a linear recursion.
        """
        levels, widths = self._levels[:n], np.asarray(widths, dtype=np.float64)
        size = [(alpha * widths) ** 2 + sigma**2 for alpha, sigma in levels]  # the variances of x_t
        of_state = {
            "data": [alpha * widths**2 / v for (alpha, _), v in zip(levels, size, strict=True)],
            "noise": [sigma / v for (_, sigma), v in zip(levels, size, strict=True)],
        }
        covariance = np.zeros((*widths.shape, order, order))
        covariance[..., 0, 0] = self.init_noise_sigma**2
        shift = np.broadcast_to(np.eye(order, k=-1), covariance.shape).copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for k in range(n):
                form = self._form(k, eta)
                scale, weights, deviation = self._coefficients(k, form, min(order, k + 1), eta)
                for j, weight in enumerate(reversed(weights)):
                    shift[..., 0, j] = weight * of_state[form][k - j]
                shift[..., 0, len(weights) :] = 0
                shift[..., 0, 0] += scale
                covariance = shift @ covariance @ shift.swapaxes(-1, -2)
                covariance[..., 0, 0] += deviation**2
            return np.sqrt(covariance[..., 0, 0])
