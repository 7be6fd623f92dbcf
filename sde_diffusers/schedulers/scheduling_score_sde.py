"""What all samplers share: a configuration names an SDE and how the network is parameterized, and a time grid is
walked from t = 1 to the data.

A sampler overrides two methods: `_plan`, which says at which times the network is evaluated, and `_update`, which
turns one evaluation into the next state. Everything else (grids, counting, conversion of the network's output,
sampling with another SDE than the training's) is here.
"""

import logging
import math
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sde_diffusers.generators import require_generators
from sde_diffusers.parameterization import PURE_NOISE, TIME_ROUNDING, Parameterization, expand_like, require_choice
from sde_diffusers.scalars import plain_config, real_number, require_floating, whole_number
from sde_diffusers.schedulers.config_keys import KnownKeysMixin
from sde_diffusers.schedulers.denoised_range import DenoisedRange
from sde_diffusers.schedulers.fitted_steps import FittedSteps
from sde_diffusers.schedulers.kept_batch import KeptBatchMixin
from sde_diffusers.schedulers.late_start import LateStartMixin
from sde_diffusers.schedulers.noise_range import MOST_DEVIATIONS, check_noise_range
from sde_diffusers.schedulers.other_sde import OtherSdeMixin
from sde_diffusers.schedulers.sde_keys import SDE_KEYS, build_sde, keys_of, sde_class
from sde_diffusers.schedulers.time_grids import TIME_GRIDS, time_grid

SDE_ARGUMENTS = ("sde", "sampling_sde")
MOST_TIME_STEPS = 1_000_000
BOUNDS = ("clip_denoised", "dynamic_thresholding_ratio", "sample_max_value")
# Noise level at which sampling begins if the network's answer says nothing of x_0 at the end of its SDE, as predicted
# noise does where alpha = 0: half of float32's digits are then left for x_0, and the prior lacks no more of it.
FIRST_TELLING_LEVEL = math.sqrt(PURE_NOISE)
scheduler_log = logging.getLogger(__name__)


@dataclass
class ScoreSdeSchedulerOutput(BaseOutput):
    """Output of a scheduler's `step`; tensors of the sample's shape.

    Args:
        prev_sample: the next state, at an earlier (less noisy) time or, in a corrector, at the same one.
        prev_sample_mean: the next state before its noise was added.
        pred_original_sample: the denoised image E[x_0 | x_t].
    """

    prev_sample: Tensor
    prev_sample_mean: Tensor
    pred_original_sample: Tensor


