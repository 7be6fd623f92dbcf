"""The command `sde-diffusers`: its sub-commands are in `commands/`.

Each is a parser whose default `run` takes the parsed arguments and returns the exit status.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from sde_diffusers.commands.arguments import CommandParser, require_device
from sde_diffusers.commands.bits_per_dim import add_bits_per_dim_parser
from sde_diffusers.commands.convert import add_convert_parser
from sde_diffusers.commands.export import add_export_parser
from sde_diffusers.commands.fit_sampler import add_fit_sampler_parser
from sde_diffusers.commands.push import TOKEN_NOTE, add_push_parser, add_push_space_parser
from sde_diffusers.commands.restore import add_restore_parser
from sde_diffusers.commands.sample import add_sample_parser
from sde_diffusers.commands.show import add_show_parser

ARGUMENTS = {
    "class_labels": "--class",
    "config": "--config",
    "datasets": "--dataset",
    "dequantize": "--dequantize",
    "description": "--description",
    "eta": "--eta",
    "factor": "--factor",
    "folder": "folder",
    "gray": "picture",
    "guidance_scale": "--guidance-scale",
    "guide_scale": "--guide-scale",
    "image": "picture",
    "kernel": "--blur",
    "license": "--license",
    "mask": "--mask",
    "max_bytes": "--max-gigabytes",
    "method": "--method",
    "metrics": "--metric",
    "model_id": "--model",
    "noise_std": "--noise-std",
    "num_inference_steps": "--steps",
    "num_latents": "--latents",
    "output": "output",
    "passes": "--passes",
    "recorded": "--verify",
    "repo_id": "repo_id",
    "revision": "--revision",
    "samples": "--samples",
    "snr": "--snr",
    "state_dict": "input",
    "tags": "--tag",
    "weights": "--weights",
}
"""What Python's arguments are called here, in errors that name them."""
COMMANDS = (
    add_sample_parser,
    add_bits_per_dim_parser,
    add_restore_parser,
    add_show_parser,
    add_fit_sampler_parser,
    add_convert_parser,
    add_export_parser,
    add_push_parser,
    add_push_space_parser,
)


def command_line() -> argparse.ArgumentParser:
    """The parser of the whole command line, which takes no time: nothing is imported that a command would need."""
    parser = CommandParser(prog="sde-diffusers", description="Score-based diffusion models for diffusers.")
    parser.add_argument("--version", action="version", version=sys.modules[__package__].__version__)
    parser.add_argument(
        "--print-completion",
        choices=("bash", "zsh", "tcsh"),
        action=PrintCompletion,
        help="print what makes the shell complete this command, and exit (needs `pip install shtab`)",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    for add_command_parser in COMMANDS:
        add_command_parser(commands)
    return parser


class PrintCompletion(argparse.Action):
    """Print the completion script of a shell, and exit."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            import shtab
        except ModuleNotFoundError:
            parser.error("--print-completion needs shtab: pip install shtab")
        print(shtab.complete(parser, values))
        parser.exit()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 1 after an error, explained in one line on stderr, or as a shell
    calls the end by a signal: 130 by Ctrl-C, 141 where nobody reads on."""
    try:
        try:
            return run(command_line().parse_args(arguments))
        finally:
            print(end="", flush=True)  # a closed pipe shows here, and not when Python ends
    except KeyboardInterrupt:
        print("sde-diffusers: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the rest, at Python's end
        return 141
    except Exception as error:  # of any kind, since damaged files provoke any
        print(f"sde-diffusers: error: {in_one_line(error)}", file=sys.stderr)
        if getattr(getattr(error, "response", None), "status_code", None) == 401:  # of the Hub
            print(TOKEN_NOTE, file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """The command that the options are for."""
    for name, value in vars(options).items():
        setattr(options, name, [at_home(entry) for entry in value] if isinstance(value, list) else at_home(value))
    if getattr(options, "device", None) is not None:
        require_device(options.device)
    return options.run(options)


def at_home(value):
    """A path with "~" where the shell left it: in quotes, after "="."""
    if isinstance(value, (str, Path)) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return value


def in_one_line(error: Exception) -> str:
    """What an error says; of one that was not written for the reader its kind, too."""
    cause = f" ({error.__cause__})" if isinstance(error, RuntimeError) and error.__cause__ else ""
    explained = isinstance(error, (OSError, RuntimeError, ValueError)) and str(error).strip()
    text = " ".join(f"{'' if explained else type(error).__name__ + ': '}{error}{cause}".split())
    return re.sub(r"`(\w+)`", lambda name: ARGUMENTS.get(name[1], name[0]), text)


if __name__ == "__main__":
    sys.exit(main())
