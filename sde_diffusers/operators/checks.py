"""What is asked of an operator before it is used: numbers of each image for itself, linear, and of a true adjoint.

The adjoint is told from a wrong one by <A x, y> = <x, A* y> for random x and y, and for y = A x. The difference is
measured in ||A x|| ||y|| / sqrt(m), m being the number of values of y, which is as large as <A x, y> for independent x
and y.
"""

import math

import torch
from torch import Tensor

from sde_diffusers.scalars import real_number, whole_number, whole_numbers

PRECISION = 1e-3
"""Relative difference that passes: convolutions of GPUs round to ten bits."""

SMALLEST_SCALE = 1e-15
"""Measured values lie between it and its inverse: solutions ask for their squares, in float32."""


def checked_image_shape(shape) -> tuple[int, ...]:
    """(C, H, W); a `ValueError` unless these are whole numbers above 0."""
    sides = whole_numbers(shape)
    if len(sides) != 3 or not all(side > 0 for side in sides):
        raise ValueError(f"`shape` must be (C, H, W) of the images, whole numbers above 0, but is {shape!r}.")
    return tuple(map(int, sides))


def check_operator(operator, shape: tuple[int, ...], name: str = "operator") -> None:
    """Raise a `ValueError`, which names the argument and the figures, unless an operator measures images as it says.

    Args:
        operator: for images of the given shape (N, C, H, W), on its `device`.
        name: of the argument.
    """
    if not whole_number(operator.iterations) >= 1:
        raise ValueError(f"`{name}.iterations` must be a positive integer, but is {operator.iterations!r}.")
    if not 0 < real_number(operator.tolerance) < math.inf:
        raise ValueError(f"`{name}.tolerance` must be a finite number above 0, but is {operator.tolerance!r}.")
    device, generator = operator.device, torch.Generator().manual_seed(0)
    if shape[0] == 1:  # two images show whether each is measured for itself
        shape = (2, *shape[1:])
        operator = operator.repeat(2).for_images(shape, device)

    def draw(shape):
        return torch.randn(shape, generator=generator).to(device or "cpu")

    x, z = draw(shape), draw(shape)
    if not operator.linear:
        x, z = x.sigmoid(), z.sigmoid()  # values of images
    y = measured_values(operator, x, name)
    size = y.abs().max().item()
    if size and not SMALLEST_SCALE <= size <= 1 / SMALLEST_SCALE:
        raise ValueError(
            f"`{name}` must measure values from {SMALLEST_SCALE} to {1 / SMALLEST_SCALE:g} of images in [0, 1], but "
            f"measures {size:.2g}: choose other units."
        )
    require_same_values(f"`{name}` measures the same images differently from call to call", operator(x), y)
    other = operator(torch.cat([z[:1], x[1:]]))
    require_same_values(
        f"`{name}` must measure each image for itself, but one's values depend on another's", other, y, 1
    )
    if operator.repeat(2) is operator:
        alone = measured_values(operator, x[-1:], name)
        require_same_values(f"`{name}` must measure an image alone as in a batch", alone, y[-1:])
    if operator.linear:
        require_linear(operator, x, z, y, name)
    else:
        wide = 2 * torch.rand(shape, generator=generator).to(x) - 0.5
        require_derivative(operator, x, wide, draw(y.shape), name)
    require_adjoint(operator.at(x), z if operator.linear else draw(shape), draw(y.shape), name)
    require_own_parts(operator, x, y, name)
    if operator.linear and operator.direct:
        require_solution(operator, y, name)


def operator_for(operator, shape: tuple[int, ...], device):
    """`operator.for_images`, whose foreign errors say that it is the operator's."""
    try:
        return operator.for_images(shape, device)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"`operator` does not measure images {tuple(shape)}: {type(error).__name__}: {error}"
        ) from error


def measured_values(operator, x: Tensor, name: str, why: str = "") -> Tensor:
    """A x, refused unless it is a real and finite tensor of the shape that the operator announces."""
    images = f"{len(x)} images of shape {tuple(x.shape[1:])}"
    fails = f"`{name}` does not measure {images} on {x.device}"
    expected, y = answer(lambda x: (tuple(operator.measurement_shape(tuple(x.shape))), operator(x)), x, name, fails)
    if not isinstance(y, Tensor):
        raise ValueError(f"`{name}` must return a tensor, but returns {type(y).__name__}.")
    if y.is_complex():
        raise ValueError(f"`{name}` must return real numbers (real and imaginary parts as channels), not {y.dtype}.")
    if y.dtype != x.dtype or y.device != x.device:
        raise ValueError(
            f"`{name}` must return what it is given, {x.dtype} on {x.device}, but returns {y.dtype} on {y.device}."
        )
    if y.ndim < 2:
        raise ValueError(
            f"`{name}` must return tensors of two or more dimensions (N, ...), but returns {tuple(y.shape)}."
        )
    if len(y) != len(x) or y.shape != expected:
        raise ValueError(
            f"`{name}` must return ({len(x)}, ...), one measurement for each image, of its `measurement_shape` "
            f"{expected} for {images}, but returns {tuple(y.shape)}."
        )
    if not y.isfinite().all():
        raise ValueError(f"`{name}` measures infinite values or NaN of images in [{x.min():.2g}, {x.max():.2g}]{why}.")
    return y


