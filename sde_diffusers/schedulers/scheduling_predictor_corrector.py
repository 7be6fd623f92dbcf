"""Predictor-corrector sampling (algorithms 1-5 of arXiv 2011.13456).

At each time of the grid the corrector first moves the state along the score at that time (Langevin dynamics), then
the predictor takes one step of the reverse-time SDE

    dx = [f(t) x - g(t)^2 score(x, t)] dt + g(t) dw~.

With x_t = a x_s + b z a step of the forward chain from s up to t, the predictors go from t down to s by

    reverse_diffusion   x_s = (2 - a) x_t + b^2 score + b z                      (algorithms 2, 3; eq. 46)
    ancestral           x_s = (x_t + b^2 score) / a + posterior_noise z          (eq. 4, eq. 47 and arXiv 2006.11239)
    euler_maruyama      x_s = x_t - [f x_t - g^2 score] dt + g sqrt(dt) z
    none                x_s = x_t

The first three are for small steps. From pure noise (a = 0, as at the end of a flow) every predictor takes
x_s = alpha_s E[x_0 | x_t] + posterior_noise z, which is what "ancestral" means there.
"""

import torch
from diffusers.configuration_utils import register_to_config

from sde_diffusers.parameterization import PURE_NOISE, expand_like, require_choice
from sde_diffusers.scalars import real_number, whole_number
from sde_diffusers.schedulers.scheduling_score_sde import ScoreSdeScheduler

PREDICTORS = ("reverse_diffusion", "euler_maruyama", "ancestral", "none")
CORRECTORS = ("langevin", "ald", "none")


class ScoreSdePredictorCorrectorScheduler(ScoreSdeScheduler):
    """Predictor-corrector sampler; the shared arguments are those of `ScoreSdeScheduler`.

    On the paper's grid ("uniform", the default, from 1 to at most the SDE's own `sampling_eps`) the chains and step
    sizes are those of its code; on other grids the exact transitions of the SDE take their place. The last predictor
    step returns its mean (unless `final_denoise=False`).

    Args:
        predictor: "reverse_diffusion", "euler_maruyama", "ancestral" or "none" (then only the corrector acts). On the
            sub-VP SDE, whose paper chain has no posterior, "ancestral" uses exact transitions.
        corrector: "langevin" (step size from `snr`, the norms of score and noise averaged over the batch), "ald"
            (annealed Langevin dynamics: step size from `snr` and sigma) or "none".
        snr: signal-to-noise ratio of the corrector; it leaves a bias of about snr^2 in the variance.
        corrector_steps: corrector steps at each time.
        per_image_step: take the norms for "langevin" of each image alone. The paper averages them over the batch, so
            that an image depends on its neighbours in the batch; with this it does not.

    Raises:
        ValueError: on unknown names, an `snr` that is not above 0 and finite, negative `corrector_steps`, or if
            nothing is left to do.
    """

    @property
    def default_num_inference_steps(self) -> int:  # type: ignore[override]
        """One for each noise level of the training's table, as in the paper."""
        return self.parameterization.table_length

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
        predictor: str = "reverse_diffusion",
        corrector: str = "langevin",
        snr: float = 0.16,
        corrector_steps: int = 1,
        per_image_step: bool = False,
        clip_denoised: bool | float | None = None,
        dynamic_thresholding_ratio: float | None = None,
        sample_max_value: float | None = None,
    ):
        self._setup()
        require_choice("predictor", predictor, PREDICTORS)
        require_choice("corrector", corrector, CORRECTORS)
        require_choice("per_image_step", per_image_step, (True, False))
        if not 0 < real_number(snr) < 1:
            raise ValueError(
                f"`snr` must be a number above 0 and below 1, from which on Langevin steps diverge, but is {snr!r}."
            )
        if not whole_number(corrector_steps) >= 0:
            raise ValueError(f"`corrector_steps` must be a non-negative integer, but is {corrector_steps!r}.")
        self.corrections = 0 if corrector == "none" else self.config.corrector_steps
        self.predictions = 0 if predictor == "none" else 1
        if self.corrections + self.predictions == 0:
            raise ValueError("`predictor` and `corrector` are both without effect: nothing would be sampled.")

    def _plan(self, n):
        times = self._grid(n)
        uniform = self.time_grid == "uniform"
        # The paper's where the times are its own, and the exact transitions anywhere else.
        chain = paper_chain = self.sde.paper_chain(times) if uniform else self.sde.chain(times)
        if self.config.predictor == "ancestral" and chain.posterior_noise is None:
            chain = self.sde.chain(times)
        self._langevin_scale = paper_chain.langevin_scale.tolist()
        following = torch.cat([times[1:], torch.zeros(1, dtype=torch.float64)])
        paper_steps = uniform and self.sde.is_paper_grid(times)
        self._dt = torch.full_like(times, 1 / n) if paper_steps else times - following
        self._following_alpha = self.sde.alpha(following[:-1]).tolist() + [1.0]
        self._chain = chain
        self._sigma, self._a, self._b = (values.tolist() for values in (self.sde.sigma(times), chain.a, chain.b))
        self._posterior_noise = None if chain.posterior_noise is None else chain.posterior_noise.tolist()
        if self.config.predictor == "euler_maruyama":
            f, g = self.sde.drift(times), self.sde.diffusion(times)
            self._euler = [*zip(f.tolist(), g.tolist(), self._dt.tolist(), strict=True)]
        calls = self.corrections + self.predictions
        ends_step = ([False] * (calls - 1) + [True]) * n
        return times.repeat_interleave(calls), ends_step

    def _update(self, k, x, noise, denoised, draw):
        i, call = divmod(k, self.corrections + self.predictions)
        score = -noise / self._sigma[i]
        if call < self.corrections:
            return self._correct(i, x, score, draw)
        mean, deviation = self._predict(i, x, score, denoised)
        if i == len(self._sigma) - 1 and self.final_denoise:
            return mean, mean
        return mean, mean + deviation * draw()

    def _correct(self, i, x, score, draw):
        z = draw()
        scale = 2 * self._langevin_scale[i]
        if self.config.corrector == "ald":
            step_size = scale * (self.config.snr * self._sigma[i]) ** 2
            return (mean := x + step_size * score), mean + (2 * step_size) ** 0.5 * z
        noise_norm, score_norm = (expand_like(v.flatten(1).norm(dim=1), x) for v in (z, score))
        if not self.config.per_image_step:
            noise_norm, score_norm = noise_norm.mean(), score_norm.mean()
        # A score of 0 (one pixel, half precision) says nothing about the scale: the noise level then does.
        ratio = torch.where(score_norm > 0, noise_norm / score_norm, self._sigma[i])
        step_size = scale * (self.config.snr * ratio) ** 2
        return (mean := x + step_size * score), mean + (2 * step_size).sqrt() * z

    def _predict(self, i, x, score, denoised):
        """Mean and deviation of the state one grid point below."""
        a, b = self._a[i], self._b[i]
        if a * PURE_NOISE < 1:
            return self._following_alpha[i] * denoised, self._posterior_noise[i]  # type: ignore[index]
        if self.config.predictor == "reverse_diffusion":
            return (2 - a) * x + b**2 * score, b
        if self.config.predictor == "ancestral":
            return (x + b**2 * score) / a, self._posterior_noise[i]  # type: ignore[index]  # see `_plan`
        f, g, dt = self._euler[i]
        return x - (f * x - g**2 * score) * dt, g * dt**0.5
