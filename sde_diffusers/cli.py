"""The command `sde-diffusers`: publishing, copies that need no package, and conversion of other checkpoints.

Each sub-command is a parser whose default `run` takes the parsed arguments and returns the exit status.
"""

import argparse
import math
import os
import sys
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError

from sde_diffusers.convert_command import add_parser
from sde_diffusers.hub_push import LARGEST_PUSH, push_model
from sde_diffusers.repository import content_sizes, export_folder
from sde_diffusers.space import MODEL_VARIABLE, push_space

TOKEN_NOTE = "The token is that of `hf auth login` or of the environment variable HF_TOKEN."


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 1 after an error that is explained in one line on stderr."""
    parser = argparse.ArgumentParser(prog="sde-diffusers", description="Score-based diffusion models for diffusers.")
    commands = parser.add_subparsers(title="commands", required=True)
    add_parser(commands)  # convert
    add_export_parser(commands)
    add_push_parser(commands)
    add_push_space_parser(commands)
    options = parser.parse_args(arguments)
    for name, value in vars(options).items():  # "~", where the shell left it: in quotes, after "="
        if isinstance(value, (str, Path)) and str(value).startswith("~"):
            setattr(options, name, type(value)(os.path.expanduser(value)))
    try:
        return options.run(options)
    except Exception as error:  # of any kind, since damaged files provoke any
        print(f"sde-diffusers: error: {in_one_line(error)}", file=sys.stderr)
        if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code == 401:
            print(TOKEN_NOTE, file=sys.stderr)
        return 1


def in_one_line(error: Exception) -> str:
    """What an error says; of one that was not written for the reader its kind, too."""
    cause = f" ({error.__cause__})" if isinstance(error, RuntimeError) and error.__cause__ else ""
    explained = isinstance(error, (OSError, RuntimeError, ValueError)) and str(error).strip()
    return " ".join(f"{'' if explained else type(error).__name__ + ': '}{error}{cause}".split())


def add_export_parser(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="copy a pipeline with the code that loads it without this package",
        description="Copy a pipeline's folder with the code that loads it where this package is not installed, by "
        "diffusers' DiffusionPipeline.from_pretrained(OUT, trust_remote_code=True).",
    )
    parser.add_argument("folder", help="the pipeline, with or without its code")
    parser.add_argument("output", metavar="out", help="the folder to write: a new or an empty one")
    parser.set_defaults(run=run_export)


def add_push_parser(commands) -> None:
    parser = commands.add_parser(
        "push",
        help="send a saved pipeline to the Hub",
        description=f"Send a saved pipeline to the Hub, with a card, in one commit. {TOKEN_NOTE}",
    )
    parser.add_argument("folder", help="the pipeline, as save_pretrained or the trainer writes it")
    add_common_arguments(parser, "the model")
    parser.add_argument("--revision", help="branch to commit to, created if there is none (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--license", help='for the card, such as "apache-2.0"')
    parser.add_argument("--dataset", action="append", help="for the card: id of the training data; repeatable")
    parser.add_argument("--tag", action="append", help="for the card; repeatable")
    parser.add_argument(
        "--metric",
        action="append",
        type=named_number,
        metavar="NAME=VALUE",
        help="for the card: measured on the first --dataset; repeatable",
    )
    parser.add_argument("--description", help="for the card: a paragraph on the model, in Markdown")
    parser.add_argument("--samples", help="for the card: a picture of samples (default: samples.png of the folder)")
    parser.set_defaults(run=run_push)


def add_push_space_parser(commands) -> None:
    parser = commands.add_parser(
        "push-space",
        help="send a Gradio Space that shows a model",
        description=f"Send a Gradio app to the Hub as a Space, and set its variable {MODEL_VARIABLE}. {TOKEN_NOTE}",
    )
    parser.add_argument("folder", help="the app: app.py, requirements.txt and README.md")
    add_common_arguments(parser, "the Space")
    parser.add_argument("--model", required=True, help="id of the model that the Space shows")
    parser.set_defaults(run=run_push_space)


def add_common_arguments(parser, what: str) -> None:
    parser.add_argument("repo_id", help=f'of {what}: "owner/name", or "name" for one of your own')
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="visibility of a repository that is created (default: as your account has it)",
    )
    parser.add_argument("--message", help="of the commit")
    parser.add_argument(
        "--max-gigabytes",
        type=float,
        default=LARGEST_PUSH / 1e9,
        help="refuse to send more (default: %(default)g)",
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent, and send nothing")


def named_number(text: str) -> tuple[str, float]:
    """NAME=VALUE."""
    name, _, value = text.partition("=")
    try:
        if name.strip():
            return name, float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} must have the form NAME=VALUE, VALUE a number")


def most_bytes(options) -> int:
    """What --max-gigabytes allows."""
    if not (math.isfinite(options.max_gigabytes) and options.max_gigabytes >= 0):
        raise ValueError(f"--max-gigabytes must be a finite number of at least 0, but is {options.max_gigabytes}.")
    return int(options.max_gigabytes * 1e9)


def run_export(options) -> int:
    sizes = content_sizes(export_folder(options.folder, options.output))
    print(f"Wrote {options.output}: {len(sizes)} files, {sum(sizes.values()):,} bytes.")
    return 0


def run_push(options) -> int:
    metrics = options.metric or []
    if twice := sorted({name for name, _ in metrics if [other for other, _ in metrics].count(name) > 1}):
        raise ValueError(f"--metric gives {', '.join(twice)} twice.")
    result = push_model(
        options.folder,
        options.repo_id,
        commit_message=options.message,
        private=options.private,
        create_pr=options.create_pr,
        revision=options.revision,
        max_bytes=most_bytes(options),
        dry_run=options.dry_run,
        samples=options.samples,
        license=options.license,
        datasets=options.dataset,
        tags=options.tag,
        metrics=dict(metrics),
        description=options.description,
    )
    return report(result, options)


def run_push_space(options) -> int:
    result = push_space(
        options.folder,
        options.repo_id,
        options.model,
        commit_message=options.message,
        private=options.private,
        max_bytes=most_bytes(options),
        dry_run=options.dry_run,
    )
    return report(result, options)


def report(result, options) -> int:
    """Print the commit's address, or what a dry run would have sent."""
    if options.dry_run:
        for path, size in result.items():
            print(f"{size:>14,}  {path}")
        print(f"{sum(result.values()):>14,}  bytes in {len(result)} files would be sent to {options.repo_id}")
    else:
        print(getattr(result, "pr_url", None) or result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
