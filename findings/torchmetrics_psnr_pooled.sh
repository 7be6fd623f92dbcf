#!/usr/bin/env bash
# torchmetrics 1.9.0: PeakSignalNoiseRatio with reduction "elementwise_mean" is no mean over images.
#
# Restoration papers give the mean of the images' PSNR. By default torchmetrics pools the squared errors of all images,
# and takes one logarithm: two images restored with 20 and 60 dB have 23.0, not 40; the worst image rules. What is
# called reduction, and is elementwise_mean by default, has no effect on that (a warning says so only of other values
# than the default). With dim=(1, 2, 3) the same reduction gives the mean. Structural similarity, with the same default,
# is a mean over images.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torchmetrics==1.9.0 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
                          image 1   image 2    both
PSNR                       20.000    60.000  23.010
PSNR, elementwise_mean     20.000    60.000  23.010
PSNR, sum                  20.000    60.000  23.010
PSNR, dim=(1, 2, 3)        20.000    60.000  40.000
SSIM                        0.983     1.000   0.992
END

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import warnings

import torch
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

warnings.simplefilter("ignore")
truth = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
restored = truth.clone()
restored[0] += 0.1
restored[1] += 0.001


def each(metric):
    return [metric(restored[i : i + 1], truth[i : i + 1]).item() for i in range(2)]


print("                          image 1   image 2    both")
for name, metric in {
    "PSNR": PeakSignalNoiseRatio(data_range=1.0),
    "PSNR, elementwise_mean": PeakSignalNoiseRatio(data_range=1.0, reduction="elementwise_mean"),
    "PSNR, sum": PeakSignalNoiseRatio(data_range=1.0, reduction="sum"),
    "PSNR, dim=(1, 2, 3)": PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3)),
    "SSIM": StructuralSimilarityIndexMeasure(data_range=1.0),
}.items():
    first, second = each(metric)
    print(f"{name:24} {first:8.3f} {second:9.3f} {metric(restored, truth).item():7.3f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
