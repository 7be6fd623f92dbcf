"""`sde-diffusers bits-per-dim`: how likely a model thinks pictures are."""

import json
import math
import sys
import warnings
from pathlib import Path

from sde_diffusers.commands.arguments import (
    add_command,
    add_model_arguments,
    loaded_pipeline,
    named_class,
    number,
    own_generators,
    positive_integer,
    seed_number,
)
from sde_diffusers.commands.picture_files import opened_picture, pictures_of

BITS_EXAMPLES = """
  sde-diffusers bits-per-dim pretrained/fashion-mnist-subvp garments --dequantize truncated_normal
  sde-diffusers bits-per-dim you/garments one.png other.png --passes 5 --json
"""


def add_bits_per_dim_parser(commands) -> None:
    parser = add_command(
        commands,
        "bits-per-dim",
        "say how likely a model thinks pictures are",
        BITS_EXAMPLES,
        "Print the negative log-likelihood of pictures in bits per dimension: how many bits the model needs for each "
        "number of a picture (each pixel and colour); fewer mean that the picture is more likely. Picture k draws its "
        "noise from the seed SEED + k.",
    )
    add_model_arguments(parser)
    parser.add_argument("pictures", type=Path, nargs="+", help="files, or folders of them, of the model's size")
    parser.add_argument("--class", dest="label", help="the likelihood given this class")
    parser.add_argument(
        "--dequantize",
        choices=("uniform", "truncated_normal"),
        help="noise within a grey level, which makes real numbers of a picture's whole ones: the same everywhere "
        "(uniform, the default), or bell-shaped, which gives fewer bits for a model that was told the grey levels, as "
        "its card says; models of floating-point images take none",
    )
    parser.add_argument("--passes", type=positive_integer, help="dequantizations that are averaged (default: 1)")
    parser.add_argument("--probes", type=positive_integer, default=1, help="of the trace, for each (default: 1)")
    tolerance = number("from 1e-12 to 0.1", lambda value: 1e-12 <= value <= 0.1)
    parser.add_argument("--tolerance", type=tolerance, default=1e-5, help="of the ODE's solver (default: 1e-5)")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the first picture (default: 0)")
    parser.add_argument("--batch-size", type=positive_integer, default=16, help="pictures at once (default: 16)")
    parser.set_defaults(run=run_bits_per_dim)


def run_bits_per_dim(options) -> int:
    files = pictures_of(options.pictures)

    import torch
    from tqdm import tqdm

    from sde_diffusers.likelihood import standard_errors
    from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline

    pipe = loaded_pipeline(ScoreSdePipeline, options)
    require_measurable(pipe, files)
    label = named_class(pipe, options.label)
    bits, estimates, nfe = [], [], []
    with tqdm(total=len(files), unit="picture", disable=None) as bar:
        for start in range(0, len(files), options.batch_size):
            batch = files[start : start + options.batch_size]
            pictures = [opened_picture(file) for file in batch]
            output = pipe.bits_per_dim(
                pictures,
                generator=own_generators(options.seed, range(start, start + len(batch))),
                dequantize=options.dequantize,
                passes=options.passes,
                probes=options.probes,
                rtol=options.tolerance,
                atol=options.tolerance,
                class_labels=label,
            )
            bits += output.bits_per_dim.tolist()
            estimates.append(output.estimates.cpu())
            nfe.append(output.nfe)
            bar.update(len(batch))
    mean, error = sum(bits) / len(bits), standard_errors(torch.cat(estimates, dim=2))["total"]
    if options.json:
        values = {str(file): value for file, value in zip(files, bits, strict=True)}
        known = None if math.isnan(error) else error
        print(json.dumps({"bits_per_dim": values, "mean": mean, "standard_error": known, "nfe": max(nfe)}))
        return 0
    for file, value in zip(files, bits, strict=True):
        print(f"{value:8.4f}  {file}")
    if len(files) > 1:
        print(f"{mean:8.4f}  mean, with a standard error of {error:.4f}")
    return 0


def require_measurable(pipe, files: list[Path]) -> None:
    """Raise a ValueError that names the file unless all are pictures that the model measures, of one depth.

    They are read one after another, and again when they are measured: in memory are no more of them than a batch.
    """
    from sde_diffusers.guidance import image_shape
    from sde_diffusers.images import image_values
    from sde_diffusers.likelihood.questions import numbers_and_levels

    channels, *expected = image_shape(pipe.unet)
    depths: list[str] = []
    warnings.filterwarnings("ignore", "`images` has colours")  # each is told of below, by its name
    for file in files:
        picture = opened_picture(file)
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                numbers, _ = image_values("images", picture, channels, pipe.pixel_format)
            for note in told:
                print(f"{file} {str(note.message).removeprefix('`images` ')}", file=sys.stderr)
            height, width = numbers.shape[2:]
            if [height, width] != expected:
                own = f"{expected[1]} x {expected[0]}"
                raise ValueError(f"has {width} x {height} pixels, but the model's images {own}.")
            depths.append(str(numbers.dtype).removeprefix("torch."))
            if depths[-1] in {"uint8", "uint16"} - {pipe.pixel_format.dtype}:
                raise ValueError(f"holds {depths[-1]} values, but the model's images {pipe.pixel_format.dtype}.")
            if depths[-1] != depths[0]:
                raise ValueError(f"holds {depths[-1]} values, but {files[0]} {depths[0]}: give pictures of one depth.")
            numbers_and_levels(pipe, picture, None, in_units=False)
        except ValueError as error:
            raise ValueError(f"{file} {str(error).removeprefix('`images` ')}") from None
