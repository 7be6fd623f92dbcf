#!/usr/bin/env bash
# diffusers 0.42.1: DDIM with 501 steps is far worse than with 500, whatever its timestep_spacing.
#
# The pixels are N(1, 0.5^2), and the prediction of the noise is the exact one. It is linear, so that two points show
# the mean and the deviation of all samples, without any chance. With 500 steps they come out within a hundredth. One
# step more, and "leading" begins with t=500, at which a quarter of the picture should still be seen, though it is
# given pure noise: its stride is 1000 // 501 = 1. "trailing" and "linspace" begin with t=999 and visit times that are
# about two apart, but each step takes away the noise of 1000 // 501 = 1 of them, so that much is never taken away.
# With 600 steps it is still so: only divisors of 1000 are safe. Nothing is said.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    diffusers==0.42.1 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
leading:  500 steps from t=998: mean 1.00, deviation 0.50
leading:  501 steps from t=500: mean 0.86, deviation 0.51
leading:  600 steps from t=599: mean 0.92, deviation 0.50
trailing: 500 steps from t=999: mean 1.00, deviation 0.50
trailing: 501 steps from t=999: mean 0.61, deviation 0.71
trailing: 600 steps from t=999: mean 0.70, deviation 0.66
linspace: 500 steps from t=999: mean 1.00, deviation 0.50
linspace: 501 steps from t=999: mean 0.61, deviation 0.71
linspace: 600 steps from t=999: mean 0.70, deviation 0.66
END

HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from diffusers import DDIMScheduler

mean, deviation = 1.0, 0.5
for spacing in ("leading", "trailing", "linspace"):
    for steps in (500, 501, 600):
        scheduler = DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
        scheduler.set_timesteps(steps)
        x = torch.tensor([0.0, 1.0], dtype=torch.float64)  # where the mean of the prior goes, and one deviation above
        for t in scheduler.timesteps:
            alpha_bar = scheduler.alphas_cumprod[t].double()
            score = -(x - alpha_bar.sqrt() * mean) / (alpha_bar * deviation**2 + 1 - alpha_bar)
            x = scheduler.step(-(1 - alpha_bar).sqrt() * score, t, x).prev_sample
        first = f"{steps} steps from t={scheduler.timesteps[0]}"
        print(f"{spacing + ':':9} {first}: mean {x[0]:.2f}, deviation {x[1] - x[0]:.2f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
