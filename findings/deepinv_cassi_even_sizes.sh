#!/usr/bin/env bash
# deepinv 0.5.0: the operator of a spectral camera moves pictures of even sizes by two pixels, and its adjoint moves
# them on in the same direction.
#
# CompressiveSpectralImaging shears the bands, masks them, shears them back and averages. With a mask that lets all
# light through, a bright pixel is seen where it is, and with 33x33 pixels it is. With 32x32, the size of the example
# in its documentation, the shear is made by a filter that has no pixel in its middle: the pixel at (10, 12) is seen at
# (8, 10), and the adjoint, which should take (8, 10) to (10, 12), takes it to (6, 8). So <Ax, y> = <x, A*y> fails,
# and with it whatever is built on it: least squares, gradients of the data fidelity, posterior sampling.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    deepinv==0.5.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
(33, 33): (10, 12) is seen at [(10, 12)], and brought back to [(10, 12)]
(33, 33): <Ax, y> = 248.4, <x, A*y> = 248.4
(32, 32): (10, 12) is seen at [(8, 10)], and brought back to [(6, 8)]
(32, 32): <Ax, y> = 207.5, <x, A*y> = 206.2
END

HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from deepinv.physics import CompressiveSpectralImaging


def bright(image):
    """Where the first band of an image is not zero."""
    return [tuple(place) for place in (image[0, 0].abs() > 1e-4).nonzero().tolist()]


for size in ((33, 33), (32, 32)):
    torch.manual_seed(0)
    shape = (1, 7, *size)
    camera = CompressiveSpectralImaging(img_size=shape[1:], mask=torch.ones(shape))
    pixel = torch.zeros(shape)
    pixel[:, :, 10, 12] = 1
    seen = camera.A(pixel)
    print(f"{size}: (10, 12) is seen at {bright(seen)}, and brought back to {bright(camera.A_adjoint(seen))}")
    x, y = torch.rand(shape), torch.rand_like(seen)
    print(f"{size}: <Ax, y> = {(camera.A(x) * y).sum():.1f}, <x, A*y> = {(x * camera.A_adjoint(y)).sum():.1f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
