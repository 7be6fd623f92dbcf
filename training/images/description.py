"""What a data set holds, in words, as JSON and as a picture: so that a person sees what would be trained on."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import asdict, dataclass, field

from images.loading import ImageData
from images.pixels import (
    NAMED,
    all_equal,
    suggest_sigma_data,
    suggest_sigma_max,
    suggest_white_level,
    value_extremes,
)
from images.sources import Source
from images.streams import StreamedImages

CLASSES_IN_SHORT = 12


@dataclass
class Description:
    """Attributes:
    files: number of data files; None where the Hub keeps them.
    images: number of images that can be used, in all splits; those of the Hub's streams are not counted.
    splits: number of them in each split, None where a stream does not tell.
    classes: number of images of each class in the split that is trained on; None without labels.
    shape: (C, H, W); None if the images differ.
    dtype: one of `VALUE_TYPES`.
    range: the least and the largest value of that split.
    skipped: what is left out, with its reason.
    """

    files: int | None
    images: int
    splits: dict[str, int | None]
    classes: dict[str, int] | None
    shape: list[int] | None
    dtype: str | None
    range: list[float] | None
    skipped: list[dict[str, str]] = field(default_factory=list)

    def as_json(self) -> dict:
        return asdict(self)


def describe(source: Source, split: str, loaded: dict[str, ImageData | StreamedImages]) -> Description:
    """Of a data set whose splits have been loaded (those that could be)."""
    skipped = [{"name": name, "reason": reason} for name, reason in source.skipped]
    if source.num_skipped > len(source.skipped):
        more = source.num_skipped - len(source.skipped)
        skipped.append({"name": f"{more} more files", "reason": "as those before"})
    splits: dict[str, int | None] = {}
    for name, rows in source.splits.items():
        data = loaded.get(name)
        count = getattr(rows, "num_images", None) if not hasattr(rows, "__len__") else len(rows)
        splits[name] = count if data is None else data.num_images
        if data is not None:
            reasons = data.skipped.reasons
            skipped += [{"name": item, "reason": reasons.get(item, "")} for item in data.skipped]
    data = loaded.get(split)
    values = data.images if isinstance(data, ImageData) else None
    return Description(
        files=source.files,
        images=sum(count or 0 for count in splits.values()),
        splits=splits,
        classes=class_counts(data),
        shape=None if data is None else list(data.image_shape),
        dtype=None if data is None else data.pixels.dtype,
        range=None if values is None else list(value_extremes(values)),
        skipped=skipped,
    )


def class_counts(data: ImageData | StreamedImages | None) -> dict[str, int] | None:
    """Number of images of each class; classes without a name go by their number."""
    labels = getattr(data, "labels", None)
    if labels is None:
        return None
    present = dict(zip(*(values.tolist() for values in labels.unique(return_counts=True)), strict=True))
    if data.class_names:
        return {name: present.get(k, 0) for k, name in enumerate(data.class_names)}
    return {str(k): count for k, count in present.items()}


def in_short(data: ImageData | StreamedImages) -> str:
    """What is trained on, in a few lines: found and used, classes, values, and what is left out."""
    pixels = data.pixels
    if isinstance(data, StreamedImages):
        found = "a stream" if data.num_images is None else f"{data.num_images:,} found"
        values = f"{pixels.dtype} from {pixels.low:g} to {pixels.high:g}"
    else:
        found = f"{len(data):,} used of {len(data) + len(data.skipped):,} found"
        low, high = value_extremes(data.images)
        values = f"{pixels.dtype} from {low:g} to {high:g}, in the range {pixels.low:g} to {pixels.high:g}"
    lines = [f"Data: {found}, {' x '.join(map(str, data.image_shape))}, {values}"]
    if (counts := class_counts(data)) is not None:
        shown = [f"{name} {count:,}" for name, count in itertools.islice(counts.items(), CLASSES_IN_SHORT)]
        more = f" and {len(counts) - CLASSES_IN_SHORT} more" if len(counts) > CLASSES_IN_SHORT else ""
        lines.append(f"Classes: {', '.join(shown)}{more}")
    if data.skipped:
        lines.append(f"Left out: {data.skipped.explain()}{'; ...' if len(data.skipped) > NAMED else ''}")
    return "\n".join(lines)


def suggestions(data: ImageData) -> list[str]:
    """Keys of a configuration that these images ask for, for networks on [0, 1] and [-1, 1]."""
    lines = []
    if len(data) > 1 and all_equal(data.images):
        lines.append("nothing for model.sigma_data and scheduler.sigma_max, since all images are the same")
    elif len(data) > 1:
        deviation, distance = (
            measure(data.images, pixels=data.pixels) for measure in (suggest_sigma_data, suggest_sigma_max)
        )
        for scale, image_range in ((1, "[0, 1]"), (2, "[-1, 1]")):
            lines.append(
                f"scheduler.image_range={image_range}: model.sigma_data={scale * deviation:.3g} "
                f"scheduler.sigma_max={scale * distance:.3g}"
            )
    low, high = value_extremes(data.images)
    if data.pixels.dtype == "float32":
        lines.append(f"data.value_range=[{low:.9g},{high:.9g}]")
    elif data.pixels.levels in (256, 65536) and (white := suggest_white_level(data.pixels.dtype, high)):
        lines.append(f"data.white_level={white}, since no value is above {high:g}")
    elif data.pixels.dtype == "int16" and data.pixels.levels == 65536:
        lines.append(f"data.value_range=[{low:g},{high:g}], since the type reaches from -32768 to 32767")
    return lines


def duplicates(loaded: dict[str, ImageData]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Images of one split that are in another one, too, value for value: {two splits: their names}."""
    seen = {split: _by_content(data) for split, data in loaded.items() if isinstance(data, ImageData)}
    found = {}
    for one, other in itertools.combinations(seen, 2):
        common = [digest for digest in seen[one] if digest in seen[other]]
        if common:
            found[one, other] = [
                (loaded[one].name_of(seen[one][digest]), loaded[other].name_of(seen[other][digest]))
                for digest in common
            ]
    return found


def _by_content(data: ImageData) -> dict[bytes, int]:
    return {hashlib.sha256(image.numpy().tobytes()).digest(): k for k, image in enumerate(data.images)}
