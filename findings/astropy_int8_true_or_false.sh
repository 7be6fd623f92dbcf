#!/usr/bin/env bash
# astropy 8.0.2: a column of signed bytes, written to a FITS table, is read as True and False.
#
# FITS tables have no signed bytes. Images have none either, and astropy writes those as unsigned ones with an offset
# (BZERO), as it does for unsigned integers of tables: the numbers come back. A table's column of int8, such as labels
# with -1 for "unknown", one expects to be written that way, or wider, or not at all. It is written as a column of
# logicals, without a warning: every number but 0 is True, in Table and in BinTableHDU, single numbers and arrays. In
# astropy's list of formats "i1" belongs to the logicals, which are held as bytes inside.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check astropy==8.0.2 numpy==2.4.6

cat > "$folder/expected" <<'END'
int8   [-1, 0, 1, 2, 9]
    in a table:  [True, False, True, True, True] (TFORM L)
    in an image: [-1, 0, 1, 2, 9]
int16  [-1, 0, 1, 2, 9]
    in a table:  [-1, 0, 1, 2, 9] (TFORM I)
    in an image: [-1, 0, 1, 2, 9]
uint16 [0, 1, 2, 9]
    in a table:  [0, 1, 2, 9] (TFORM I)
    in an image: [0, 1, 2, 9]
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import warnings

import numpy as np
from astropy.io import fits
from astropy.table import Table

warnings.simplefilter("error")  # there is none
labels = [-1, 0, 1, 2, 9]
for kind in (np.int8, np.int16, np.uint16):
    values = np.array(labels, dtype=kind) if kind is not np.uint16 else np.array(labels[1:], dtype=kind)
    Table({"label": values}).write("table.fits", overwrite=True)
    fits.PrimaryHDU(values).writeto("image.fits", overwrite=True)
    table, image = Table.read("table.fits")["label"], fits.getdata("image.fits")
    told = fits.getheader("table.fits", 1)["TFORM1"].strip()
    print(f"{kind.__name__:6} {values.tolist()}")
    print(f"    in a table:  {table.tolist()} (TFORM {told})")
    print(f"    in an image: {image.tolist()}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
