#!/usr/bin/env bash
# azula 0.11.1: REABSampler of order 2 or 3 is of order 1, and further off than Euler's method.
#
# A sampler of order n, given twice as many steps, makes an error that is about 2^n times smaller. For normal data the
# denoiser and the end of the path are known exactly, and the other multi-step samplers of azula keep the rule. For
# REABSampler the error halves, whichever `order` is asked for, and is several times that of Euler's method, to which
# it is meant to be superior. Its last factor takes alpha of the new time together with sigma of the old one. Samples
# look reasonable, and get better with more steps: only a comparison of orders shows it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check azula==0.11.1 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
EulerSampler         error 0.009 with 128 steps, 0.005 with 256: 2.0 times smaller
zABSampler, order 2  error 0.001 with 128 steps, 0.000 with 256: 3.8 times smaller
xEABSampler, order 2 error 0.000 with 128 steps, 0.000 with 256: 4.0 times smaller
REABSampler, order 2 error 0.030 with 128 steps, 0.015 with 256: 2.0 times smaller
REABSampler, order 3 error 0.030 with 128 steps, 0.015 with 256: 2.0 times smaller
END

"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from azula.denoise import DiracPosterior
from azula.noise import VESchedule
from azula.sample import EulerSampler, REABSampler, xEABSampler, zABSampler

torch.set_default_dtype(torch.float64)
mean, variance = 1.0, 0.25


class Exact(torch.nn.Module):
    """The denoiser of N(mean, variance)."""

    schedule = VESchedule()

    def forward(self, x, t):
        alpha, sigma = self.schedule(t)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return DiracPosterior(mean=mean + gain * (x - alpha * mean))


def at(t, deviations):
    """Where the path of the probability flow is at the time t: as many deviations from the mean as at any other."""
    alpha, sigma = Exact.schedule(torch.tensor(t))
    return alpha * mean + deviations * torch.sqrt(alpha**2 * variance + sigma**2)


def error(sampler, steps, **options):
    sample = sampler(Exact(), steps=steps, silent=True, **options)(at(1.0, torch.tensor([0.7])))
    return (sample - at(0.0, 0.7)).abs().item()


for sampler, order in ((EulerSampler, None), (zABSampler, 2), (xEABSampler, 2), (REABSampler, 2), (REABSampler, 3)):
    options = {"order": order} if order else {}
    name = f"{sampler.__name__}, order {order}" if order else sampler.__name__
    few, many = (error(sampler, steps, **options) for steps in (128, 256))
    print(f"{name:20} error {few:.3f} with 128 steps, {many:.3f} with 256: {few / many:.1f} times smaller")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
