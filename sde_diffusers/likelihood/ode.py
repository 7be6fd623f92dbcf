"""An adaptive solver for ordinary differential equations whose state is a batch of images."""

import math

import torch
from torch import Tensor

# Dormand and Prince (1980), 5(4): times, rows and, as the difference of the two orders' weights, the error.
STAGE_TIMES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGE_WEIGHTS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR_WEIGHTS = (-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
# Whether a stage's slope counts for the step or its error, or only for the next stages.
STAGE_COUNTS = tuple(
    bool(weight or error) for weight, error in zip((*STAGE_WEIGHTS[-1], 0), ERROR_WEIGHTS, strict=True)
)


def error_norm(error: Tensor) -> float:
    """Size of an error (N, d + P) that is measured in tolerances: its root mean square over the batch, as in the
    paper's code, or half of the largest one of an image, if that is more.

    So however large the batch, no image's error exceeds twice what it would be allowed alone.
    """
    per_image = error.square().mean(1)
    return torch.maximum(per_image.mean().sqrt(), 0.5 * per_image.max().sqrt()).item()


def weighted_sum(weights, tensors) -> Tensor:
    return sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True) if weight)


def dormand_prince(
    f,
    t: float,
    end: float,
    y: Tensor,
    rtol: float,
    atol: float,
    stretch: float = 1.0,
    stops=(),
    change=None,
    between=None,
):
    """Integrate dy/dt = f(t, y) and yield (t, y) after every accepted step; the last t is `end`.

    At the times `stops` on the way a step ends, `change()` changes f, and f is evaluated again.

    The last step may become longer by the factor `stretch`, so that it does not leave a sliver; at 1 all steps are
    scipy's.

    Adaptive Runge-Kutta of order 5 with the step control of Hairer, Norsett and Wanner (Solving Ordinary Differential
    Equations I, section II.4) in the form of scipy's RK45, with which likelihoods are published, but on y's device.
    (torchdiffeq's dopri5 weighs its error by 2/3 and never shrinks a step that it accepts; on rough networks that is a
    hundredth of a bit.)

    Args:
        f: function of (t, y).
        between: another one for the stages that serve the next ones alone, not the step or its error. It may leave 0
            in columns that depend on nothing else of y and that nothing depends on: integrals along the way.

    Raises:
        RuntimeError: if no step is small enough, as where f is not finite.
    """
    sign = math.copysign(1.0, end - t)
    slope = f(t, y)
    if not slope.isfinite().all():
        raise RuntimeError(f"The network's answer is not finite at the start of the ODE, {t}.")
    step = first_step(f, t, end, y, slope, rtol, atol)
    rejected, stops = False, [*stops, end]
    while t != end:
        stop, planned = stops[0], step
        if abs(stop - t) <= (1.0 if rejected else stretch) * step:  # what was refused once is not tried again
            step = abs(stop - t)
        if not step > 10 * abs(math.nextafter(t, end) - t):
            raise RuntimeError(
                f"The ODE's step size shrank to {step} at {t}: the network's answer is not finite or jumps."
            )
        following = stop if step == abs(stop - t) else t + sign * step
        slopes = [slope]
        for time, weights, counts in zip(STAGE_TIMES, STAGE_WEIGHTS, STAGE_COUNTS[1:], strict=True):
            y_stage = y + (following - t) * weighted_sum(weights, slopes)
            g = f if counts or between is None else between
            slopes.append(g(following if time == 1 else t + time * (following - t), y_stage))
        error = step * weighted_sum(ERROR_WEIGHTS, slopes)
        size = error_norm(error / (atol + rtol * torch.maximum(y.abs(), y_stage.abs())))
        if size < 1:
            t, y, slope = following, y_stage, slopes[-1]
            step *= min(1.0 if rejected else 10.0, 0.9 * size**-0.2 if size else 10.0)
            yield t, y
            if t == stop != end:
                stops.pop(0)
                change()
                slope, step = f(t, y), max(step, planned)
        else:
            step *= max(0.2, 0.9 * size**-0.2) if math.isfinite(size) else 0.2
        rejected = not size < 1


def first_step(f, t: float, end: float, y: Tensor, slope: Tensor, rtol: float, atol: float) -> float:
    """Size of the first step from the first two derivatives (Hairer et al., section II.4)."""
    tolerance = atol + rtol * y.abs()
    d_0, d_1 = error_norm(y / tolerance), error_norm(slope / tolerance)
    trial = min(1e-6 if min(d_0, d_1) < 1e-5 else 0.01 * d_0 / d_1, abs(end - t))
    signed = math.copysign(trial, end - t)
    d_2 = error_norm((f(t + signed, y + signed * slope) - slope) / tolerance) / trial
    largest = max(d_1, d_2)
    guess = max(1e-6, 1e-3 * trial) if largest <= 1e-15 else (0.01 / largest) ** 0.2
    return min(100 * trial, guess, abs(end - t))
