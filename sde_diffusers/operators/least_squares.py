"""Iterative solutions for operators that are known by what they do to an image: conjugate gradients for systems and
for least squares, and conjugate residuals for systems that need be neither symmetric nor positive.

Each image of a batch has its own step lengths, and stops for itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each image, (N, 1, ..., 1)."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdim=True)


def like_images(factor, x: Tensor):
    """A number, or one for each image in any shape, as a factor of x (N, ...)."""
    return factor.reshape(-1, *[1] * (x.ndim - 1)) if isinstance(factor, Tensor) and factor.ndim else factor


def largest(a: Tensor) -> Tensor:
    """max |a| of each image, (N, 1, ..., 1), or 1 where a = 0; in these units squares stay in the dtype's range."""
    size = a.abs().amax(tuple(range(1, a.ndim)), keepdim=True)
    return torch.where(size > 0, size, 1)


def norm(a: Tensor) -> Tensor:
    """||a|| of each image, (N, 1, ..., 1)."""
    size = largest(a)
    return size * inner(a / size, a / size).sqrt()


def relative_norm(square: Tensor, start: Tensor) -> Tensor:
    """The roots (N,) of the quotients of squared norms; 0 where there was nothing to start with."""
    return torch.where(start > 0, square / start, 0).sqrt().flatten()


def krylov_solution(system, b: Tensor, steps: int, tolerance: float = 1e-6) -> tuple[Tensor, Tensor]:
    """M w for the solution of S w = b, for each image of b (N, ...), by conjugate gradients from w = 0.

    An image whose residual has fallen to `tolerance` of its b, or along whose direction S is not positive (then it has
    left what can be solved), keeps its w.

    Args:
        system: d -> (S d, M d), for a symmetric, positive S and any M that is linear as well. So what is wanted of w
            need not be computed again.

    Returns:
        M w, and the residual's norm relative to that of b, (N,).
    """
    size = largest(b)
    b = b / size
    wanted, residual, direction = 0, b, b
    square = start = inner(b, b)
    going = start > 0
    for _ in range(steps):
        if b.device.type == "cpu" and not going.any():  # a GPU does the few steps rather than be waited for
            break
        image, product = system(direction)
        curvature = inner(direction, image)
        going = going & (curvature > 0)
        length = torch.where(going, square / curvature, 0)
        residual = residual - length * image
        wanted = wanted + like_images(length, product) * product
        previous, square = square, inner(residual, residual)
        going = going & (square > tolerance**2 * start)
        direction = residual + torch.where(going, square / previous, 0) * direction
    if not isinstance(wanted, Tensor):  # b = 0
        wanted = torch.zeros_like(system(b)[1])
    return like_images(size, wanted) * wanted, relative_norm(square, start)


def least_residual(
    system, b: Tensor, steps: int, tolerance: float = 1e-6, rounding: Tensor | float = 0.0, precondition=None
) -> Tensor:
    """M w for that w, of the space that so many steps span, whose residual r = b - S w has the least <r, P r>.

    Generalized conjugate residuals (Eisenstat, Elman & Schultz, SIAM J. Numer. Anal. 20, 1983): the directions' images
    S d are made orthogonal to all earlier ones, which therefore stay in memory. S need be neither symmetric nor
    positive, and few steps never make the residual worse.

    Args:
        system: d -> (S d, M d) on images (N, ...), linear.
        tolerance: an image whose root of <r, P r> has fallen to that of its b, or ||r|| to `rounding`, keeps its w.
        rounding: norm of b's rounding errors, (N, 1, ..., 1) or a number.
        precondition: r -> P r with a symmetric P that is positive on the range of S and like its inverse; P = 1
            unless given.
    """
    size = largest(b)
    residual, rounding = b / size, rounding / size
    shaped = precondition(residual) if precondition else residual
    start = inner(residual, shaped)
    going = (start > 0) & (inner(residual, residual) > rounding**2)
    kept: list[tuple[Tensor, ...]] = []
    wanted, unit = 0, size
    for _ in range(steps):
        if kept and b.device.type == "cpu" and not going.any():  # a GPU does the few steps rather than be waited for
            break
        image, product = system(shaped)
        if not kept:
            unit = largest(image)  # squares stay in the dtype's range
        image, product = image / unit, product / like_images(unit, product)
        taken = 0
        for other, shaped_other, of_square, other_product in kept:
            share = inner(shaped_other, image)
            along = share * of_square
            image, product = image - along * other, product - like_images(along, product) * other_product
            taken = taken + share * along
        shaped_image = precondition(image) if precondition else image
        square = inner(image, shaped_image)
        going = going & (square > torch.finfo(b.dtype).eps * taken)  # else only rounding errors are left of it
        of_square = torch.where(going, 1 / square, 0)
        length = inner(shaped, image) * of_square
        wanted = wanted + like_images(length, product) * product
        kept.append((image, shaped_image, of_square, product))
        residual = residual - length * image
        shaped = shaped - length * shaped_image if precondition else residual
        left = inner(residual, shaped)
        going = going & (left > tolerance**2 * start)
        going = going & ((inner(residual, residual) if precondition else left) > rounding**2)
    return like_images(size, wanted) * wanted


