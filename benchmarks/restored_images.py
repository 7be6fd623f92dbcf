"""Test images restored by the posterior methods of this package and of others: a table of `restoration.py`.

Five tasks, noise of deviation 0.05 in all (images in [0, 1]), one posterior sample for each image, all methods through
the same network with as many evaluations of it (time steps). For each method and task:

    PSNR               in dB, mean over the images. A posterior sample has twice the squared error of the posterior's
                       mean, so that a method may gain by drawing too narrowly.
    kernel distance    x 1000, of the restored images from test images that took no part, in the features of this
                       repository's own network: an unbiased estimate, which so few images permit (a Frechet distance
                       from them would be all bias); it gains by images that look like the data, and so does not reward
                       blurred means.

Restored images are kept in the folder, batch by batch, so that an interrupted run goes on; other settings, another
number of images included, want another folder (which images are drawn depends on their number).
"""

import itertools
import json
import sys
import time
from pathlib import Path

import torch
from posterior_methods import Counted, generator, posterior_methods
from safetensors import safe_open
from safetensors.torch import save_file
from side_by_side import earlier_rows, write_results
from tqdm import tqdm

from sde_diffusers import ScoreSdeExponentialScheduler, ScoreSdePipeline
from sde_diffusers.operators import Downsampling, GaussianBlur, Mask, MaskedFourier, box_mask, random_mask

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "training"))
from evaluation.distances import kernel_distance  # noqa: E402
from evaluation.feature_networks import load_feature_network  # noqa: E402
from evaluation.samples import network_digest  # noqa: E402
from images.loading import load_images  # noqa: E402

NOISE = 0.05  # of the measurements, in units of images in [0, 1]
REFERENCE = 4000  # test images that restored ones are compared with
SKIPPED = "30 steps", "cg, 30", "cg 30"  # words of those with ten times the products


class ImageProblem(Counted):
    """Noisy measurements of some of the images (N, C, H, W) in [-1, 1]; see `posterior_methods`."""

    sigma_data, std = 0.5, 2 * NOISE

    def __init__(self, pipe, operator, images, some: slice, draws=1):
        if isinstance(operator, Mask) and len(operator.mask) > 1:
            operator = Mask(operator.mask[some])
        images, self.draws, self.seed = images[some], draws, some.start
        self.network, self.scheduler, self.shape = pipe.unet, pipe.scheduler, tuple(images.shape)
        self.operator = operator.for_images(self.shape)
        white = torch.randn(self.operator.measurement_shape(self.shape), generator=generator(self.seed + 1))
        self.y = self.operator.measured(self.operator(images) + self.std * white)

    def denoise(self, x, sigma):
        """What a network with EDM's preconditioning answers: E[x_0 | x_0 + sigma noise = x]."""
        return self.network(x.float(), torch.as_tensor(sigma).float().flatten().expand(len(x))).sample.float()


