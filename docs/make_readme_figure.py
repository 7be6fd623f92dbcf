"""The picture of README.md: what the shipped models draw, a data set to a row.

python docs/make_readme_figure.py docs/images/three_data_sets.png
"""

import sys

import torch
from torch.nn.functional import interpolate
from torchvision.utils import save_image

from sde_diffusers import ScoreSdePipeline

COLUMNS, SIDE = 12, 64
ROWS = {  # model: steps, guidance; a class to each column, over and over
    "fashion-mnist-ve": (20, 1.0),
    "cifar10-ve": (15, 2.0),
    "cassava-64-ve": (20, 1.0),
}


def row(name, steps, guidance_scale):
    """(COLUMNS, 3, SIDE, SIDE) images in [0, 1], the first that the seeds from 0 give."""
    pipe = ScoreSdePipeline.from_pretrained(f"pretrained/{name}")
    labels = [k for k, name in enumerate(pipe.unet.config.class_names) if name != "cbb"]  # of cbb there are no images
    images = pipe(
        COLUMNS,
        steps,
        class_labels=[labels[k % len(labels)] for k in range(COLUMNS)],
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(k) for k in range(COLUMNS)],
        output_type="pt",
    ).images
    return interpolate(images.expand(-1, 3, -1, -1), SIDE, mode="nearest")


if __name__ == "__main__":
    images = [row(name, *settings) for name, settings in ROWS.items()]
    save_image(torch.cat(images), sys.argv[1], nrow=COLUMNS, padding=2, pad_value=1)
