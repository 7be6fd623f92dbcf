#!/usr/bin/env bash
# Pillow 13.0.0: PGM and PPM files of 12 and 16 bits are read with other numbers than they hold, and no word of it.
#
# A camera's raw converter writes such files, gray (PGM) or in colour (PPM), with the value that is white in their head:
# 4095 for 12 bits. Of gray ones Pillow stretches the numbers until white is 65535: counts of photons become other
# counts, sixteen times as large. Colours it rounds to 8 bits: of 4096 shades 256 are left. A gray file whose white is 65535
# is read as it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6

cat > "$folder/expected" <<'END'
PGM, white is 65535: [0, 1, 100, 4095] is read as [0, 1, 100, 4095], mode I
PGM, white is 4095: [0, 1, 100, 4095] is read as [0, 16, 1600, 65535], mode I
PPM, white is 4095: 4096 shades are read as 256, up to 255, mode RGB
PPM, white is 65535: 65536 shades are read as 256, up to 255, mode RGB
END

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import io

import numpy as np
from PIL import Image


def read(kind, width, white, numbers):
    head = f"{kind} {width} 1 {white}\n".encode()
    with Image.open(io.BytesIO(head + numbers.astype(">u2").tobytes())) as picture:
        return np.asarray(picture), picture.mode


counts = np.array([0, 1, 100, 4095])
for white in (65535, 4095):
    pixels, mode = read("P5", 4, white, counts)
    print(f"PGM, white is {white}: {counts.tolist()} is read as {pixels[0].tolist()}, mode {mode}")
for white in (4095, 65535):
    shades = np.arange(white + 1)
    pixels, mode = read("P6", len(shades), white, shades.repeat(3))
    seen = np.unique(pixels)
    print(f"PPM, white is {white}: {len(shades)} shades are read as {len(seen)}, up to {seen.max()}, mode {mode}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
