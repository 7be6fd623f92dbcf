#!/usr/bin/env bash
# deepinv 0.5.0: the Poisson likelihood of an image depends on its batch, and its gradient is off by the gain squared.
#
# PoissonLikelihood gives one value for each image of a batch. The logarithms in it are summed over the whole batch,
# though: an image has one value alone, and another beside a second one. Its gradient is a formula of its own, which
# multiplies by the gain where the chain rule divides. With the default gain of 1 the two agree; with the gain of 0.1
# of a dark picture the gradient is 100 times too small, which looks like a step size that is badly chosen. And
# `prox_d`, which primal-dual methods call, multiplies by the root that should be added: a pixel that should become
# 1.618 becomes negative, where the likelihood does not exist.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    deepinv==0.5.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
two images, each alone:   0.307, -5.394
two images, in one batch: -4.088, -6.088
gain 1.0: grad -0.600, slope of the value -0.600
gain 0.1: grad -0.060, slope of the value -6.000
prox_d: -0.118, the minimum is at 1.618
END

HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from deepinv.optim import PoissonLikelihood
from deepinv.physics import Denoising

physics = Denoising()  # A is the identity


def pixels(*values):
    """A batch of images of one pixel."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


x, y = pixels(2, 3), pixels(1, 4)
fidelity = PoissonLikelihood()
alone = [fidelity(x[[k]], y[[k]], physics).item() for k in (0, 1)]
print("two images, each alone:  ", ", ".join(f"{value:.3f}" for value in alone))
print("two images, in one batch:", ", ".join(f"{value:.3f}" for value in fidelity(x, y, physics)))
for gain in (1.0, 0.1):
    fidelity = PoissonLikelihood(gain=gain)
    x, y, h = pixels(0.5), pixels(0.8), 1e-6
    slope = (fidelity(x + h, y, physics) - fidelity(x - h, y, physics)).item() / (2 * h)
    print(f"gain {gain}: grad {fidelity.grad(x, y, physics).item():.3f}, slope of the value {slope:.3f}")
x, y = pixels(2), pixels(1)  # the minimum of u - log(u) + (u - 2)^2 / 2, where u^2 - u - 1 = 0
print(f"prox_d: {PoissonLikelihood().prox_d(x, y, gamma=1.0).item():.3f}, the minimum is at {(1 + 5**0.5) / 2:.3f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
