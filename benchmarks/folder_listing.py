"""How long a folder of many images takes to list and to count, and what its names take in memory:

    python benchmarks/folder_listing.py [--images 100000] [--folders 1000] [--rounds 5]

makes a tree of empty files in the temporary folder, walks it with `os.walk` and `os.stat` on each file, and lists it
as training does, alternately, each in a process of its own. The ratio is that of the medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WALK = """
import os, sys, time, json
began = time.perf_counter()
count = size = 0
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        size += os.stat(os.path.join(folder, name)).st_size
        count += 1
print(json.dumps({"seconds": time.perf_counter() - began, "images": count}))
"""
OURS = """
import sys, time, json, tracemalloc
sys.path.insert(0, sys.argv[2])
from images.folders import read_folder
if sys.argv[3] == "memory":
    tracemalloc.start()
began = time.perf_counter()
found = read_folder(sys.argv[1])
count = sum(len(rows) for rows in found.splits.values())
seconds, (held, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
print(json.dumps({"seconds": seconds, "images": count, "held": held / count, "peak": peak / count}))
"""


def make_tree(root: Path, images: int, folders: int) -> None:
    """Empty files, as many in each folder."""
    for k in range(folders):
        folder = root / f"class_{k:04}"
        folder.mkdir()
        for i in range(k, images, folders):
            (folder / f"image_{i:07}.png").touch()


def measure(script: str, *arguments) -> dict:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folders", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_tree(Path(folder), options.images, options.folders)
        training, walks, ours = str(ROOT / "training"), [], []
        measure(WALK, folder)  # the first one warms the system's cache
        for _ in range(options.rounds):
            walks.append(measure(WALK, folder))
            ours.append(measure(OURS, folder, training, "time"))
        memory = measure(OURS, folder, training, "memory")
    assert walks[0]["images"] == ours[0]["images"] == options.images
    walk, listing = (statistics.median(run["seconds"] for run in runs) for runs in (walks, ours))
    print(f"{options.images:,} files in {options.folders:,} folders, median of {options.rounds} rounds")
    print(f"os.walk and os.stat   {walk:.3f} s")
    print(f"listed and counted    {listing:.3f} s   ratio {listing / walk:.2f}")
    print(f"memory of the names   {memory['held']:.0f} bytes a file, at most {memory['peak']:.0f} meanwhile")


if __name__ == "__main__":
    main()
