#!/usr/bin/env bash
# diffusers 0.42.1: a cosine schedule of the learning rate does not end at 0: past its last step the rate rises again.
#
# A training goes on longer than the schedule was made for wherever a finished run is resumed for more steps, or where
# the schedule counts updates and the loop micro-batches. Of four schedules that decay over 100 steps three stay at
# their last value; get_cosine_schedule_with_warmup goes on along the cosine, to the full rate at step 200, which is
# what a decayed network is not meant to see; then down again, and so on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    diffusers==0.42.1 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
step                      0   50  100  125  150  200  300
linear                 1.00 0.50 0.00 0.00 0.00 0.00 0.00
polynomial             1.00 0.50 0.00 0.00 0.00 0.00 0.00
cosine_with_restarts   1.00 0.50 0.00 0.00 0.00 0.00 0.00
cosine                 1.00 0.50 0.00 0.15 0.50 1.00 0.00
END

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from diffusers.optimization import get_scheduler

STEPS = 0, 50, 100, 125, 150, 200, 300
print(f"{'step':22}" + "".join(f"{step:5}" for step in STEPS))


def rates(name, made):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, seen = made(optimizer), []
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            seen.append(f"{schedule.get_last_lr()[0]:5.2f}")
        optimizer.step()
        schedule.step()
    print(f"{name:22}" + "".join(seen))


for name in "linear", "polynomial", "cosine_with_restarts", "cosine":
    rates(name, lambda optimizer: get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=100))
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
