#!/usr/bin/env bash
# POT 0.9.7.post1: how far weighted angles are from evenly spread depends on the order they are given in.
#
# semidiscrete_wasserstein2_unif_circle(values, weights) is the squared distance from the values on a circle to the
# uniform distribution, as for directions of the wind, weighted by its speed. The values are sorted, but not their
# weights: each weight then belongs to another value. The right number comes out if all weights are equal, or if the
# caller sorts both, of which the documentation says nothing. In the other columns the same distribution is sorted, or
# compared with 2000 even points by wasserstein_circle of the same module, which sorts both. With all weight within a
# tenth of the circle the distance is nine times too small.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    POT==0.9.7.post1 scipy==1.17.1 numpy==1.26.4

cat > "$folder/expected" <<'END'
                                 as given  sorted  wasserstein_circle
equal weights                    0.0009    0.0009    0.0009
one side is twice as heavy       0.0009    0.0011    0.0011
one side is ten times as heavy   0.0018    0.0107    0.0107
all weight within a tenth        0.0077    0.0684    0.0684
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy as np
import ot

random = np.random.default_rng(0)
print("                                 as given  sorted  wasserstein_circle")
even = (np.arange(2000) + 0.5) / 2000
nearby = random.random(100)
for name, weights in (
    ("equal weights", np.ones(100)),
    ("one side is twice as heavy", np.where(nearby < 0.5, 2.0, 1.0)),
    ("one side is ten times as heavy", np.where(nearby < 0.5, 10.0, 1.0)),
    ("all weight within a tenth", np.where(nearby < 0.1, 1.0, 1e-9)),
):
    weights = weights / weights.sum()
    told = f"{name:33}"
    for order in (np.arange(100), np.argsort(nearby)):
        told += f"{ot.semidiscrete_wasserstein2_unif_circle(nearby[order], weights[order])[0]:.4f}    "
    print(f"{told}{ot.wasserstein_circle(nearby, even, weights, p=2)[0]:.4f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