def answer(f, x: Tensor, name: str, fails: str):
    """f(x); a `ValueError` if it raises anything, or changes x, which would ruin the images that are drawn."""
    given = x.clone()
    try:
        y = f(x)
    except Exception as error:
        raise ValueError(f"{fails}: {type(error).__name__}: {error}") from error
    if not torch.equal(x, given):
        raise ValueError(
            f"`{name}` and its adjoint must leave their argument as it is, but change it in place: use x.clone()."
        )
    return y


def require_same_values(what: str, a: Tensor, b: Tensor, first: int = 0) -> None:
    """Raise a `ValueError` that says what is wrong if images of a and b from the first one on differ."""
    difference = relative(a[first:] - b[first:], b[first:])
    if not difference <= PRECISION:
        raise ValueError(f"{what}: relative difference {difference:.2g}, allowed {PRECISION}.")


def relative(difference: Tensor, values: Tensor) -> float:
    """||difference|| / ||values||; 0 for no difference."""
    norm = difference.double().norm().item()
    return norm / max(values.double().norm().item(), 1e-300) if norm else 0.0


def require_linear(f, x: Tensor, z: Tensor, y: Tensor, name: str) -> None:
    """Raise a `ValueError` unless f(0) = 0 and f(x + 2 z) = f(x) + 2 f(z), where y = f(x)."""
    scale = y.double().norm().item() / math.sqrt(y.numel())
    zero = f(torch.zeros_like(x)).abs().max().item()
    if not zero <= PRECISION * scale:
        raise ValueError(
            f"`{name}` must be linear, but measures {zero:.3g} of an image that is 0: subtract it from the "
            "measurement (or use a nonlinear `Operator`)."
        )
    difference = relative(f(x + 2 * z) - y - 2 * f(z), y)
    if not difference <= PRECISION:
        raise ValueError(
            f"`{name}` must be linear, but A(x + 2 z) is not A(x) + 2 A(z): relative difference {difference:.2g}, "
            f"allowed {PRECISION} (a nonlinear measurement is an `Operator`)."
        )


def require_derivative(operator, x: Tensor, wide: Tensor, v: Tensor, name: str) -> None:
    """Raise a `ValueError` unless a nonlinear operator has a derivative at images x, and beyond their range."""
    y = measured_values(operator, wide, name, ", beyond [0, 1] as denoised ones are: let it work on x.clamp(0, 1)")
    fails = f"`{name}` can't be differentiated by torch"
    slopes = [answer(lambda x: operator.at(x).adjoint(v), images, name, fails) for images in (x, wide)]
    if not all(slope.isfinite().all() for slope in slopes):
        raise ValueError(
            f"`{name}` must have a finite derivative, also for images somewhat beyond [0, 1], as denoised ones are: "
            "let it work on x.clamp(1e-3, 1), say."
        )
    if not any(slope.any() for slope in slopes) and not torch.equal(operator(x), y):
        raise ValueError(
            f"`{name}` has the derivative 0 everywhere, so that the measurement would change nothing: use "
            "`Quantization` for rounding, or x + (f(x) - x).detach(), which has the derivative of the identity."
        )


