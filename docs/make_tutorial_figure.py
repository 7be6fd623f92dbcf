"""The tutorial's table of samples: its three samplers on a network of training/configs/tutorial.yaml.

    python docs/make_tutorial_figure.py PIPELINE OUTPUT_FOLDER

Writes tutorial_samples.png: one sampler to a row, from the same latents. Numbers of steps, signal-to-noise ratio and
tolerance are those of yang-song.net/blog/2021/score.
"""

import argparse
from pathlib import Path

import torch
from make_restoration_figures import panel

from sde_diffusers import ScoreSdePipeline, ScoreSdePredictorCorrectorScheduler

IMAGES, STEPS, SNR, TOLERANCE = 16, 500, 0.16, 1e-5


def rows(pipe):
    """(label, one strip of images) of each sampler."""
    deviation = pipe.scheduler.init_noise_sigma
    latents = torch.randn(IMAGES, *pipe._image_shape, generator=torch.Generator().manual_seed(0))
    pipe.scheduler = ScoreSdePredictorCorrectorScheduler.from_config(
        pipe.scheduler.config, predictor="euler_maruyama", corrector="langevin", snr=SNR, corrector_steps=1
    )
    options = {"latents": latents, "generator": torch.Generator().manual_seed(1), "output_type": "pt"}
    corrected = pipe(IMAGES, STEPS, **options)
    yield f"predictor-\ncorrector\nNFE {corrected.nfe}", [corrected.images]
    pipe.scheduler = ScoreSdePredictorCorrectorScheduler.from_config(pipe.scheduler.config, corrector="none")
    predicted = pipe(IMAGES, STEPS, **options)
    yield f"Euler-\nMaruyama\nNFE {predicted.nfe}", [predicted.images]
    ode = pipe.decode(deviation * latents, rtol=TOLERANCE, atol=TOLERANCE, return_dict=True)
    yield f"ODE\nNFE {ode.nfe}", [ode.sample.clamp(0, 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder of a saved pipeline")
    parser.add_argument("folder", type=Path, help="where the figure is written")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    pipe = ScoreSdePipeline.from_pretrained(arguments.pipeline)
    panel(arguments.folder / "tutorial_samples.png", [""], list(rows(pipe)))


if __name__ == "__main__":
    main()
