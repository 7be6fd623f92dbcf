"""`sde-diffusers push` and `push-space`: a pipeline, or an app that shows one, sent to the Hub."""

import argparse

from sde_diffusers.commands.arguments import add_command, number_from_zero

TOKEN_NOTE = "The token is that of `hf auth login` or of the environment variable HF_TOKEN."
PUSH_EXAMPLES = """
  sde-diffusers push runs/demo/pipeline you/garments --license apache-2.0 --dataset zalando-datasets/fashion_mnist
  sde-diffusers push runs/demo/pipeline you/garments --dry-run
"""
PUSH_SPACE_EXAMPLES = """
  sde-diffusers push-space space_app you/garments-demo --model you/garments
"""


def add_push_parser(commands) -> None:
    parser = add_command(
        commands,
        "push",
        "send a saved pipeline to the Hub",
        PUSH_EXAMPLES,
        f"Send a saved pipeline to the Hub, with a card, in one commit. {TOKEN_NOTE}",
    )
    parser.add_argument("folder", help="the pipeline, as save_pretrained or the trainer writes it")
    add_commit_arguments(parser, "the model")
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
    parser = add_command(
        commands,
        "push-space",
        "send a Gradio Space that shows a model",
        PUSH_SPACE_EXAMPLES,
        f"Send a Gradio app to the Hub as a Space, and set its variable MODEL_ID to the model's id. {TOKEN_NOTE}",
    )
    parser.add_argument("folder", help="the app: app.py, requirements.txt and README.md")
    add_commit_arguments(parser, "the Space")
    parser.add_argument("--model", required=True, help="id of the model that the Space shows")
    parser.set_defaults(run=run_push_space)


def add_commit_arguments(parser, what: str) -> None:
    parser.add_argument("repo_id", help=f'of {what}: "owner/name", or "name" for one of your own')
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="visibility of a repository that is created (default: as your account has it)",
    )
    parser.add_argument("--message", help="of the commit")
    parser.add_argument(
        "--max-gigabytes", type=number_from_zero, default=20.0, help="refuse to send more (default: 20)"
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


def run_push(options) -> int:
    from sde_diffusers.hub.push import push_model

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
        max_bytes=options.max_gigabytes * 1e9,
        dry_run=options.dry_run,
        samples=options.samples,
        license=options.license,
        datasets=options.dataset,
        tags=options.tag,
        metrics=dict(metrics),
        description=options.description,
    )
    return report_commit(result, options)


def run_push_space(options) -> int:
    from sde_diffusers.hub.space import push_space

    result = push_space(
        options.folder,
        options.repo_id,
        options.model,
        commit_message=options.message,
        private=options.private,
        max_bytes=options.max_gigabytes * 1e9,
        dry_run=options.dry_run,
    )
    return report_commit(result, options)


def report_commit(result, options) -> int:
    """Print the commit's address, or what a dry run would have sent."""
    if options.dry_run:
        for path, size in result.items():
            print(f"{size:>14,}  {path}")
        print(f"{sum(result.values()):>14,}  bytes in {len(result)} files would be sent to {options.repo_id}")
    else:
        print(getattr(result, "pr_url", None) or result)
    return 0
