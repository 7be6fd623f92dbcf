#!/usr/bin/env bash
# torchvision 0.29.1: the brighter half of a 16-bit picture is negative after ToTensor, and its gamma makes white black.
#
# ToTensor, the first transform of nearly every pipeline, is documented to scale pictures to [0, 1], and to leave kinds
# that it does not name as they are. A gray picture of 16 bits (mode I;16) is such a kind, so one expects its numbers,
# 0 to 65535. They come as int16, in which 32768 is -32768 and white is -1. (pil_to_tensor and v2.ToImage give uint16.)
# In uint16, which v2 supports, adjust_gamma, which leaves 0 and white where they are whatever gamma is, makes white 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 torchvision==0.29.1 pillow==13.0.0 numpy==2.4.6

cat > "$folder/expected" <<'END'
picture (I;16):            0  1000  32767  32768  40000  65535
ToTensor, torch.int16:     0  1000  32767 -32768 -25536     -1
v2.ToImage, torch.uint16:  0  1000  32767  32768  40000  65535
adjust_gamma(1.0), uint16: 0  1000  32767  32768  40000      0
adjust_gamma(0.5), uint16: 0  8095  46340  46341  51200      0
END

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy as np
from PIL import Image
from torchvision.transforms import ToTensor, v2

values = np.array([[0, 1000, 32767, 32768, 40000, 65535]], np.uint16)
picture = Image.fromarray(values)


def told(name, numbers):
    first, *others = numbers.flatten().tolist()
    print(f"{name + ':':27}{first}{others[0]:6}" + "".join(f"{value:7}" for value in others[1:]))


told(f"picture ({picture.mode})", values)
tensor = ToTensor()(picture)
told(f"ToTensor, {tensor.dtype}", tensor)
image = v2.ToImage()(picture)
told(f"v2.ToImage, {image.dtype}", image)
for gamma in (1.0, 0.5):
    told(f"adjust_gamma({gamma}), uint16", v2.functional.adjust_gamma(image, gamma))
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
