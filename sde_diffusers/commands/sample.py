"""`sde-diffusers sample`: images drawn from a model."""

import io
import json
import os
import sys
from pathlib import Path

from sde_diffusers.commands.arguments import (
    add_command,
    add_model_arguments,
    loaded_pipeline,
    named_class,
    number_from_zero,
    own_generators,
    positive_integer,
    positive_number,
    seed_number,
)
from sde_diffusers.commands.picture_files import claimed, require_new, save_pictures, write_whole

SAMPLERS = ("exponential", "predictor-corrector", "probability-flow", "consistency")
OWN_SETTINGS = {"eta": "exponential", "snr": "predictor-corrector"}  # and whose they are
SAMPLE_EXAMPLES = """
  sde-diffusers sample pretrained/fashion-mnist-ve garments --number 16 --steps 20
  sde-diffusers sample pretrained/fashion-mnist-ve bags --number 8 --class Bag --guidance-scale 1.5 --seed 100
  sde-diffusers sample you/garments garments.npy --number 1000 --batch-size 100 --sampler exponential --eta 0 --json
"""


def add_sample_parser(commands) -> None:
    parser = add_command(
        commands,
        "sample",
        "draw images from a model",
        SAMPLE_EXAMPLES,
        "Draw images from a model. Image k is that of the seed SEED + k, in batches of any size (but that the "
        "Langevin steps of predictor-corrector, as in the paper, are as long as suits all images of a batch).",
        usage="model out [options]",
    )
    add_model_arguments(parser)
    parser.add_argument("output", type=Path, metavar="out", help="a new folder for pictures, or a new .npy file")
    parser.add_argument("--number", type=positive_integer, help="of images (default: 1, or one for each class)")
    parser.add_argument("--steps", type=positive_integer, help="time steps (default: the sampler's own)")
    parser.add_argument(
        "--class",
        dest="classes",
        nargs="+",
        metavar="CLASS",
        help="names or numbers: one for all images, or one for each",
    )
    parser.add_argument(
        "--guidance-scale", type=number_from_zero, default=1.0, help="towards the class (default: 1, none)"
    )
    parser.add_argument(
        "--guide-scale", type=number_from_zero, default=1.0, help="away from the weaker guide (default: 1, none)"
    )
    parser.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="instead of the one that the model was saved with; consistency models have their own, others the rest",
    )
    parser.add_argument(
        "--eta", type=number_from_zero, help="noise of the exponential sampler: 0 for the ODE, 1 for the SDE"
    )
    parser.add_argument("--snr", type=positive_number, help="of the predictor-corrector's Langevin steps, such as 0.1")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the first image (default: 0)")
    parser.add_argument("--batch-size", type=positive_integer, default=16, help="images at once (default: 16)")
    parser.set_defaults(run=run_sample)


def run_sample(options) -> int:
    if options.output.suffix.lower() == ".npy" and os.path.lexists(options.output):
        raise ValueError(f"{options.output} exists.")
    require_new(options.output)

    from sde_diffusers.saved_folders.repository import require_outside

    require_outside(options.model, options.output)
    with claimed(options.output):
        return draw_images(options)


def draw_images(options) -> int:
    array = options.output.suffix.lower() == ".npy"
    classes = options.classes or [None]
    number = options.number or len(classes)
    if len(classes) not in (1, number):
        raise ValueError(f"--class must name one class, or one for each of {number} images, but names {len(classes)}.")
    classes = classes * number if len(classes) == 1 else classes

    import numpy as np

    from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline

    pipe = loaded_pipeline(ScoreSdePipeline, options)
    require_mode(pipe, array, options.output)
    classes = [named_class(pipe, label) for label in classes]
    pipe.scheduler = chosen_sampler(options, pipe.scheduler)
    files, arrays, nfe = [], [], 0
    try:
        for start in range(0, number, options.batch_size):
            numbers = range(start, min(start + options.batch_size, number))
            pipe.set_progress_bar_config(disable=None, desc=f"images {numbers[0] + 1}-{numbers[-1] + 1} of {number}")
            images, nfe = pipe(
                batch_size=len(numbers),
                num_inference_steps=options.steps,
                class_labels=None if options.classes is None else classes[start : numbers[-1] + 1],
                guidance_scale=options.guidance_scale,
                guide_scale=options.guide_scale,
                generator=own_generators(options.seed, numbers),
                output_type="np" if array else "pil",
                data_units=array,
                return_dict=False,
            )
            if array:
                arrays.append(images)
            else:
                files += save_pictures(
                    {f"{k:05}": image for k, image in zip(numbers, images, strict=True)}, options.output
                )
    except KeyboardInterrupt:
        if files:
            print(f"{len(files)} of {number} images are in {options.output}.", file=sys.stderr)
        raise
    if array:
        content = io.BytesIO()
        np.save(content, np.concatenate(arrays))
        write_whole(options.output, content.getvalue())
        files = [options.output]
    if options.json:
        seeds = list(range(options.seed, options.seed + number))
        labels = None if options.classes is None else classes
        print(json.dumps({"files": list(map(str, files)), "seeds": seeds, "classes": labels, "nfe": nfe}))
    else:
        print(f"Wrote {number} image{'s' * (number > 1)} to {options.output}: {nfe} evaluations of networks for each.")
    return 0


def require_mode(pipe, array: bool, output: Path) -> None:
    """Raise a ValueError if pictures can't hold what the model draws."""
    from sde_diffusers.images import require_pil_mode

    channels = pipe.unet.config.in_channels
    try:
        if not array:
            require_pil_mode(pipe.pixel_format, channels)
    except ValueError:
        kind = f"{pipe.pixel_format.dtype} images of {channels} channels"
        raise ValueError(f"No picture can hold {kind}: name a file of numbers, such as {output}.npy.") from None


def chosen_sampler(options, own):
    """The sampler that the options ask for; `own` is the model's.

    Raises:
        ValueError: on settings of another sampler than that, or out of their range.
    """
    from sde_diffusers.schedulers.scheduling_consistency import ScoreSdeConsistencyScheduler
    from sde_diffusers.schedulers.scheduling_exponential import ScoreSdeExponentialScheduler
    from sde_diffusers.schedulers.scheduling_predictor_corrector import ScoreSdePredictorCorrectorScheduler
    from sde_diffusers.schedulers.scheduling_probability_flow import ScoreSdeProbabilityFlowScheduler

    classes = {
        "exponential": ScoreSdeExponentialScheduler,
        "predictor-corrector": ScoreSdePredictorCorrectorScheduler,
        "probability-flow": ScoreSdeProbabilityFlowScheduler,
        "consistency": ScoreSdeConsistencyScheduler,
    }
    chosen = classes[options.sampler] if options.sampler else type(own)
    settings = {key: getattr(options, key) for key in OWN_SETTINGS if getattr(options, key) is not None}
    for key, value in settings.items():
        if chosen is not classes[OWN_SETTINGS[key]]:
            raise ValueError(
                f"--{key} {value:g} is for the sampler {OWN_SETTINGS[key]!r}, but this one is {chosen.__name__}: "
                f"add --sampler {OWN_SETTINGS[key]}."
            )
    if options.eta:  # what was fitted has no noise
        settings["fits"] = None
    return chosen.from_config(own.config, **settings) if options.sampler or settings else own
