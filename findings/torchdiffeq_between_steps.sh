#!/usr/bin/env bash
# torchdiffeq 0.2.5: values that a solver of order 4 gives between its steps are those of a straight line.
#
# With a step_size, the solution at a time that is no multiple of it is drawn by a line from the step before to the
# step after. At 0.33 "rk4" is off by 2e-4 with steps of 0.025, where it is off by 1e-8 at the end of the last step:
# about a fourth at each halving in place of a sixteenth. Times are asked for in the same way whether they are
# multiples or not. With the option interp="cubic" the values between are as good as the others.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torchdiffeq==0.2.5 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
              rk4                   rk4, interp='cubic'
step          at 0.33     at 1      at 0.33     at 1
0.1              5e-03     2e-05     2e-05     2e-05
0.05             1e-03     5e-07     1e-06     5e-07
0.025            2e-04     9e-09     5e-08     9e-09
0.0125           8e-05     1e-10     5e-09     1e-10
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import math

import torch
from torchdiffeq import odeint

TIMES = torch.tensor([0.0, 0.33, 1.0], dtype=torch.float64)  # 0.33 is no multiple of a step


def errors(method, step, **options):
    """Of y(0.33) and y(1), where dy/dt = -3 cos(3 t) y and y(0) = 1."""
    start = torch.ones(1, dtype=torch.float64)
    y = odeint(
        lambda t, y: -3 * torch.cos(3 * t) * y, start, TIMES, method=method, options={"step_size": step, **options}
    )
    return [abs(y[k].item() - math.exp(-math.sin(3 * TIMES[k].item()))) for k in (1, 2)]


print("              rk4                   rk4, interp='cubic'")
print("step          at 0.33     at 1      at 0.33     at 1")
for step in 0.1, 0.05, 0.025, 0.0125:
    cells = errors("rk4", step) + errors("rk4", step, interp="cubic")
    print(f"{step:<12g}" + "".join(f"{cell:10.0e}" for cell in cells))
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
