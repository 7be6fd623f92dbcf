"""What all samplers share: a configuration names an SDE and how the network is parameterized, and a time grid is
walked from t = 1 to the data.

A sampler overrides two methods: `_plan`, which says at which times the network is evaluated, and `_update`, which
turns one evaluation into the next state. Everything else (grids, counting, conversion of the network's output,
sampling with another SDE than the training's) is here.
"""

import math
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sde_diffusers.parameterization import (
    NETWORK_DEFAULTS,
    SDE_NAMES,
    Parameterization,
    build_sde,
    expand_like,
    linear_beta_table,
    require_choice,
)
from sde_diffusers.sdes import GaussianSDE

TIME_GRIDS = ("uniform", "quadratic", "log_snr", "karras", "noise_share")


def time_grid(name: str, n: int, sde: GaussianSDE, start: float, end: float) -> Tensor:
    """n times from `start` down to `end`, both included; (n,) float64.

    "uniform" is linear in t and "quadratic" in sqrt(t); "log_snr" is linear in log(alpha/sigma), and "karras" in
    (sigma/alpha)^(1/7) (eq. 5 of arXiv 2206.00364, with rho = 7). "noise_share" is linear in u^(1/4) with
    u = sigma / (2 alpha + sigma): few steps at high noise, where the estimates hardly change, and many at the levels
    of the data (constants by measurement: benchmarks/few_step_samplers.py).

    Raises:
        ValueError: on an unknown name.
    """
    require_choice("time_grid", name, TIME_GRIDS)
    ends = torch.tensor([start, end], dtype=torch.float64)

    def between(values: Tensor) -> Tensor:
        return torch.linspace(values[0].item(), values[1].item(), n, dtype=torch.float64)

    if name == "uniform":
        return between(ends)
    if name == "quadratic":
        grid = between(ends.sqrt()) ** 2
    elif name == "log_snr":
        grid = sde.inverse_half_log_snr(between(sde.half_log_snr(ends)))
    elif name == "noise_share":
        share = between(torch.sigmoid(-sde.half_log_snr(ends) - math.log(2)) ** (1 / 4)) ** 4
        grid = sde.inverse_half_log_snr(-torch.logit(share) - math.log(2))
    else:
        grid = sde.inverse_half_log_snr(-7 * between((-sde.half_log_snr(ends) / 7).exp()).log())
    grid[-1] = end
    grid[0] = start  # a grid of one time is the start
    return grid


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


