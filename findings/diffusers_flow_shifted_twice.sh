#!/usr/bin/env bash
# diffusers 0.42.1: FlowMatchEulerDiscreteScheduler shifts its noise levels twice where the caller gives only a number
# of steps.
#
# A shift s moves the levels t of flow matching to s t / (1 + (s - 1) t). The levels for training are shifted once;
# set_timesteps(n) starts from the lowest of these, and shifts again. So a sampler with as many steps as there are
# levels does not visit them: with shift 12, which video models take, it goes from 0.126 to 0 in its last step, though
# the network knows levels down to 0.012. A Gaussian of deviation 0.1, sampled with its exact velocity in 1,000 steps,
# then has 0.057. The levels 1, 0.999, ... 0.001, given by hand (sigmas=), are shifted once, and give 0.096.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    diffusers==0.42.1 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
        lowest level of 1000                  deviation of samples, 0.1 in truth
shift   training   1000 steps   given levels  1000 steps   given levels
    1     0.0010       0.0010         0.0010       0.100          0.100
    3     0.0030       0.0089         0.0030       0.099          0.099
   12     0.0119       0.1260         0.0119       0.057          0.096
END

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

LEVELS, TRUTH = 1000, 0.1


def sampled(scheduler):
    """The deviation of samples by the exact velocity E[noise - data | x], in double precision."""
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for timestep, level in zip(scheduler.timesteps, scheduler.sigmas.double(), strict=False):
        variance = (1 - level) ** 2 * TRUTH**2 + level**2
        velocity = (level - (1 - level) * TRUTH**2) / variance * x
        x = scheduler.step(velocity, timestep, x).prev_sample
    return x.std().item()


print(f"{'lowest level of 1000':>28}{'':18}deviation of samples, 0.1 in truth")
print("shift   training   1000 steps   given levels  1000 steps   given levels")
for shift in 1.0, 3.0, 12.0:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=LEVELS, shift=shift)
    trained = scheduler.sigmas[-1].item()
    scheduler.set_timesteps(LEVELS)
    lowest, deviation = scheduler.sigmas[-2].item(), sampled(scheduler)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / LEVELS, LEVELS))
    given, once = scheduler.sigmas[-2].item(), sampled(scheduler)
    print(f"{shift:5.0f} {trained:10.4f} {lowest:12.4f} {given:14.4f} {deviation:11.3f} {once:14.3f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
