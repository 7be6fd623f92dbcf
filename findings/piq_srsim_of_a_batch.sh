#!/usr/bin/env bash
# piq 0.8.0: srsim of a picture depends on the other pictures of its batch.
#
# Image metrics compare a picture with its reference, and a batch of pairs with reduction="none" is expected to give
# for each pair what it has alone. In srsim (and the loss SRSIMLoss) the number of a pair changes with whatever else
# is in the batch: a picture with little noise, alone, is hardly better than one with twice the noise next to a white
# square, and the mean over a set depends on the batch size. Other metrics of piq, such as fsim, do not depend on it.
# srsim brings its saliency maps to [0, 1] by the least and the greatest value in the whole batch, where its model,
# written for one picture, takes those of the map.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check piq==0.8.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
                          srsim          fsim
noise                     0.1    0.2     0.1    0.2
first picture alone       0.87   0.71    0.84   0.69
with the third            0.88   0.69    0.84   0.69
with the fourth           0.89   0.75    0.84   0.69
with a white square       0.93   0.86    0.84   0.69
mean of 8, batches of 1   0.903  0.775   0.845  0.693
mean of 8, batches of 2   0.901  0.772   0.845  0.693
mean of 8, batches of 8   0.894  0.787   0.845  0.693
END

"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import piq
import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
torch.manual_seed(3)
pictures = F.interpolate(torch.rand(8, 3, 16, 16), (128, 128), mode="bicubic").clamp(0, 1)
noise = torch.randn(8, 3, 128, 128)
square = torch.full((1, 3, 128, 128), 0.5)
square[:, :, 60:68, 60:68] = 1.0

print("                          srsim          fsim")
print("noise                     0.1    0.2     0.1    0.2")
rows = {"first picture alone": [], "with the third": [], "with the fourth": [], "with a white square": []}
means = {size: [] for size in (1, 2, 8)}
for metric in (piq.srsim, piq.fsim):
    for level in (0.1, 0.2):
        noisy = (pictures + level * noise).clamp(0, 1)
        others = ((noisy[:0], pictures[:0]), (noisy[2:3], pictures[2:3]), (noisy[3:4], pictures[3:4]), (square, square))
        for row, (other, reference) in zip(rows.values(), others):
            batch = torch.cat([noisy[:1], other]), torch.cat([pictures[:1], reference])
            row.append(metric(*batch, reduction="none")[0])
        for size, row in means.items():
            batches = zip(noisy.split(size), pictures.split(size))
            row.append(torch.cat([metric(*batch, reduction="none") for batch in batches]).mean())
for told, row in rows.items():
    print(f"{told:25} {row[0]:.2f}   {row[1]:.2f}    {row[2]:.2f}   {row[3]:.2f}")
for size, row in means.items():
    print(f"mean of 8, batches of {size}   {row[0]:.3f}  {row[1]:.3f}   {row[2]:.3f}  {row[3]:.3f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
