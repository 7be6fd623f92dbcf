"""`sde-diffusers restore`: pictures painted in, coloured, enlarged or sharpened, by what a model knows."""

import json
from pathlib import Path

from sde_diffusers.commands.arguments import (
    add_command,
    add_model_arguments,
    integer,
    loaded_pipeline,
    named_class,
    number,
    number_from_zero,
    own_generators,
    positive_integer,
    seed_number,
)
from sde_diffusers.commands.picture_files import claimed, opened_picture, require_new, save_pictures

RESTORATIONS = {
    "inpaint": "paint missing pixels",
    "colorize": "give colours to a grey picture",
    "super-resolve": "enlarge a picture whose pixels are means of the model's",
    "deblur": "sharpen a blurred picture",
}
RESTORE_EXAMPLES = {
    "inpaint": """
  sde-diffusers restore inpaint you/faces portrait.png out --mask scratches.png --samples 4
  sde-diffusers restore inpaint pretrained/fashion-mnist-ve shirt.png out --mask hole.png --class Shirt --seed 7
""",
    "colorize": """
  sde-diffusers restore colorize you/faces grey.png out --weights 0.299 0.587 0.114 --samples 4
""",
    "super-resolve": """
  sde-diffusers restore super-resolve you/faces small.png out --factor 4 --steps 50
""",
    "deblur": """
  sde-diffusers restore deblur you/faces blurred.png out --blur 1.5 --noise-std 0.01
""",
}


def add_restore_parser(commands) -> None:
    parser = add_command(
        commands,
        "restore",
        "fill in, colour, enlarge or sharpen a picture",
        "".join(map(str.rstrip, RESTORE_EXAMPLES.values())),
        "Draw pictures that a model thinks likely and that agree with the given one. Written are the samples and, "
        "with several of them, their mean and their deviation (white: half of the range, or more).",
    )
    tasks = parser.add_subparsers(dest="task", title="what is restored", required=True)
    for task, meaning in RESTORATIONS.items():
        options = add_command(tasks, task, meaning, RESTORE_EXAMPLES[task])
        add_model_arguments(options)
        options.add_argument("picture", type=Path, help="the picture to restore")
        options.add_argument("output", type=Path, metavar="out", help="a new or empty folder for the results")
        if task == "inpaint":
            options.add_argument("--mask", type=Path, required=True, help="picture, white where pixels are missing")
        if task == "colorize":
            share = number("above 0 and below 1", lambda value: 0 < value < 1)
            options.add_argument(
                "--weights",
                type=share,
                nargs=3,
                default=(1 / 3, 1 / 3, 1 / 3),
                metavar=("R", "G", "B"),
                help="of the colours in what is grey (default: equal; of a camera or PIL: 0.299 0.587 0.114)",
            )
        if task == "super-resolve":
            options.add_argument("--factor", type=integer(2, 1024), required=True, help="of height and width")
        if task == "deblur":
            blur = number("above 0 and up to 1000", lambda value: 0 < value <= 1000)
            options.add_argument("--blur", type=blur, required=True, help="deviation of the Gaussian blur in pixels")
        options.add_argument(
            "--noise-std", type=number_from_zero, help="of the picture, whose white is 1 (default: the task's)"
        )
        options.add_argument(
            "--method", default="mmps", help="of posterior sampling (default: mmps; any other word lists them)"
        )
        options.add_argument("--samples", type=positive_integer, default=1, help="number of results (default: 1)")
        options.add_argument("--steps", type=positive_integer, help="time steps (default: the sampler's own)")
        options.add_argument("--class", dest="label", help="what the picture shows")
        options.add_argument("--seed", type=seed_number, default=0, help="of the first sample (default: 0)")
        options.set_defaults(run=run_restore)


def run_restore(options) -> int:
    require_new(options.output)

    from sde_diffusers.saved_folders.repository import require_outside

    require_outside(options.model, options.output)
    with claimed(options.output):
        return restore_picture(options)


def restore_picture(options) -> int:
    picture = opened_picture(options.picture, "picture")
    mask = opened_picture(options.mask, "--mask") if options.task == "inpaint" else None

    from sde_diffusers.pipelines.pipeline_score_sde_restoration import ScoreSdeRestorationPipeline

    pipe = loaded_pipeline(ScoreSdeRestorationPipeline, options)
    channels = pipe.unet.config.in_channels
    if options.task == "colorize" and channels != 3:
        raise ValueError(
            f"restore colorize needs a model of 3 channels, but the images of {options.model} have {channels}."
        )
    how = {
        "method": options.method,
        "num_samples": options.samples,
        "num_inference_steps": options.steps,
        "class_labels": named_class(pipe, options.label),
        "generator": own_generators(options.seed, range(options.samples)),
    }
    if options.noise_std is not None:
        how["noise_std"] = options.noise_std
    if options.task == "inpaint":
        output = pipe.inpaint(picture, mask, **how)
    elif options.task == "colorize":
        output = pipe.colorize(picture, options.weights, **how)
    elif options.task == "super-resolve":
        output = pipe.super_resolve(picture, options.factor, **how)
    else:
        output = pipe.deblur(picture, options.blur, **how)
    named = {f"sample_{k:02}": image for k, image in enumerate(output.images)}
    if options.samples > 1:
        named |= {"mean": output.mean[0], "deviation": output.std[0]}
    files = list(map(str, save_pictures(named, options.output)))
    if options.json:
        print(json.dumps({"files": files, "nfe": output.nfe, "products": output.products}))
    else:
        pictures = f"{len(files)} picture{'s' * (len(files) > 1)}"
        print(f"Wrote {pictures} to {options.output}: {output.nfe} evaluations of networks for each sample.")
    return 0
