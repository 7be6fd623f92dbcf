#!/usr/bin/env bash
# normflows 1.7.3: the density of GaussianPCA is none: a fit to data with standard deviation 2 has one of 1.4.
#
# normflows.distributions.GaussianPCA is a normal distribution with the covariance W^T W + sigma^2 I, of which W, sigma
# and the mean are learned. In log_prob the determinant of the covariance stands where its logarithm belongs, and
# d/2 log(2 pi) is added, not subtracted. The most likely standard deviation is then the square root of that of the
# data: right for data that was scaled to 1, and too near to 1 for any other. The density is too large by a factor that
# depends on the parameters, which other base distributions (DiagGaussian, below) have at 1. The samples, moreover, are
# without the noise sigma. forward() returns the same wrong number with its samples, so a comparison of both agrees.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    normflows==1.7.3 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
data             fit of GaussianPCA              fit of DiagGaussian
deviation  0.5  deviation  0.71, sum 3.46     deviation  0.50, sum 1.00
deviation  1.0  deviation  1.00, sum 3.81     deviation  1.00, sum 1.00
deviation  2.0  deviation  1.41, sum 3.27     deviation  2.00, sum 1.00
deviation 10.0  deviation  3.16, sum 0.13     deviation 10.00, sum 1.00
END

"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from normflows.distributions import DiagGaussian, GaussianPCA

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
standard = torch.randn(4000, 1)
standard = (standard - standard.mean()) / standard.std(correction=0)
line = torch.linspace(-200, 200, 400_001)[:, None]


def fitted(base, data):
    optimiser = torch.optim.LBFGS(base.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = -base.log_prob(data).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    return base


print("data             fit of GaussianPCA              fit of DiagGaussian")
for deviation in (0.5, 1.0, 2.0, 10.0):
    told = f"deviation {deviation:4}  "
    for base in (GaussianPCA(1, 1), DiagGaussian(1)):
        fitted(base, deviation * standard)
        with torch.no_grad():
            density = base.log_prob(line).exp()
            total = torch.trapezoid(density[:, None], line, dim=0).item()
            # of any density: what it says the deviation is
            found = (torch.trapezoid(density[:, None] * line**2, line, dim=0).item() / total) ** 0.5
        told += f"deviation {found:5.2f}, sum {total:.2f}     "
    print(told.rstrip())
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
