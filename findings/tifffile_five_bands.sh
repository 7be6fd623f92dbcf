#!/usr/bin/env bash
# tifffile 2026.3.3: a picture of five bands is written as a stack of pages, one for each of its rows.
#
# imwrite writes an array (rows, columns, 3) or (rows, columns, 4) as one colour picture. One expects five bands, as
# multispectral cameras have them, to become one picture with five samples a pixel, too, which TIFF permits. Without
# `photometric` or `planarconfig` they become pages of columns x 5 pixels in gray. tifffile's own imread hides it, since
# it finds the array's shape in the file's description and puts the pages together again; who opens the file with
# something else (here Pillow) sees a narrow gray picture, and no message. With `photometric="minisblack"` and
# `planarconfig="contig"` it is one page.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    tifffile==2026.3.3 pillow==13.0.0 numpy==2.4.6

cat > "$folder/expected" <<'END'
64 rows, 48 columns, 3 bands: 1 page of (64, 48, 3); imread (64, 48, 3); Pillow 48 x 64 RGB
64 rows, 48 columns, 4 bands: 1 page of (64, 48, 4); imread (64, 48, 4); Pillow 48 x 64 RGBA
64 rows, 48 columns, 5 bands: 64 pages of (48, 5); imread (64, 48, 5); Pillow 5 x 48 L
64 rows, 48 columns, 2 bands: 64 pages of (48, 2); imread (64, 48, 2); Pillow 2 x 48 L
5 bands, {'photometric': 'minisblack', 'planarconfig': 'contig'}: 1 page of (64, 48, 5)
END

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy as np
import tifffile
from PIL import Image


def pages(bands, **options):
    array = (np.arange(64 * 48 * bands) % 251).astype(np.uint8).reshape(64, 48, bands)
    tifffile.imwrite("picture.tif", array, **options)
    assert (tifffile.imread("picture.tif") == array).all()
    with tifffile.TiffFile("picture.tif") as file:
        count = len(file.pages)
        return f"{count} page{'s' if count > 1 else ''} of {file.pages[0].shape}"


for bands in (3, 4, 5, 2):
    written = pages(bands)
    read = tifffile.imread("picture.tif").shape
    with Image.open("picture.tif") as picture:
        seen = f"{picture.width} x {picture.height} {picture.mode}"
    print(f"64 rows, 48 columns, {bands} bands: {written}; imread {read}; Pillow {seen}")
options = {"photometric": "minisblack", "planarconfig": "contig"}
print(f"5 bands, {options}:", pages(5, **options))
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
