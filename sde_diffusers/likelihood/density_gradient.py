"""Log-densities by the probability flow ODE as a function that torch differentiates.

The density's own score g = grad log p_u(y_u) follows the ODE dy / du = F(y) as its adjoint: differentiate
d log p / du = -tr(dF / dy) along the flow,

    dg / du = -(dF / dy)^T g - grad tr(dF / dy) = -grad (F . g + tr(dF / dy)),        g_1 = grad log prior(y_1),

solved from the prior back to the images (Chen et al., arXiv 1806.07366, appendix B). It takes the memory of one
evaluation of the network with second derivatives, however many steps there are. With probes, the gradient is exactly
that of the estimate: the trace is that of the same probes.
"""

import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sde_diffusers.likelihood.ode import dormand_prince
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
        z, gain = flow.solve(x, start, end, rtol, atol)
        ctx.flow, ctx.solver = flow, (start, end, rtol, atol)
        ctx.save_for_backward(z)
        ctx.mark_non_differentiable(z)
        return prior_logp(flow.pipe.scheduler, z)[:, None] + gain, z

    @staticmethod
    def backward(ctx, weights: Tensor, _):
        """The gradient with respect to x; see `adjoint_gradient`."""
        (z,) = ctx.saved_tensors
        return adjoint_gradient(ctx.flow, z, weights, *ctx.solver), None, None, None, None, None


def adjoint_gradient(flow, z: Tensor, weights: Tensor, start: float, end: float, rtol: float, atol: float) -> Tensor:
    """Gradient (N, C, H, W) of the sum of weights[n, p] log p(x_n by probe p), for the x that the flow leads to z."""
    d = flow.dimensions
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (of_prior,) = torch.autograd.grad((weights.sum(1) * prior_logp(flow.pipe.scheduler, z)).sum(), z)
    u_start, u_end = flow.variable_of_time(start), flow.variable_of_time(end)
    a_start, a_end = (flow.coefficients(u)[1] for u in (u_start, u_end))

    def slopes(u: float, state: Tensor) -> Tensor:
        y, g = (part.reshape(flow.shape) for part in state.split(d, dim=1))
        t, a, b, c = flow.coefficients(u)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            y = y.detach().requires_grad_()
            slope, traces = flow.slope_and_traces(a * y, t, b, c, differentiable=True)
            (gradient,) = torch.autograd.grad((slope * g).sum() + a * (weights * traces).sum(), y)
        return torch.cat([slope.detach().flatten(1), -gradient.flatten(1)], dim=1)

    state = torch.cat([z.detach().flatten(1) / a_end, a_end * of_prior.flatten(1)], dim=1)
    with flow.guidance.frozen():
        for _, following in dormand_prince(slopes, u_end, u_start, state, rtol, atol):
            state = following
    flow.pipe.maybe_free_model_hooks()
    return state[:, d:].reshape(flow.shape) / a_start
