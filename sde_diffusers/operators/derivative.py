"""The derivative of an operator, as torch finds it."""

import torch
from torch import Tensor


def vector_jacobian(y: Tensor, x: Tensor, v: Tensor, create_graph: bool = False) -> Tensor:
    """v' dy / dx.

    Raises:
        ValueError: if y does not come of x by what torch can differentiate.
    """
    if not y.requires_grad:
        raise ValueError(
            "`operator` can't be differentiated by torch (it leaves it, or detaches its argument): give the `adjoint` "
            "if it is linear, and else let it return x + (f(x) - x).detach(), with the derivative of the identity."
        )
    return torch.autograd.grad(y, x, v, create_graph=create_graph, retain_graph=True)[0]
