"""Train the Fashion-MNIST classifier whose features evaluation uses offline:

    python training/train_feature_network.py --output_dir runs/fashion-mnist-features

The folder then holds what `load_feature_network("fashion-mnist", weights=FOLDER)` reads: model.safetensors and
config.json; statistics.safetensors with mean and covariance of the training images' features; and a card, README.md,
with the accuracy on the test images. Images are shifted at random by up to two pixels, and neither mirrored nor made
noisy: features should tell a shoe that points the wrong way, and noise, from the real thing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from tqdm import tqdm

from evaluation.distances import FeatureStatistics
from evaluation.feature_networks import ResidualClassifier, gray_pixels, load_feature_network
from images.loading import ImageData, load_images
from run.precision import mixed_precision
from run.written_folder import written_folder

RESOLUTION = 28
MAX_SHIFT = 2  # pixels
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
CARD = """---
license: apache-2.0
datasets:
- zalando-datasets/fashion_mnist
tags:
- image-classification
- feature-extraction
model-index:
- name: fashion-mnist-features
  results:
  - task:
      type: image-classification
    dataset:
      name: Fashion-MNIST
      type: zalando-datasets/fashion_mnist
      split: test
    metrics:
    - type: accuracy
      value: {accuracy:.4f}
---

# fashion-mnist-features

A small classifier of Fashion-MNIST (28 x 28, gray, 10 classes). The {dimension} features before its last layer are a
space in which generated images can be compared with real ones without a connection. Distances in it do not compare
with the FID, nor with distances in the features of other weights.

- **Accuracy**: {percent:.2f} % of the {test_count:,} test images.
- **Data**: the {train_count:,} training images of Fashion-MNIST (MIT licence, Zalando SE). No test image was used in
  training or to choose anything.
- **Architecture**: `ResidualClassifier` in `training/evaluation/feature_networks.py`, {parameters:,} parameters: a
  3 x 3 convolution and four residual blocks with batch normalisation ({widths} channels at 28, 14 and 7 pixels),
  averaged over the image to {dimension} features, and a linear layer.
- **Training**: {epochs} epochs of {batch_size} images, cross-entropy, SGD with Nesterov momentum {momentum}, weight
  decay {weight_decay}, learning rate up to {lr} and linearly back to 0, random shifts of up to {max_shift} pixels,
  precision "{precision}"; {minutes:.1f} processor minutes ({threads} thread(s); {device}). Features are float32.
- **Statistics**: `statistics.safetensors`: mean and covariance of the features of the {train_count:,} training images.
- **Licence**: weights Apache-2.0.
- **Limits**: it knows ten kinds of garment at 28 x 28 and nothing else.

```python
from evaluation.feature_networks import load_feature_network  # in the folder training/

network = load_feature_network("fashion-mnist")  # or weights="path/to/this/folder"
features = network(images)  # uint8 (N, 1, 28, 28) -> float32 (N, {dimension})
```

Made by:

```sh
{command}
```
"""


def main(arguments: list[str]) -> int:
    """Run the training; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="fashion_mnist", help='"fashion_mnist" or a folder in the Hub\'s layout')
    parser.add_argument("--output_dir", type=Path, default=Path("runs/fashion-mnist-features"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_images", type=int, help="train on this many images (default: all)")
    options = parser.parse_args(arguments)
    for name in ("epochs", "batch_size", "lr"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} must be above 0, got {getattr(options, name)}")
    if options.output_dir.exists():
        parser.error(f"--output_dir {options.output_dir} exists: delete it or choose another")
    try:
        train, test = (
            load_images(options.dataset, split, channels=1, image_size=RESOLUTION, streaming=False, max_images=count)
            for split, count in (("train", options.max_images), ("test", None))
        )
    except (ValueError, OSError) as error:
        parser.error(f"--dataset: {error}")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = mixed_precision("auto")
    began = time.process_time()
    network = train_classifier(train, device, precision, options)
    minutes = (time.process_time() - began) / 60

    # The folder takes its name only once all of it is there.
    with written_folder(options.output_dir) as folder:
        save_file(
            {key: value.cpu().contiguous() for key, value in network.state_dict().items()},
            folder / "model.safetensors",
        )
        widths = [network.body[0].out_channels, network.body[3].conv_1.out_channels, network.head.in_features]
        config = {
            "widths": widths,
            "num_classes": network.head.out_features,
            "resolution": RESOLUTION,
            "class_names": train.class_names,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

        extract = load_feature_network("fashion-mnist", weights=folder, device=device)
        chunks = tqdm(train.images.split(1000), desc="Statistics of the training images")
        statistics = FeatureStatistics.from_batches(map(extract, chunks))
        statistics.save(
            folder / "statistics.safetensors",
            feature_space=extract.name,
            dataset="fashion_mnist",
            split="train",
            resolution=RESOLUTION,
        )

        with torch.inference_mode():
            logits = network.head(extract(test.images).to(device)).cpu()
        accuracy = (logits.argmax(1) == test.labels).float().mean().item()
        card = CARD.format(
            accuracy=accuracy,
            percent=100 * accuracy,
            dimension=extract.dimension,
            test_count=len(test),
            train_count=len(train),
            parameters=sum(p.numel() for p in network.parameters()),
            widths=", ".join(map(str, widths)),
            epochs=options.epochs,
            batch_size=options.batch_size,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            lr=options.lr,
            max_shift=MAX_SHIFT,
            precision=precision,
            minutes=minutes,
            threads=torch.get_num_threads(),
            device="GPU" if device.type == "cuda" else "CPU",
            command=f"python training/train_feature_network.py --epochs {options.epochs} --batch_size "
            f"{options.batch_size} --lr {options.lr} --seed {options.seed}"
            + (f" --max_images {options.max_images}" if options.max_images else ""),
        )
        (folder / "README.md").write_text(card)
    print(f"{options.output_dir}: {extract.name}, accuracy {100 * accuracy:.2f} % of {len(test):,} test images")
    return 0


def train_classifier(
    data: ImageData, device: torch.device, precision: str, options: argparse.Namespace
) -> ResidualClassifier:
    """Train on all images of `data`; the steps depend on `options.seed` alone."""
    torch.manual_seed(options.seed)
    network = ResidualClassifier(num_classes=len(data.class_names)).to(device, memory_format=torch.channels_last)
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
    batches = data.batches(options.batch_size, options.seed)
    progress = tqdm(range(steps), desc="Training", mininterval=0.5 if sys.stderr.isatty() else 20)
    for step in progress:
        images, labels = next(batches)
        pixels = gray_pixels(shifted(images).to(device), RESOLUTION)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(network(pixels), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    return network.eval()


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Each image moved by up to MAX_SHIFT pixels each way, over black."""
    side_y, side_x = images.shape[2:]
    windows = F.pad(images, (MAX_SHIFT,) * 4).unfold(2, side_y, 1).unfold(3, side_x, 1)
    y, x = torch.randint(2 * MAX_SHIFT + 1, (2, len(images)))
    return windows[torch.arange(len(images)), :, y, x]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
