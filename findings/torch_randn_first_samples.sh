#!/usr/bin/env bash
# torch 2.14.1: with the same seed, the first samples of a large batch are not those of a small one.
#
# Noise for 1,000 points of the plane begins like the noise for 100 of them, as it does in NumPy and as `torch.rand`
# does: all but eight points are equal, so that a look at the first ones finds nothing. Normal numbers are made in
# blocks of 16, and if a tensor has a rest, its last 16 numbers are drawn anew; below 16 numbers another method is used
# altogether, and no point is the same. A sample that was shown once is not found again in a larger batch; and a test
# that compares batches fails for some sizes only.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
of 7 points the same as among 1000: rand 7, randn 0, numpy 7
of 8 points the same as among 1000: rand 8, randn 8, numpy 8
of 96 points the same as among 1000: rand 96, randn 96, numpy 96
of 100 points the same as among 1000: rand 100, randn 92, numpy 100
of 101 points the same as among 1000: rand 101, randn 93, numpy 101
of 104 points the same as among 1000: rand 104, randn 104, numpy 104
END

"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy
import torch


def drawn(function, points):
    return function(points, 2, generator=torch.Generator().manual_seed(0))


for points in (7, 8, 96, 100, 101, 104):
    equal = {}
    for function in (torch.rand, torch.randn):
        same = drawn(function, points) == drawn(function, 1000)[:points]
        equal[function.__name__] = same.all(dim=1).sum().item()
    few, many = (numpy.random.default_rng(0).standard_normal((size, 2)) for size in (points, 1000))
    equal["numpy"] = int((few == many[:points]).all(axis=1).sum())
    print(f"of {points} points the same as among 1000: " + ", ".join(f"{k} {v}" for k, v in equal.items()))
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
