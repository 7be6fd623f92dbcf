#!/usr/bin/env bash
# torch 2.14.1: AveragedModel(use_buffers=True) moves integers that never change, and with them what they point to.
#
# Of a network that stays as it is every average is the network itself. torch.optim.swa_utils.AveragedModel with
# use_buffers=True also averages the buffers, and buffers of integers, such as the table of relative positions by which
# a Swin transformer looks up its biases, one expects to find unchanged. Integers are averaged in float32, as
# decay * a + (1 - decay) * a, and the fraction is cut off: where rounding leaves a little less than a, there stands
# a - 1 from then on. With a decay of 0.9999 a sixth of torchvision's table is off by one after the first averaging, and
# the average answers otherwise than the network; with 0.999 no entry is. The parameters are equal to the bit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 torchvision==0.29.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
decay 0.999: 0 of 2401 indices moved; parameters equal: True; answers equal: True
decay 0.9999: 417 of 2401 indices moved, by at most 1; parameters equal: True; answers equal: False
END

"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models import swin_t

torch.manual_seed(0)
network = swin_t().eval()
images = torch.randn(1, 3, 64, 64)
for decay in (0.999, 0.9999):
    average = AveragedModel(network, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(decay)).eval()
    for _ in range(3):
        average.update_parameters(network)  # the network itself, three times
    name, index = next(iter(network.named_buffers()))
    moved = (average.module.get_buffer(name) - index).abs()
    told = f"decay {decay}: {int((moved > 0).sum())} of {index.numel()} indices moved"
    told += f", by at most {int(moved.max())}" if moved.any() else ""
    same = all(torch.equal(a, b) for a, b in zip(average.module.parameters(), network.parameters(), strict=True))
    with torch.no_grad():
        print(f"{told}; parameters equal: {same}; answers equal: {torch.equal(average(images), network(images))}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
