#!/usr/bin/env bash
# diffusers 0.42.1: add_noise leaves pictures in half precision as they are at the first timesteps.
#
# Training scripts cast pictures or latents to the dtype of the weights and then add noise. Schedulers cast their table
# alpha_bar to the dtype of the pictures before they take sqrt(1 - alpha_bar): near 1, where the least noise is,
# float16 has steps of 0.0005 and bfloat16 of 0.004. So with the default betas the first 10 of 1,000 timesteps have no
# noise at all in bfloat16, with the cosine betas the first 21; the network is asked for noise that is not there. The
# others share 190 levels, some of which are off by a half: 0.062 for 0.044. `get_velocity` takes the same numbers.
# Noise that is added in float32 and cast afterwards is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    diffusers==0.42.1 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
                              timesteps           different   deviation of the noise at timestep
betas           pictures      without noise       levels          0       9      19
linear          torch.float32          0               1000     0.010   0.044   0.076
linear          torch.float16          2                573     0.000   0.044   0.077
linear          torch.bfloat16        10                190     0.000   0.000   0.062
scaled linear   torch.float32          0               1000     0.029   0.093   0.133
scaled linear   torch.float16          0                762     0.031   0.094   0.133
scaled linear   torch.bfloat16         2                192     0.000   0.088   0.140
cosine          torch.float32          0               1000     0.006   0.025   0.042
cosine          torch.float16          4                855     0.000   0.022   0.044
cosine          torch.bfloat16        21                193     0.000   0.000   0.000
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from diffusers import DDPMScheduler

SCHEDULES = {
    "linear": {"beta_schedule": "linear"},
    "scaled linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
NOISE = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def levels(scheduler, dtype):
    """The deviation of the noise that black pictures get at each of the 1,000 timesteps."""
    steps = torch.arange(1000)
    noise = NOISE.to(dtype).expand(1000, -1, -1, -1)
    noisy = scheduler.add_noise(torch.zeros_like(noise), noise, steps)
    return noisy.double().std(dim=(1, 2, 3)) / noise.double().std(dim=(1, 2, 3))


print("                              timesteps           different   deviation of the noise at timestep")
print("betas           pictures      without noise       levels          0       9      19")
for name, options in SCHEDULES.items():
    scheduler = DDPMScheduler(**options)
    for dtype in torch.float32, torch.float16, torch.bfloat16:
        found = levels(scheduler, dtype)
        some = "".join(f"{found[step]:8.3f}" for step in (0, 9, 19))
        print(f"{name:14}  {dtype!s:15} {(found == 0).sum():8} {len(found.unique()):18}  {some}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
