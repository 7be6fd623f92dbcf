#!/usr/bin/env bash
# datasets 5.2.0: every pass over a shuffled stream of Parquet files ends with 5 seconds in which nothing is done.
#
# Forty rows in four files are read as a stream in a hundredth of a second. With `shuffle(buffer_size=10)` the same rows
# take 5 seconds, in each epoch anew, however few they are. For a shuffled stream the files are read ahead in threads,
# and before these are left the library sleeps for a fixed time. A program that reads several such streams one after
# the other, or small epochs, waits 5 seconds for each; a profile of the reading shows nothing but `sleep`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    datasets==5.2.0 numpy==2.4.6 pandas==3.1.1 pyarrow==26.0.1

cat > "$folder/expected" <<'END'
in order, epoch 0: 40 rows, less than 2 s
in order, epoch 1: 40 rows, less than 2 s
shuffled, epoch 0: 40 rows, 5 s or more
shuffled, epoch 1: 40 rows, 5 s or more
END

HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -I - "$folder" > "$folder/seen" 2> "$folder/errors" <<'END' ||
import sys
import time
from pathlib import Path

from datasets import Dataset, load_dataset

folder = Path(sys.argv[1]) / "files"
folder.mkdir()
for k in range(4):
    Dataset.from_dict({"number": list(range(10 * k, 10 * k + 10))}).to_parquet(folder / f"{k}.parquet")
stream = load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True)
for name, rows in (("in order", stream), ("shuffled", stream.shuffle(seed=0, buffer_size=10))):
    for epoch in (0, 1):
        rows.set_epoch(epoch)
        begun = time.monotonic()
        count = sum(1 for _ in rows)
        seconds = time.monotonic() - begun
        took = "less than 2 s" if seconds < 2 else "5 s or more" if seconds >= 5 else f"{seconds:.1f} s"
        print(f"{name}, epoch {epoch}: {count} rows, {took}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
