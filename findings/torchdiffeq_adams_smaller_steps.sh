#!/usr/bin/env bash
# torchdiffeq 0.2.5: "explicit_adams" is further off the smaller its steps are.
#
# dy/dt = -y up to t = 2 is easy for any solver: Euler's method is off by 0.01 in 25 steps. The Adams-Bashforth method,
# which says of itself no more than that it is one, is off by 10 in 25 steps, by 10,000 in 50 and by 60 million in 100.
# It is of order 12 unless told otherwise (max_order), and methods of that order are stable for steps of about a
# thousandth of the time scale only: with 1,600 steps it is right to 13 digits. max_order=4 does as expected.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torchdiffeq==0.2.5 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
steps       euler        rk4   explicit_adams   explicit_adams, max_order=4
   25       1e-02      1e-07            1e+01                         5e-05
   50       5e-03      6e-09            1e+04                         7e-06
  100       3e-03      4e-10            6e+07                         8e-07
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import math

import torch
from torchdiffeq import odeint

START, END = torch.ones(1, dtype=torch.float64), 2.0


def error(method, steps, **options):
    """Of y(2), where dy/dt = -y and y(0) = 1, in so many equal steps."""
    times = torch.linspace(0, END, steps + 1, dtype=torch.float64)
    y = odeint(lambda t, y: -y, START, times, method=method, options=options or None)[-1].item()
    return abs(y - math.exp(-END))


print("steps       euler        rk4   explicit_adams   explicit_adams, max_order=4")
for steps in 25, 50, 100:
    cells = error("euler", steps), error("rk4", steps), error("explicit_adams", steps)
    print(
        f"{steps:5} {cells[0]:11.0e} {cells[1]:10.0e} {cells[2]:16.0e} {error('explicit_adams', steps, max_order=4):29.0e}"
    )
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
