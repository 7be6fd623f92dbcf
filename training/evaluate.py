"""Evaluate a pipeline:

    accelerate launch training/evaluate.py PIPELINE [FILE.yaml] key=value section.key=value ...

`evaluation/config.py` describes the keys; `training/evaluations/` holds ready files. The output folder then holds

    results.json   every number with all that it depends on      samples/   the samples as PNG files (save_images=true)
    page.png       tables, samples, nearest training images      shards/    what a second start does not compute again

Interrupt it, and the same command goes on. Each sample has its own seed, so that several processes (started as for
train.py) draw the same images as one.
"""

from run.command_help import help_if_asked

if __name__ == "__main__":
    help_if_asked(__doc__, "evaluation/config.py")

import json
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from evaluation.config import EvaluationConfig, read_evaluation_config
from evaluation.distances import FeatureStatistics
from evaluation.feature_metrics import compare_features, compute_features, eight_bits
from evaluation.feature_networks import shipped_statistics_path
from evaluation.folder_samples import as_samples, images_digest, is_folder_of_samples, load_samples
from evaluation.inputs import load_data, load_networks, load_pipeline, run_of
from evaluation.likelihood import bits_per_dim
from evaluation.model_card import eval_result, load_card, update_card
from evaluation.neighbors import Neighbors, nearest, pixels
from evaluation.page import draw_page
from evaluation.samples import Samples, draw_samples, network_digest, save_images
from evaluation.tables import make_tables, markdown
from evaluation.yardsticks import noisy_images
from images.sources import HUB_IDS
from images.streams import StreamError
from run.accelerator import make_accelerator
from run.draws import seed_of
from run.folder import require_outside_the_data
from run.launching import start_all_processes
from run.memory import keep_freed_memory
from run.written_folder import write_whole
from run.yaml_config import ConfigError
from sde_diffusers.commands.picture_files import require_writable

