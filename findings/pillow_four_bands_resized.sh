#!/usr/bin/env bash
# Pillow 13.0.0: a picture of four bands that is made smaller loses its colours where the fourth band is 0.
#
# Four bands of 8 bits (red, green, blue and near infrared, say, as satellites and drones have them) are mode RGBA, in
# PNG and TIFF files as from arrays. `resize` takes the last for opacity: it multiplies the others by it before the
# filter, and divides afterwards. Water, which reflects no near infrared, becomes black; at a shore the colours are
# the field's; elsewhere they are off by rounding. Each band by itself is what it should be.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6

cat > "$folder/expected" <<'END'
mode RGBA            water [60, 90, 120, 0]       shore                        field [80, 100, 40, 200]
all bands, BOX       water [0, 0, 0, 0]           shore [81, 99, 40, 100]      field [80, 99, 39, 200]
each by itself, BOX  water [60, 90, 120, 0]       shore [70, 95, 80, 100]      field [80, 100, 40, 200]
END

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy as np
from PIL import Image

WATER, FIELD = [60, 90, 120, 0], [80, 100, 40, 200]


def report(what, water, shore, field):
    print(f"{what:20} water {str(water):22} shore {str(shore):22} field {field}")


bands = np.array([[WATER] * 3 + [FIELD] * 3] * 2, np.uint8)
picture = Image.fromarray(bands)
report(f"mode {picture.mode}", WATER, "", FIELD)
report("all bands, BOX", *np.asarray(picture.resize((3, 1), Image.BOX))[0].tolist())
apart = [np.asarray(Image.fromarray(bands[..., k]).resize((3, 1), Image.BOX)) for k in range(4)]
report("each by itself, BOX", *np.stack(apart, -1)[0].tolist())
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
