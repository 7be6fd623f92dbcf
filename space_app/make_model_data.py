"""Writes what the app knows of its models beforehand, beside this file:

python space_app/make_model_data.py [PIPELINE ...]

drawn-NAME.png      what a pipeline, by default each that ships with the repository, draws with the settings that the
                    page begins with and those of its examples; and a digest of its network
fashion_mnist.json  scores of test images of Fashion-MNIST under each of the pipelines that were trained on it and have
                    likelihoods, and the digest of its network, since they hold for no other
fashion_mnist.png   100 of the embedded test images
"""

import json
import os
import sys
from pathlib import Path

import bounded_work
import datasets
import numpy as np
import torch
from bounded_work import Work
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from served_model import (
    DRAWN_COLUMNS,
    DRAWN_SHEET,
    SHIPPED,
    TEST_DATA,
    TEST_SHEET,
    ServedModel,
    card_header,
    listed,
    load_model,
)
from tab_generate import example_settings, first_settings, generate
from tab_interpolate import example_settings as interpolation_settings
from tab_interpolate import interpolate_seeds
from tab_likelihood import scores
from tab_one_step import example_settings as one_step_settings
from tab_one_step import first_settings as first_one_step_settings
from tab_one_step import one_step
from tqdm import tqdm

from sde_diffusers.images import PixelFormat, to_array
from sde_diffusers.weights_digest import weights_digest

TEST_FILE = Path(__file__).resolve().parents[1] / "data" / "fashion_mnist" / "test-00000-of-00001.parquet"
NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
DATASET = "zalando-datasets/fashion_mnist"
IMAGES, BATCH = 200, 20
SCORES = ("bits_per_dim", "reconstruction_error")


def main(sources: list[str]) -> None:
    """Compute and write all files."""
    for source in sources:
        model = load_model(source)
        write_drawn(model)
        if not model.consistency and DATASET in listed(card_header(source).get("datasets")):
            write_test_data(model)


def write_test_data(model: ServedModel) -> None:
    rows = datasets.Dataset.from_parquet(str(TEST_FILE), keep_in_memory=True)
    images, labels = np.stack([np.asarray(image) for image in rows["image"]]), np.array(rows["label"])
    batches = (torch.from_numpy(images)[:IMAGES, None] / 255).split(BATCH)
    found = [unwatched(Work(lambda work, batch=batch: scores(model, work, batch))) for batch in tqdm(batches)]
    of_model = {
        "network": weights_digest(model.pipe.unet),
        "scores": {key: [round(v, 4) for part in found for v in part[key].tolist()] for key in SCORES},
    }
    models = json.loads(TEST_DATA.read_text(encoding="utf-8"))["models"] if TEST_DATA.is_file() else {}
    data = {"dataset": DATASET, "class_names": NAMES, "models": models | {model.name: of_model}}
    columns = [np.concatenate(images[labels == label][:10]) for label in range(len(NAMES))]
    write(TEST_SHEET, lambda path: Image.fromarray(np.concatenate(columns, axis=1)).save(path, "PNG", optimize=True))
    write(TEST_DATA, lambda path: path.write_text(json.dumps(data) + "\n", encoding="utf-8"))


def write_drawn(model: ServedModel) -> None:
    """A row of images for each setting."""
    if model.consistency:
        settings = [first_one_step_settings(model), *one_step_settings(model).values()]
        works = [one_step(model, *values) for values in settings]
        images = [unwatched(work).images for work in works]
    else:
        works = [generate(model, *first_settings(model))]
        works += [generate(model, *settings) for settings in example_settings(model).values()]
        images = [unwatched(work).images for work in tqdm(works, desc=model.name)]
        works = [interpolate_seeds(model, *settings) for settings in interpolation_settings(model).values()]
        images += [unwatched(work)[0] for work in tqdm(works, desc=model.name)]
    rows = [np.concatenate([*to_array(row.clamp(0, 1), PixelFormat())], axis=1) for row in images]
    assert all(len(row) == DRAWN_COLUMNS for row in images)
    sheet = np.concatenate(rows)
    network = PngInfo()
    network.add_text("network", weights_digest(model.pipe.unet))
    picture = Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet)
    path = TEST_DATA.with_name(DRAWN_SHEET.format(name=model.name))
    write(path, lambda path: picture.save(path, "PNG", optimize=True, pnginfo=network))


def unwatched(work: Work):
    """The result of work for which nobody waits."""
    bounded_work.TIME_LIMIT = float("inf")
    return work.run()


def write(path: Path, writer) -> None:
    """Let `writer` write a file under a temporary name, and then give it its own."""
    temporary = path.with_suffix(".incomplete")
    writer(temporary)
    os.replace(temporary, path)


if __name__ == "__main__":
    if sys.argv[1:] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    shipped = sorted(path.parent for path in SHIPPED.parent.glob("*/model_index.json"))
    main(sys.argv[1:] or [str(path) for path in shipped])
