#!/usr/bin/env bash
# numcodecs 0.16.6, zarr 3.1.6: with the filter Delta, whatever follows a missing value in its chunk is lost.
#
# Delta is for smooth data: the differences of neighbours are compressed better than the numbers. It takes any dtype,
# and its notes warn of integers that are too small; with float32 stored as float32 one expects to lose a last digit
# at most. A map of sea temperatures has no numbers on land. With NaN there, every point of the chunk after the first
# one on land is NaN; with 1e20, as in many climate data, the sea comes back with temperatures that begin from 0 after
# each gap, in float64 too. Nothing is said. A number is read as the sum of all differences before it: none leads back
# from NaN, and next to 1e20 a temperature has no digits. With -999 the numbers return.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check numcodecs==0.16.6 zarr==3.1.6 numpy==2.4.6

cat > "$folder/expected" <<'END'
                    sea that keeps       the rest of
land is   numbers   its temperature      the sea
-999.0    float32   100%                 -
1e+20     float32    21%                 -21 to 19
nan       float32    21%                 nan to nan
-999.0    float64   100%                 -
1e+20     float64    21%                 -21 to 19
nan       float64    21%                 nan to nan
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy as np
import zarr
from numcodecs import Delta

row, column = np.mgrid[:180, :360]
land = np.hypot(row - 90, column - 180) < 60
temperature = 283 + 15 * np.sin(row / 40) * np.cos(column / 50)
print("                    sea that keeps       the rest of")
print("land is   numbers   its temperature      the sea")
for kind in ("float32", "float64"):
    for fill in (-999.0, 1e20, np.nan):
        values = temperature.astype(kind)
        values[land] = fill
        array = zarr.create_array({}, data=values, chunks=values.shape, zarr_format=2, filters=[Delta(dtype=kind)])
        sea = array[:][~land]
        kept = np.abs(sea - values[~land]) < 0.01
        rest = "-" if kept.all() else f"{sea[~kept].min():.0f} to {sea[~kept].max():.0f}"
        print(f"{fill!s:<9} {kind}   {kept.mean():4.0%}                 {rest}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
