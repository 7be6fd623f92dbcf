"""`sde-diffusers convert`: checkpoints of other code bases, and export to plain diffusers."""

from pathlib import Path

from sde_diffusers.commands.arguments import add_command
from sde_diffusers.commands.picture_files import require_writable

CONVERSIONS = {
    "score_sde": "a checkpoint of the paper's PyTorch code",
    "edm": "a network of NVlabs/edm, as a state dict",
    "diffusers": "a pipeline of diffusers with a DDPM-like scheduler",
    "export": "a pipeline of this package, to one that needs diffusers alone",
}
CONVERT_EXAMPLES = """
  sde-diffusers convert score_sde checkpoint_26.pth my-model --config ve/cifar10_ncsnpp_continuous
  sde-diffusers convert edm edm.safetensors my-model --config edm.json --verify answers.safetensors
  sde-diffusers convert diffusers google/ddpm-cifar10-32 my-model
  sde-diffusers convert export my-model plain
"""


def add_convert_parser(commands) -> None:
    """Add `convert` and its own sub-commands to the sub-parsers of a command line."""
    parser = add_command(
        commands,
        "convert",
        "convert checkpoints of other code bases, or export to plain diffusers",
        CONVERT_EXAMPLES,
    )
    sources = parser.add_subparsers(dest="source", title="what is converted", required=True)
    for source, meaning in CONVERSIONS.items():
        options = sources.add_parser(source, help=meaning, description=f"Convert {meaning}.")
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
    if options.output.exists():
        raise FileExistsError(f"{options.output} exists.")
    require_writable(options.output)
    from sde_diffusers.convert.diffusers_pipelines import from_diffusers
    from sde_diffusers.convert.edm import from_edm
    from sde_diffusers.convert.export import to_diffusers, write_pipeline
    from sde_diffusers.convert.score_sde import from_score_sde
    from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline

    if options.source == "export":
        to_diffusers(ScoreSdePipeline.from_pretrained(options.input), options.output)
        print(f"Wrote {options.output}, for diffusers' DDPMPipeline and DDIMPipeline; its network answers as before.")
        return 0
    if options.source == "diffusers":
        pipe = from_diffusers(options.input, options.verify)
    else:
        convert = {"score_sde": from_score_sde, "edm": from_edm}[options.source]
        pipe = convert(Path(options.input), options.config, options.verify)
    write_pipeline(pipe, options.output)
    checked = "answers as recorded" if options.verify else "not compared with recorded answers (--verify)"
    print(f"Wrote {options.output}: {checked}.")
    return 0