def conjugate_gradients(system: Callable[[Tensor], Tensor], b: Tensor, steps: int, tolerance: float = 1e-6) -> Tensor:
    """w with system(w) = b for each image of b (N, ...); see `krylov_solution`."""
    return krylov_solution(lambda d: (system(d), d), b, steps, tolerance)[0]


def chebyshev(
    system: Callable[[Tensor], Tensor],
    b: Tensor,
    steps: int,
    low: Tensor | float,
    high: Tensor | float,
    precondition: Callable[[Tensor], Tensor],
) -> Tensor:
    """p(P S) P b, like the solution of S w = b: the polynomial p leaves least between two eigenvalues of P S.

    Unlike what conjugate gradients give, that is linear in b, and symmetric and positive as S and P are: it may
    precondition, and rounding errors stay what they are (Saad, Iterative Methods for Sparse Linear Systems, 2003,
    algorithm 12.1).

    Args:
        system: w -> S w on (N, ...), symmetric and positive.
        steps: at least 1; the polynomial's degree is less by one.
        low, high: numbers or (N, 1, ..., 1), above 0. Eigenvalues below `low` are solved in part, none may be above
            `high`.
        precondition: b -> P b, symmetric and positive.
    """
    middle, half = (high + low) / 2, (high - low) / 2
    ratio = half / middle
    residual, part = b, precondition(b) / middle
    w = part
    for _ in range(steps - 1):
        residual = residual - system(part)
        following = 1 / (2 * middle / half - ratio)
        part = following * ratio * part + 2 * following / half * precondition(residual)
        w, ratio = w + part, following
    return w


def least_squares(
    forward, adjoint, y: Tensor, steps: int, tolerance: float, damping=0.0, beside: Tensor | None = None
) -> tuple[Tensor, Tensor, int]:
    """The x that minimises ||y - A x||^2 + damping ||x||^2, for each image, by conjugate gradients (CGLS) from x = 0.

    Args:
        damping: at least 0, a number or (N, 1, ..., 1) as images are; without it x is the least of all minimisers.
        beside: (N, ...) what y is a part of: the gradient's norm is then told relative to ||A' beside||, if that is
            more than ||A'y||.

    Returns:
        x; the gradient's norm ||A'(y - A x) - damping x|| / ||A'y||, (N,), at most `tolerance` where it was reached;
        and the number of steps that were done.
    """
    size = largest(y)
    y = y / size
    residual, gradient = y, adjoint(y)
    scale = largest(gradient)  # A in units in which A'y is of the order of 1, too
    damping, gradient = damping / scale / scale, gradient / scale
    x = best = torch.zeros_like(gradient)
    direction = gradient
    square = start = least = inner(gradient, gradient)
    if beside is not None:
        start = torch.maximum(start, inner(*[adjoint(beside / size) / scale] * 2))
    going, done = square > 0 if beside is None else square > tolerance**2 * start, 0
    while done < steps and going.any():
        done += 1
        image = forward(direction / scale)
        curvature = inner(image, image).reshape(square.shape) + damping * inner(direction, direction)
        going = going & (curvature > 0)
        length = torch.where(going, square / curvature, 0)
        x = x + length * direction
        residual = residual - like_images(length, image) * image
        gradient = adjoint(residual) / scale - damping * x
        previous, square = square, inner(gradient, gradient)
        best, least = torch.where(square < least, x, best), torch.minimum(square, least)
        # Where rounding errors of A and A' rule, the way on leads astray.
        going = going & (square > tolerance**2 * start) & (square < 1e12 * least)
        direction = gradient + torch.where(going, square / previous, 0) * direction
    return like_images(size, best) / scale * best, relative_norm(least, start), done


def ritz_values(system: Callable[[Tensor], Tensor], start: Tensor, steps: int = 20) -> Tensor:
    """(N, steps) eigenvalues, the least first, of a symmetric system on the space of so many Lanczos steps, with zeros
    if that space ends before.

    They lie between the system's own, and the outer ones soon near its ends.
    """
    basis: list[Tensor] = []
    projected = torch.zeros(len(start), steps, steps, dtype=torch.float64, device=start.device)
    image = start
    for last in range(steps):
        q = image
        for other in basis + basis:  # twice, for what rounding leaves
            q = q - inner(other, q) * other
        length = norm(q)
        basis.append(torch.where(length > 1e-5 * norm(image), q / length, 0))
        image = system(basis[-1])
        for k, other in enumerate(basis):
            projected[:, k, last] = projected[:, last, k] = inner(other, image).flatten().double()
    return torch.linalg.eigvalsh(projected)
