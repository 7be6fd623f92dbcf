"""Muon: matrices take steps of one size in all directions (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

The momentum M of the gradient G of a weight W, matrices of m rows and n columns, is replaced by the nearest matrix
whose singular values are one,

    M <- mu M + (1 - mu) G,    U S V^T = mu M + (1 - mu) G,    W <- (1 - rate decay) W - rate 0.2 sqrt(max(m, n)) U V^T

so that directions of which the gradient tells little are learnt as fast as those that dominate it. The factor of the
rate (arXiv 2502.16982, equation 4) gives steps the size that AdamW's have, which takes all other parameters, and both
the same rate. A convolution's kernel is a matrix with one row for each of its outputs.
"""

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # brings singular values in (0, 1] to about 0.7 to 1.2 in five iterations


def orthogonalized(matrices: Tensor, iterations: int = 5) -> Tensor:
    """U V^T, nearly, of matrices U S V^T (..., m, n).

    Iterations of Newton and Schulz, X <- a X + (b A + c A^2) X with A = X X^T, act on the singular values alone.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


def hidden_matrices(network: nn.Module) -> list[nn.Parameter]:
    """The kernels and matrices in a network's blocks, the members of its `nn.ModuleList`s.

    They are neither the first nor the last layer's, nor those of embeddings or of pyramids of images.
    """
    lists = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and "pyramid" not in name
    ]
    layers = [layer for blocks in lists for layer in blocks.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    weights = {id(layer.weight) for layer in layers}
    return [parameter for parameter in network.parameters() if id(parameter) in weights]


class Muon(torch.optim.Optimizer):
    """Muon for a network's hidden matrices, and AdamW for its other parameters.

    Args:
        network: whose parameters are trained, whole in this process.
        lr, betas, eps, weight_decay, fused: of `torch.optim.AdamW`; rate and decay are those of both.
    """

    def __init__(self, network: nn.Module, lr: float, weight_decay: float, **options):
        matrices = hidden_matrices(network)
        hidden = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in network.parameters() if id(parameter) not in hidden]
        self._adamw = torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, **options)
        super().__init__([{"params": matrices}, *self._adamw.param_groups], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One update; `closure`, if given, computes the loss and the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # One state and one rate for both, also after `load_state_dict`, which replaces them.
        self._adamw.state, self._adamw.param_groups = self.state, self.param_groups[1:]
        self._adamw.step()
        group = self.param_groups[0]
        alike = defaultdict(list)  # matrices of one shape are orthogonalised together
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[parameter.shape].append(parameter)
        for parameters in alike.values():
            self._step_of_equals(parameters, group["lr"], group["weight_decay"])
        return loss

    def _step_of_equals(self, parameters, lr, weight_decay):
        ahead = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
            ahead.append(parameter.grad.lerp(state["momentum"], MOMENTUM).flatten(1))
        matrices = torch.stack(ahead)
        if matrices.device.type == "cuda":
            matrices = matrices.bfloat16()
        size = 0.2 * math.sqrt(max(matrices.shape[1:]))
        for parameter, update in zip(parameters, orthogonalized(matrices), strict=True):
            parameter.mul_(1 - lr * weight_decay)
            parameter.add_(update.view(parameter.shape), alpha=-lr * size)
