"""Pictures of guided sampling and of editing by latent codes for the documentation.

    python docs/make_guidance_figures.py OUTPUT_FOLDER [--pipeline FOLDER] [--classifier FOLDER]

guidance_scales.png   one class to a column from the same latents, a kind and scale of guidance to a row
latent_editing.png    test images of Fashion-MNIST, encoded, and decoded after a change of their codes or their class
"""

import argparse
import sys
from pathlib import Path

import torch
from make_restoration_figures import panel

from sde_diffusers import NoiseConditionalClassifier, ScoreSdeExponentialScheduler, ScoreSdePipeline

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "training")]
from images.loading import load_images  # noqa: E402

STEPS, CLASSES, INTERVAL = 20, 10, (0.3, 5.0)
SHOE, BAG, PULLOVER, DRESS = 7, 8, 2, 3
TOLERANCE = 1e-3  # of the codes: the eye sees no difference
TEMPERATURES = (0.85, 0.95, 1.0, 1.05)


def guided_rows(pipe):
    """(label, one strip of images) for each kind of guidance."""
    settings = [(f"scale {w:g}", {"guidance_scale": w}) for w in (0.0, 1.0, 2.0, 4.0)]
    settings += [("4, interval", {"guidance_scale": 4.0, "guidance_interval": INTERVAL})]
    if pipe.classifier is not None:
        settings += [(f"classifier {v:g}", {"guidance_scale": 0.0, "classifier_scale": v}) for v in (1.0, 2.0, 4.0)]
    latents = torch.randn(CLASSES, *pipe._image_shape, generator=torch.Generator().manual_seed(0))
    options = {"class_labels": list(range(CLASSES)), "latents": latents, "output_type": "pt"}
    return [(name, [pipe(CLASSES, STEPS, **options, **setting).images]) for name, setting in settings]


def edited_rows(pipe, data):
    """(class, strips of one image) for images of several classes: decoded after changes of code or class."""
    labels = torch.tensor([SHOE, PULLOVER, DRESS])
    images = torch.stack([data.images[data.labels == k][1] for k in labels.tolist()]).float() / 255
    options = {"rtol": TOLERANCE, "atol": TOLERANCE}
    codes = pipe.encode(images, class_labels=labels, **options)
    columns = [images]
    columns += [pipe.decode(tau * codes, class_labels=labels, **options) for tau in TEMPERATURES]
    columns += [pipe.decode(codes, class_labels=k, **options) for k in (SHOE, PULLOVER, DRESS, BAG)]
    names = data.class_names
    titles = ["image", *(f"code x {tau:g}" for tau in TEMPERATURES)]
    titles += [f"as {names[k].lower()}" for k in (SHOE, PULLOVER, DRESS, BAG)]
    rows = [(names[k].lower(), [column[i : i + 1] for column in columns]) for i, k in enumerate(labels.tolist())]
    return titles, rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the figures are written")
    parser.add_argument("--pipeline", default=str(ROOT / "pretrained" / "fashion-mnist-ve"))
    parser.add_argument("--classifier", help="folder of a noise-conditional classifier")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    pipe = ScoreSdePipeline.from_pretrained(arguments.pipeline)
    pipe.scheduler = ScoreSdeExponentialScheduler.from_config(pipe.scheduler.config, eta=0.0)
    if arguments.classifier:
        pipe.classifier = NoiseConditionalClassifier.from_pretrained(arguments.classifier)
    panel(arguments.folder / "guidance_scales.png", [""], guided_rows(pipe))
    titles, rows = edited_rows(pipe, load_images("fashion_mnist", "test"))
    panel(arguments.folder / "latent_editing.png", titles, rows)


if __name__ == "__main__":
    main()
