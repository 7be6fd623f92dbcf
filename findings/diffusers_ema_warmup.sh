#!/usr/bin/env bash
# diffusers 0.42.1: an average of weights with use_ema_warmup=False is warmed up nevertheless, for 90,000 steps.
#
# EMAModel(decay=0.9999) is asked for an exponential moving average that takes up 1/10,000 of the weights in each step.
# With use_ema_warmup=False, the default, one expects this from the first step on. But the flag only chooses between
# two ways of warming up: without it the decay is (1 + n) / (10 + n) at most, and 0.9999 after 90,000 steps.
# Weights that jump from 0 to 1 at the start show it: after 1,000 steps a tenth of 1 should be in the average, and all
# of it is. In a shorter training `decay` has no effect: 0.999 or 0.9999 is the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    diffusers==0.42.1 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
decay 0.999, use_ema_warmup=False: average 1.000 (by the formula 0.632), last decay 0.9911
decay 0.999, use_ema_warmup=True: average 1.000 (by the formula 0.632), last decay 0.9900
decay 0.9999, use_ema_warmup=False: average 1.000 (by the formula 0.095), last decay 0.9911
decay 0.9999, use_ema_warmup=True: average 1.000 (by the formula 0.095), last decay 0.9900
decay 0.9999 is reached after 89991 steps
END

HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from diffusers.training_utils import EMAModel


def averaged(decay, steps, **options):
    weight = torch.nn.Parameter(torch.zeros(1))
    average = EMAModel([weight], decay=decay, **options)
    weight.data.fill_(1)
    for _ in range(steps):
        average.step([weight])
    return average.shadow_params[0].item(), average.cur_decay_value


for decay in (0.999, 0.9999):
    for warmup in (False, True):
        value, last = averaged(decay, 1000, use_ema_warmup=warmup)
        told = f"average {value:.3f} (by the formula {1 - decay**1000:.3f}), last decay {last:.4f}"
        print(f"decay {decay}, use_ema_warmup={warmup}: {told}")
average = EMAModel([], decay=0.9999)
print("decay 0.9999 is reached after", next(n for n in range(200_000) if average.get_decay(n) == 0.9999), "steps")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
