"""How quickly a stream's batches arrive, beside the same files read plainly:

    python benchmarks/stream_rate.py [FOLDER] [--files 8] [--groups 1 4] [--batch-size 128] [--rounds 5]

deals a folder's training images (parquet; those that ship with the repository unless given) into files, and reads
whole epochs in turns: plainly, in the files' own order by pyarrow, decoded by as many threads; and as training reads
them, shuffled, in groups. A turn is one epoch, its end and a filling of the next one's buffer included. Writes rates
and their ratio to OUT.
"""

import argparse
import itertools
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import torch
from side_by_side import medians, take_turns, write_results

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "training"))

from images.loading import load_images  # noqa: E402
from images.pixels import DECODING_THREADS, decode_image  # noqa: E402


def write_files(source: str, folder: Path, count: int) -> int:
    """A copy of a folder's training images in `count` files; returns how many images there are."""
    rows = datasets.load_dataset(source, split="train")
    for k in range(count):
        rows.shard(num_shards=count, index=k).to_parquet(folder / f"train-{k:05}-of-{count:05}.parquet")
    return len(rows)


def plainly(folder: Path, column: str, batch_size: int, image_size: int | None):
    """Endless batches of the files in their own order, as the shortest loop reads them."""

    def decode(row):
        return decode_image(row[column], image_size)

    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        files = itertools.cycle(sorted(folder.glob("*.parquet")))
        tables = (table for file in files for table in pq.ParquetFile(file).iter_batches(batch_size, columns=[column]))
        rows = (row for table in tables for row in table.to_pylist())
        while True:
            yield torch.stack(list(pool.map(decode, itertools.islice(rows, batch_size))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=str(ROOT / "data" / "fashion_mnist"))
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, help="side that images are resized to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/stream_rate"), metavar="OUT")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        files = Path(folder) / "files"
        files.mkdir()
        steps = write_files(options.folder, files, options.files) // options.batch_size
        streams = {
            groups: load_images(str(files), streaming=True, stream_shards=groups, image_size=options.image_size)
            for groups in options.groups
        }
        column = streams[options.groups[0]].rows.image_column
        batches = {"plainly": plainly(files, column, options.batch_size, options.image_size)}
        batches |= {f"stream, {g} groups": stream.batches(options.batch_size, 0) for g, stream in streams.items()}

        def epoch(of) -> float:
            start = time.perf_counter()
            for _ in range(steps):
                next(of)
            return steps * options.batch_size / (time.perf_counter() - start)

        contenders = {name: lambda of=of: epoch(of) for name, of in batches.items()}
        rounds = take_turns(contenders, options.rounds, "Epochs")
        rates = medians(rounds)
        ratios = {name: rate / rates["plainly"] for name, rate in rates.items()}
        write_results(options.output, "stream_rate", {"images_per_second": rounds, "ratio_of_medians": ratios})
        for name, rate in rates.items():
            print(f"{name:20} {rate:8,.0f} images/s, {ratios[name]:.2f} of plainly")
        batches.clear(), contenders.clear()  # ends their threads before the files go


if __name__ == "__main__":
    main()
