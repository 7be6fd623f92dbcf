#!/usr/bin/env bash
# deepinv 0.5.0: the proximal operator of Decolorize takes all colours out of a picture.
#
# prox_l2(z, y, gamma) is the picture near z that agrees with the gray measurement y, the nearer to y the larger gamma
# is. For z whose measurement is y already it is z, whatever gamma. Decolorize is written by its singular vectors, of
# which it has one for each pixel, and the operator keeps what lies along these: every picture becomes a multiple of
# the weights of red, green and blue, greenish, for gamma of a thousandth too. So a plug-and-play iteration for
# colorizing starts anew from a greenish picture in each step. Conjugate gradients with the same A and adjoint give z.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    deepinv==0.5.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
picture, and its own measurement: 0.900 0.500 0.100 / 0.574
gamma    Decolorize          conjugate gradients
0.001    0.384 0.754 0.146   0.900 0.500 0.100
1        0.384 0.754 0.146   0.900 0.500 0.100
1000     0.384 0.754 0.146   0.900 0.500 0.100
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from deepinv.physics import Decolorize, LinearPhysics

colour = Decolorize()
z = torch.tensor([0.9, 0.5, 0.1]).view(1, 3, 1, 1)
y = colour.A(z)
by_matrix = LinearPhysics(A=lambda x, **_: colour.A(x), A_adjoint=lambda v, **_: colour.A_adjoint(v), tol=1e-7)


def shown(x):
    return " ".join(f"{value:.3f}" for value in x.flatten().tolist())


print("picture, and its own measurement:", shown(z), "/", shown(y))
print("gamma    Decolorize          conjugate gradients")
for gamma in 1e-3, 1.0, 1e3:
    found, right = colour.prox_l2(z, y, gamma), by_matrix.prox_l2(z, y, gamma)
    print(f"{gamma:<8g} {shown(found)}   {shown(right)}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