SAMPLES, REFERENCE, TEST = "samples", "reference", "test"
YARDSTICK, SUBSET = 2, 3  # streams of random numbers beside those of the samples
PRECISIONS = {"no": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast"}


class Evaluation:
    """One evaluation: the constructor loads what it needs, `run` does the work.

    Raises:
        ConfigError: if pipeline, data, feature networks or output folder do not allow what the configuration asks for.
    """

    def __init__(self, config: EvaluationConfig, accelerator: Accelerator):
        self.config, self.accelerator, self.folder = config, accelerator, Path(config.output_dir)
        self.cache = Path(config.cache_dir).expanduser()
        require_outside_the_data(config.data, config.output_dir)
        given = Path(config.pipeline).expanduser().resolve()
        if config.save_images and given == (self.folder / "samples").resolve():
            raise ConfigError(f"save_images=true would write into {config.pipeline}, whose images are evaluated")
        for key, folder in (("output_dir", self.folder), ("cache_dir", self.cache)):
            try:
                require_writable(folder)
            except ValueError as error:
                raise ConfigError(f"{key}: {error}") from error
        if config.update_card:
            load_card(config.pipeline)
        with accelerator.local_main_process_first():  # which downloads, if need be
            self.given = load_samples(config) if is_folder_of_samples(config.pipeline) else None
            self.pipe = None if self.given else load_pipeline(config, accelerator.device)
            self.networks = load_networks(config, accelerator.device)
            self.reference, self.test = load_data(config, self.pipe, self.given)
        self.bands, height, width = self.reference.image_shape
        resolution = {"resolution": f"{height}x{width}x{self.bands}"}
        self.about_data = {"dataset": self.reference.name, "split": config.data.reference_split} | resolution
        network = images_digest(self.given.images) if self.given else network_digest(self.pipe.unet)
        self.about_network = {"network": network} | resolution

    def run(self) -> None:
        """Compute all numbers, and write them down."""
        config, samples, sets, likelihood, bits, neighbors = self.config, None, {}, None, None, None
        if config.samples.num_images:
            draw = draw_samples if self.given is None else lambda *_: as_samples(self.given, config.samples.seed)
            samples = draw(config, self.pipe, self.reference, self.accelerator)
            sets[SAMPLES] = eight_bits(samples.images, samples.pixels)
        if config.yardsticks:
            seed = seed_of(config.samples.seed, YARDSTICK)
            count = config.samples.num_images or None
            noisy = noisy_images(self.test.images, config.yardsticks, count, seed, self.test.pixels)
            sets |= {name: eight_bits(images, self.test.pixels) for name, images in noisy.items()}
        features = {space: self.features(space, sets) for space in self.networks}
        if config.likelihood.num_images:
            likelihood, bits = bits_per_dim(config, self.pipe, self.test, self.accelerator)
        if not self.accelerator.is_main_process:
            return  # nothing is left to share

        records = [record for space in features for record in self.compare(space, features[space], samples)]
        if likelihood is not None:
            records.append(likelihood | self.about_network)
        if samples is not None and self.given is None:
            records.append(self.speed(samples))
        if samples is not None and config.neighbors.num_images:
            neighbors = self.neighbors(samples, config.neighbors.space, features)
            records.append(neighbors.record() | {"num_reference": len(self.reference)} | self.about_samples(samples))
        self.write(records, samples, neighbors, bits)

    def features(self, space: str, sets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features of all sets (8 bits), of reference images and, for the neighbours, of test images, by name."""
        network, data = self.networks[space], {REFERENCE: self.reference}
        if self.config.neighbors.space == space and self.test is not None:
            data[TEST] = self.test
        own = self.folder / "shards" / "features"
        found = {name: compute_features(x, name, network, own, self.accelerator) for name, x in sets.items()}
        for name, images in data.items():
            title = f"{name} images of {images.name}"
            shown = eight_bits(images.images, images.pixels)
            found[name] = compute_features(shown, title, network, self.cache, self.accelerator)
        return found

    def compare(self, space: str, features: dict[str, Tensor], samples: Samples | None) -> Iterator[dict]:
        """The records of one feature space."""
        config, network, reference = self.config, self.networks[space], features[REFERENCE]
        statistics, shipped = FeatureStatistics.from_features(reference), {}
        if config.frechet_reference == "shipped":
            statistics = FeatureStatistics.load(shipped_statistics_path(network), network.name)
            shipped = {key: statistics.description[key] for key in ("dataset", "split")}
        seed = seed_of(config.samples.seed, SUBSET)
        names = [name for name in features if name not in (REFERENCE, TEST)]
        for name in tqdm(names, desc=f"Comparing in {network.name}", dynamic_ncols=True):
            about = {"images": name, "num_images": len(features[name]), "seed": config.samples.seed} | self.about_data
            about |= {"feature_space": network.name, "feature_dimension": network.dimension}
            about |= {"feature_resolution": network.resolution}
            few = "first one" if self.bands == 2 else "first 3"
            about |= {"bands": f"the {few} of {self.bands}"} if self.bands not in (1, 3) else {}
            about |= self.about_samples(samples) if name == SAMPLES else {}
            found = compare_features(
                config.metrics, features[name], reference, statistics, config.bootstrap_resamples, seed
            )
            for record in found:
                yield about | record | (shipped if record["metric"] == "frechet_distance" else {})

    def neighbors(self, samples: Samples, space: str, features: dict[str, dict[str, Tensor]]) -> Neighbors:
        """Nearest reference images of samples and test images, in pixels or one of the feature spaces."""
        if space == "pixels":
            sets = {SAMPLES: samples, TEST: self.test, REFERENCE: self.reference}
            vectors = {name: pixels(x.images, x.pixels) for name, x in sets.items() if x is not None}
        else:
            vectors, space = features[space], self.networks[space].name
        count, generator = self.config.neighbors.num_images, torch.Generator().manual_seed(self.config.samples.seed)
        of_samples, indices = nearest(vectors[SAMPLES][:count], vectors[REFERENCE], "Neighbours of samples")
        of_test_images = None
        if self.test is not None:
            chosen = torch.randperm(len(self.test), generator=generator)[:count]  # a folder may be sorted by class
            of_test_images, _ = nearest(vectors[TEST][chosen], vectors[REFERENCE], "Neighbours of test images")
        return Neighbors(of_samples, indices, of_test_images, space)

    def speed(self, samples: Samples) -> dict:
        speed = {"metric": "images_per_second", "value": samples.images_per_second, "num_images": len(samples.images)}
        return speed | samples.machine | self.about_samples(samples)

    def about_samples(self, samples: Samples) -> dict:
        """What a number measured on the samples depends on."""
        return {
            "images": SAMPLES,
            "sampler": samples.sampler,
            "nfe": samples.nfe,
            "batch_size": samples.batch_size,
            "seed": self.config.samples.seed,
            "precision": PRECISIONS[self.accelerator.mixed_precision],
            **self.about_network,
            **self.about_data,
        }

    def write(
        self, records: list[dict], samples: Samples | None, neighbors: Neighbors | None, bits: Tensor | None
    ) -> None:
        """The files of the output folder, and the model card if asked for."""
        config, tables = self.config, make_tables(records)
        self.folder.mkdir(parents=True, exist_ok=True)
        if config.save_images and samples is not None:
            save_images(samples.images, self.folder / "samples", samples.pixels)
        results = {"pipeline": config.pipeline, "results": records}
        text = json.dumps(results, indent=2, allow_nan=False)
        write_whole(self.folder / "results.json", lambda path: path.write_text(text))
        title = f"{config.pipeline} (images of a folder)"
        if self.pipe is not None:
            parameters = sum(parameter.numel() for parameter in self.pipe.unet.parameters())
            title = f"{config.pipeline} ({parameters:,} parameters, weights {self.about_network['network']})"
        if samples is not None and self.pipe is not None:
            sampler = ", ".join(str(v) if k == "class_name" else f"{k} {v}" for k, v in samples.sampler.items())
            precision = PRECISIONS[self.accelerator.mixed_precision]
            title += f"\n{sampler}\nNFE {samples.nfe}, seed {config.samples.seed}, {precision}"
        curve = run_of(config.pipeline) / "metrics.jsonl"  # of train.py's output folder
        page = draw_page(title, tables, samples, neighbors, self.reference, bits, curve, config.neighbors.shown)
        write_whole(self.folder / "page.png", lambda path: page.savefig(path, format="png"))
        if config.update_card:
            dataset = HUB_IDS.get(config.data.dataset, self.reference.name)
            own = [record for record in records if "network" in record and record["value"] is not None]
            results = [eval_result(record, dataset) for record in own]
            update_card(config.pipeline, results, self.about_network["network"])
        print("\n\n".join(["", *map(markdown, tables), f"Results: {self.folder.resolve()}"]))


def launch(work: Callable[[EvaluationConfig, Accelerator], None], arguments: list[str]) -> int:
    """Do `work` with the configuration that the arguments describe; returns the exit status."""
    try:
        config = read_evaluation_config(arguments)
        keep_freed_memory()
        accelerator = make_accelerator(config.mixed_precision, timedelta(days=1))  # all wait for the slowest one
        work(config, accelerator)
        accelerator.end_training()
    except (ConfigError, StreamError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def main(arguments: list[str]) -> int:
    """Run the evaluation; returns the exit status."""
    return launch(lambda config, accelerator: Evaluation(config, accelerator).run(), arguments)


if __name__ == "__main__":
    start_all_processes()
    sys.exit(main(sys.argv[1:]))
