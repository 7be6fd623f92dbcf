"""Train the classifiers whose features evaluation uses offline:

    python training/train_feature_network.py --features fashion-mnist --output_dir runs/fashion-mnist-features
    python training/train_feature_network.py --features cifar10 --output_dir runs/cifar10-features

`RECIPES` has what differs. The folder then holds what `load_feature_network("fashion-mnist", weights=FOLDER)` reads:
model.safetensors and config.json; statistics.safetensors with mean and covariance of the training images' features;
and a card, README.md, with the accuracy on the test images. Images are shifted at random, and never made noisy, nor
garments mirrored: features should tell noise, and a shoe that points the wrong way, from the real thing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from tqdm import tqdm

from evaluation.distances import FeatureStatistics
from evaluation.feature_networks import load_feature_network
from evaluation.residual_classifier import ResidualClassifier, classifier_pixels, load_classifier
from images.loading import ImageData, load_images
from run.memory import keep_freed_memory
from run.precision import mixed_precision
from run.written_folder import written_folder
from sde_diffusers.images import PixelFormat


@dataclass(frozen=True)
class Recipe:
    """What a classifier is trained on, and how."""

    dataset: str  # of `load_images`
    hub_id: str
    title: str
    images: str  # what they are, for the card
    licence: str  # of the images; "" where it is not known
    classes: str  # what the classifier knows
    channels: int
    resolution: int
    widths: tuple[int, int, int]
    max_shift: int  # pixels
    mirrored: bool
    epochs: int


RECIPES = {
    "fashion-mnist": Recipe(
        dataset="fashion_mnist",
        hub_id="zalando-datasets/fashion_mnist",
        title="Fashion-MNIST",
        images="28 x 28, gray, 10 classes",
        licence="MIT licence, Zalando SE",
        classes="ten kinds of garment at 28 x 28",
        channels=1,
        resolution=28,
        widths=(16, 48, 96),
        max_shift=2,
        mirrored=False,
        epochs=10,
    ),
    "cifar10": Recipe(
        dataset="cifar10",
        hub_id="uoft-cs/cifar10",
        title="CIFAR-10",
        images="32 x 32, RGB, 10 classes",
        licence="Krizhevsky 2009, no licence given",
        classes="four kinds of vehicle and six of animal at 32 x 32",
        channels=3,
        resolution=32,
        widths=(32, 80, 160),
        max_shift=4,
        mirrored=True,
        epochs=20,
    ),
}
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
CARD = """---
license: apache-2.0{datasets}
tags:
- image-classification
- feature-extraction
model-index:
- name: {name}
  results:
  - task:
      type: image-classification
    dataset:
      name: {recipe.title}
      type: {recipe.hub_id}
      split: test
    metrics:
    - type: accuracy
      value: {accuracy:.4f}
---

# {name}

A small classifier of {recipe.title} ({recipe.images}). The {dimension} features before its last layer are a
space in which generated images can be compared with real ones without a connection. Distances in it do not compare
with the FID, nor with distances in the features of other weights.

- **Accuracy**: {percent:.2f} % of the {test_count:,} test images{both}.
- **Data**: {train_count:,} training images of {recipe.title}{licence}{about_data}. No test image was used in
  training or to choose anything.
- **Architecture**: `ResidualClassifier` in `training/evaluation/residual_classifier.py`, {parameters:,} parameters: a
  3 x 3 convolution and four residual blocks with batch normalisation ({widths} channels at {sides} pixels),
  averaged over the image to {dimension} features, and a linear layer.
- **Training**: {epochs} epochs of {batch_size} images, cross-entropy, SGD with Nesterov momentum {momentum}, weight
  decay {weight_decay}, learning rate up to {lr} and linearly back to 0, {augmentation}{start},
  precision "{precision}"; {minutes:.1f} processor minutes ({threads} thread(s); {device}). Features are float32.
- **Statistics**: `statistics.safetensors`: mean and covariance of the features of the {train_count:,} training images.
- **Licence**: weights Apache-2.0.
- **Limits**: it knows {recipe.classes} and nothing else.

```python
from evaluation.feature_networks import load_feature_network  # in the folder training/

network = load_feature_network("{features}")  # or weights="path/to/this/folder"
features = network(images)  # uint8 (N, {shape}) -> float32 (N, {dimension})
```

Made by:

