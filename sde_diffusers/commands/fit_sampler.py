"""`sde-diffusers fit-sampler`: samplers of few steps, fitted to a model's network and stored with it."""

import json
import os
from pathlib import Path

from sde_diffusers.commands.arguments import (
    add_command,
    add_model_arguments,
    integer,
    loaded_pipeline,
    named_class,
    number_from_zero,
    positive_integer,
    seed_number,
)
from sde_diffusers.commands.picture_files import require_picture_name, require_writable, save_picture

FIT_EXAMPLES = """
  sde-diffusers fit-sampler runs/demo/pipeline
  sde-diffusers fit-sampler runs/demo/pipeline --steps 3 4 --guidance-scale 1.5 --picture fits.png
  sde-diffusers fit-sampler you/garments --steps 2 3 4 5 6 8 --output garments-in-few-steps
"""
SHOWN = 8  # images of each kind in the picture


def add_fit_sampler_parser(commands) -> None:
    parser = add_command(
        commands,
        "fit-sampler",
        "fit samplers of few steps to a model",
        FIT_EXAMPLES,
        "Fit the noise levels and the coefficients of samplers of few steps to a model's network, and store them in "
        "its scheduler's configuration. Sampling in so many steps then takes them. --json prints the folder "
        '("output") and what became of each number of steps ("fits").',
        usage="model [options]",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--steps", type=integer(2, 12), nargs="+", default=[2, 3, 4, 5, 6, 8], help="(default: 2 3 4 5 6 8)"
    )
    parser.add_argument("--output", type=Path, help="a new folder for the model (default: the model's own folder)")
    parser.add_argument("--picture", type=Path, help="a new picture: solutions of the ODE, default steps, fitted ones")
    parser.add_argument("--class", dest="label", metavar="CLASS", help="(default: all in turn)")
    parser.add_argument(
        "--guidance-scale", type=number_from_zero, default=1.0, help="of the sampling to come (default: 1, none)"
    )
    parser.add_argument(
        "--guide-scale", type=number_from_zero, default=1.0, help="of the sampling to come (default: 1, none)"
    )
    parser.add_argument("--latents", type=integer(8), help="from how many the fit learns (default: 96 or more)")
    parser.add_argument("--seed", type=seed_number, default=0, help="of these latents (default: 0)")
    parser.add_argument("--batch-size", type=positive_integer, default=64, help="latents at once (default: 64)")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of the network (default: float32)"
    )
    parser.set_defaults(run=run_fit_sampler)


def run_fit_sampler(options) -> int:
    folder = Path(options.model)
    if options.output is None and not folder.is_dir():
        raise ValueError(f"{options.model} is no folder: --output must say where the fitted model is to be written.")
    for path in (options.output, options.picture):
        if path is not None and os.path.lexists(path):
            raise FileExistsError(f"{path} exists.")
    require_writable(options.output or folder)
    if options.picture is not None:
        require_picture_name(options.picture)
        require_writable(options.picture)
        if options.output is not None and options.output.resolve() == options.picture.resolve():
            raise ValueError(f"--picture must be another place than --output, but both are {options.picture}.")

    import torch

    from sde_diffusers.fitting.sampler_fit import fit_sampler
    from sde_diffusers.saved_folders.repository import require_outside

    if options.output is not None:
        require_outside(options.model, options.output)
    pipe = loaded_pipeline(pipeline_class(folder), options)
    channels = pipe.unet.config.in_channels
    if options.picture is not None and channels not in (1, 3):
        raise ValueError(f"--picture {options.picture} needs images of 1 or 3 channels, but they have {channels}.")
    pipe.set_progress_bar_config(disable=None, desc="fitting")
    fits: list = []
    with torch.autocast(pipe.device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
        pipe.scheduler = fit_sampler(
            pipe,
            options.steps,
            torch.Generator().manual_seed(options.seed),
            named_class(pipe, options.label),
            guidance_scale=options.guidance_scale,
            guide_scale=options.guide_scale,
            num_latents=options.latents,
            batch_size=options.batch_size,
            on_fit=fits.append,
        )
    if options.output is not None:
        pipe.save_pretrained(options.output)
    else:
        save_scheduler(pipe, folder)
    if options.picture is not None:
        save_fit_picture(fits, options.picture)
    if options.json:
        keys = ("steps", "error", "default_error", "stored", "numbers")
        entries = [{key: getattr(fit, key) for key in keys} for fit in fits]
        print(json.dumps({"output": str(options.output or folder), "fits": entries}))
    else:
        print("steps  error of the default  fitted  noise levels")
        for fit in fits:
            levels = " ".join(f"{level:.3g}" for level in fit.numbers["levels"])
            note = "" if fit.stored else "  (not stored: no better)"
            print(f"{fit.steps:5}  {fit.default_error:20.4f}  {fit.error:6.4f}  {levels}{note}")
    return 0


def pipeline_class(folder: Path) -> type:
    """The class that a folder names, so that it is saved as what it was; by default the one that samples."""
    from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline
    from sde_diffusers.saved_folders.repository import package_class
    from sde_diffusers.saved_folders.stale_files import index_of

    named = index_of(folder).get("_class_name")
    found = package_class(named[-1] if isinstance(named, list) and named else named)
    return found if found is not None and issubclass(found, ScoreSdePipeline) else ScoreSdePipeline


def save_scheduler(pipe, folder: Path) -> None:
    """Write a pipeline's scheduler into its folder and, where that holds code, this version's; weights stay as they
    are, shards and precision included."""
    from sde_diffusers.saved_folders.repository import INDEX
    from sde_diffusers.saved_folders.single_file import save_modules
    from sde_diffusers.saved_folders.stale_files import index_of, stale_modules
    from sde_diffusers.saved_folders.whole_folder import whole_save

    index = index_of(folder)
    index["scheduler"] = [index["scheduler"][0], type(pipe.scheduler).__name__]
    with_code = any(folder.glob("*.py"))
    with whole_save(folder, stale_modules if with_code else lambda *_: []) as new:
        pipe.scheduler.save_pretrained(new / "scheduler")
        (new / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        if with_code:
            save_modules(pipe, new)


def save_fit_picture(fits, path: Path) -> None:
    """A row of the ODE's solutions, and for each number of steps one of the default steps and one of the fitted."""
    import torch
    from PIL import Image

    rows = [fits[0].images["solution"]] + [fit.images[name] for fit in fits for name in ("default", "fitted")]
    grid = torch.cat([torch.cat([*row[:SHOWN]], 2) for row in rows], 1)  # (C, rows H, SHOWN W)
    values = (255 * grid).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    save_picture(Image.fromarray(values), path)
