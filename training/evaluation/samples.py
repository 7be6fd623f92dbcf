"""The samples to evaluate: image k has its own seed, so that it is the same in every run and for any processes."""

import inspect
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from evaluation.config import EvaluationConfig
from evaluation.shards import compute_in_shards, digest
from images.loading import ImageData
from run.draws import seed_of
from sde_diffusers import ScoreSdePipeline
from sde_diffusers.class_names import DATA_KEYS
from sde_diffusers.images import PixelFormat, to_pil
from sde_diffusers.schedulers.fitted_steps import fits_in_short
from sde_diffusers.weights_digest import weights_digest

NOISE, LABELS = 0, 1  # streams of random numbers
NETWORK_PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float32"}  # by that of the layers around it


@dataclass(frozen=True)
class Samples:
    """Drawn images and what it took.

    Attributes:
        images: values of `pixels`, (N, C, H, W).
        labels: int64, (N,): the class that each was asked for; None without classes.
        sampler: its class and arguments, steps, guidance and classes.
        batch_size: images drawn at once.
        nfe: evaluations of the network for each image.
        images_per_second: of one process, its first batch (in which libraries warm up) left out if there are more.
        machine: on which this speed was reached: device, threads of a process, processes.
        pixels: what the values mean.
    """

    images: Tensor
    labels: Tensor | None
    sampler: dict
    batch_size: int
    nfe: int
    images_per_second: float
    machine: dict
    pixels: PixelFormat = PixelFormat()


def describe_sampler(config: EvaluationConfig, pipe: ScoreSdePipeline) -> dict:
    """What a sample depends on besides network and seed: the sampler with its arguments, steps, guidance, classes."""
    known = inspect.signature(type(pipe.scheduler)).parameters
    arguments = {key: value for key, value in pipe.scheduler.config.items() if key in known and value is not None}
    if "fits" in arguments:
        arguments["fits"] = fits_in_short(arguments["fits"])
    possible = "balanced" if pipe.unet.config.num_class_embeds else "none"
    return {
        "class_name": type(pipe.scheduler).__name__,
        **json.loads(json.dumps(arguments)),
        "num_inference_steps": config.samples.num_inference_steps or pipe.scheduler.default_num_inference_steps,
        "guidance_scale": config.samples.guidance_scale,
        "classes": config.samples.classes or possible,
    }


def network_digest(network: torch.nn.Module) -> str:
    """Twelve hexadecimal digits that tell networks apart by their weights and configuration, as far as it computes.

    Keys with the default value do not count, so that a key that a later release adds changes no digest.
    """

    def plain(value):
        return list(value) if isinstance(value, tuple) else value

    defaults = {name: plain(key.default) for name, key in inspect.signature(type(network)).parameters.items()}
    public = {
        name: plain(value) for name, value in network.config.items() if not (name.startswith("_") or name in DATA_KEYS)
    }
    config = {name: value for name, value in public.items() if name not in defaults or value != defaults[name]}
    return weights_digest(network, json.dumps(config, sort_keys=True, default=str))[:12]


def meaning_of_values(pipe: ScoreSdePipeline) -> dict:
    """What an image depends on besides network and sampler: which numbers its values stand for."""
    pixels, image_range = pipe.pixel_format, pipe.scheduler.parameterization.image_range
    return {"pixels": [pixels.dtype, pixels.low, pixels.high], "image_range": list(image_range)}


