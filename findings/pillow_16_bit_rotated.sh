#!/usr/bin/env bash
# Pillow 13.0.0: a gray picture of 16 bits that is rotated or sheared with interpolation keeps 8 bits, of its bytes.
#
# Scans of 16 bits are opened in mode I;16. `resize` knows that mode with every filter, and `rotate` and `transform` do
# with NEAREST, their default. With BILINEAR or BICUBIC they raise nothing, and take the bytes of the picture for pixels:
# white, 65535, becomes 255, and a picture of one value, 1000, bands of 232 and 3 (its two bytes) and what lies between.
# The same numbers in mode I or F are rotated as they should be.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6

cat > "$folder/expected" <<'END'
white (65535), I;16, NEAREST: rotated from 65535 to 65535, sheared from 65535 to 65535
white (65535), I;16, BILINEAR: rotated from 255 to 255, sheared from 255 to 255
white (65535), I;16, BICUBIC: rotated from 255 to 255, sheared from 255 to 255
white (65535), I, BILINEAR: rotated from 65535 to 65535, sheared from 65535 to 65535
white (65535), F, BICUBIC: rotated from 65535 to 65535, sheared from 65535 to 65535
gray (1000), I;16, BILINEAR: rotated from 3 to 231, sheared from 14 to 220
gray (1000), I, BILINEAR: rotated from 1000 to 1000, sheared from 1000 to 1000
END

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy as np
from PIL import Image

TYPES = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
NAMES = {65535: "white", 1000: "gray"}


def extremes(picture):
    middle = np.asarray(picture)[24:40, 24:40]  # away from the corners, which a rotation leaves empty
    return f"from {middle.min():.0f} to {middle.max():.0f}"


cases = [(65535, "I;16", "NEAREST"), (65535, "I;16", "BILINEAR"), (65535, "I;16", "BICUBIC"), (65535, "I", "BILINEAR")]
cases += [(65535, "F", "BICUBIC"), (1000, "I;16", "BILINEAR"), (1000, "I", "BILINEAR")]
for value, mode, name in cases:
    picture = Image.fromarray(np.full((64, 64), value, TYPES[mode]))
    assert picture.mode == mode
    method = Image.Resampling[name]
    rotated = picture.rotate(10, method)
    sheared = picture.transform(picture.size, Image.Transform.AFFINE, (1, 0.1, -3, 0, 1, 0), method)
    print(f"{NAMES[value]} ({value}), {mode}, {name}: rotated {extremes(rotated)}, sheared {extremes(sheared)}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
