#!/usr/bin/env bash
# astropy 8.0.2: convert_unit_to takes uncertainties for data: 20 degrees, give or take a half, are 293 K +- 274 K.
#
# CCDData.convert_unit_to is said to return the data in a new unit, and changes the uncertainty, too: with the function
# that is right for the data. A variance in m2 is then multiplied once by what it should be twice, and gets the unit
# km2 all the same: 1000 m +- 10 m become 1 km +- 0.32 km, and with the inverse variance 1 km +- 316 km. A standard
# deviation is right where units differ by a factor. With an equivalency it is not: 0 degrees C are 273.15 K, so half a
# degree of uncertainty becomes 273.65 K, and 1 nm of a line at 500 nm the frequency of light with 1 nm. Nothing is
# said. The numbers go on into all arithmetic. The last column is the derivative of the conversion times the deviation.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check astropy==8.0.2 numpy==2.4.6

cat > "$folder/expected" <<'END'
                                               standard deviation of it    expected
  1000 m is      1 km         StdDevUncertainty         0.01 km               0.01
  1000 m is      1 km         VarianceUncertainty     0.3162 km               0.01
  1000 m is      1 km         InverseVariance          316.2 km               0.01
    20 deg_C is  293.1 K      StdDevUncertainty        273.6 K                0.5
    20 deg_C is  293.1 K      VarianceUncertainty      16.53 K                0.5
    20 deg_C is  293.1 K      InverseVariance        0.06007 K                0.5
   500 nm is  599.6 THz       StdDevUncertainty    2.998e+05 THz              1.199
   500 nm is  599.6 THz       VarianceUncertainty      547.5 THz              1.199
   500 nm is  599.6 THz       InverseVariance       0.001826 THz              1.199
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import astropy.units as u
import numpy as np
from astropy.nddata import CCDData, InverseVariance, StdDevUncertainty, VarianceUncertainty

print("                                               standard deviation of it    expected")
for value, deviation, old, new, equivalency in (
    (1000.0, 10.0, u.m, u.km, []),
    (20.0, 0.5, u.deg_C, u.K, u.temperature()),
    (500.0, 1.0, u.nm, u.THz, u.spectral()),
):
    for kind in (StdDevUncertainty, VarianceUncertainty, InverseVariance):
        given = StdDevUncertainty([deviation], unit=old).represent_as(kind)
        data = CCDData(np.array([value]), unit=old, uncertainty=kind(given.array))
        after = data.convert_unit_to(new, equivalency)
        seen = after.uncertainty.represent_as(StdDevUncertainty)
        near = old.to(new, np.array([value, value + 1e-6 * deviation]), equivalency)
        expected = abs(near[1] - near[0]) * 1e6
        print(
            f"{value:6.0f} {old} is {after.data[0]:6.4g} {new}".ljust(30)
            + f"{kind.__name__:20}{seen.array[0]:10.4g} {seen.unit}".ljust(48)
            + f"{expected:.4g}"
        )
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
