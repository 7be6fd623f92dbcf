"""The probability flow ODE (section 4.3 of arXiv 2011.13456), and the change of volume along it.

The ODE has the marginals of the SDE dx = f(t) x dt + g(t) dw. With the score -E[noise | x] / sigma it is (eq. 13)

    dx / dt = f x + g^2 / (2 sigma) E[noise | x] = alpha' E[x_0 | x] + sigma' E[noise | x],

whose second form is finite also where alpha = 0 and f is not. So it maps images to latent codes and back, and by the
change of variables (eq. 39, D.2)

    log p_eps(x_eps) = log prior(x_1) + integral over t of tr(d(dx / dt) / dx).

The trace is estimated without bias as the mean of v^T (d(dx / dt) / dx) v over probes v with E[v v^T] = 1 (Hutchinson
and Skilling; eq. 40): one evaluation of the network, and one vector-Jacobian product for each probe. At some noise
levels on the way new ones are drawn: their errors then do not add up over the whole way, but average out.

The solver steps in t, as the paper's code does, or in the noise level u = asinh(sigma / (c alpha)), linear in
sigma / alpha where the noise is below the images' scale c and logarithmic above, with the state in units of the
marginal deviation of data of scale c: with the angle tan(phi) = sigma / (c alpha) = sinh(u),

    y = x / sqrt((c alpha)^2 + sigma^2),    dy / dphi = cos(phi) E[noise | x] - sin(phi) E[x_0 | x] / c,

for every SDE. If the data were N(0, c^2) both terms would cancel, and with them the two parts of the log-likelihood,
growth and trace: what is left is smooth and of the size of 1 from one end to the other. From pure noise (alpha = 0)
u would be infinite, and the solver steps in phi itself. Measured (docs/likelihood.md), denoisers need fewer
evaluations so; networks that are rough in t itself gain little. f and g of a DDPM table jump in t, and not its ODE in
u: it is always solved in u.
"""

import math
from itertools import chain

import torch
from torch import Tensor

from sde_diffusers.likelihood.ode import dormand_prince
from sde_diffusers.parameterization import PURE_NOISE

ODE_VARIABLES = ("t", "noise_level")
NEW_PROBES = (0.08, 0.33, 1.1)
"""Noise levels, over that of the images' scale, which part the trace's noise in four about equal ones (measured on the
networks that ship)."""
PRODUCTS_AT_ONCE = 16
"""Vector-Jacobian products of the exact trace that are computed together; more cost memory and gain little."""


