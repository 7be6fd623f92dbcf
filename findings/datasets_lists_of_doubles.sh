#!/usr/bin/env bash
# datasets 5.2.0: columns of float64 have 32 bits in the format "numpy", but for numbers of single rows.
#
# with_format("numpy") makes float32 of what was declared, and is stored, as float64: lists and arrays always, numbers
# where more than one row is asked for. data[0]["number"] has 16 digits and data[:1]["number"] has 7. Integers keep
# their 64 bits. with_format("numpy", dtype="float64") gives all digits.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    datasets==5.2.0 numpy==2.4.6

cat > "$folder/expected" <<'END'
column   declared   format   in a row             in a batch
number   float64    None     float                list
number   float64    numpy    float64              float32
list     float64    None     list                 list
list     float64    numpy    float32              float32
array    float64    None     list                 list
array    float64    numpy    float32              float32
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
from datasets import Array2D, Dataset, Features, List, Value

THIRD = 1 / 3
columns = {
    "number": Value("float64"),
    "list": List(Value("float64")),
    "array": Array2D((1, 1), "float64"),
}
rows = Dataset.from_dict({"number": [THIRD], "list": [[THIRD]], "array": [[[THIRD]]]}, features=Features(columns))
print("column   declared   format   in a row             in a batch")
for name in columns:
    for form in None, "numpy":
        data = rows.with_format(form)
        row, batch = data[0][name], data[:1][name]
        first, many = (getattr(value, "dtype", type(value).__name__) for value in (row, batch))
        print(f"{name:8} float64    {form!s:8} {first!s:20} {many!s}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
