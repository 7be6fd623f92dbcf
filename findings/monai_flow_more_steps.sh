#!/usr/bin/env bash
# monai 1.6.1: RFlowScheduler with continuous timesteps is the further off, the more steps it takes.
#
# A flow is followed from the timestep 1000 to 0, and the lengths of all steps are expected to add up to 1, however many
# they are. With use_discrete_timesteps=False, when the times lie between the integers, each step starts at its own time
# and goes to that of the next step, of which the fraction is cut off: most steps are too long, and the sample runs past
# the data. Where they are shifted towards the noise, which is meant for larger images, a thousand steps have the length
# 1.32 together. The flow to normal data with mean 1 and standard deviation 0.5 is known exactly: with integers samples
# come to these numbers, otherwise with 1000 steps to 1.25 and 0.40, which is further off than with 30.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check monai==1.6.1 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
                          length 1.00, mean 1.00, deviation 0.50
integers, 30 steps        length 1.00, mean 1.00, deviation 0.47
integers, 100 steps       length 1.00, mean 1.00, deviation 0.49
integers, 300 steps       length 1.00, mean 1.00, deviation 0.50
integers, 1000 steps      length 1.00, mean 1.00, deviation 0.50
continuous, 30 steps      length 1.01, mean 1.00, deviation 0.46
continuous, 100 steps     length 1.03, mean 1.02, deviation 0.48
continuous, 300 steps     length 1.09, mean 1.07, deviation 0.47
continuous, 1000 steps    length 1.32, mean 1.25, deviation 0.40
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import RFlowScheduler

MEAN, VARIANCE = 1.0, 0.25


class Counted(RFlowScheduler):
    """Adds up the lengths of the steps, as they are seen in what each adds to a sample."""

    def step(self, model_output, timestep, sample, next_timestep=None):
        after, clean = super().step(model_output, timestep, sample, next_timestep)
        self.length += ((after - sample) * model_output).sum().item() / model_output.square().sum().item()
        return after, clean


class Exact(torch.nn.Module):
    """The mean of image - noise, given (1 - t) image + t noise, for pixels of N(MEAN, VARIANCE)."""

    def forward(self, x, timesteps, context=None):
        t = timesteps / 1000
        return MEAN + ((1 - t) * VARIANCE - t) / ((1 - t) ** 2 * VARIANCE + t**2) * (x - (1 - t) * MEAN)


print("                          length 1.00, mean 1.00, deviation 0.50")
for discrete in (True, False):
    for steps in (30, 100, 300, 1000):
        scheduler = Counted(
            use_discrete_timesteps=discrete, use_timestep_transform=True, base_img_size_numel=32 * 32, spatial_dim=2
        )
        scheduler.set_timesteps(steps, input_img_size_numel=64 * 64)
        scheduler.length = 0.0
        torch.manual_seed(0)
        images = DiffusionInferer(scheduler).sample(torch.randn(4, 1, 64, 64), Exact(), scheduler, verbose=False)
        told = f"{'integers' if discrete else 'continuous'}, {steps} steps"
        print(f"{told:25} length {scheduler.length:.2f}, mean {images.mean():.2f}, deviation {images.std():.2f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
