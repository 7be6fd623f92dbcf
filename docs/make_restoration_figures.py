"""Pictures of restorations for the documentation.

    python docs/make_restoration_figures.py OUTPUT_FOLDER [--pipeline FOLDER]
    python docs/make_restoration_figures.py OUTPUT_FOLDER --colour FOLDER --dataset cifar10

restoration_tasks.png    test images of Fashion-MNIST: measurement, three posterior samples, their mean and pixel-wise
                         standard deviation, for each kind of measurement
restoration_methods.png  the same measurements restored by each method
restoration_strength.png images that were noised and denoised (SDEdit) at growing strength
restoration_colour.png   test images of --dataset without their colours, and several colorizations by the network of
                         colour images --colour
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import torch

from sde_diffusers import ScoreSdeExponentialScheduler, ScoreSdePipeline, ScoreSdeRestorationPipeline
from sde_diffusers.operators import Downsampling, GaussianBlur, Mask, box_mask, random_mask, stroke_mask

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "training")]
from images.loading import load_images  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

NOISE, STEPS, SAMPLES = 0.05, 20, 6
CHOSEN = (0, 2, 8)  # of the test images: three kinds of garment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


TASKS = {
    "centre box": (Mask(box_mask(28, 28, (7, 7, 21, 21))), 0.0),
    "strokes": (Mask(stroke_mask(28, 28, generator=generator(1))), 0.0),
    "75 % missing": (Mask(random_mask((28, 28), 0.75, generator())), 0.0),
    "4x smaller": (Downsampling(4), 0.0),
    "blur, noise 0.05": (GaussianBlur(1.5), NOISE),
}


def measured(operator, noise, images):
    y = operator(images)
    white = torch.randn(y.shape, generator=generator(4))
    return y + noise * white


def shown(operator, y):
    """A measurement as a picture: missing pixels in grey, small images enlarged."""
    if isinstance(operator, Mask):
        return torch.where(operator.mask, 0.5, y)
    return operator.adjoint(y) / operator.gram if isinstance(operator, Downsampling) else y


def panel(path, titles, rows):
    """Rows of (label, list of (N, C, H, W) strips, gray or RGB) under titles."""
    n = len(rows[0][1][0])
    figure, axes = plt.subplots(
        len(rows), len(titles), figsize=(0.75 * n * len(titles) + 1, 0.85 * len(rows) + 0.3), squeeze=False
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    for row, (label, strips) in zip(axes, rows, strict=True):
        for axis, strip in zip(row, strips, strict=True):
            picture = torch.cat(list(strip), dim=2).clamp(0, 1).permute(1, 2, 0)
            axis.imshow(picture.squeeze(2) if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center")
    figure.subplots_adjust(
        left=0.9 / figure.get_figwidth(),
        right=0.995,
        bottom=0.01,
        top=1 - 0.3 / figure.get_figheight(),
        wspace=0.03,
        hspace=0.05,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def colour_figure(folder, pipeline, dataset, count=6):
    pipe = ScoreSdeRestorationPipeline.from_pretrained(pipeline)
    pipe.scheduler = ScoreSdeExponentialScheduler.from_config(pipe.scheduler.config, solver_order=1, eta=1.0)
    images = load_images(dataset, "test", image_size=pipe.unet.config.sample_size, channels=3, max_images=count).images
    images = images.float() / 255
    gray = images.mean(1, keepdim=True)
    out = pipe.colorize(gray, num_samples=4, generator=generator(), num_inference_steps=50, output_type="pt")
    samples = out.images.unflatten(0, (count, 4))
    rows = [("image", [images]), ("gray", [gray]), *((f"sample {k + 1}", [samples[:, k]]) for k in range(4))]
    panel(folder / "restoration_colour.png", [""], [*rows, ("mean", [out.mean])])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the figures are written")
    parser.add_argument("--pipeline", default=str(ROOT / "pretrained" / "fashion-mnist-ve"))
    parser.add_argument("--colour", help="a pipeline of colour images: draw the figure of colorization instead")
    parser.add_argument("--dataset", default="cifar10", help="of the images that lose their colours")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.colour:
        colour_figure(arguments.folder, arguments.colour, arguments.dataset)
        return
    images = load_images("fashion_mnist", "test").images[list(CHOSEN)].float() / 255
    pipe = ScoreSdeRestorationPipeline.from_pretrained(arguments.pipeline)
    pipe.scheduler = ScoreSdeExponentialScheduler.from_config(pipe.scheduler.config, solver_order=1, eta=1.0)
    options = {"num_inference_steps": STEPS, "output_type": "pt"}
    tasks, methods = [], []
    for name, (operator, noise) in TASKS.items():
        y = measured(operator, noise, images)
        out = pipe(y, operator, noise, num_samples=SAMPLES, generator=generator(), **options)
        samples = out.images.unflatten(0, (len(images), SAMPLES))
        strips = [images, shown(operator, y), *(samples[:, k] for k in range(3)), out.mean, 2 * out.std]
        tasks.append((name, strips))
        strips = [images, shown(operator, y)]
        for method in ("projection", "dps", "pigdm", "mmps"):
            if method == "projection" and noise and operator.gram is None:
                strips.append(torch.ones_like(images))
                continue
            strips.append(pipe(y, operator, noise, method, generator=generator(), **options).images)
        methods.append((name, strips))
    titles = ["image", "measured", "sample 1", "sample 2", "sample 3", f"mean of {SAMPLES}", "deviation (white: 0.5)"]
    panel(arguments.folder / "restoration_tasks.png", titles, tasks)
    titles = ["image", "measured", "projection", "DPS", "Pi-GDM", "MMPS"]
    panel(arguments.folder / "restoration_methods.png", titles, methods)
    plain, strengths = ScoreSdePipeline.from_pipe(pipe), (0.2, 0.4, 0.6, 0.8)
    edited = [plain(image=images, strength=s, generator=generator(), **options).images for s in strengths]
    titles = ["image", *(f"strength {s}" for s in strengths)]
    panel(arguments.folder / "restoration_strength.png", titles, [("", [images, *edited])])


if __name__ == "__main__":
    main()
