"""The sub-command `sde-diffusers convert`: checkpoints of other code bases, and export to plain diffusers."""

from pathlib import Path

from sde_diffusers.convert.diffusers_pipelines import from_diffusers
from sde_diffusers.convert.edm import from_edm
from sde_diffusers.convert.export import to_diffusers, write_pipeline
from sde_diffusers.convert.score_sde import from_score_sde
from sde_diffusers.convert.score_sde_configs import SCORE_SDE_CONFIGS
from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline

SOURCES = {
    "score_sde": "a checkpoint of the paper's PyTorch code",
    "edm": "a network of NVlabs/edm, as a state dict",
    "diffusers": "a pipeline of diffusers with a DDPM-like scheduler",
    "export": "a pipeline of this package, to one that needs diffusers alone",
}


def add_parser(subparsers) -> None:
    """Add `convert` and its own sub-commands to the subparsers of a command line."""
    parser = subparsers.add_parser(
        "convert", help="convert checkpoints of other code bases, or export to plain diffusers"
    )
    sources = parser.add_subparsers(dest="source", title="what is converted", required=True)
    for source, meaning in SOURCES.items():
        options = sources.add_parser(source, help=meaning, description=f"Convert {meaning}.")
        options.add_argument("input", help="checkpoint file" if source in ("score_sde", "edm") else "folder or Hub id")
        options.add_argument("output", type=Path, help="folder to write; must not exist")
        if source == "score_sde":
            options.add_argument(
                "--config",
                required=True,
                help=f"the reference's configuration: a JSON file, or one of {', '.join(SCORE_SDE_CONFIGS)}",
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
