"""Log-densities by the probability flow ODE as a function that torch differentiates.

What is differentiated is the solution as it was computed: the steps that the solver accepted, backwards. In a step of
length h from y_0, with slopes k_j = F(y_j) at y_j = y_0 + h sum_i a_ji k_i and the integrand's traces t_j, the state
and the integral gain h sum_j b_j k_j and h sum_j b_j t_j. So with the gradients g of the new state and w of the
integral, from the last stage to the first

    k*_j = h (b_j g + sum over later i of a_ij y*_i),    y*_j = grad (k*_j . F + h b_j w . t)(y_j),

and the gradient of y_0 is g + sum_j y*_j (Sanz-Serna, Symplectic Runge-Kutta schemes for adjoint equations, SIAM
Review 58, 2016). Solving an adjoint ODE backwards instead would lead the state to another image than the one that it
came from, by as much as the tolerance allows, and the gradient with it.

It takes the memory of one evaluation of the network with second derivatives, and one image for each step. The gradient
is exactly that of the estimate: the trace is that of the same probes, and the lengths of the steps count as given.
"""

import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sde_diffusers.likelihood.ode import STAGE_TIMES, STAGE_WEIGHTS, weighted_sum
from sde_diffusers.likelihood.probability_flow import ProbabilityFlow


def prior_logp(scheduler, z: Tensor) -> Tensor:
    """Log-density in nats of N(0, start_sigma^2), from which sampling starts, by that of the SDE's prior."""
    scale = scheduler.sde.prior_sigma / scheduler.start_sigma
    return scheduler.sde.prior_logp(scale * z) + z[0].numel() * math.log(scale)


class LogDensity(torch.autograd.Function):
    """Images x (N, C, H, W) at the time `start` -> log-densities (N, P) in nats, one for each probe, and codes z."""

    @staticmethod
    def forward(ctx, x: Tensor, flow: ProbabilityFlow, start: float, end: float, rtol: float, atol: float):
        """Follow the ODE from `start` to `end`."""
        ctx.flow, ctx.path = flow, [] if ctx.needs_input_grad[0] else None
        z, gain = flow.solve(x, start, end, rtol, atol, ctx.path)
        ctx.weights = weights_in_use(flow) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(z)
        ctx.mark_non_differentiable(z)
        return prior_logp(flow.scheduler, z)[:, None] + gain, z

    @staticmethod
    def backward(ctx, weights: Tensor, _):
        """The gradient with respect to x; see `path_gradient`.

        Raises:
            RuntimeError: if it is to be differentiated again, which it can't be, or if the network's weights have
                changed since.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("`log_prob` has no second derivatives: ask for its gradient without `create_graph`.")
        if weights_in_use(ctx.flow) != ctx.weights:
            raise RuntimeError(
                "The network's weights have changed since `log_prob`: ask for its gradient before that."
            )
        (z,) = ctx.saved_tensors
        with torch.inference_mode(False), torch.no_grad():
            gradient = path_gradient(ctx.flow, ctx.path, z, weights.clone())
        return gradient, None, None, None, None, None


def weights_in_use(flow) -> list[tuple]:
    """What changes with the weights of the flow's network: the counters of changes in place, and the types."""
    return [(parameter._version, parameter.dtype) for parameter in flow.guidance.network.parameters()]


def path_gradient(flow: ProbabilityFlow, path: list[tuple[float, Tensor]], z: Tensor, weights: Tensor) -> Tensor:
    """Gradient (N, C, H, W) of the sum of weights[n, p] log p(x_n by probe p), with respect to the images.

    Args:
        flow: as it was solved.
        path: u and (N, d) y, before the first step and after each.
        z: (N, C, H, W) the codes at the path's end.
        weights: (N, P).
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (of_prior,) = torch.autograd.grad((weights.sum(1) * prior_logp(flow.scheduler, z)).sum(), z)
    gradient = flow.coefficients(path[-1][0])[1] * of_prior.flatten(1)
    with flow.guidance.frozen():
        for (u, y), (following, _) in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
            gradient = step_gradient(flow, u, following - u, y, gradient, weights)
    flow.pipe.maybe_free_model_hooks()
    return gradient.reshape(flow.shape) / flow.coefficients(path[0][0])[1]


def step_gradient(flow, u: float, h: float, y: Tensor, gradient: Tensor, weights: Tensor) -> Tensor:
    """Gradient (N, d) with respect to the y from which a step of length h began, from that with respect to its end."""
    d, times = y.shape[1], (0.0, *STAGE_TIMES[:-1])
    states, slopes = [y], []
    for time, row in zip(times, STAGE_WEIGHTS, strict=True):
        slopes.append(flow.between(u + time * h, states[-1])[:, :d])
        states.append(y + h * weighted_sum(row, slopes))
    *rows, final = STAGE_WEIGHTS
    of_slopes = [h * b * gradient for b in final]
    for j in reversed(range(len(final))):
        of_traces = h * final[j] * weights if final[j] else None
        of_state = slope_gradient(flow, u + times[j] * h, states[j], of_slopes[j], of_traces)
        gradient = gradient + of_state
        for i, a in enumerate(rows[j - 1] if j else ()):
            of_slopes[i] = of_slopes[i] + h * a * of_state
    return gradient


def slope_gradient(flow, u: float, y: Tensor, of_slope: Tensor, of_traces: Tensor | None) -> Tensor:
    """Gradient (N, d) of <of_slope, dy / du> + <of_traces, integrand> with respect to y."""
    t, a, b, c = flow.coefficients(u)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        y = y.detach().reshape(flow.shape).requires_grad_()
        traced = of_traces is not None
        slope, traces = flow.slope_and_traces(a * y, t, b, c, differentiable=True, traced=traced)
        value = (slope.flatten(1) * of_slope).sum()
        if traced:
            value = value + a * (of_traces * traces).sum()
        return torch.autograd.grad(value, y)[0].flatten(1)