def require_adjoint(operator, x: Tensor, y: Tensor, name: str) -> None:
    """Raise a `ValueError` unless <A x, y> = <x, A* y> for the given x and y, and for y = A x."""
    seen = answer(operator, x, name, f"`{name}` can't be differentiated twice by torch")
    for values in (y, seen):
        back = answer(
            operator.adjoint, values, name, f"the `adjoint` of `{name}`, its own or torch's derivative, fails"
        )
        if not isinstance(back, Tensor) or back.shape != x.shape or back.dtype != x.dtype:
            what = f"{back.dtype} {tuple(back.shape)}" if isinstance(back, Tensor) else type(back).__name__
            raise ValueError(
                f"`{name}` must have an adjoint that returns real images {tuple(x.shape)} of {x.dtype}, not {what}."
            )
        left, right = ((a.double() * b.double()).flatten(1).sum(1) for a, b in ((seen, values), (x, back)))
        norms = seen.double().flatten(1).norm(dim=1) * values.double().flatten(1).norm(dim=1)
        difference = (left - right).abs() / (norms / math.sqrt(values[0].numel())).clamp(min=1e-300)
        difference = difference / (math.sqrt(values[0].numel()) if values is seen else 1)
        worst = difference.argmax()
        if not difference[worst] <= PRECISION:
            raise ValueError(
                f"`{name}` and its adjoint do not fit: <A x, y> = {left[worst].item():.6g}, but <x, A* y> = "
                f"{right[worst].item():.6g}; relative difference {difference[worst].item():.2g}, allowed {PRECISION}."
            )


def require_solution(operator, y: Tensor, name: str) -> None:
    """Raise a `ValueError` unless what solves a linear operator's systems in closed form does so, for y = A x."""
    if not y.any():
        return
    square = operator(operator.adjoint(y))
    if operator.gram is not None:
        difference, what = relative(square - operator.gram * y, square), f"A A' y = {operator.gram:.6g} y, its `gram`"
    else:
        b = (square.double().norm() / y.double().norm()).item()
        w = operator.solve(y, 1.0, b)
        difference = relative(operator(operator.adjoint(w)) + b * w - y, y)
        what = f"(A A' + {b:.3g}) w = y for w = `solve(y, 1, {b:.3g})`"
    if not difference <= PRECISION:
        raise ValueError(
            f"`{name}` does not solve its own systems: {what}, is wrong for y = A x by a relative difference of "
            f"{difference:.2g}, allowed {PRECISION}."
        )


def require_own_parts(operator, x: Tensor, y: Tensor, name: str) -> None:
    """Raise a `ValueError` unless what else a class says of its measurements is true of y = A x: what is missing of
    them, how an image is repeated, and solutions of its own."""
    if operator.linear:
        require_same_values(f"`{name}.measured` must leave A x as it is", operator.measured(y), y)
    count, n = operator.count(tuple(x.shape)), y[0].numel()
    if tuple(count.shape) not in ((len(x),), (1,)) or not ((count >= 0) & (count <= n)).all():
        raise ValueError(
            f"`{name}.count` must be a tensor ({len(x)},) or (1,) of numbers from 0 to {n}, but is {count!r}."
        )
    twice = operator.repeat(2)
    if twice is not operator:
        each = x.repeat_interleave(2, 0)
        fails = f"`{name}.repeat(2)` does not measure images {tuple(each.shape)}"
        seen = answer(lambda each: twice.for_images(tuple(each.shape), operator.device)(each), each, name, fails)
        what = f"`{name}.repeat(2)` must measure each image twice, one after the other, as it is measured alone"
        require_same_values(what, seen, y.repeat_interleave(2, 0))
    if not operator.linear or not y.any():
        return
    if operator.gram is None and operator.has_own("pseudo_inverse"):
        what = f"`{name}.pseudo_inverse` must give A A+ y = y, for y = A x"
        require_same_values(what, operator(operator.pseudo_inverse(y)), y)
    if operator.gram is None and operator.has_own("ridge"):
        b = (operator(operator.adjoint(y)).double().norm() / y.double().norm()).item()
        image = operator.ridge(y, 1.0, b)
        what = f"`{name}.ridge(y, 1, b)` must be the image u with A'(y - A u) = b u, for y = A x and b = {b:.3g}"
        require_same_values(what, operator.adjoint(y - operator(image)) / b, image)


def require_reached(operator, what: str, measure: str, error: Tensor) -> None:
    """Raise a `ValueError` if an iterative solution is further than the operator's `tolerance` off, for any image."""
    worst = error.max().item()
    if not worst <= operator.tolerance:
        raise ValueError(
            f"The {what} of `operator` {type(operator).__name__} was not found in {operator.iterations} iterations: "
            f"{measure} = {worst:.2g}, not {operator.tolerance}. Its singular values differ too much for so little "
            'noise, or none: give a larger `noise_std`, with `method`="mmps", or set `iterations` or `tolerance`.'
        )


def require_images(operator, x) -> None:
    """Raise a `ValueError` unless x, what an operator is applied to, holds images (N, C, H, W) of floating point."""
    if not isinstance(x, Tensor) or x.ndim != 4:
        found = f"have the shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"are {type(x).__name__}"
        raise ValueError(f"{type(operator).__name__} takes images (N, C, H, W), but they {found}.")
    operator.require_floating(x)
