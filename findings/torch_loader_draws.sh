#!/usr/bin/env bash
# PyTorch 2.14.1: a DataLoader that neither shuffles nor has workers draws from the global generator.
#
# Each pass over a loader begins with a seed for its workers, drawn from PyTorch's global generator whether there are
# workers or not. So the noise of the next training step depends on whether there was a pass over the validation set,
# and a run that validates twice as often is another run. A loader that was given a generator leaves the global one
# alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
none                            as without   1.5410 -0.2934 -2.1788
the tensor's rows               as without   1.5410 -0.2934 -2.1788
a loader, in order              another     -0.2905 -1.0704  1.2645
a loader with its own generator as without   1.5410 -0.2934 -2.1788
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from torch.utils.data import DataLoader


def noise_after(validation):
    """The noise of a training step that follows a pass over a validation set, if any."""
    torch.manual_seed(0)
    for _ in validation:
        pass
    return torch.randn(3)


pictures = torch.zeros(4, 1, 8, 8)
alone = noise_after([])
for name, validation in (
    ("none", []),
    ("the tensor's rows", pictures),
    ("a loader, in order", DataLoader(pictures)),
    ("a loader with its own generator", DataLoader(pictures, generator=torch.Generator())),
):
    noise = noise_after(validation)
    same = "as without" if torch.equal(noise, alone) else "another"
    print(f"{name:32}{same:11} {' '.join(f'{number:7.4f}' for number in noise.tolist())}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
