#!/usr/bin/env bash
# ema-pytorch 0.8.3: an average with a decay of 0.99 is as long as one of 0.999.
#
# EMA.update() is called after each training step, and beta is the decay of the average. Unless told otherwise it works
# in one call of ten (update_every) and then decays by beta once, so that the average reaches ten times as far back:
# behind a weight that grows by 1 in each step it is 992 steps instead of 99. A figure for beta from a paper gives the
# average of another one. With update_every=1 it is as beta says.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    ema-pytorch==0.8.3 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
an average with a decay of 0.99 in each step is 99 steps behind
EMA(beta=0.99, update_every=1) is 99 behind
EMA(beta=0.99, update_every=5) is 499 behind
EMA(beta=0.99) is 992 behind
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from ema_pytorch import EMA


def lag(**options):
    """How many steps the average is behind a weight that grows by 1 in each step."""
    network = torch.nn.Linear(1, 1, bias=False)
    average = EMA(network, beta=0.99, update_after_step=0, power=10, **options)
    for step in range(5000):
        with torch.no_grad():
            network.weight.fill_(float(step))
        average.update()
    return step - average.ema_model.weight.item()


print("an average with a decay of 0.99 in each step is 99 steps behind")
for options in {"update_every": 1}, {"update_every": 5}, {}:
    print(
        f"EMA(beta=0.99{''.join(f', {key}={value}' for key, value in options.items())}) is {lag(**options):.0f} behind"
    )
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
