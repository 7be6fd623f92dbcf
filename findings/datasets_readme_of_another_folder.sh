#!/usr/bin/env bash
# datasets 5.2.0: where a README.md says which files are which split, the examples of another folder are loaded.
#
# What is read of a local folder is kept, and found again by its files' names and times of change. With `configs` in the
# folder's README.md, as on every card of the Hub, neither counts, but the folder's own name alone: a second folder
# "data", elsewhere and with other files, has the examples of the first, and so has the first when its files were
# replaced by others. Without the README.md, or read as a stream, each is read as it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
without a README.md
    one/data:                 [1, 2]
    two/data:                 [3, 4]
    one/data, replaced:       [5, 6, 7]
with a README.md
    one/data:                 [1, 2]
    two/data:                 [1, 2]
    one/data, replaced:       [1, 2]
    two/data, as a stream:    [3, 4]
    one/data, as a stream:    [5, 6, 7]
END

cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
from pathlib import Path

from datasets import Dataset, load_dataset

README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: train.parquet
---
"""


def write(folder, values, readme):
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict({"x": values}).to_parquet(folder / "train.parquet")
    if readme:
        (folder / "README.md").write_text(readme)


def report(what, folder, **options):
    rows = load_dataset(str(folder), split="train", **options)
    print(f"    {what + ':':25} {[row['x'] for row in rows]}")


for name, readme in {"without": None, "with": README}.items():
    print(f"{name} a README.md")
    one, two = (Path(name, place, "data") for place in ("one", "two"))
    write(one, [1, 2], readme)
    write(two, [3, 4], readme)
    report("one/data", one)
    report("two/data", two)
    write(one, [5, 6, 7], readme)
    report("one/data, replaced", one)
report("two/data, as a stream", two, streaming=True)
report("one/data, as a stream", one, streaming=True)
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
