#!/usr/bin/env bash
# torchvision 0.29.1: white pixels of a picture in half precision become black.
#
# A sampler that runs in float16 or bfloat16 ends with a picture in [0, 1], and `to_dtype(..., scale=True)` (ToDtype,
# ConvertImageDtype) makes bytes of it. It multiplies by 255.999 and cuts off the rest. Neither half-precision type has
# that number: it is 256, which is 0 as a byte. In bfloat16 all above 0.998 is black, and in a 16-bit integer white is
# the most negative number. Even bytes that the same function has made half-precision numbers do not all come back.
# `torchvision.utils.save_image` has no such fault.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torchvision==0.29.1 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
torch.float32: white becomes [255] in uint8, [32767] in int16; 0 of 256 levels do not come back
torch.float16: white becomes [0] in uint8, [-32768] in int16; 16 of 256 levels do not come back
torch.bfloat16: white becomes [0] in uint8, [-32768] in int16; 128 of 256 levels do not come back
END

"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from torchvision.transforms.v2.functional import to_dtype

levels = torch.arange(256, dtype=torch.uint8)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    white = torch.ones(3, 8, 8, dtype=dtype)
    byte, short = (to_dtype(white, to, scale=True).unique().tolist() for to in (torch.uint8, torch.int16))
    back = to_dtype(to_dtype(levels, dtype, scale=True), torch.uint8, scale=True)
    changed = (back != levels).sum().item()
    print(f"{dtype}: white becomes {byte} in uint8, {short} in int16; {changed} of 256 levels do not come back")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
