"""Pictures of what goes wrong, for docs/how_to/troubles.md: faults made on purpose with the model that ships.

    python docs/make_trouble_figures.py OUTPUT_FOLDER [--pipeline FOLDER]

troubles.png   the same latents in each row, with one thing wrong in all but the first
"""

import argparse
from pathlib import Path

import torch
from make_restoration_figures import panel

from sde_diffusers import NCSNppUNet2DModel, ScoreSdeExponentialScheduler, ScoreSdePipeline

ROOT = Path(__file__).parents[1]
COLUMNS, STEPS = 10, 20


def rows(pipe):
    """(name, one strip of images) for each fault."""
    latents = torch.randn(COLUMNS, *pipe._image_shape, generator=torch.Generator().manual_seed(0))
    options = {"class_labels": list(range(COLUMNS)), "latents": latents, "output_type": "pt"}
    config = dict(pipe.scheduler.config)

    def drawn(unet=pipe.unet, steps=STEPS, guidance_scale=1.0, **settings):
        scheduler = ScoreSdeExponentialScheduler.from_config(config, eta=0.0, **settings)
        faulty = ScoreSdePipeline(unet=unet, scheduler=scheduler)
        faulty.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return [faulty(COLUMNS, steps, guidance_scale=guidance_scale, generator=generator, **options).images]

    torch.manual_seed(0)
    untrained = NCSNppUNet2DModel.from_config(pipe.unet.config).eval()
    return [
        ("as it should be", drawn()),
        ("not trained", drawn(untrained)),
        ("sigma_max 1", drawn(sigma_max=1.0)),
        ("2 steps", drawn(steps=2)),
        ("guidance 12", drawn(guidance_scale=12.0)),
        ("noise left", drawn(final_denoise=False, sampling_eps=0.4)),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the figure is written")
    parser.add_argument("--pipeline", default=str(ROOT / "pretrained" / "fashion-mnist-ve"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    pipe = ScoreSdePipeline.from_pretrained(arguments.pipeline)
    panel(arguments.folder / "troubles.png", [""], rows(pipe))


if __name__ == "__main__":
    main()
