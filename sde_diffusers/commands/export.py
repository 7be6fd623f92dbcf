"""`sde-diffusers export`: a copy of a pipeline that needs no package."""

from pathlib import Path

from sde_diffusers.commands.arguments import add_command
from sde_diffusers.commands.picture_files import require_writable

EXPORT_EXAMPLES = """
  sde-diffusers export runs/demo/pipeline for-anybody
"""


def add_export_parser(commands) -> None:
    parser = add_command(
        commands,
        "export",
        "copy a pipeline with the code that loads it without this package",
        EXPORT_EXAMPLES,
        "Copy a pipeline's folder with the code that loads it where this package is not installed, by diffusers' "
        "DiffusionPipeline.from_pretrained(OUT, trust_remote_code=True).",
    )
    parser.add_argument("folder", help="the pipeline, with or without its code")
    parser.add_argument("output", metavar="out", help="the folder to write: a new or an empty one")
    parser.set_defaults(run=run_export)


def run_export(options) -> int:
    from sde_diffusers.saved_folders.repository import content_sizes, export_folder

    require_writable(Path(options.output).parent)
    sizes = content_sizes(export_folder(options.folder, options.output, progress=True))
    print(f"Wrote {options.output}: {len(sizes)} files, {sum(sizes.values()):,} bytes.")
    return 0
