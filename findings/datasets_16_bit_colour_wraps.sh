#!/usr/bin/env bash
# datasets 5.2.0: of a colour image with 16 bits the low ones are kept, and grey becomes black.
#
# An Image column takes NumPy arrays. A grey image with 16 bits comes back as it was. Pillow has no colour image with
# 16 bits, so that an error would be right, or a division by 257, or the high byte. A warning speaks of "downcasting"
# to uint8, and what is stored is the remainder of each number by 256: white stays white, half of it is black, a ramp
# is 256 ramps. 32-bit numbers without a sign are stored as if they had one: the brightest pixels become negative.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    datasets==5.2.0 numpy==2.4.6 pandas==3.1.1 pyarrow==26.0.1 pillow==13.0.0

cat > "$folder/expected" <<'END'
16 bits, grey:   [0, 255, 256, 32768, 65535] is stored as [0, 255, 256, 32768, 65535]
16 bits, colour: [0, 255, 256, 32768, 65535] is stored as [0, 255, 0, 0, 255]
32 bits, grey:   [0, 2147483647, 2147483648, 4294967295] is stored as [0, 2147483647, -2147483648, -1]
END

HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy
from datasets import Dataset, Features, Image


def stored(image):
    return numpy.asarray(Dataset.from_dict({"image": [image]}, features=Features({"image": Image()}))[0]["image"])


levels = numpy.array([[0, 255, 256, 32768, 65535]], dtype=numpy.uint16)
print("16 bits, grey:  ", levels[0].tolist(), "is stored as", stored(levels)[0].tolist())
colour = numpy.stack([levels] * 3, axis=-1)
print("16 bits, colour:", colour[0, :, 0].tolist(), "is stored as", stored(colour)[0, :, 0].tolist())
large = numpy.array([[0, 2**31 - 1, 2**31, 2**32 - 1]], dtype=numpy.uint32)
print("32 bits, grey:  ", large[0].tolist(), "is stored as", stored(large)[0].tolist())
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
