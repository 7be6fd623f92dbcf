#!/usr/bin/env bash
# wandb 0.31.0: pictures with values in [0, 1] are logged black, and of 16-bit pictures the low bytes are kept.
#
# What torchvision, matplotlib and diffusers (output_type "np") hand over are numbers from 0 to 1. wandb.Image of
# release 0.19.11 made bytes of such arrays by a factor of 255; this one casts them as they are, which makes 0 of all
# but white. No error, no warning: a run's panels are black. Integers of more than 8 bits wrap: 256 is 0, 65535 is 255.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    wandb==0.31.0 torch==2.14.1 numpy==2.4.6 pillow==12.3.0

cat > "$folder/expected" <<'END'
numpy, float32       0   0.25    0.5   0.99      1  ->    0   0   0   0   1
torch, float32       0   0.25    0.5   0.99      1  ->    0   0   0   0   1
numpy, uint16        0    255    256  32768  65535  ->    0 255   0   0 255
numpy, uint8         0     64    128    252    255  ->    0  64 128 252 255
PIL                  0     64    128    252    255  ->    0  64 128 252 255
END

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import logging

import numpy as np
import torch
import wandb
from PIL import Image

logging.disable()
unit = np.array([[0.0, 0.25, 0.5, 0.99, 1.0]], dtype=np.float32)
pictures = {
    "numpy, float32": unit,
    "torch, float32": torch.from_numpy(unit)[None],
    "numpy, uint16": np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16),
    "numpy, uint8": (255 * unit).round().astype(np.uint8),
    "PIL": Image.fromarray((255 * unit).round().astype(np.uint8)),
}
for name, picture in pictures.items():
    given = np.asarray(picture).ravel().tolist()
    kept = np.asarray(wandb.Image(picture).image).ravel().tolist()
    print(f"{name:15} {' '.join(f'{v:6.5g}' for v in given)}  ->  {' '.join(f'{v:3}' for v in kept)}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
