#!/usr/bin/env bash
# torch 2.14.1: binomial counts of 100 million trials or more spread too widely in float32.
#
# Single precision has seven digits: a count of 1e8 is expected to be rounded to a multiple of 8, a thousandth of its
# deviation. Instead the deviation is 6 to 12 % too large with 1e8 trials, 18 % with 1e9 and a chance of 0.1, and
# counts further than four deviations from the mean are 17 to 170 times as frequent as they should be. Float64 is
# right, as is float32 with 1e7 trials. The candidates for a sample are accepted by the difference of two
# log-probabilities; it is computed in the dtype of the counts, as the sum of terms such as 1e8 times the logarithm of
# a number near to 1, and rounded off by more than its own size. The same holds for torch.distributions.Binomial,
# which draws by it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
                  deviation, as a part   further than four
                  of what is meant       deviations
chance            0.1    0.3             0.1      0.3
float64, 1e+06    1.0    1.0             6e-05    6e-05
float64, 1e+07    1.0    1.0             6e-05    6e-05
float64, 1e+08    1.0    1.0             6e-05    6e-05
float64, 1e+09    1.0    1.0             6e-05    6e-05
float32, 1e+06    1.0    1.0             6e-05    6e-05
float32, 1e+07    1.0    1.0             6e-05    6e-05
float32, 1e+08    1.1    1.1             1e-03    2e-03
float32, 1e+09    1.2    1.2             1e-02    7e-03
END

"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from torch.distributions import Binomial

print("                  deviation, as a part   further than four")
print("                  of what is meant       deviations")
print("chance            0.1    0.3             0.1      0.3")
for dtype in (torch.float64, torch.float32):
    for count in (1e6, 1e7, 1e8, 1e9):
        deviations, shares = [], []
        for chance in (0.1, 0.3):
            torch.manual_seed(0)
            drawn = Binomial(torch.tensor(count, dtype=dtype), torch.tensor(chance, dtype=dtype))
            samples = drawn.sample((1_000_000,)).double()
            apart = (samples - count * chance) / (count * chance * (1 - chance)) ** 0.5
            deviations.append(f"{apart.std():.1f}")
            shares.append(f"{(apart.abs() > 4).double().mean():.0e}")
        print(f"{str(dtype)[6:]}, {count:.0e}    " + "    ".join(deviations) + "             " + "    ".join(shares))
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
