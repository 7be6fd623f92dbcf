#!/usr/bin/env bash
# scoringrules 0.10.0: error_spread_score prefers forecasts that are half too high to those with the right distribution.
#
# The score (less is better) judges an ensemble by its mean, spread and skewness. In expectation no forecast has a
# better one than the distribution the observations come from. The documentation gives the skewness of F members as a
# sum over them times F / ((F - 1) (F - 2)), as it is estimated elsewhere too. In the code, with numba and without, this
# F is missing, and the skewness of 50 members is a fiftieth of what it is: nearly none. With rain that is distributed
# exponentially the right forecast then has a score twice as large as it ought to have, and loses to a symmetric one
# with a mean of 1.5 instead of 1. For symmetric ensembles nothing changes. The second column follows the documentation
# with SciPy's skewness. The CRPS of the same library has the right order.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    scoringrules==0.10.0 scipy==1.17.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
                             error-spread score
forecast            members  documented  library  CRPS
exponential, as is       50         4.9      7.6  0.50
normal, mean 1.0         50         7.9      7.8  0.52
normal, mean 1.5         50         5.1      4.9  0.63
exponential, as is      200         4.3      7.6  0.50
normal, mean 1.0        200         7.6      7.6  0.53
normal, mean 1.5        200         4.8      4.7  0.63
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy as np
import scoringrules
from scipy import stats


def documented(seen, ensemble):
    error = ensemble.mean(-1) - seen
    spread = ensemble.std(-1, ddof=1)
    skewness = stats.skew(ensemble, axis=-1, bias=False)
    return (spread**2 - error**2 - error * spread * skewness) ** 2


random = np.random.default_rng(0)
rain = random.exponential(size=30_000)
print("                             error-spread score")
print("forecast            members  documented  library  CRPS")
for members in (50, 200):
    for name, forecast in (
        ("exponential, as is", stats.expon(scale=1.0)),
        ("normal, mean 1.0", stats.norm(1.0, 1.0)),
        ("normal, mean 1.5", stats.norm(1.5, 1.25**0.5)),
    ):
        ensemble = forecast.rvs(size=(rain.size, members), random_state=random)
        told = [documented(rain, ensemble), scoringrules.error_spread_score(rain, ensemble)]
        crps = scoringrules.crps_ensemble(rain, ensemble, estimator="pwm").mean()
        print(f"{name:20}{members:7}  {told[0].mean():10.1f}  {told[1].mean():7.1f}  {crps:.2f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
