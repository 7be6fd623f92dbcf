#!/usr/bin/env bash
# datasets 5.2.0: one picture whose name has "test" or "dev" in it makes imagefolder leave out all the others.
#
# load_dataset("imagefolder", data_dir=...) is documented to read the pictures of a folder, all of them as "train" where
# nothing tells of splits. A folder of ten pictures should give ten. But where the name of one of them, or of a folder,
# has such a word between separators (test, testing, eval, evaluation, val, valid, validation, dev), the word is taken
# for a split, and the pictures that match no such word belong to none: nine of ten are gone, without a message.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0

cat > "$folder/expected" <<'END'
10 pictures, the last is leaf_9.png: {'train': 10}
10 pictures, the last is leaf_test_9.png: {'test': 1}
10 pictures, the last is eval-9.png: {'test': 1}
10 pictures, the last is dev/leaf_9.png: {'validation': 1}
END

cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
from pathlib import Path

import datasets
from PIL import Image

for k, last in enumerate(["leaf_9.png", "leaf_test_9.png", "eval-9.png", "dev/leaf_9.png"]):
    for name in [f"leaf_{i}.png" for i in range(9)] + [last]:
        path = Path(f"pictures-{k}") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path)
    splits = datasets.load_dataset("imagefolder", data_dir=f"pictures-{k}")
    counts = {name: len(rows) for name, rows in splits.items()}
    print(f"10 pictures, the last is {last}: {counts}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
