#!/usr/bin/env bash
# Pillow 13.0.0: a TIFF scan in which 0 is white is read as it looks with 8 bits, and as a negative with 16.
#
# The tag PhotometricInterpretation says whether 0 stands for white (scanners of film, fax) or for black. Pillow turns
# pictures of 1 and 8 bits over, so that 0 is black in whatever it returns. With 16 bits, and with 32, it returns the
# numbers of the file, in the same mode as for files in which 0 is black: white paper is black. A folder in which scans
# of both depths lie holds positives and negatives of one kind of picture.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6 tifffile==2026.3.3

cat > "$folder/expected" <<'END'
8 bits, 0 is black: mode L, white paper is read as 255, ink as 0
8 bits, 0 is white: mode L, white paper is read as 255, ink as 0
16 bits, 0 is black: mode I;16, white paper is read as 65535, ink as 0
16 bits, 0 is white: mode I;16, white paper is read as 0, ink as 65535
END

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy as np
import tifffile
from PIL import Image

for dtype in (np.uint8, np.uint16):
    top = np.iinfo(dtype).max
    brightness = np.full((32, 32), top, dtype)  # paper
    brightness[8:24, 8:24] = 0  # ink
    for zero, photometric in (("black", "minisblack"), ("white", "miniswhite")):
        stored = brightness if zero == "black" else top - brightness
        tifffile.imwrite("scan.tif", stored, photometric=photometric)
        with Image.open("scan.tif") as picture:
            pixels = np.asarray(picture)
        bits, paper, ink = 8 * dtype().itemsize, pixels[0, 0], pixels[16, 16]
        print(f"{bits} bits, 0 is {zero}: mode {picture.mode}, white paper is read as {paper}, ink as {ink}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
