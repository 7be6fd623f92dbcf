"""Writes data/fashion_mnist: a class-balanced sample of Fashion-MNIST in the layout of its repository on the Hub.

The source is Debian's package dataset-fashion-mnist (apt-get install dataset-fashion-mnist), whose files are those
that Zalando publishes. The sample is drawn at random with a fixed seed and keeps the source's order, so that running
this again gives the same images.

    python scripts/make_fashion_mnist_sample.py [folder of the *-ubyte.gz files]
"""

import argparse
import gzip
import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

CLASS_NAMES = [
    "T - shirt / top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
SPLITS = {"train": ("train", 1000), "test": ("t10k", 100)}  # (prefix of the files, images of a class)
TARGET = Path(__file__).resolve().parents[1] / "data" / "fashion_mnist"


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped idx file: magic number (its last byte is the rank), big-endian sizes, values."""
    content = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def to_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def sample(source: Path, prefix: str, per_class: int) -> datasets.Dataset:
    images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
    rng = np.random.default_rng(0)
    chosen = [rng.choice(np.flatnonzero(labels == label), per_class, replace=False) for label in range(10)]
    chosen = np.sort(np.concatenate(chosen))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASS_NAMES)})
    columns = {"image": [{"bytes": to_png(images[i]), "path": None} for i in chosen], "label": labels[chosen].tolist()}
    return datasets.Dataset.from_dict(columns, features=features)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    source = parser.parse_args().source
    if not (source / "train-images-idx3-ubyte.gz").is_file():
        parser.error(f"source: {source} has no train-images-idx3-ubyte.gz (apt-get install dataset-fashion-mnist)")
    TARGET.mkdir(parents=True, exist_ok=True)
    for split, (prefix, per_class) in SPLITS.items():
        sample(source, prefix, per_class).to_parquet(TARGET / f"{split}-00000-of-00001.parquet")