def draw_samples(
    config: EvaluationConfig, pipe: ScoreSdePipeline, reference: ImageData, accelerator: Accelerator
) -> Samples:
    """Draw `config.samples.num_images` images, or those of them that an earlier run did not come to.

    Args:
        reference: whose labels classes "random" are drawn from.

    Raises:
        ConfigError: the folder holds samples of another configuration.
    """
    options, this_machine = config.samples, _describe_machine(accelerator)
    size = min(options.batch_size, options.num_images)
    sampler, num_classes = describe_sampler(config, pipe), pipe.unet.config.num_class_embeds
    # Nothing is left to trial, so that all processes, and a second start, compute alike.
    own_inputs = getattr(pipe.unet, "accepts_float32_input", False)  # or else autocast alone is the more exact
    precision = NETWORK_PRECISIONS[accelerator.mixed_precision] if own_inputs else None
    how_asked = pipe.optimize(size, layout="channels_last", precision=precision)
    accelerator.print(how_asked)

    def draw(indices: range) -> dict[str, Tensor]:
        labels = class_labels(sampler["classes"], indices, num_classes, reference.labels, options.seed)
        began = time.perf_counter()
        how = {"num_inference_steps": sampler["num_inference_steps"], "guidance_scale": options.guidance_scale}
        with accelerator.autocast():
            images, nfe = draw_numbered(pipe, indices, labels, options.seed, **how)
        work = {"seconds": [time.perf_counter() - began], "nfe": [nfe]}
        work = {name: torch.tensor(value, dtype=torch.float64) for name, value in work.items()}
        return {"images": images, "machine": this_machine, **work, **({} if labels is None else {"labels": labels})}

    description = {
        **meaning_of_values(pipe),
        "network": network_digest(pipe.unet),
        "sampler": sampler,
        "seed": options.seed,
        "precision": f"{accelerator.mixed_precision}, {how_asked.precision} network",
        "data_labels": digest(reference.labels) if options.classes == "random" else None,
    }
    count = -(-options.num_images // size) * size  # whole batches, so that more images can follow later
    drawn = compute_in_shards(
        draw, Path(config.output_dir) / "shards" / "samples", description, count, size, accelerator, "Sampling"
    )
    # Parts of a resumed evaluation may have been drawn elsewhere: the speed is that of the last one's machine.
    last = drawn["machine"][-1]
    seconds, machine = drawn["seconds"][(drawn["machine"] == last).all(1)], json.loads(bytes(last.tolist()))
    seconds = seconds[machine["processes"] :] if len(seconds) > machine["processes"] else seconds
    n = options.num_images
    return Samples(
        images=drawn["images"][:n],
        labels=drawn["labels"][:n] if "labels" in drawn else None,
        sampler=sampler,
        batch_size=size,
        nfe=int(drawn["nfe"][0]),
        images_per_second=size * len(seconds) / seconds.sum().item(),
        machine=machine,
        pixels=pipe.pixel_format,
    )


@torch.no_grad()
def draw_numbered(
    pipe: ScoreSdePipeline, indices: range, labels: Tensor | None, seed: int, **how
) -> tuple[Tensor, int]:
    """The images with these numbers and the evaluations of the network that they took.

    The images are values (n, C, H, W) of the pipeline's `pixel_format`, on the CPU.

    Args:
        labels: (n,) classes or None.
        how: arguments of the pipeline's call.
    """
    generators = [torch.Generator().manual_seed(seed_of(seed, NOISE, k)) for k in indices]
    output = pipe(batch_size=len(indices), class_labels=labels, generator=generators, output_type="pt", **how)
    return pipe.pixel_format.from_unit(output.images).cpu(), output.nfe  # the CPU has waited for the GPU


def _describe_machine(accelerator: Accelerator) -> Tensor:
    """Device, threads of a process and number of processes, in JSON as shards can hold it: uint8, (1, 256)."""
    device = accelerator.device
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
    }
    return torch.tensor([list(json.dumps(machine).encode().ljust(256))], dtype=torch.uint8)


def class_labels(
    kind: str, indices: range, num_classes: int | None, data_labels: Tensor | None, seed: int
) -> Tensor | None:
    """The classes (n,) that the images with these numbers are asked for: see `SamplesConfig.classes`."""
    if kind == "none":
        return None
    if kind == "balanced":
        return torch.tensor([k % num_classes for k in indices])
    return torch.stack([data_labels[seed_of(seed, LABELS, k) % len(data_labels)] for k in indices])


def save_images(images: Tensor, folder: Path, pixels: PixelFormat = PixelFormat()) -> None:  # noqa: B008 (frozen)
    """Write the images as numbered files, from 000000; such files that are there, of other samples, are deleted.

    They are PNG files where that format has their depth and colours, else TIFF (one channel) or .npy, (C, H, W): the
    second or fourth channel of a PNG file is its opacity.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if re.fullmatch(r"\d{6,}\.(png|tif|npy|incomplete)", path.name):
            path.unlink()
    dtype, channels = pixels.dtype, images.shape[1]
    png, tiff = dtype == "uint8" and channels in (1, 3) or dtype == "uint16" and channels == 1, channels == 1
    ending, kind = (".png", "PNG") if png else (".tif", "TIFF") if tiff else (".npy", None)
    for k, image in enumerate(tqdm(images, desc="Saving images", dynamic_ncols=True)):
        path = folder / f"{k:06d}{ending}"
        with open(path.with_suffix(".incomplete"), "wb") as file:
            if kind is None:
                np.save(file, image.numpy().astype(dtype))
            else:
                to_pil(pixels.to_unit(image[None]), pixels)[0].save(file, kind)
        path.with_suffix(".incomplete").rename(path)
