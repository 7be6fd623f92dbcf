#!/usr/bin/env bash
# deepinv 0.5.0: of six large images with Laplace noise, three have pixels of minus infinity.
#
# LaplaceNoise inverts the distribution function at a uniform number, and `torch.rand` may be exactly 0 in single
# precision: once in 2^24 numbers, the pixels of one 4096x4096 image. The noise there is minus infinity. No small image
# and no test shows it; of a large set some means, norms and losses are infinite or not a number, and the seed tells
# which. (`torch.distributions.Laplace` draws as many here, all finite.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    deepinv==0.5.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
LaplaceNoise, infinite pixels of each image: [0, 0, 2, 2, 1, 0]
LaplaceNoise, mean of all: -inf
torch.distributions.Laplace: [0, 0, 0, 0, 0, 0]
END

HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from deepinv.physics import LaplaceNoise

image = torch.zeros(1, 1, 4096, 4096)
noise, mean, infinite = LaplaceNoise(b=0.1), 0.0, []
torch.manual_seed(0)
for _ in range(6):
    noisy = noise(image)
    infinite.append(noisy.isinf().sum().item())
    mean += noisy.mean().item() / 6
print("LaplaceNoise, infinite pixels of each image:", infinite)
print("LaplaceNoise, mean of all:", mean)
torch.manual_seed(0)
law = torch.distributions.Laplace(0.0, 0.1)
print("torch.distributions.Laplace:", [law.sample(image.shape).isinf().sum().item() for _ in range(6)])
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
