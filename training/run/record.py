"""What a run has found out about its images and keeps: what values mean, what it has held out.

Measured numbers stand in its configuration (`measured.py`).

A resumed run goes on with these numbers, even if there are more images now; an evaluation finds the images that the
run has never trained on. The record stands in the run's folder, and in each checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from images.loading import ImageData
from images.rows import Rows, Selection
from images.streams import StreamedImages
from run.written_folder import write_whole
from run.yaml_config import ConfigError
from sde_diffusers.images import PixelFormat

RECORD = "images.json"
NUMBERED = r".*\[\d+\]|(image|row) \d+"  # names of images that are no names of files
SAID_BY_IMAGES = ("value_dtype", "value_range", "class_names")  # of the network's arguments


class OtherImages(ValueError):
    """Images have the names of those that a run has held out, and are others."""


@dataclass
class ImageRecord:
    """Attributes:
    dataset, split, num_images: what was trained on; the number includes images held out, None of a stream.
    value_dtype, value_range: what the values mean, as `PixelFormat` has it.
    class_names: of the labels, None where unknown.
    held_out: names of the images of that split which were set aside; None if none were.
    held_out_digests: of their values, see `digest_of`; None in records of older releases.
    image_shape: (C, H, W); likewise.
    max_images: how many of the split were chosen, as `load_images` has it; None of all, or if later steps have chosen
        others.
    num_found: how many images the split had when they were chosen; None of streams, and in records of older releases.
    data_dir: as `load_images` has it.
    """

    dataset: str
    split: str
    num_images: int | None
    value_dtype: str
    value_range: list[float]
    class_names: list[str] | None = None
    held_out: list[str] | None = None
    held_out_digests: list[str] | None = None
    image_shape: list[int] | None = None
    max_images: int | None = None
    num_found: int | None = None
    data_dir: str | None = None

    @classmethod
    def of(
        cls, data: ImageData | StreamedImages, split: str, validation=None, max_images=None, data_dir=None
    ) -> ImageRecord:
        """Of the training images, and of validation images if these are a part of the same split."""
        held_out = digests = None
        if isinstance(validation, ImageData) and validation.rows is data.rows:
            held_out = [validation.name_of(k) for k in range(len(validation))]
            digests = [*map(digest_of, validation.images)]
        count = None if data.num_images is None else data.num_images + len(held_out or ())
        pixels = data.pixels
        values = pixels.dtype, [pixels.low, pixels.high]
        rows = data.rows.rows if isinstance(data.rows, Selection) else data.rows
        found = len(rows) if isinstance(rows, Rows) else None
        about = data.class_names, held_out, digests, list(data.image_shape), max_images, found, data_dir
        return cls(data.name, split, count, *values, *about)

    @property
    def pixels(self) -> PixelFormat:
        return PixelFormat.of(self.value_dtype, self.value_range)

    def kept(self, data: ImageData | StreamedImages) -> str:
        """What a resumed run keeps, although its images may be others now; in words."""
        count = None if data.num_images is None else data.num_images + len(self.held_out or ())
        kept = [f"values from {self.value_range[0]:g} to {self.value_range[1]:g}"]
        if self.held_out:
            kept.append(f"{len(self.held_out)} images held out")
        changed = f" ({self.num_images} images then, {count} now)" if count != self.num_images else ""
        return f"As measured when the run began{changed}: {', '.join(kept)}"

    def gone_on(self, now: ImageRecord) -> ImageRecord:
        """The record of a run that is resumed with the images of `now`."""
        same = all(getattr(self, key) == getattr(now, key) for key in ("max_images", "num_found", "data_dir"))
        return self if same else dataclasses.replace(self, max_images=None)

    def require_shape(self, data: ImageData | StreamedImages) -> None:
        """Raise a ValueError if images have another shape than when the run began."""
        if self.image_shape not in (None, list(data.image_shape)):
            then, now = (" x ".join(map(str, shape)) for shape in (self.image_shape, data.image_shape))
            raise ValueError(
                f"the images were {then} when the run began, but those of {data.name} are {now} now: data.image_size "
                "and data.channels make them the same"
            )

    def require_classes(self, data: ImageData | StreamedImages) -> None:
        """Raise a ConfigError if labels mean other classes than when the run began, as far as these have names."""
        if self.class_names not in (None, data.class_names):
            raise ConfigError(
                f"data: the classes were {self.class_names} when the run began, but those of {data.name} are "
                f"{data.class_names} now: a resumed run keeps its classes and their order"
            )

    def as_dict(self) -> dict:
        return dataclasses.asdict(self)

    def write(self, folder: Path) -> None:
        text = json.dumps(self.as_dict(), indent=2) + "\n"
        write_whole(folder / RECORD, lambda path: path.write_text(text, encoding="utf-8"))


def refuse_said_by_images(model: dict) -> None:
    """Raise a ConfigError if the section `model` gives what the network is told of the images."""
    for key in SAID_BY_IMAGES:
        if key in model:
            told = "data.value_range says, or else " if key == "value_range" else ""
            raise ConfigError(f"model.{key} is what {told}the images say, but is given as {model[key]}: leave it out")


def read_record(folder: Path) -> ImageRecord | None:
    """The record in a run's folder; None if there is none, as in those of older releases."""
    path = folder / RECORD
    try:
        return ImageRecord(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no record of a run's images: {error}. Move it away, or mend it") from error


def record_in(state: dict) -> ImageRecord | None:
    """The record in the state of a checkpoint, likewise."""
    try:
        return ImageRecord(**state["images"]) if state.get("images") else None
    except TypeError as error:
        raise ConfigError(
            f"the checkpoint of step {state['step']} holds no record of a run's images: {error}"
        ) from error


def digest_of(image: torch.Tensor) -> str:
    """What tells the values of images apart."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:16]


def parted(data: ImageData, record: ImageRecord) -> tuple[ImageData, ImageData, list[str]]:
    """The other images of a data set, those that the record has held out, and the names that are there no more.

    Raises:
        OtherImages: images have those names, and are others; if names are numbers of rows, one such image suffices,
            since rows were then added or taken away. Or an image that was held out has another name now.
    """
    names = {name: k for k, name in enumerate(map(data.name_of, range(len(data))))}
    found = {name: names[name] for name in record.held_out if name in names}
    missing = [name for name in record.held_out if name not in names]
    if record.held_out_digests:
        digests = dict(zip(record.held_out, record.held_out_digests, strict=True))
        others = [name for name, k in found.items() if digest_of(data.images[k]) != digests[name]]
        if others and (len(others) == len(found) or re.fullmatch(NUMBERED, others[0])):
            raise OtherImages(
                f"{others[0]} of {data.name} is another image than the one of {record.dataset} that the run has held "
                "out under that name: these are other data, or rows were added or taken away, and which images the "
                "run has trained on cannot be known"
            )
        deleted = len(data) + len(missing) == record.num_images  # and no image has come, or got another name
        elsewhere = {} if deleted else {digests[name]: name for name in others + missing}
        for name, k in names.items() if elsewhere else ():
            if name not in found and (once := elsewhere.get(digest_of(data.images[k]))):
                raise OtherImages(
                    f"{name} of {data.name} is the image that the run has held out as {once}: images have got other "
                    "names, and which of them the run has trained on cannot be known"
                )
    chosen = sorted(found.values())
    others = sorted(set(range(len(data))) - set(chosen))
    return *(data.part(torch.tensor(part, dtype=torch.int64)) for part in (others, chosen)), missing
