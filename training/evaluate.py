"""Evaluate a pipeline:

    accelerate launch training/evaluate.py PIPELINE [FILE.yaml] key=value section.key=value ...

`evaluation_config.py` describes the keys; `training/evaluations/` holds ready files. The output folder then holds

    results.json   every number with all that it depends on      samples/   the samples as PNG files (save_images=true)
    page.png       tables, samples, nearest training images      shards/    what a second start does not compute again

Interrupt it, and the same command goes on. Each sample has its own seed, so that several processes (started as for
train.py) draw the same images as one.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from config import ConfigError
from distances import FeatureStatistics
from draws import seed_of
from evaluation_config import EvaluationConfig, read_evaluation_config
from evaluation_inputs import load_data, load_networks, load_pipeline
from evaluation_likelihood import bits_per_dim
from evaluation_page import draw_page
from evaluation_samples import Samples, describe_sampler, draw_samples, save_images, weights_digest
from evaluation_tables import make_tables, markdown
from feature_metrics import compare_features, compute_features
from feature_networks import shipped_statistics_path
from model_card import eval_result, load_card, update_card
from neighbors import Neighbors, nearest, pixels
from precision import mixed_precision
from torch import Tensor
from tqdm import tqdm

from data import HUB_IDS

SAMPLES = "samples"
YARDSTICK, SUBSET = 2, 3  # streams of random numbers beside those of the samples


class Evaluation:
    """One evaluation: the constructor loads what it needs, `run` does the work.

    Raises:
        ConfigError: if pipeline, data, feature networks or output folder do not allow what the configuration asks for.
    """

    def __init__(self, config: EvaluationConfig, accelerator: Accelerator):
        self.config, self.accelerator, self.folder = config, accelerator, Path(config.output_dir)
        if config.update_card:
            load_card(config.pipeline)
        with accelerator.local_main_process_first():  # which downloads, if need be
            self.pipe = load_pipeline(config, accelerator.device)
            self.network = weights_digest(self.pipe.unet)
            self.networks = load_networks(config, accelerator.device)
            self.reference, self.test = load_data(config, self.pipe)
        self.samples: Samples | None = None

    def run(self) -> list[dict]:
        """The records of results.json, on the main process; the others leave when nothing is left to share."""
        config = self.config
        if config.samples.num_images:
            self.samples = draw_samples(config, self.pipe, self.reference, self.accelerator)
        sets = self.image_sets()
        features = {space: self.features(space, sets) for space in self.networks}
        likelihood, bits = None, None
        if config.likelihood.num_images:
            likelihood, bits = bits_per_dim(config, self.pipe, self.test, self.accelerator)
        if not self.accelerator.is_main_process:
            return []

        neighbors = None
        if config.neighbors.num_images and self.samples is not None:
            neighbors = self.nearest_neighbors(features.get(config.neighbors.space))
        records = [record for space in features for record in self.compare(space, features[space], sets)]
        if likelihood is not None:
            records.append(self.of_network(likelihood))
        if self.samples is not None:
            records.append(self.speed())
        if neighbors is not None:
            records.append(self.of_samples(self.of_reference(neighbors.record())))
        self.write(records, neighbors, bits)
        return records

    # What is measured.

    def image_sets(self) -> dict[str, Tensor]:
        """Samples and yardsticks: uint8 images (N, C, H, W) by their names in the tables."""
        sets = {} if self.samples is None else {SAMPLES: self.samples.images}
        if not self.config.yardsticks:
            return sets
        generator = torch.Generator().manual_seed(seed_of(self.config.samples.seed, YARDSTICK))
        count = self.config.samples.num_images or len(self.test)
        images = self.test.images[torch.randperm(len(self.test), generator=generator)[:count]]
        noise = torch.randn(images.shape, generator=generator)
        for deviation in self.config.yardsticks:
            noisy = (images + deviation * noise).round().clamp(0, 255).to(torch.uint8)
            sets[f"test images + noise {deviation:g}/255"] = noisy
        return sets

    def features(self, space: str, sets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features of all sets, of the reference images and, for the neighbours, of the test images, by name."""
        config, network, cache = self.config, self.networks[space], Path(self.config.cache_dir).expanduser()
        own = self.folder / "shards" / "features"
        found = {name: compute_features(x, name, network, own, self.accelerator) for name, x in sets.items()}
        for name, split, data in (
            ("reference", config.data.reference_split, self.reference),
            ("test", config.data.test_split, self.test),
        ):
            if name == "reference" or (data is not None and config.neighbors.space == space):
                title = f"{data.name}, {split}"
                found[name] = compute_features(data.images, title, network, cache, self.accelerator)
        return found

    def compare(self, space: str, features: dict[str, Tensor], sets: dict[str, Tensor]) -> Iterator[dict]:
        """The records of one feature space."""
        config, network, data = self.config, self.networks[space], self.of_reference({})
        statistics = FeatureStatistics.from_features(features["reference"])
        if config.frechet_reference == "shipped":
            statistics = FeatureStatistics.load(shipped_statistics_path(network), network.name)
        for name in tqdm(sets, desc=f"Comparing in {network.name}", dynamic_ncols=True):
            about = {
                "images": name,
                "num_images": len(sets[name]),
                "feature_space": network.name,
                "feature_dimension": network.dimension,
                "feature_resolution": network.resolution,
            }
            seed = seed_of(config.samples.seed, SUBSET)
            for record in compare_features(
                config.metrics, features[name], features["reference"], statistics, config.bootstrap_resamples, seed
            ):
                record = record | about | data
                if config.frechet_reference == "shipped" and record["metric"] == "frechet_distance":
                    record |= {key: statistics.description[key] for key in ("dataset", "split")}
                yield self.of_samples(record) if name == SAMPLES else record | {"seed": config.samples.seed}

    def nearest_neighbors(self, features: dict[str, Tensor] | None) -> Neighbors:
        """Of samples and test images among the reference images; in pixels where no features are given."""
        count = self.config.neighbors.num_images
        if features is None:
            features = {SAMPLES: self.samples.images, "test": self.test.images, "reference": self.reference.images}
            features = {name: pixels(images) for name, images in features.items()}
        samples, test, reference = features[SAMPLES][:count], features["test"][:count], features["reference"]
        sample_distances, indices = nearest(samples, reference, "Nearest neighbours of samples")
        test_distances, _ = nearest(test, reference, "Nearest neighbours of test images")
        return Neighbors(sample_distances, indices, test_distances, self.config.neighbors.space)

    def speed(self) -> dict:
        device = self.accelerator.device
        record = {
            "metric": "images_per_second",
            "value": self.samples.images_per_second,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
            "processes": self.accelerator.num_processes,
            "batch_size": min(self.config.samples.batch_size, self.config.samples.num_images),
            "num_images": self.config.samples.num_images,
        }
        return self.of_samples(self.of_reference(record))

    # What every number depends on.

    def of_network(self, record: dict) -> dict:
        channels, height, width = self.reference.image_shape
        return record | {"network": self.network, "resolution": f"{height}x{width}x{channels}"}

    def of_reference(self, record: dict) -> dict:
        channels, height, width = self.reference.image_shape
        return record | {
            "dataset": self.reference.name,
            "split": self.config.data.reference_split,
            "resolution": f"{height}x{width}x{channels}",
        }

    def of_samples(self, record: dict) -> dict:
        return self.of_network(record) | {
            "images": SAMPLES,
            "sampler": describe_sampler(self.config, self.pipe),
            "nfe": self.samples.nfe,
            "seed": self.config.samples.seed,
            "precision": PRECISIONS[self.accelerator.mixed_precision],
        }

    # Results.

    def write(self, records: list[dict], neighbors: Neighbors | None, bits: Tensor | None) -> None:
        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        if config.save_images and self.samples is not None:
            save_images(self.samples.images, self.folder / "samples")
        results = {"pipeline": config.pipeline, "results": records}
        write_text(self.folder / "results.json", json.dumps(results, indent=2, allow_nan=False))
        tables = make_tables(records)
        page = draw_page(
            self.title(),
            tables,
            self.samples,
            neighbors,
            self.reference.images,
            bits,
            Path(config.pipeline).parent / "metrics.jsonl",
            config.neighbors.shown,
        )
        page.savefig(self.folder / ".page.incomplete", format="png")
        os.replace(self.folder / ".page.incomplete", self.folder / "page.png")
        if config.update_card:
            dataset = HUB_IDS.get(config.data.dataset, self.reference.name)
            own = [record for record in records if "network" in record and record["value"] is not None]
            results = [eval_result(record, dataset) for record in own]
            update_card(config.pipeline, results, self.network)
        print("\n\n".join(["", *map(markdown, tables), f"Results: {self.folder.resolve()}"]))

    def title(self) -> str:
        parameters = sum(p.numel() for p in self.pipe.unet.parameters())
        lines = [f"{self.config.pipeline} ({parameters:,} parameters, weights {self.network})"]
        if self.samples is not None:
            about = self.of_samples({})
            sampler = ", ".join(f"{key} {value}" for key, value in about["sampler"].items() if key != "class_name")
            lines += [
                f"{about['sampler']['class_name']}, NFE {about['nfe']}, seed {about['seed']}, {about['precision']}",
                sampler,
            ]
        return "\n".join(lines)


PRECISIONS = {"no": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast"}


def write_text(path: Path, text: str) -> None:
    """Write a file that appears complete or not at all."""
    temporary = path.with_name(f".{path.name}.incomplete")
    temporary.write_text(text)
    os.replace(temporary, path)


def main(arguments: list[str]) -> int:
    """Run the evaluation; returns the exit status."""
    try:
        config = read_evaluation_config(arguments)
        patience = InitProcessGroupKwargs(timeout=timedelta(days=1))  # processes wait for the slowest one
        accelerator = Accelerator(
            mixed_precision=mixed_precision(config),
            cpu=not torch.accelerator.is_available(),  # unasked, it would not connect the processes of torchrun
            kwargs_handlers=[patience],
        )
        logging.basicConfig(level=logging.WARNING if accelerator.is_main_process else logging.ERROR)
        Evaluation(config, accelerator).run()
        accelerator.end_training()
    except ConfigError as error:
        print(f"ConfigError: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
