"""Writes what the app knows of its model beforehand: the files fashion_mnist* beside this one.

python space_app/make_model_data.py [PIPELINE]

fashion_mnist.json       bits/dim of test images of Fashion-MNIST under the pipeline (by default, that which ships
                         with the repository), and a digest of its network, since they hold for no other
fashion_mnist.png        100 of the embedded test images
fashion_mnist_drawn.png  what the pipeline draws from the first seeds: the page shows it before the first click
"""

import json
import os
import sys
from pathlib import Path

import datasets
import numpy as np
import torch
from pictures import generators
from PIL import Image
from served_model import (
    DEFAULT_SAMPLER,
    DRAWN_SHEET,
    SAMPLERS,
    SHIPPED,
    TEST_DATA,
    TEST_SHEET,
    ServedModel,
)
from tab_generate import FIRST_IMAGES
from tab_likelihood import TOLERANCE
from tqdm import tqdm

from sde_diffusers import ScoreSdePipeline
from sde_diffusers.weights_digest import weights_digest

TEST_FILE = Path(__file__).resolve().parents[1] / "data" / "fashion_mnist" / "test-00000-of-00001.parquet"
NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
IMAGES, BATCH = 200, 20


def main(source: str) -> None:
    """Compute and write all files."""
    rows = datasets.Dataset.from_parquet(str(TEST_FILE), keep_in_memory=True)
    images, labels = np.stack([np.asarray(image) for image in rows["image"]]), np.array(rows["label"])
    pipe = ScoreSdePipeline.from_pretrained(source)
    pipe.set_progress_bar_config(disable=True)
    values = []
    for batch in tqdm(torch.from_numpy(images)[:IMAGES, None].split(BATCH), unit="batch"):
        generator = torch.Generator().manual_seed(len(values))
        values += pipe.bits_per_dim(batch, generator, rtol=TOLERANCE, atol=TOLERANCE).bits_per_dim.tolist()
    data = {
        "dataset": "zalando-datasets/fashion_mnist",
        "class_names": NAMES,
        "network": weights_digest(pipe.unet),
        "bits_per_dim": [round(value, 3) for value in values],
    }
    columns = [np.concatenate(images[labels == label][:10]) for label in range(len(NAMES))]
    write_picture(TEST_SHEET, np.concatenate(columns, axis=1))
    write_picture(DRAWN_SHEET, np.concatenate([*drawn(pipe)], axis=1))
    write(TEST_DATA, lambda path: path.write_text(json.dumps(data) + "\n", encoding="utf-8"))


def drawn(pipe: ScoreSdePipeline) -> np.ndarray:
    """(N, H, W) uint8, the images of the first seeds with the settings that the page begins with."""
    scheduler = ServedModel("", lambda: pipe, [], None, None, None).scheduler(DEFAULT_SAMPLER)
    pipe = ScoreSdePipeline(unet=pipe.unet, scheduler=scheduler)
    steps = SAMPLERS[DEFAULT_SAMPLER][2]
    images = pipe(FIRST_IMAGES, steps, generator=generators(0, FIRST_IMAGES), output_type="pt").images
    return (images[:, 0] * 255).round().byte().numpy()


def write_picture(path: Path, pixels: np.ndarray) -> None:
    write(path, lambda path: Image.fromarray(pixels).save(path, format="PNG", optimize=True))


def write(path: Path, writer) -> None:
    """Let `writer` write a file under a temporary name, and then give it its own."""
    temporary = path.with_suffix(".incomplete")
    writer(temporary)
    os.replace(temporary, path)


if __name__ == "__main__":
    if len(sys.argv) > 2 or sys.argv[1:] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    main(sys.argv[1] if len(sys.argv) == 2 else str(SHIPPED))
