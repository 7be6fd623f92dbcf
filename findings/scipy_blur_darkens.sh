#!/usr/bin/env bash
# SciPy 1.17.1: blurred pictures of 8 bits are darker by a grey level.
#
# Filters of scipy.ndimage answer in the dtype of their input, and cut fractions off instead of rounding them, for each
# axis once: half a grey level for a filter in one pass, a whole one for gaussian_filter in two. Ten times in a row it
# is ten levels, so that sharp and blurred pictures, or pyramids, can be told apart by their brightness. Other
# functions of the same module (zoom, rotate) round.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    scipy==1.17.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
mean of the picture: 127.13
                              filtered: as it is   ten times   as float64, rounded
gaussian_filter, sigma 0.5                126.13      117.13                127.13
gaussian_filter, sigma 2                  126.13      117.24                127.13
uniform_filter, 3                         126.46      120.48                127.13
convolve, a ninth 3 x 3                   126.65      122.29                127.13
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy as np
from scipy import ndimage

picture = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
FILTERS = {
    "gaussian_filter, sigma 0.5": lambda x: ndimage.gaussian_filter(x, 0.5),
    "gaussian_filter, sigma 2": lambda x: ndimage.gaussian_filter(x, 2.0),
    "uniform_filter, 3": lambda x: ndimage.uniform_filter(x, 3),
    "convolve, a ninth 3 x 3": lambda x: ndimage.convolve(x, np.full((3, 3), 1 / 9)),
}
print("mean of the picture:", f"{picture.mean():.2f}")
print("                              filtered: as it is   ten times   as float64, rounded")
for name, filtered in FILTERS.items():
    once, often = filtered(picture), picture
    for _ in range(10):
        often = filtered(often)
    right = filtered(picture.astype(float)).round()
    print(f"{name:28} {once.mean():19.2f} {often.mean():11.2f} {right.mean():21.2f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
