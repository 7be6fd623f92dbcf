"""Pushing a Gradio Space that shows a chosen model."""

from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, RepoCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from sde_diffusers.hub.connection import (
    clear_transport_errors,
    require_hub,
    require_not_public,
    require_write_access,
)
from sde_diffusers.hub.push import LARGEST_PUSH, check_links, check_names, commit_contents
from sde_diffusers.model_card import read_card
from sde_diffusers.saved_folders.folder_options import require_path
from sde_diffusers.saved_folders.repository import check_size, content_sizes, folder_contents, require_bytes

MODEL_VARIABLE = "MODEL_ID"  # the Space's environment variable that names the model


def push_space(
    folder: str | Path,
    repo_id: str,
    model_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    max_bytes: float = LARGEST_PUSH,
    dry_run: bool = False,
) -> CommitInfo | dict[str, int]:
    """Send a Gradio app to the Hub as a Space, and set its variable `MODEL_VARIABLE` to the model's id.

    Args:
        folder: of the app: app.py, requirements.txt, and README.md with the Space's front matter.
        repo_id: of the Space, "owner/name" or "name"; it is created if there is none.
        model_id: what the app loads, by `os.environ["MODEL_ID"]`.
        commit_message, private, token, max_bytes, dry_run: see `push_model`.

    Returns:
        The commit, a string that is its address; with `dry_run` {path: bytes}.

    Raises:
        as `push_model`.
    """
    try:
        validate_repo_id(model_id if isinstance(model_id, str) else "")
    except HFValidationError as error:
        raise ValueError(f"`model_id` must be the id of a model, but is {model_id!r}: {error}") from error
    check_names(repo_id)
    require_bytes(max_bytes)
    require_path("folder", folder)
    contents = folder_contents(folder)
    check_links(folder)
    missing = [name for name in ("app.py", "requirements.txt", "README.md") if name not in contents]
    if missing:
        raise ValueError(f"`folder` {folder} is no Space: {', '.join(missing)} missing.")
    sdk = read_card(Path(folder) / "README.md", RepoCard).data.get("sdk")
    if sdk != "gradio":
        raise ValueError(f"`folder` {folder} is no Gradio Space: README.md has `sdk: {sdk}` and not `sdk: gradio`.")
    check_size(contents, max_bytes)
    if dry_run:
        return content_sizes(contents)
    require_write_access(token)
    require_hub(repo_id, "space", token)
    with clear_transport_errors(f"Pushing to {repo_id}"):
        api = HfApi(token=token)
        if private:
            require_not_public(api, repo_id, "space")
        repo_id = api.create_repo(
            repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        ).repo_id
        api.add_space_variable(repo_id, MODEL_VARIABLE, model_id)  # before the files: they start the build
        return commit_contents(api, repo_id, "space", contents, [], commit_message, None, False)
