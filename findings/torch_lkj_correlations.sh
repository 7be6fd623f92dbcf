#!/usr/bin/env bash
# torch 2.14.1: samples of LKJCholesky have another distribution than its log_prob, from three variables on.
#
# The LKJ distribution treats all pairs of variables alike: each correlation has the mean square 1 / (2 c + d - 1) for d
# variables and the concentration c, and with c = 1 every correlation matrix is as likely as any other. In the samples
# of torch.distributions.LKJCholesky only the first two variables are so: the correlations with the others are larger,
# and determinants are too small, for ten variables 14 times. By the distribution's own log_prob the samples are
# likelier to be of another concentration, for ten variables of 0.45. The squared length of row k is drawn from a beta
# distribution whose first parameter is k - 1/2, where it is to be k / 2; these are the same for the row k = 1 alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
            mean square of correlations   mean determinant   concentration that
variables   meant   first 2   last 2      meant    seen      fits the samples
2           0.333   0.333     0.333       6.7e-01  6.7e-01   1.00
3           0.250   0.253     0.299       3.8e-01  3.0e-01   0.80
5           0.167   0.166     0.193       9.3e-02  4.0e-02   0.65
10          0.091   0.090     0.099       1.5e-03  1.1e-04   0.45
END

"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from torch.distributions import LKJCholesky

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
print("            mean square of correlations   mean determinant   concentration that")
print("variables   meant   first 2   last 2      meant    seen      fits the samples")
for variables in (2, 3, 5, 10):
    factors = LKJCholesky(variables, 1.0).sample((20_000,))
    matrices = factors @ factors.mT
    squares = matrices.square().mean(0)
    meant = 1 / (variables + 1)
    # the determinant is a product of independent beta variables: of row k, 1 - y with y ~ B(k / 2, 1 + (d - 1 - k) / 2)
    rows = torch.arange(1, variables)
    determinant = ((variables + 1 - rows) / (variables + 1)).prod()
    seen = torch.linalg.det(matrices).mean()
    tried = torch.arange(1, 41) / 20
    likelihoods = torch.stack([LKJCholesky(variables, c).log_prob(factors).mean() for c in tried])
    best = tried[likelihoods.argmax()]
    print(
        f"{variables:<11} {meant:.3f}   {squares[0, 1]:.3f}     {squares[-2, -1]:.3f}       "
        f"{determinant:.1e}  {seen:.1e}   {best:.2f}"
    )
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
