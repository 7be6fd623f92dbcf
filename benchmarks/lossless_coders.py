"""What lossless coders need for the images whose bits/dim `training/evaluate.py` measures.

    python benchmarks/lossless_coders.py OUTPUT_FOLDER [--dataset PATH_OR_ID] [--column image] [--images 1000]

The same images, chosen by the same seed, are coded one by one and tiled into one sheet, which spares the headers and
lets a coder learn on the way: PNG, WebP and JPEG XL, each at its greatest effort. Needs pillow-jxl-plugin.
Writes lossless_coders.json and .md (a table).
"""

import argparse
from io import BytesIO
from pathlib import Path

import numpy as np
import pillow_jxl  # noqa: F401 (teaches Pillow the format JXL)
import torch
from datasets import load_dataset
from PIL import Image
from side_by_side import write_results
from tqdm import tqdm

CODERS = {
    "PNG": {"format": "PNG", "optimize": True},
    "WebP": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6},
    "JPEG XL": {"format": "JXL", "lossless": True, "effort": 9},
}


def coded_bytes(picture: np.ndarray, options: dict) -> int:
    """Size of a picture in a format, after a check that it comes back as it was."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, **options)
    with Image.open(BytesIO(buffer.getvalue())) as back:
        if not np.array_equal(np.asarray(back.convert("RGB" if picture.ndim == 3 else "L")), picture):
            raise RuntimeError(f"{options['format']} gave other pixels back.")
    return len(buffer.getvalue())


def sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """(N, H, W, ...) -> one picture; N is a multiple of `columns`."""
    rows = [np.concatenate(list(row), axis=1) for row in images.reshape(-1, columns, *images.shape[1:])]
    return np.concatenate(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dataset", default="zalando-datasets/fashion_mnist", help="a folder, or an id of the Hub")
    parser.add_argument("--column", default="image")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--columns", type=int, default=25, help="of the sheet")
    options = parser.parse_args(arguments)
    data = load_dataset(options.dataset, split="test")
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: options.images]
    images = np.stack([np.asarray(data[k][options.column]) for k in chosen.tolist()])
    tiled = sheet(images, options.columns)
    rows = {}
    for name, coder in tqdm(CODERS.items(), desc="Coders"):
        alone = sum(coded_bytes(image, coder) for image in images)
        rows[name] = {
            way: 8 * size / images.size for way, size in (("one by one", alone), ("sheet", coded_bytes(tiled, coder)))
        }
    lines = ["| bits/dim | one by one | one sheet |", "|---|---|---|"]
    lines += [f"| {name} | {row['one by one']:.3f} | {row['sheet']:.3f} |" for name, row in rows.items()]
    results = {"dataset": options.dataset, "images": len(images), "bits_per_dim": rows}
    write_results(options.folder, "lossless_coders", results, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
