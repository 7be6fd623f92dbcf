#!/usr/bin/env bash
# PyTorch 2.14.1: points of SobolEngine, turned into normal noise, are infinite now and then.
#
# A Sobol sequence in place of pseudo-random numbers spreads the starting noise of samples evenly. Points lie in [0, 1),
# and a scrambled sequence misses 0, so that the normal quantile of each is finite. But points have 30 bits and are
# rounded to float32, in which all above 1 - 2^-25 are 1: three or four numbers in 80 million, whose quantile is
# infinite. Of 100,000 scrambled latents of 28 x 28 numbers four have an infinite one, which the first convolution
# spreads over the image. torch.rand is never 1, and in float64 the engine isn't either.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
numbers             are 0   are 1   latents with an infinite number
torch.float32            0       4                                 4
torch.float64            0       0                                 0
torch.rand                       0
END

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch

LATENTS, NUMBERS, DRAWS = 100_000, 784, 10_000

print("numbers             are 0   are 1   latents with an infinite number")
for dtype in torch.float32, torch.float64:
    engine = torch.quasirandom.SobolEngine(NUMBERS, scramble=True, seed=0)
    zeros = ones = infinite = 0
    for _ in range(LATENTS // DRAWS):
        points = engine.draw(DRAWS, dtype=dtype)
        zeros, ones = zeros + (points == 0).sum().item(), ones + (points == 1).sum().item()
        infinite += torch.special.ndtri(points).isinf().any(1).sum().item()
    print(f"{dtype!s:14} {zeros:11} {ones:7} {infinite:33}")
uniform = torch.rand(100_000_000, generator=torch.Generator().manual_seed(0))
print(f"torch.rand     {'':11} {(uniform == 1).sum().item():7}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
