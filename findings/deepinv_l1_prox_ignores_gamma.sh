#!/usr/bin/env bash
# deepinv 0.5.0: the proximal operator of the L1 data fidelity is the same for every gamma.
#
# prox(x, gamma) of the distance |x - y| moves x towards y by gamma at most: a small gamma hardly moves it, a large one
# makes it y. `L1().prox`, for the identity, always moves it by 1: inside, the step is handed over by its place, and
# the function that is called takes it by its name only and swallows the rest. An iteration with it converges, to the
# solution of another problem: the weight of the data has no effect. (`L1().d.prox` is right.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    deepinv==0.5.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
gamma 0.1: 3.0 becomes 2.0, should be 2.9
gamma 0.5: 3.0 becomes 2.0, should be 2.5
gamma 1.0: 3.0 becomes 2.0, should be 2.0
gamma 2.0: 3.0 becomes 2.0, should be 1.0
gamma 4.0: 3.0 becomes 2.0, should be 0.0
END

HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import contextlib

import torch
from deepinv.optim import L1
from deepinv.physics import Denoising

x, y = torch.full((1, 1, 1, 1), 3.0), torch.zeros(1, 1, 1, 1)
for gamma in (0.1, 0.5, 1.0, 2.0, 4.0):
    with contextlib.redirect_stdout(None):  # it tells of the norm of the operator
        moved = L1().prox(x, y, Denoising(), gamma=gamma)
    print(f"gamma {gamma}: {x.item()} becomes {moved.item():.1f}, should be {max(x.item() - gamma, 0):.1f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
