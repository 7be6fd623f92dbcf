"""Make small data sets in the shapes in which people have theirs, for the recipes of docs/how_to/own_data.md:

    python scripts/make_example_data.py FOLDER [--images 48]

    leaves/healthy/0.jpg ...                  a folder with classes (blight, healthy, rust), photographs of two sizes
    oct/train/{CNV,DME,DRUSEN,NORMAL}/0.jpeg  retinal scans as they are published: oct/val, oct/test beside oct/train
    octmnist.npz                              the same in the layout of MedMNIST
    deep/0.png ...                            gray, 12 bits in files of 16
    bands/0.tif ...                           five bands of floating-point values, as satellites send them
    panoramas/0.png ...                       rectangles, 24 x 40

The pictures are drawn: soft spots on a background, whose number or colour is the class.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

LEAVES = {"blight": (90, 70, 30), "healthy": (40, 130, 40), "rust": (150, 80, 20)}
RETINAS = ("CNV", "DME", "DRUSEN", "NORMAL")


def spots(generator: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    """(H, W) in [0, 1]: soft spots at random places."""
    y, x = np.mgrid[:height, :width]
    picture = np.zeros((height, width))
    for _ in range(count):
        top, left, size = generator.uniform(0, height), generator.uniform(0, width), generator.uniform(1.5, height / 4)
        picture = np.maximum(picture, np.exp(-((y - top) ** 2 + (x - left) ** 2) / (2 * size**2)))
    return picture


def save(picture: np.ndarray, path: Path) -> None:
    """(H, W) or (H, W, 3) in [0, 1] as an 8-bit picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * picture.clip(0, 1)).round().astype(np.uint8)).save(path, quality=95)


def make_leaves(folder: Path, images: int, generator: np.random.Generator) -> None:
    for k in range(images):
        name = [*LEAVES][k % len(LEAVES)]
        side = (36, 44)[k % 2]
        picture = spots(generator, side, side + 6, 3)[..., None] * np.array(LEAVES[name]) / 255
        save(0.8 * picture + 0.2, folder / name / f"{k}.jpg")


def make_retinas(folder: Path, file: Path, images: int, generator: np.random.Generator) -> None:
    arrays = {}
    for split, short, count in (("train", "train", images), ("val", "val", 8), ("test", "test", 8)):
        pictures = []
        for k in range(count):
            picture = 0.2 + 0.7 * spots(generator, 28, 28, 1 + 2 * (k % len(RETINAS)))
            save(picture, folder / split / RETINAS[k % len(RETINAS)] / f"{k}.jpeg")
            pictures.append((255 * picture.clip(0, 1)).round().astype(np.uint8))
        arrays[f"{short}_images"] = np.stack(pictures)
        arrays[f"{short}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % len(RETINAS)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    file.write_bytes(buffer.getvalue())


def make_deep(folder: Path, images: int, generator: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for k in range(images):
        values = (4095 * spots(generator, 16, 16, 3)).round().astype(np.uint16)
        Image.fromarray(values).save(folder / f"{k}.png")


def make_bands(folder: Path, images: int, generator: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for k in range(images):
        bands = np.stack([spots(generator, 16, 16, 3) - 0.1 * band for band in range(5)]).astype(np.float32)
        tifffile.imwrite(folder / f"{k}.tif", bands, photometric="minisblack")


def make_panoramas(folder: Path, images: int, generator: np.random.Generator) -> None:
    for k in range(images):
        save(spots(generator, 24, 40, 4), folder / f"{k}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=48, help="of each data set")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    make_leaves(options.folder / "leaves", options.images, generator)
    make_retinas(options.folder / "oct", options.folder / "octmnist.npz", options.images, generator)
    make_deep(options.folder / "deep", options.images, generator)
    make_bands(options.folder / "bands", options.images, generator)
    make_panoramas(options.folder / "panoramas", options.images, generator)


if __name__ == "__main__":
    main()