```sh
{command}
```
"""


def main(arguments: list[str]) -> int:
    """Run the training; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", choices=RECIPES, default="fashion-mnist", help="which classifier")
    parser.add_argument("--dataset", help="a folder in the Hub's layout (default: the data set of that name)")
    parser.add_argument("--output_dir", type=Path, help="default: runs/NAME-features")
    parser.add_argument("--epochs", type=int, help="default: as in RECIPES")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_images", type=int, help="train on this many images (default: all)")
    parser.add_argument("--initial_weights", type=Path, help="start from the classifier in this folder")
    parser.add_argument("--about_data", help="what the card says of a copy of the data, such as how it was compressed")
    options = parser.parse_args(arguments)
    recipe, name = RECIPES[options.features], f"{options.features}-features"
    options.dataset = options.dataset or recipe.dataset
    options.output_dir = (options.output_dir or Path("runs") / name).expanduser()
    options.epochs = recipe.epochs if options.epochs is None else options.epochs
    for key in ("epochs", "batch_size", "lr"):
        if not 0 < getattr(options, key) < math.inf:
            parser.error(f"--{key} must be above 0 and finite, got {getattr(options, key)}")
    if options.seed < 0:
        parser.error(f"--seed must be at least 0, got {options.seed}")
    if os.path.lexists(options.output_dir):
        parser.error(f"--output_dir {options.output_dir} exists: delete it or choose another")
    try:
        options.output_dir.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output_dir {options.output_dir} cannot be made: {error}")
    shape = {"channels": recipe.channels, "image_size": recipe.resolution, "streaming": False}
    try:
        train, test = (
            load_images(options.dataset, split, max_images=count, **shape)
            for split, count in (("train", options.max_images), ("test", None))
        )
        for split, data in (("train", train), ("test", test)):
            if data.labels is None:
                raise ValueError(f"the images of the split {split} of {data.name} have no classes")
            if data.class_names is None or data.class_names != train.class_names:
                raise ValueError(f"the classes of the split {split} of {data.name} are {data.class_names}")
            if data.pixels != PixelFormat():
                raise ValueError(f"images must be of 8 bits, but those of {data.name} are {data.pixels}")
    except (ValueError, OSError) as error:
        parser.error(f"--dataset: {error}")

    known = Path(__file__).resolve().parents[1] / "pretrained" / name / "config.json"
    if known.is_file() and train.class_names != json.loads(known.read_text())["class_names"]:
        recipe = of_other_images(recipe, train, options.dataset)
    try:
        network = new_classifier(train, recipe, options)
    except (ValueError, OSError) as error:
        parser.error(f"--initial_weights: {error}")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = mixed_precision("auto")
    keep_freed_memory()
    began = time.process_time()
    train_classifier(network, train, recipe, device, precision, options)
    minutes = (time.process_time() - began) / 60

    # The folder takes its name only once all of it is there.
    with written_folder(options.output_dir) as folder:
        save_file(
            {key: value.cpu().contiguous() for key, value in network.state_dict().items()},
            folder / "model.safetensors",
        )
        config = {
            "widths": recipe.widths,
            "channels": recipe.channels,
            "num_classes": network.head.out_features,
            "resolution": recipe.resolution,
            "class_names": train.class_names,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

        extract = load_feature_network(options.features, weights=folder, device=device)
        chunks = tqdm(train.images.split(1000), desc="Statistics of the training images")
        statistics = FeatureStatistics.from_batches(map(extract, chunks))
        statistics.save(
            folder / "statistics.safetensors",
            feature_space=extract.name,
            dataset=recipe.dataset,
            split="train",
            resolution=recipe.resolution,
        )

        with torch.inference_mode():
            scores = network.head(extract(test.images).to(device)).cpu()
            of_mirrored = network.head(extract(test.images.flip(3)).to(device)).cpu() if recipe.mirrored else 0
        accuracy, of_both = (
            (logits.argmax(1) == test.labels).float().mean().item() for logits in (scores, scores + of_mirrored)
        )
        card = CARD.format(
            name=name,
            features=options.features,
            recipe=recipe,
            datasets=f"\ndatasets:\n- {recipe.hub_id}" if recipe.licence else "",
            licence=f" ({recipe.licence})" if recipe.licence else "",
            about_data=f", {options.about_data}" if options.about_data else "",
            accuracy=accuracy,
            percent=100 * accuracy,
            both=f", {100 * of_both:.2f} % by the scores of an image and its mirror image together"
            if recipe.mirrored
            else "",
            dimension=extract.dimension,
            test_count=len(test),
            train_count=len(train),
            parameters=sum(p.numel() for p in network.parameters()),
            widths=", ".join(map(str, recipe.widths)),
            sides=f"{recipe.resolution}, {recipe.resolution // 2} and {recipe.resolution // 4}",
            shape=f"{recipe.channels}, {recipe.resolution}, {recipe.resolution}",
            augmentation=f"random shifts of up to {recipe.max_shift} pixels"
            + (", half of the images mirrored" if recipe.mirrored else ""),
            start=f"; from the weights in `{options.initial_weights}`" if options.initial_weights else "",
            epochs=options.epochs,
            batch_size=options.batch_size,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            lr=options.lr,
            precision=precision,
            minutes=minutes,
            threads=torch.get_num_threads(),
            device="GPU" if device.type == "cuda" else "CPU",
            command=f"python training/train_feature_network.py --features {options.features} "
            + (f"--dataset {options.dataset} " if options.dataset != recipe.dataset else "")
            + (f"--about_data {shlex.quote(options.about_data)} " if options.about_data else "")
            + f"--epochs {options.epochs} --batch_size {options.batch_size} --lr {options.lr} --seed {options.seed}"
            + (f" --max_images {options.max_images}" if options.max_images else "")
            + (f" --initial_weights {options.initial_weights}" if options.initial_weights else ""),
        )
        (folder / "README.md").write_text(card)
    print(f"{options.output_dir}: {extract.name}, accuracy {100 * accuracy:.2f} % of {len(test):,} test images")
    return 0


def of_other_images(recipe: Recipe, data: ImageData, dataset: str) -> Recipe:
    """The recipe, with a card of what these images are, and not those that it is named after."""
    name = Path(dataset).expanduser().resolve().name if Path(dataset).expanduser().exists() else dataset
    kind = recipe.images.rpartition(",")[0]
    return replace(
        recipe,
        dataset=name,
        hub_id=name,
        title=f"`{name}`",
        images=f"{kind}, {len(data.class_names)} classes",
        licence="",
        classes=f"{', '.join(data.class_names)}, at {recipe.resolution} x {recipe.resolution}",
    )


def new_classifier(data: ImageData, recipe: Recipe, options: argparse.Namespace) -> ResidualClassifier:
    """The network to train, new or with the weights of `options.initial_weights`.

    Raises:
        FileNotFoundError, ValueError: these are none of such a network.
    """
    torch.manual_seed(options.seed)
    network = ResidualClassifier(recipe.widths, len(data.class_names), recipe.channels)
    if options.initial_weights is not None:
        earlier, _ = load_classifier(options.initial_weights)
        try:
            network.load_state_dict(earlier.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"{options.initial_weights} has another network than {options.features}: {error}"
            ) from error
    return network


def train_classifier(
    network: ResidualClassifier,
    data: ImageData,
    recipe: Recipe,
    device: torch.device,
    precision: str,
    options: argparse.Namespace,
) -> None:
    """Train on all images of `data`; the steps depend on `options.seed` alone."""
    torch.manual_seed(options.seed)
    network.train().to(device, memory_format=torch.channels_last)
    steps = max(1, options.epochs * len(data) // options.batch_size)
    optimizer = torch.optim.SGD(
        network.parameters(), options.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        options.lr,
        total_steps=steps,
        pct_start=0.15,
        anneal_strategy="linear",
        div_factor=10,
        cycle_momentum=False,
    )
    batches = data.batches(options.batch_size, options.seed, flip=recipe.mirrored)
    progress = tqdm(range(steps), desc="Training", mininterval=0.5 if sys.stderr.isatty() else 20)
    for step in progress:
        images, labels = next(batches)
        pixels = classifier_pixels(shifted(images, recipe.max_shift).to(device), recipe.channels, recipe.resolution)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(network(pixels), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    network.eval()


def shifted(images: torch.Tensor, max_shift: int) -> torch.Tensor:
    """Each image moved by up to `max_shift` pixels each way, over black."""
    side_y, side_x = images.shape[2:]
    windows = F.pad(images, (max_shift,) * 4).unfold(2, side_y, 1).unfold(3, side_x, 1)
    y, x = torch.randint(2 * max_shift + 1, (2, len(images)))
    return windows[torch.arange(len(images)), :, y, x]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