def tasks(shape):
    """{name: operator} for images of shape (N, C, H, W)."""
    n, _, h, w = shape
    return {
        "centre box": Mask(box_mask(h, w, (h // 4, w // 4, 3 * h // 4, 3 * w // 4))),
        "75 % missing": Mask(random_mask((n, 1, h, w), 0.75, generator())),
        "4x smaller": Downsampling(4),
        "blur 1.5": GaussianBlur(1.5),
        "40 % of Fourier samples missing": MaskedFourier(random_mask((h, w), 0.6, generator())),
    }


def restored(path, settings, pipe, operator, images, method, arguments):
    """Restored images in [0, 1], and {"evaluations", "products" of a sample, "seconds" of the processor}.

    Those that an earlier run with the same settings kept in `path` are taken from there.
    """
    found, figures = kept(path, settings)
    while len(found) < len(images):
        start = time.process_time()
        problem = ImageProblem(pipe, operator, images, slice(len(found), len(found) + arguments.batch))
        batch = (method(problem, arguments.steps).detach().float() / 2 + 0.5).clamp(0, 1)
        seconds = round(figures.get("seconds", 0) + time.process_time() - start, 1)
        figures = {"evaluations": problem.evaluations, "products": problem.products, "seconds": seconds}
        found = torch.cat([found, batch])
        temporary = path.with_suffix(".tmp")
        save_file({"images": found}, temporary, {"about": json.dumps({"settings": settings, "figures": figures})})
        temporary.replace(path)
    return found, figures


def kept(path, settings):
    """Images and figures of an earlier run; none if there was none."""
    if not path.is_file():
        return torch.empty(0), {}
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        if about["settings"] != settings:
            sys.exit(f"{path} was made with {about['settings']}, not with {settings}: choose another folder.")
        return file.get_tensor("images"), about["figures"]


def test_images(arguments, others: int):
    """The first of the test images, as many as are asked for, and `others` that follow: uint8 (N, C, H, W)."""
    count, name = arguments.count, arguments.dataset or arguments.data.replace("-", "_")
    images = load_images(name, "test", max_images=count + others).images
    if len(images) < count + others:
        sys.exit(f"{count} images and {others} others are needed, but there are {len(images)}.")
    return images[:count], images[count:]


def score_network(arguments):
    """The pipeline, with the reverse-time SDE in first order."""
    name = arguments.pipeline or ROOT / "pretrained" / f"{arguments.data}-ve"
    pipe = ScoreSdePipeline.from_pretrained(name, torch_dtype=getattr(torch, arguments.dtype))
    pipe.scheduler = ScoreSdeExponentialScheduler.from_config(pipe.scheduler.config, solver_order=1, eta=1.0)
    pipe.unet.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_table(arguments, folder):
    features, pipe = load_feature_network(arguments.data), score_network(arguments)
    eight_bits, others = test_images(arguments, REFERENCE)
    reference = features(others)

    def distance(images):
        found = kernel_distance(features(images), reference, subset_size=len(images) // 2, generator=generator())
        return {"distance": 1000 * found.mean, "distance_error": 1000 * found.standard_error}

    settings = {"data": arguments.data, "network": network_digest(pipe.unet), "dtype": arguments.dtype}
    settings |= {"images": arguments.count, "steps": arguments.steps, "batch": arguments.batch, "noise_std": NOISE}
    images = eight_bits.float() / 127.5 - 1
    methods = {
        name: method
        for name, method in posterior_methods().items()
        if not any(word in name for word in SKIPPED)
        and (not arguments.only or any(word in name for word in arguments.only))
    }
    cells = list(itertools.product(tasks(images.shape).items(), methods.items()))
    anew = {(task, method) for (task, _), (method, _) in cells}
    records = [
        r for r in earlier_rows(folder, "images", settings, "records")[1:] if (r["task"], r["method"]) not in anew
    ]
    records.insert(0, {"task": "none", "method": "the images themselves"} | distance(eight_bits))

    def keep(record):
        records.append(record)
        write_results(folder, "images", {**settings, "records": records}, image_lines(records))

    for (task, operator), (method, sample) in tqdm(cells, desc="cells"):
        record = {"task": task, "method": method}
        path = folder / f"{task} {method}.safetensors".replace(" ", "_").replace("%", "percent")
        try:
            found, figures = restored(path, settings, pipe, operator, images, sample, arguments)
        except Exception as error:  # of whichever library: it is a result
            keep(record | {"refused": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"})
            continue
        if found.isfinite().all():
            mse = (found - images / 2 - 0.5).square().flatten(1).mean(1)
            record["psnr"] = (-10 * mse.log10()).mean().item()
            record |= distance((255 * found).round().byte())
        keep(record | figures)
    print(image_lines(records))


def image_lines(records) -> str:
    """A row for each method: what an evaluation takes beside itself, and PSNR / distance for each task."""
    names = list(dict.fromkeys(r["task"] for r in records[1:]))
    lines = [f"| method | products per evaluation | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for method in dict.fromkeys(r["method"] for r in records[1:]):
        own = {r["task"]: r for r in records if r["method"] == method}
        counted = [r["products"] / r["evaluations"] for r in own.values() if "evaluations" in r]
        products = f"{max(counted):.1f}" if counted else ""
        lines.append(f"| {method} | {products} | {' | '.join(cell_text(own.get(name)) for name in names)} |")
    lines.append(f"\nThe images themselves: {records[0]['distance']:.2f} +- {records[0]['distance_error']:.2f}.")
    return "\n".join(lines) + "\n"


def cell_text(record) -> str:
    if record is None:
        return ""
    if "refused" in record:
        return "refuses"
    return f"{record['psnr']:.2f} / {record['distance']:.1f}" if "psnr" in record else "diverges"
