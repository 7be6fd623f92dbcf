"""Show what a run would train on:

    python training/show_data.py DATASET [data.key=value ...] [--picture FILE] [--json FILE] [--run FOLDER]

prints the splits of a data set, its classes with their counts, what its values are, what is left out and why, images
that are in two splits, and the settings that they suggest. DATASET and the keys are those of train.py's `data`.
`--picture` draws some images with their labels, `--json` writes the numbers. With `--run`, the images that a run has
held out are a split of their own, held_out, and `data.split=held_out` shows it. Exit status 1: a run would be refused.
"""

import argparse
import json
import logging
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from images.description import describe, duplicates, in_short, suggestions
from images.loading import ImageData, load_images
from images.pixels import Skipped
from run.config import RUN_RULES, DataConfig
from run.folder import require_outside_the_data
from run.record import parted, read_record
from run.splits import HELD_OUT, Images, loading_options, open_data
from run.yaml_config import ConfigError, merge
from sde_diffusers.images import visible

SHOWN, COLUMNS = 50, 10  # images of the picture
NAMED = 10  # files left out, or twice there, that are named


@dataclass
class ShownConfig:
    data: DataConfig = field(default_factory=DataConfig)


def show(config: DataConfig, picture: Path | None, numbers: Path | None, run: Path | None = None) -> int:
    """Print, draw and write; returns the exit status.

    Raises:
        ConfigError: there is no such data set, or it can mean two things.
    """
    for path in (picture, numbers):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ConfigError(f"{path} cannot be written: it is a folder, or there is no folder {path.parent}")
        if path is not None:
            require_outside_the_data(config, path, "--picture" if path is picture else "--json")
    record = None if run is None else read_record(run)
    if run is not None and (record is None or not record.held_out):
        raise ConfigError(f"--run {run} is no folder of a run that has held images out")
    if config.split == HELD_OUT and record is None:
        raise ConfigError("data.split=held_out is what a run has not trained on: name its folder by --run")
    opened = record.split if config.split == HELD_OUT else config.split
    try:
        source = open_data(config)
        source[opened]
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
    for note in source.notes:
        print(f"Note: {note}")
    source.notes.clear()  # they need not be said for each split again
    loaded, refused = {}, {}
    for split in source.splits:
        try:
            of_groups = {"stream_shards": config.stream_shards, "stream_by_size": config.stream_by_size}
            of_groups = of_groups if split == opened else {}
            options = loading_options(config) | of_groups
            loaded[split] = load_images(source, split, max_images=config.max_images, **options)
        except (ValueError, OSError) as error:
            refused[split] = error
    if record is not None and isinstance(loaded.get(record.split), ImageData):
        loaded[record.split], held_out, missing = parted(loaded[record.split], record)
        if not len(held_out):
            raise ConfigError(f"none of the {len(missing)} images that {run} has held out is in {source.name}")
        # What cannot be read is told of the split itself.
        source.splits[HELD_OUT], loaded[HELD_OUT] = held_out.rows, replace(held_out, skipped=Skipped())
        if missing:
            print(f"Note: {len(missing)} of the images held out are missing, such as {missing[0]}")
    description = describe(source, config.split, loaded)
    if description.files is not None:
        print(f"Files: {description.files:,}")
    for split, count in description.splits.items():
        print(f"Split {split}: {'a stream' if count is None else f'{count:,} images'}")
    if config.split in loaded:
        print(in_short(loaded[config.split]))
    for item in description.skipped[:NAMED]:
        print(f"Left out: {item['name']} ({item['reason']})")
    if len(description.skipped) > NAMED:
        print(f"Left out: {len(description.skipped) - NAMED} more, which --json lists")
    for (one, other), pairs in duplicates(loaded).items():
        examples = ", ".join(f"{a} = {b}" for a, b in pairs[:3])
        print(f"Duplicates: {len(pairs):,} images are in {one} and in {other}, such as {examples}")
    data = loaded.get(config.split)
    if isinstance(data, ImageData):
        for line in suggestions(data):
            print(f"Suggested: {line}")
    if data is not None and picture is not None:
        contact_sheet(data).savefig(picture, format="png")
    if numbers is not None:
        numbers.write_text(json.dumps(description.as_json(), indent=2) + "\n", encoding="utf-8")
    for split, error in refused.items():
        print(f"Split {split} would be refused: {error}", file=sys.stderr)
    return 1 if opened in refused else 0


def contact_sheet(data: Images) -> Figure:
    """Some images with their labels: evenly spaced, or of a stream those of a first batch."""
    count = SHOWN if data.num_images is None else min(SHOWN, data.num_images)
    if isinstance(data, ImageData):
        images, labels = data[torch.tensor([k * len(data) // count for k in range(count)])]
    else:
        count = max(count // data.groups, 1) * data.groups
        images, labels = next(data.batches(count, seed=0))
    unit = visible(data.pixels.to_unit(images)).clamp(0, 1)
    columns, rows = min(COLUMNS, count), -(-count // COLUMNS)
    figure = Figure(figsize=(1.2 * columns, 1.4 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for k, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if k < count:
            axes.imshow(unit[k].permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1)
            if labels is not None:
                label = int(labels[k])
                axes.set_title(data.class_names[label] if data.class_names else str(label), fontsize=7)
    return figure


def main(arguments: list[str]) -> int:
    """Show the data set that the arguments describe; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("keys", nargs="*", metavar="data.key=value")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", type=Path)
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s")
    rules = {key: rule for key, rule in RUN_RULES.items() if key.startswith("data.")}
    try:
        config = merge(ShownConfig, rules, [], options.keys, data={"dataset": options.dataset})
        paths = (path and path.expanduser() for path in (options.picture, options.json, options.run))
        return show(config.data, *paths)
    except ConfigError as error:
        print(f"ConfigError: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