class ScoreSdeScheduler(LateStartMixin, OtherSdeMixin, KeptBatchMixin, KnownKeysMixin, SchedulerMixin, ConfigMixin):
    """Base of the samplers. The configuration keys below are shared by all of them; None stands for a default.

    Args:
        sde: what the network was trained with, by the name of an SDE (a subclass of `GaussianSDE`): "ve", "vp",
            "sub_vp", "ve_exponential", "vp_discrete", "cosine_vp", "flow" or one of your own.
        sde_parameters: arguments of the SDE's constructor by their names, such as {"s": 0.01} for "cosine_vp". Those
            of the first SDEs can be given as keys of their own instead:
        sigma_min, sigma_max: of "ve" (0.01 and 50).
        sigma: of "ve_exponential" (25).
        beta_min, beta_max: of "vp" and "sub_vp" (0.1 and 20).
        trained_betas: the beta table of "vp_discrete" (DDPM's linear one).
        prediction_type: what the network returns: "score", "epsilon", "sample", "v_prediction" or "velocity"; the
            SDE's own by default.
        time_input: what the network is conditioned on: "sigma", "999t", "1000t", "t" or "index"; the SDE's own by
            default.
        image_range: range of the network's images; the SDE's own by default, (0, 1) for the VE SDEs, (-1, 1) else.
        num_train_timesteps: length of the noise table of a network with time input "index" (1000).
        sampling_sde: another SDE to sample with, by name; it takes what it can of the keys above.
        sampling_sde_parameters: arguments of its constructor.
        sampling_eps: time at which sampling ends (1e-5 for "ve", 1e-3 for the others, at least 1/N for tables).
        time_grid: "uniform", "quadratic", "log_snr", "karras", "noise_share" or "few_steps"; the default is the
            sampler's.
        final_denoise: whether the last evaluation steps to x_0 without noise (default), so that none is left.
        clip_denoised: whether each E[x_0 | x_t] is clipped to `image_range`, or, a number, to a range so many times as
            wide about the same middle. Off by default; for networks made to be sampled so, as many of diffusers are.
        dynamic_thresholding_ratio: instead, the share of an image's values that dynamic thresholding (arXiv
            2205.11487) leaves as they are, such as 0.995. Off by default.
        sample_max_value: its largest threshold, in units of half the image range (1).

    Raises:
        ValueError: on unknown names or values out of range; if no noise level is left to sample between those that
            the network knows and `sampling_eps`. A parameter with a key of its own that neither SDE takes, as one may
            be left over from another SDE, is warned of.

    Attributes (after `set_timesteps`):
        timesteps: (M,) what the network is conditioned on at each of its M evaluations; values repeat.
        times: (M,) float64, the SDE times of these evaluations.
    """

    order = 1
    default_time_grid = "uniform"
    default_num_inference_steps = 1000
    of_consistency_models = False  # whether it takes a network's answers for the ends of the ODE, not E[x_0 | x_t]
    fit: FittedSteps | None = None  # steps that were fitted to a network, in samplers that know such

    def _setup(self) -> None:
        """Resolve the configuration; each constructor calls it."""
        self.register_to_config(**plain_config(self.config))
        config = self.config
        keys = {key: config[key] for key in SDE_KEYS if config[key] is not None}
        classes = [sde_class(argument, config[argument]) for argument in SDE_ARGUMENTS if config[argument] is not None]
        taken = sorted({key for cls in classes for key in keys_of(cls)})
        for key in keys.keys() - taken:
            scheduler_log.warning(
                f"`{key}`={keys[key]!r} has no effect: `sde`={config.sde!r} and `sampling_sde`="
                f"{config.sampling_sde!r} take {', '.join(taken) or 'no such parameters'}."
            )
        self.training_sde = build_sde("sde", config.sde, config.sde_parameters, **keys)
        if config.sampling_sde is None and config.sampling_sde_parameters:
            raise ValueError(
                f"`sampling_sde_parameters`={config.sampling_sde_parameters!r} need a `sampling_sde`, which is None."
            )
        # The same object where both are the same: times then stay exact, and the paper's chains apply.
        self.sde = self.training_sde
        if config.sampling_sde not in (None, config.sde) or config.sampling_sde_parameters:
            self.sde = build_sde("sampling_sde", config.sampling_sde, config.sampling_sde_parameters, **keys)
        own = self.training_sde
        self.parameterization = Parameterization(
            own,
            prediction_type=own.prediction_type if config.prediction_type is None else config.prediction_type,
            time_input=own.time_input if config.time_input is None else config.time_input,
            image_range=own.image_range if config.image_range is None else config.image_range,
            num_train_timesteps=config.num_train_timesteps,
        )
        if self.parameterization.table_length != config.num_train_timesteps:  # from which training loops draw
            self.register_to_config(num_train_timesteps=self.parameterization.table_length)
        self.final_denoise = True if config.final_denoise is None else config.final_denoise
        require_choice("final_denoise", self.final_denoise, (True, False))
        self.time_grid = self.default_time_grid if config.time_grid is None else config.time_grid
        require_choice("time_grid", self.time_grid, TIME_GRIDS)
        if self.time_grid == "few_steps" and not self.final_denoise:
            raise ValueError("`time_grid`='few_steps' needs `final_denoise`=True, as it ends above `sampling_eps`.")
        self.denoised_range = DenoisedRange(
            self.parameterization.image_range,
            config.clip_denoised,
            config.dynamic_thresholding_ratio,
            config.sample_max_value,
        )
        self.start_time, self.sampling_eps = self._interval()
        check_noise_range(self)
        self.num_inference_steps: int | None = None
        self.timesteps = self.times = torch.empty(0)
        self._known_at: dict[float, tuple] = {}
        self._calls = 0
        self._forget()

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs):
        """As in diffusers, for configurations that were saved, or are changed.

        Files of older versions, which have no parameters by name and no bounds, are taken for complete. Where another
        SDE takes the place of one that had parameters, these leave with it.
        """
        arguments, unused, kept = super().extract_init_dict(config_dict, **kwargs)
        for key in BOUNDS:
            arguments.setdefault(key, None)
        if "trained_betas" in kwargs and "num_train_timesteps" not in kwargs and config_dict.get("trained_betas"):
            arguments.pop("num_train_timesteps", None)  # of the table that another one replaces
        for sde in SDE_ARGUMENTS:
            parameters = arguments.setdefault(f"{sde}_parameters", None)
            if parameters and f"{sde}_parameters" not in kwargs and arguments.get(sde) != config_dict.get(sde):
                arguments[f"{sde}_parameters"] = None
        return arguments, unused, kept

    def _interval(self) -> tuple[float, float]:
        """The times between which sampling runs: no noisier or cleaner than what the network has seen."""
        own = self.parameterization.smallest_time
        smallest = own if self.sde is self.training_sde else self.sde.smallest_time
        eps = max(self.sde.sampling_eps, smallest) if self.config.sampling_eps is None else self.config.sampling_eps
        if not smallest * (1 - TIME_ROUNDING) <= real_number(eps) < 1 or eps <= 0:
            allowed = f"in [{smallest}, 1)" if smallest else "between 0 and 1"
            raise ValueError(f"`sampling_eps` must lie {allowed}, but is {eps!r}.")
        eps = max(real_number(eps), smallest)
        ends = torch.tensor([1.0, own], dtype=torch.float64)
        levels = self.training_sde.half_log_snr(ends)
        if not self.parameterization.tells_denoised(1.0):
            levels[0] = -math.log(FIRST_TELLING_LEVEL)
        elif self.sde is self.training_sde:
            return 1.0, eps
        noisiest, cleanest = self.sde.inverse_half_log_snr(levels).tolist()
        start, end = min(1.0, noisiest), max(eps, cleanest)
        if not end < start:
            low, high = (-levels.flip(0)).exp().tolist()
            raise ValueError(
                f"`sampling_eps`={eps}: sampling would begin at t = {start:.4g} of {self.sde!r} and end at {end:.4g}. "
                f"The network knows the noise levels sigma / alpha from {low:.4g} to {high:.4g}; `sampling_eps` must "
                "lie at less than the highest of them, and the SDEs must have some in common."
            )
        return start, end

    @classmethod
    def _get_compatibles(cls):
        """All samplers; the inherited method would search only diffusers."""
        return ScoreSdeScheduler.__subclasses__()

    def __len__(self) -> int:
        return self.parameterization.table_length

    @property
    def earliest_time(self) -> float:
        """The cleanest time of the sampling SDE at which the network can be asked."""
        own = self.parameterization.smallest_time
        if self.sde is self.training_sde:
            return own
        known = self.sde.inverse_half_log_snr(self.training_sde.half_log_snr(own)).item()
        return max(self.sde.smallest_time, known)

    @property
    def start_sigma(self) -> float:
        """Standard deviation of the noise at the time at which sampling can start earliest, and of latent codes."""
        return self.sde.prior_sigma if self.start_time == 1 else self.sde.sigma(self.start_time).item()

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise from which sampling starts."""
        return self.start_sigma

    @property
    def betas(self) -> Tensor:
        """(N,) float64, the beta table of "vp_discrete", as in diffusers' schedulers; other SDEs have none."""
        if not hasattr(self.training_sde, "betas"):
            raise AttributeError(f"{type(self).__name__} with `sde`={self.config.sde!r} has no `betas`.")
        return self.training_sde.betas

    @property
    def at_grid_point(self) -> bool:
        """Whether the last `step` ended at a point of the time grid (a corrector's or an inner stage does not)."""
        return self._calls > 0 and bool(self._ends_step[self._calls - 1])

    @property
    def step_index(self) -> int:
        """Number of `step` calls since `set_timesteps`."""
        return self._calls

    # The diffusers scheduler interface.

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay the time grid and reset the count of calls.

        Args:
            num_inference_steps: number of time steps, 1 to 1,000,000 (not of network evaluations: see `timesteps`).
            device: of `timesteps`.

        Raises:
            ValueError: if `num_inference_steps` is no such integer.
        """
        n = whole_number(num_inference_steps)
        if not 1 <= n <= MOST_TIME_STEPS:
            allowed = f"a positive integer, at most {MOST_TIME_STEPS:,}"
            raise ValueError(f"`num_inference_steps` must be {allowed}, but is {num_inference_steps!r}.")
        self.num_inference_steps = int(n)
        self.times, self._ends_step = self._plan(int(n))
        self.timesteps = self.network_time(self.times).to(device=device, dtype=torch.float32)
        self._remember(self.times)
        self._calls = 0
        self._forget()

    def _forget(self) -> None:
        """Keep nothing of a batch."""
        self._state, self._given = None, ()

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The state as the network takes it at the coming evaluation (the same unless `sampling_sde` is set)."""
        self._begin_at(timestep)
        if self.sde is self.training_sde:
            return sample
        self._require_steps_left()
        return self.network_input(sample, self.times[self._calls])

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ):
        """Advance the state by one network evaluation.

        Args:
            model_output: (N, C, H, W) the network's answer for `scale_model_input(sample)`.
            timestep: the entry of `timesteps`. The first one says where a loop over the last of them begins, as in
                diffusers; from then on the step is known from the count of calls, since entries repeat.
            sample: (N, C, H, W) the state. The arithmetic is in float32 or, if the sample is, in float64. Between
                steps with a 16-bit sample the state is kept in float32, unless the sample was changed in between.
            generator: a `torch.Generator` or a list of N, one for each image.
            variance_noise: (N, C, H, W) standard normal noise to use instead of drawing it.
            return_dict: whether to return a `ScoreSdeSchedulerOutput` and not a tuple.

        Raises:
            ValueError: before `set_timesteps`, after the last step, if the shapes differ or tensors hold integers, or
                if the loop begins within a time step.
        """
        self._begin_at(timestep)
        self._require_steps_left()
        require_floating(model_output=model_output, sample=sample)
        if model_output.shape != sample.shape:
            raise ValueError(
                f"`model_output` must have the shape of `sample`, {tuple(sample.shape)}, but has "
                f"{tuple(model_output.shape)}."
            )
        if variance_noise is not None:
            require_floating(variance_noise=variance_noise)
            if variance_noise.shape != sample.shape:
                raise ValueError(
                    f"`variance_noise` must have the shape of `sample`, {tuple(sample.shape)}, but has "
                    f"{tuple(variance_noise.shape)}."
                )
        require_generators(generator, len(sample), "states")
        dtype = torch.promote_types(sample.dtype, torch.float32)
        state, k = self._unrounded(sample, dtype), self._calls
        noise, denoised = self.noise_and_denoised(model_output.to(dtype), state, self.times[k])
        if self.denoised_range.bounded:
            bounded = self.denoised_range(denoised)
            noise = noise + self.sde.half_log_snr(self.times[k]).exp().item() * (denoised - bounded)
            denoised = bounded

        def draw() -> Tensor:
            if variance_noise is not None:
                return variance_noise.to(device=state.device, dtype=dtype)
            return randn_tensor(state.shape, generator=generator, device=state.device, dtype=dtype)

        self._given = sample, model_output
        mean, following = self._update(k, state, noise, denoised, draw)
        self._given, self._calls = (), self._calls + 1
        self._state = None if following.dtype == sample.dtype else following
        if self._calls == len(self.times):
            self._forget()
        output = [value.to(sample.dtype) for value in (following, mean, denoised)]
        return ScoreSdeSchedulerOutput(*output) if return_dict else tuple(output)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Draw from the perturbation kernel: x_t = alpha(t) x_0 + sigma(t) noise.

        Args:
            original_samples: (N, C, H, W) in `image_range`.
            noise: (N, C, H, W) standard normal.
            timesteps: (N,) or scalar, what the network is conditioned on (as in `self.timesteps`).

        Raises:
            ValueError: on times that the training's SDE does not reach, and on pure noise, where the sampling SDE has
                none, or noise beyond the dtype; on tensors of integers.
        """
        require_floating(original_samples=original_samples, noise=noise)
        if noise.shape != original_samples.shape:
            raise ValueError(
                f"`noise` must have the shape {tuple(original_samples.shape)} of `original_samples`, but has "
                f"{tuple(noise.shape)}."
            )
        t = self.parameterization.sde_time(torch.as_tensor(timesteps).cpu().squeeze())
        if t.ndim > 1 or (t.ndim and len(noise) not in (1, len(t))):
            raise ValueError(f"`timesteps` must be one or {len(noise)}, but have the shape {tuple(t.shape)}.")
        if not ((t > self.parameterization.smallest_time - TIME_ROUNDING) & (t < 1 + TIME_ROUNDING)).all():
            what = "noise levels of the SDE" if self.parameterization.time_input == "sigma" else "times in [0, 1]"
            raise ValueError(f"`timesteps` must stand for {what}, but are {timesteps}.")
        if self.sde is not self.training_sde:
            t = self.sde.inverse_half_log_snr(self.training_sde.half_log_snr(t))
        noise = noise.to(torch.promote_types(noise.dtype, original_samples.dtype))
        sigma = self.sde.sigma(t)
        if not sigma.isfinite().all():
            raise ValueError(f"`timesteps` hold more noise than {self.sde!r} ever has: {timesteps}.")
        if (MOST_DEVIATIONS * sigma > torch.finfo(noise.dtype).max).any():
            raise ValueError(f"{noise.dtype} has no numbers for the noise of `timesteps`, {timesteps}.")
        alpha, sigma = expand_like(self.sde.alpha(t), noise), expand_like(sigma, noise)
        return alpha * original_samples + sigma * noise

    def _require_steps_left(self) -> None:
        if self.num_inference_steps is None:
            raise ValueError("`num_inference_steps` is None: call `set_timesteps` before `step`.")
        if self._calls >= len(self.times):
            raise ValueError(f"All {len(self.times)} steps are done: call `set_timesteps` to sample again.")

    def _grid(self, n: int) -> Tensor:
        """n times of the time grid from the noise to the data; see `time_grid`."""
        unit = self.parameterization.noise_unit
        return time_grid(self.time_grid, n, self.sde, self.start_time, self.sampling_eps, unit)

    # What a sampler defines.

    def _plan(self, n: int) -> tuple[Tensor, list[bool]]:
        """The times of all network evaluations for n steps, and for each whether its update ends at a grid point."""
        raise NotImplementedError

    def _update(self, k: int, x: Tensor, noise: Tensor, denoised: Tensor, draw) -> tuple[Tensor, Tensor]:
        """The next state's mean and the next state after evaluation k.

        Args:
            x: the state.
            noise, denoised: E[noise | x] and E[x_0 | x]; where alpha = 0, only the latter says anything of x_0.
            draw: gives standard normal noise of x's shape.
        """
        raise NotImplementedError
