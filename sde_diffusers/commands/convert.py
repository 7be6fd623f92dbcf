"""`sde-diffusers convert`: checkpoints of other code bases, and export to plain diffusers."""

import os
from contextlib import contextmanager
from pathlib import Path

from sde_diffusers.commands.arguments import add_command
from sde_diffusers.commands.picture_files import require_writable

CONVERSIONS = {
    "score_sde": "a checkpoint of the paper's PyTorch code",
    "edm": "a network of NVlabs/edm, as a state dict",
    "diffusers": "a pipeline of diffusers with a DDPM-like or flow-matching scheduler",
    "export": "a pipeline of this package, to one that needs diffusers alone",
}
CONVERT_EXAMPLES = {
    "score_sde": """
  sde-diffusers convert score_sde checkpoint_26.pth my-model --config ve/cifar10_ncsnpp_continuous
  sde-diffusers convert score_sde checkpoint.pth my-model --config own.json --verify answers.safetensors
""",
    "edm": """
  sde-diffusers convert edm edm.safetensors my-model --config edm.json --verify answers.safetensors
""",
    "diffusers": """
  sde-diffusers convert diffusers google/ddpm-cifar10-32 my-model
""",
    "export": """
  sde-diffusers convert export my-model plain
""",
}


def add_convert_parser(commands) -> None:
    """Add `convert` and its own sub-commands to the sub-parsers of a command line."""
    parser = add_command(
        commands,
        "convert",
        "convert checkpoints of other code bases, or export to plain diffusers",
        "".join(map(str.rstrip, CONVERT_EXAMPLES.values())),
    )
    sources = parser.add_subparsers(dest="source", title="what is converted", required=True)
    for source, meaning in CONVERSIONS.items():
        options = add_command(sources, source, meaning, CONVERT_EXAMPLES[source], f"Convert {meaning}.")
        options.add_argument("input", help="checkpoint file" if source in ("score_sde", "edm") else "folder or Hub id")
        options.add_argument("output", type=Path, help="folder to write; must not exist")
        if source == "score_sde":
            options.add_argument(
                "--config",
                required=True,
                help="the reference's configuration: a JSON file, or the name of one of its own, such as "
                '"ve/cifar10_ncsnpp_continuous" (a wrong name is answered by all of them)',
            )
        if source == "edm":
            options.add_argument("--config", required=True, help="JSON file of the constructor's arguments")
        if source != "export":
            options.add_argument(
                "--verify",
                metavar="FILE",
                help="safetensors file of what the original answered: x, labels (its noise levels), y, class_labels",
            )
        options.set_defaults(run=run_convert)


def run_convert(options) -> int:
    """Convert, write the folder, say what was checked; returns the exit status.

    Raises:
        FileExistsError: If the output exists.
        ValueError: If the model can't be converted.
    """
    if os.path.lexists(options.output):
        raise FileExistsError(f"{options.output} exists.")
    require_writable(options.output)
    with stages(2) as begin:
        begin(f"Reading {options.input}")
        from sde_diffusers.saved_folders.repository import require_outside

        require_outside(options.input, options.output)
        from diffusers.utils import logging

        from sde_diffusers.convert.diffusers_pipelines import from_diffusers
        from sde_diffusers.convert.edm import from_edm
        from sde_diffusers.convert.export import to_diffusers, write_pipeline
        from sde_diffusers.convert.score_sde import from_score_sde
        from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline

        logging.disable_progress_bar()  # of loading: the stages say it
        if options.source == "export":
            pipe = ScoreSdePipeline.from_pretrained(options.input)
        elif options.source == "diffusers":
            pipe = from_diffusers(options.input, options.verify)
        else:
            convert = {"score_sde": from_score_sde, "edm": from_edm}[options.source]
            pipe = convert(Path(options.input), options.config, options.verify)
        begin(f"Writing {options.output}")
        to_diffusers(pipe, options.output) if options.source == "export" else write_pipeline(pipe, options.output)
    if options.source == "export":
        print(f"Wrote {options.output}, for diffusers' DDPMPipeline and DDIMPipeline; its network answers as before.")
        return 0
    checked = "answers as recorded" if options.verify else "not compared with recorded answers (--verify)"
    print(f"Wrote {options.output}: {checked}.")
    return 0


@contextmanager
def stages(number: int):
    """A line on a terminal that says which of so many stages is at work, by a function that begins the next one."""
    from tqdm import tqdm

    shape = "{desc} (stage {n_fmt} of {total_fmt}, {elapsed})"
    with tqdm(total=number, disable=None, leave=False, bar_format=shape) as line:

        def begin(what: str) -> None:
            line.set_description_str(what, refresh=False)
            line.update()
            line.refresh()

        yield begin
