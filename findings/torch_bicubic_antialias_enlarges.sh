#!/usr/bin/env bash
# PyTorch 2.14.1: antialias=True changes bicubic enlargements, where there is nothing to filter.
#
# Antialiasing widens the kernel where an image is made smaller. Making one larger, bilinear interpolation is the same
# with and without it. Bicubic isn't: without antialias the kernel has the coefficient a = -0.75, with it -0.5 (as
# Pillow's, with which it then agrees). So "bicubic", against which super-resolution is judged, is two baselines in one
# function: random pixels in [0, 1], enlarged twice, differ by up to 0.055 far from the borders.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6 pillow==12.3.0

cat > "$folder/expected" <<'END'
greatest differences:
bilinear  with antialias, from without: 0.000, from Pillow: 0.000
bicubic   with antialias, from without: 0.055, from Pillow: 0.000
weights of a pixel in a row enlarged by bicubic:
antialias=False -0.03516 -0.10547  0.26172  0.87891
antialias=True  -0.02344 -0.07031  0.22656  0.86719
END

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
impulse = torch.zeros(1, 1, 1, 17)
impulse[..., 8] = 1


def larger(x, mode, antialias, scale=(2.0, 2.0)):
    return interpolate(x, scale_factor=scale, mode=mode, antialias=antialias)


print("greatest differences:")
for mode in "bilinear", "bicubic":
    within = (larger(image, mode, True) - larger(image, mode, False))[..., 8:-8, 8:-8].abs()
    pillow = Image.fromarray(image[0, 0].numpy()).resize((32, 32), getattr(Image.Resampling, mode.upper()))
    off = (larger(image, mode, True)[0, 0] - torch.from_numpy(np.asarray(pillow))).abs()
    print(f"{mode:9} with antialias, from without: {within.max():.3f}, from Pillow: {off.max():.3f}")
print("weights of a pixel in a row enlarged by bicubic:")
for antialias in False, True:
    weights = larger(impulse, "bicubic", antialias, (1.0, 2.0))[0, 0, 0, 13:17]
    print(f"antialias={antialias!s:5}", " ".join(f"{w:8.5f}" for w in weights.tolist()))
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
