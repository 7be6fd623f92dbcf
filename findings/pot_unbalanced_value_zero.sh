#!/usr/bin/env bash
# POT 0.9.7.post1: the value of unbalanced optimal transport is 0 for all data: nearby, far off, noisy or not.
#
# solve() with unbalanced=... finds the plan that moves the mass at the least cost where mass may also be lost or made
# for a penalty, both by the divergence of Kullback and Leibler, and with reg=... the plan is smoothed. The result's
# value is said to be the full cost with its terms. It is 0 to nine digits, whatever is compared. The divergence of two
# measures of unequal mass is sum(p log(p / q) - p + q); the code leaves out - p + q, and without these the sum of all
# terms is 0 at every minimum, since that is what the minimum is found by. The plan is right: the column "by hand" is
# its cost with the whole divergence. The same problem with reg=None, or with a penalty of other kinds, has its right
# value; sinkhorn_unbalanced2(..., returnCost="total") has not. A distance or a loss made from it is nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    POT==0.9.7.post1 scipy==1.17.1 numpy==1.26.4

cat > "$folder/expected" <<'END'
                  reg=0.5                     reg=None          sinkhorn_
moved by  mass    by hand   value   by hand   value   unbalanced2
     0.0  0.59    0.854     0.000   0.000     0.000   0.000
     0.5  0.55    0.935     0.000   0.195     0.195   0.000
     1.0  0.47    1.122     0.000   0.435     0.435   0.000
     2.0  0.24    1.600     0.000   1.013     1.013   0.000
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy as np
import ot


def divergence(p, q):
    return np.sum(p * np.log(p / q) - p + q)


random = np.random.default_rng(0)
here = random.normal(size=(50, 2))
weights = np.full(50, 1 / 50)
REG, PENALTY = 0.5, 0.8
print("                  reg=0.5                     reg=None          sinkhorn_")
print("moved by  mass    by hand   value   by hand   value   unbalanced2")
for shift in (0.0, 0.5, 1.0, 2.0):
    cost = ot.dist(here, here + shift)
    told = f"{shift:8}  "
    for reg in (REG, None):
        result = ot.solve(cost, reg=reg, unbalanced=PENALTY, unbalanced_type="KL", max_iter=100_000, tol=1e-12)
        plan = result.plan
        by_hand = (plan * cost).sum()
        by_hand += PENALTY * (divergence(plan.sum(1) + 1e-300, weights) + divergence(plan.sum(0) + 1e-300, weights))
        if reg is not None:
            by_hand += reg * divergence(plan, np.outer(weights, weights))
            told += f"{plan.sum():.2f}    "
        told += f"{by_hand:.3f}     {abs(result.value):.3f}   "
    total = ot.sinkhorn_unbalanced2(
        weights, weights, cost, REG, PENALTY, numItermax=100_000, stopThr=1e-12, returnCost="total"
    )
    print(f"{told}{abs(float(total)):.3f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
