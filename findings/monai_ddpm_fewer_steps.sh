#!/usr/bin/env bash
# monai 1.6.1: DDPMScheduler with fewer steps than those of the training leaves most of the noise in.
#
# After set_timesteps(100) the scheduler visits 100 of its 1000 timesteps, ten apart, and a sample is expected to be
# nearly as good as one with all of them, as with DDIMScheduler. Every step, however, goes from its timestep t to t - 1,
# whatever the next timestep is: of the noise only a tenth is taken away. For normal data with mean 1 and standard
# deviation 0.5 the best denoiser is known exactly: with it 1000 steps give these numbers, 500 steps a mean of 0.78 and
# a deviation of 0.61, and 100 steps something near to the noise that was put in.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check monai==1.6.1 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
data                              mean 1.00, deviation 0.50
DDPMScheduler, 1000 steps         mean 1.00, deviation 0.50
DDPMScheduler, 500 steps          mean 0.78, deviation 0.61
DDPMScheduler, 250 steps          mean 0.53, deviation 0.75
DDPMScheduler, 100 steps          mean 0.26, deviation 0.88
DDIMScheduler, 1000 steps         mean 1.00, deviation 0.50
DDIMScheduler, 500 steps          mean 1.00, deviation 0.50
DDIMScheduler, 250 steps          mean 0.99, deviation 0.50
DDIMScheduler, 100 steps          mean 0.99, deviation 0.49
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

MEAN, VARIANCE = 1.0, 0.25


class Exact(torch.nn.Module):
    """The best prediction of the noise, for images whose pixels are of N(MEAN, VARIANCE)."""

    def __init__(self, signal):
        super().__init__()
        self.signal = signal

    def forward(self, x, timesteps, context=None):
        signal = self.signal[timesteps.long()]
        return (1 - signal).sqrt() * (x - signal.sqrt() * MEAN) / (signal * VARIANCE + 1 - signal)


print("data                              mean 1.00, deviation 0.50")
for kind in (DDPMScheduler, DDIMScheduler):
    for steps in (1000, 500, 250, 100):
        scheduler = kind(num_train_timesteps=1000, clip_sample=False)
        scheduler.set_timesteps(steps)
        torch.manual_seed(1)
        noise = torch.randn(4, 1, 128, 128)
        images = DiffusionInferer(scheduler).sample(noise, Exact(scheduler.alphas_cumprod), scheduler, verbose=False)
        told = f"{kind.__name__}, {len(scheduler.timesteps)} steps"
        print(f"{told:33} mean {images.mean():.2f}, deviation {images.std():.2f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