class ScoreSdeScheduler(SchedulerMixin, ConfigMixin):
    """Base of the samplers. The configuration keys below are shared by all of them; None stands for a default.

    Args:
        sde: what the network was trained with: "ve", "vp", "sub_vp", "ve_exponential" or "vp_discrete".
        sigma_min, sigma_max: of "ve" (0.01 and 50).
        sigma: of "ve_exponential" (25).
        beta_min, beta_max: of "vp" and "sub_vp" (0.1 and 20).
        trained_betas: the beta table of "vp_discrete" (DDPM's linear one).
        prediction_type: what the network returns: "score" (default of the VE SDEs), "epsilon" (of the VP ones),
            "sample" or "v_prediction".
        time_input: what the network is conditioned on: "sigma" (default of "ve"), "999t" ("vp", "sub_vp"), "t"
            ("ve_exponential") or "index" ("vp_discrete").
        image_range: range of the network's images: (0, 1) (default of the VE SDEs) or (-1, 1) (of the VP ones).
        num_train_timesteps: length of the noise table of a network with time input "index" (1000).
        sampling_sde: another SDE to sample with, by name; it takes its parameters from the keys above.
        sampling_eps: time at which sampling ends (1e-5 for "ve", 1e-3 for the others, at least 1/N for tables).
        time_grid: "uniform", "quadratic", "log_snr", "karras" or "noise_share"; the default is the sampler's.
        final_denoise: whether the last evaluation steps to x_0 without noise (default), so that none is left.

    Attributes (after `set_timesteps`):
        timesteps: (M,) what the network is conditioned on at each of its M evaluations; values repeat.
        times: (M,) float64, the SDE times of these evaluations.
    """

    order = 1
    default_time_grid = "uniform"
    default_num_inference_steps = 1000

    def _setup(self) -> None:
        """Resolve the configuration; each constructor calls it."""
        config = self.config
        if config.trained_betas is not None:
            self.register_to_config(trained_betas=[float(beta) for beta in config.trained_betas])
        keys = ("sigma_min", "sigma_max", "sigma", "beta_min", "beta_max", "trained_betas")
        parameters = {key: config[key] for key in keys}
        require_choice("sde", config.sde, SDE_NAMES)
        defaults = NETWORK_DEFAULTS[config.sde]
        self.training_sde = build_sde(config.sde, **parameters)
        if config.sampling_sde is not None:
            require_choice("sampling_sde", config.sampling_sde, SDE_NAMES)
        # The same object where the names are the same: times then stay exact, and the paper's chains apply.
        same = config.sampling_sde in (None, config.sde)
        self.sde = self.training_sde if same else build_sde(config.sampling_sde, **parameters)
        self.parameterization = Parameterization(
            self.training_sde,
            prediction_type=defaults[0] if config.prediction_type is None else config.prediction_type,
            time_input=defaults[1] if config.time_input is None else config.time_input,
            image_range=defaults[2] if config.image_range is None else config.image_range,
            num_train_timesteps=config.num_train_timesteps,
        )
        self.time_grid = self.default_time_grid if config.time_grid is None else config.time_grid
        require_choice("time_grid", self.time_grid, TIME_GRIDS)
        self.final_denoise = True if config.final_denoise is None else config.final_denoise
        self.start_time, self.sampling_eps = self._interval()
        self.num_inference_steps = None
        self.timesteps = self.times = torch.empty(0)
        self._calls, self._state = 0, None

    def _interval(self) -> tuple[float, float]:
        """The times between which sampling runs: no noisier or cleaner than what the network has seen."""
        eps = self.sde.sampling_eps if self.config.sampling_eps is None else self.config.sampling_eps
        smallest = self.sde.smallest_time
        if not smallest <= eps < 1 or eps <= 0:
            allowed = f"in [{smallest}, 1)" if smallest else "between 0 and 1"
            raise ValueError(f"`sampling_eps` must lie {allowed}, but is {eps}.")
        if self.sde is self.training_sde:
            return 1.0, eps
        ends = torch.tensor([1.0, self.training_sde.smallest_time], dtype=torch.float64)
        noisiest, cleanest = self.sde.inverse_half_log_snr(self.training_sde.half_log_snr(ends)).tolist()
        return min(1.0, noisiest), max(eps, cleanest)

    @classmethod
    def _get_compatibles(cls):
        """All samplers; the inherited method would search only diffusers."""
        return ScoreSdeScheduler.__subclasses__()

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise from which sampling starts."""
        return self.sde.prior_sigma if self.start_time == 1 else self.sde.sigma(self.start_time).item()

    @property
    def betas(self) -> Tensor:
        """(N,) float64, the beta table of "vp_discrete", as in diffusers' schedulers; other SDEs have none."""
        if self.config.sde != "vp_discrete":
            raise AttributeError(f"{type(self).__name__} with `sde`={self.config.sde!r} has no `betas`.")
        betas = self.config.trained_betas
        return linear_beta_table() if betas is None else torch.tensor(betas, dtype=torch.float64)

    @property
    def at_grid_point(self) -> bool:
        """Whether the last `step` ended at a point of the time grid (a corrector's or an inner stage does not)."""
        return self._calls > 0 and bool(self._ends_step[self._calls - 1])

    @property
    def step_index(self) -> int:
        """Number of `step` calls since `set_timesteps`."""
        return self._calls

    # The network, seen from the sampling SDE.

    def training_time(self, t: Tensor) -> Tensor:
        """The time of the training SDE that has the signal-to-noise ratio of time t of the sampling SDE."""
        if self.sde is self.training_sde:
            return t
        return self.training_sde.inverse_half_log_snr(self.sde.half_log_snr(t))

    def input_scale(self, t: Tensor) -> Tensor:
        """Factor that turns x_t of the sampling SDE into the training SDE's (x / alpha is common to both)."""
        if self.sde is self.training_sde:
            return torch.ones_like(t)
        return self.training_sde.alpha(self.training_time(t)) / self.sde.alpha(t)

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is conditioned on at time t of the sampling SDE; float64, t's shape."""
        return self.parameterization.network_time(self.training_time(t))

    def noise_and_denoised(self, model_output: Tensor, sample: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[noise | x_t] and E[x_0 | x_t] for x_t = `sample` at time t (scalar or (N,)) of the sampling SDE.

        `model_output` is the network's answer to `sample * input_scale(t)` at `network_time(t)`.
        """
        s = self.training_time(t)
        x = sample if self.sde is self.training_sde else sample * expand_like(self.input_scale(t), sample)
        return self.parameterization.noise(model_output, x, s), self.parameterization.denoised(model_output, x, s)

    # The diffusers scheduler interface.

    def set_timesteps(self, num_inference_steps: int, device=None) -> None:
        """Lay the time grid and reset the count of calls.

        Args:
            num_inference_steps: number of time steps, at least 1 (not of network evaluations: see `timesteps`).
            device: of `timesteps`.

        Raises:
            ValueError: if `num_inference_steps` is no positive integer.
        """
        if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be a positive integer, but is {num_inference_steps!r}.")
        self.num_inference_steps = num_inference_steps
        self.times, self._ends_step = self._plan(num_inference_steps)
        self.timesteps = self.network_time(self.times).to(device=device, dtype=torch.float32)
        self._calls, self._state = 0, None

    def start_late(self, steps: int) -> Tensor:
        """Leave out all but the last `steps` time steps, as for sampling that starts from a noisy image.

        Returns:
            Scalar float64, the SDE time of the first evaluation that is left, `timesteps[step_index]`.

        Raises:
            ValueError: unless 1 <= steps <= `num_inference_steps`.
        """
        if self.num_inference_steps is None or not 1 <= steps <= self.num_inference_steps:
            raise ValueError(f"`steps` must lie in [1, {self.num_inference_steps}], but is {steps}.")
        starts = [0, *(k + 1 for k, ends_step in enumerate(self._ends_step) if ends_step)]
        self._calls = starts[-1 - steps]
        return self.times[self._calls]

    def scale_model_input(self, sample: Tensor, timestep=None) -> Tensor:
        """The state as the network takes it at the coming evaluation (the same unless `sampling_sde` is set)."""
        if self.sde is self.training_sde:
            return sample
        self._require_steps_left()
        return sample * expand_like(self.input_scale(self.times[self._calls]), sample)

    def step(self, model_output, timestep, sample, generator=None, variance_noise=None, return_dict=True):
        """Advance the state by one network evaluation.

        Args:
            model_output: (N, C, H, W) the network's answer for `scale_model_input(sample)`.
            timestep: the entry of `timesteps`; accepted as in diffusers, but the step is known from the count of
                calls, since entries repeat.
            sample: (N, C, H, W) the state. The arithmetic is in float32 or, if the sample is, in float64. Between
                steps with a 16-bit sample the state is kept in float32, unless the sample was changed in between.
            generator: a `torch.Generator` or a list of N, one for each image.
            variance_noise: (N, C, H, W) standard normal noise to use instead of drawing it.
            return_dict: whether to return a `ScoreSdeSchedulerOutput` and not a tuple.

        Raises:
            ValueError: before `set_timesteps`, after the last step, or if the shapes differ.
        """
        self._require_steps_left()
        if model_output.shape != sample.shape:
            raise ValueError(
                f"`model_output` must have the shape of `sample`, {tuple(sample.shape)}, but has "
                f"{tuple(model_output.shape)}."
            )
        dtype = torch.promote_types(sample.dtype, torch.float32)
        state, k = self._unrounded(sample, dtype), self._calls
        noise, denoised = self.noise_and_denoised(model_output.to(dtype), state, self.times[k])

        def draw() -> Tensor:
            if variance_noise is not None:
                return variance_noise.to(device=state.device, dtype=dtype)
            return randn_tensor(state.shape, generator=generator, device=state.device, dtype=dtype)

        mean, following = self._update(k, state, noise, draw)
        self._calls += 1
        self._state = None if following.dtype == sample.dtype else following
        output = [value.to(sample.dtype) for value in (following, mean, denoised)]
        return ScoreSdeSchedulerOutput(*output) if return_dict else tuple(output)

    def _unrounded(self, sample: Tensor, dtype: torch.dtype) -> Tensor:
        """The state that the last step left, if `sample` is its rounding to fewer bits; else the sample itself."""
        left = self._state
        if left is not None and left.shape == sample.shape and torch.equal(left.to(sample), sample):
            return left
        return sample.to(dtype)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Draw from the perturbation kernel: x_t = alpha(t) x_0 + sigma(t) noise.

        Args:
            original_samples: (N, C, H, W) in `image_range`.
            noise: (N, C, H, W) standard normal.
            timesteps: (N,) or scalar, what the network is conditioned on (as in `self.timesteps`).
        """
        t = self.parameterization.sde_time(torch.as_tensor(timesteps).cpu())
        if self.sde is not self.training_sde:
            t = self.sde.inverse_half_log_snr(self.training_sde.half_log_snr(t))
        alpha, sigma = expand_like(self.sde.alpha(t), noise), expand_like(self.sde.sigma(t), noise)
        return alpha * original_samples + sigma * noise

    def _require_steps_left(self) -> None:
        if self.num_inference_steps is None:
            raise ValueError("`num_inference_steps` is None: call `set_timesteps` before `step`.")
        if self._calls >= len(self.times):
            raise ValueError(f"All {len(self.times)} steps are done: call `set_timesteps` to sample again.")

    # What a sampler defines.

    def _plan(self, n: int) -> tuple[Tensor, list[bool]]:
        """The times of all network evaluations for n steps, and for each whether its update ends at a grid point."""
        raise NotImplementedError

    def _update(self, k: int, x: Tensor, noise: Tensor, draw) -> tuple[Tensor, Tensor]:
        """The next state's mean and the next state after evaluation k, from the state and E[noise | x]."""
        raise NotImplementedError