class ProbabilityFlow:
    """The right-hand side dy / du for images y and, with probes, the integrand of the log-likelihood.

    In either variable x = a y and dy / du = b E[x_0 | x] + c E[noise | x] with functions a, b and c of u.

    Args:
        pipe: a `ScoreSdePipeline`.
        shape: (N, C, H, W) of the images.
        guidance: what asks the network for its answers to N images.
        variable: "t", "noise_level" or None for that which suits SDE and network.
        probes: (P, N, C, H, W), or None if no likelihood is asked for.
        sum_probes: add the probes' contributions up (unit vectors: the full trace) instead of keeping each.
        draw_probes: a function that draws others at `NEW_PROBES`; None = the same all the way.

    Raises:
        ValueError: on "t" for an SDE whose drift jumps in t.
    """

    def __init__(self, pipe, shape, guidance, variable, probes=None, sum_probes=False, draw_probes=None):
        self.pipe, self.shape, self.guidance = pipe, shape, guidance
        # Kept, since the pipeline may have another one when a gradient is asked for.
        self.scheduler = scheduler = pipe.scheduler
        self.sde, p = scheduler.sde, scheduler.parameterization
        if variable == "t" and not self.sde.smooth:
            raise ValueError(
                f'`variable`="t" does not suit {type(self.sde).__name__}, whose drift jumps in t: take "noise_level".'
            )
        denoiser_or_table = p.prediction_type == "sample" or p.time_input == "index" or not self.sde.smooth
        self.variable = variable or ("noise_level" if denoiser_or_table else "t")
        self.probes, self.sum_probes, self.draw_probes = probes, sum_probes, draw_probes
        self.dimensions = math.prod(shape[1:])
        low, high = p.image_range
        self.data_scale = (high - low) / 4  # about the deviation of images
        self.from_pure_noise = self.noise_level(scheduler.start_time) > PURE_NOISE
        self.nfe = 0

    def noise_level(self, t: float) -> float:
        """sigma / alpha."""
        return (-self.sde.half_log_snr(t)).exp().item()

    def variable_of_time(self, t: float) -> float:
        if self.variable == "t":
            return t
        level = self.noise_level(t) / self.data_scale
        return math.atan(level) if self.from_pure_noise else math.asinh(level)

    def coefficients(self, u: float) -> tuple[Tensor, float, float, float]:
        """t (a scalar in float64), a, b and c at u."""
        if self.variable == "t":
            t = torch.tensor(u, dtype=torch.float64)
            return t, 1.0, *(slope.item() for slope in self.sde.derivatives(t))
        phi = u if self.from_pure_noise else math.atan(math.sinh(u))
        level = math.tan(phi) if self.from_pure_noise else math.sinh(u)
        log_level = torch.tensor(level * self.data_scale, dtype=torch.float64).log()
        t = self.sde.inverse_half_log_snr(-log_level).clamp(*self.interval)
        size = math.hypot(self.data_scale * self.sde.alpha(t).item(), self.sde.sigma(t).item())
        speed = 1.0 if self.from_pure_noise else 1 / math.cosh(u)  # dphi / du
        return t, size, -speed * math.sin(phi) / self.data_scale, speed * math.cos(phi)

    def __call__(self, u: float, state: Tensor) -> Tensor:
        """(N, d + P) float64: dy / du and, for each probe, the integrand; `state` is (N, d + P)."""
        return self._right_hand_side(u, state, traced=True)

    def between(self, u: float, state: Tensor) -> Tensor:
        """The same with 0 for the integrand, without vector-Jacobian products; see `dormand_prince`."""
        return self._right_hand_side(u, state, traced=False)

    def _right_hand_side(self, u: float, state: Tensor, traced: bool) -> Tensor:
        self.nfe += 1
        t, a, b, c = self.coefficients(u)
        y = state[:, : self.dimensions].reshape(self.shape)
        slope, traces = self.slope_and_traces(a * y, t, b, c, traced=traced)
        if not traced:
            traces = slope.new_zeros(len(slope), state.shape[1] - self.dimensions)
        return torch.cat([slope.flatten(1), a * traces], dim=1)

    def slope_and_traces(
        self, x: Tensor, t: Tensor, b: float, c: float, differentiable=False, traced=True
    ) -> tuple[Tensor, Tensor]:
        """F = b E[x_0 | x] + c E[noise | x] and the (N, P) products v^T (dF / dx) v, from one evaluation of the
        network; `differentiable`, with respect to the x that is given, or else detached;
        (N, 0) products if there are no probes or they are not to be `traced`."""
        scheduler = self.scheduler
        dtype = torch.promote_types(self.pipe.unet.dtype, torch.float32)
        probes = self.probes if traced else None
        with torch.set_grad_enabled(differentiable or probes is not None):
            x = x if differentiable else x.detach().requires_grad_(probes is not None)
            network_time = scheduler.network_time(t, between=True).item()  # filled in on the device: no copy
            network_time = torch.full((), network_time, dtype=dtype, device=x.device)
            output = self.guidance.mixed(x.to(dtype), t, network_time)
            noise, denoised = scheduler.noise_and_denoised(output.to(x.dtype), x, t)
            slope = b * denoised + c * noise
        if probes is None:
            return slope, slope.new_zeros(len(slope), 0)
        if self.sum_probes:
            traces = self._trace(slope, x, differentiable)
        else:
            graph = {"create_graph": True} if differentiable else {}
            last = len(probes) - 1
            products = [
                (torch.autograd.grad(slope, x, v, retain_graph=differentiable or k < last, **graph)[0] * v)
                for k, v in enumerate(probes)
            ]
            traces = torch.stack([product.flatten(1).sum(1) for product in products], dim=1)
        return (slope if differentiable else slope.detach()), traces

    def _trace(self, slope: Tensor, x: Tensor, differentiable: bool) -> Tensor:
        """(N, 1) sums of the products with all probes, several at once."""
        # The group norm that half precision has of its own on a CPU takes one at a time.
        alone = x.device.type == "cpu" and self.pipe.unet.dtype in (torch.float16, torch.bfloat16)
        graph = {"retain_graph": True, "create_graph": differentiable, "is_grads_batched": not alone}
        trace = slope.new_zeros(len(slope), 1)
        for probes in self.probes.split(1 if alone else PRODUCTS_AT_ONCE):
            (products,) = torch.autograd.grad(slope, x, probes[0] if alone else probes, **graph)
            trace = trace + (products * probes).flatten(2).sum((0, 2))[:, None]
        return trace

    def renew_probes(self) -> None:
        self.probes = self.draw_probes()

    def stops(self, start: float, end: float) -> list[float]:
        """The values of u, on the way from `start` to `end`, at which new probes are drawn."""
        if self.draw_probes is None:
            return []
        levels = torch.tensor(NEW_PROBES, dtype=torch.float64) * self.data_scale
        times = self.sde.inverse_half_log_snr(-levels.log()).tolist()
        inside = [self.variable_of_time(t) for t in times if min(start, end) < t < max(start, end)]
        return sorted(inside, reverse=start > end)

    def solve(
        self, x: Tensor, start: float, end: float, rtol: float, atol: float, path: list | None = None
    ) -> tuple[Tensor, Tensor]:
        """Follow the ODE from x at time `start` to time `end`.

        Args:
            path: gets u and y (N, d) of the start and after each step.

        Returns:
            (N, C, H, W) the images at `end`, and (N, P) log p_start(x_start) - log p_end(x_end) in nats; float64.
        """
        columns = 0 if self.probes is None else 1 if self.sum_probes else len(self.probes)
        self.interval = (min(start, end), max(start, end))
        u_start, u_end = self.variable_of_time(start), self.variable_of_time(end)
        a_start, a_end = (self.coefficients(u)[1] for u in (u_start, u_end))
        state = torch.cat([x.double().flatten(1) / a_start, x.new_zeros(len(x), columns, dtype=torch.float64)], dim=1)
        with self.guidance.frozen(), self.pipe.progress_bar(total=100) as bar:
            stretch = 1.0 if self.variable == "t" else 1.3
            stops = self.stops(start, end)
            solver = dormand_prince(
                self, u_start, u_end, state, rtol, atol, stretch, stops, self.renew_probes, self.between
            )
            for u, following in chain([(u_start, state)], solver):
                bar.update(int(100 * (u - u_start) / (u_end - u_start)) - bar.n)
                state = following
                if path is not None:
                    path.append((u, state[:, : self.dimensions]))
        self.pipe.maybe_free_model_hooks()
        y, integral = state.split([self.dimensions, columns], dim=1)
        return a_end * y.reshape(self.shape), integral + self.dimensions * math.log(a_end / a_start)
