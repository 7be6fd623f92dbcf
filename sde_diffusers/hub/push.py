"""Pushing a model to the Hub. A push is one commit: it is there as a whole or not at all."""

import inspect
import io
import re
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    hf_hub_download,
)
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from safetensors import SafetensorError, safe_open

from sde_diffusers.hub.connection import (
    clear_transport_errors,
    require_hub,
    require_not_public,
    require_write_access,
)
from sde_diffusers.model_card import (
    SAMPLES_FILE,
    WEIGHTS,
    WEIGHTS_INDEX,
    check_card_words,
    evaluation_results,
    model_card,
    preferred_card,
    read_card,
)
from sde_diffusers.saved_folders.folder_options import require_path
from sde_diffusers.saved_folders.refused_files import links_outside
from sde_diffusers.saved_folders.repository import (
    Contents,
    check_size,
    content_sizes,
    repository_contents,
    require_bytes,
)
from sde_diffusers.saved_folders.single_file import MODULE_DIGEST

LARGEST_PUSH = 20 * 10**9  # bytes
BRANCH = re.compile(
    r"(?!.*(\.\.|//|@\{|/\.|\.lock(/|$)))(?![./-])[^\x00-\x20\x7f~^:?*\[\\]+(?<![./])"
)  # git-check-ref-format


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    max_bytes: float = LARGEST_PUSH,
    dry_run: bool = False,
    samples: str | Path | Image.Image | None = None,
    license: str | None = None,
    datasets: list[str] | None = None,
    tags: list[str] | None = None,
    metrics: dict[str, float] | None = None,
    description: str | None = None,
) -> CommitInfo | dict[str, int]:
    """Send a saved pipeline's folder to the Hub, with a card, in one commit.

    A README.md in the folder, or else one on the Hub, keeps its text if it was written by hand; weights and modules
    that the new ones replace under other names are deleted from the repository. The folder itself is left alone.

    Args:
        folder: of the pipeline, as `save_pretrained` writes it.
        repo_id: "owner/name", or "name" for one of your own; it is created if there is none.
        commit_message: of the commit.
        private: whether a repository that is created is private; None = as your account has it. One that exists stays
            as it is, but if it is public True is refused.
        token: of an account that may write; None = that of `hf auth login` or HF_TOKEN.
        create_pr: whether to open a pull request instead of committing.
        revision: the branch to commit to, created if there is none; None = main.
        max_bytes: refuse to send more.
        dry_run: say what would be sent, and send nothing; the Hub is not asked.
        samples: a grid of samples, or its file, to be shown on the card; None = the folder's samples.png, if any.
        license, datasets, tags, metrics, description: see `model_card`.

    Returns:
        The commit, a string that is its address; with `dry_run` {path: bytes}.

    Raises:
        ValueError: on arguments out of range, an incomplete folder, or `private=True` with a public repository, before
            anything is sent.
        ConnectionError: if the Hub cannot be reached.
        OSError: if it refuses, as huggingface_hub says it (`HfHubHTTPError`, `LocalTokenNotFoundError`).
        RuntimeError: if a file cannot be uploaded.
    """
    check_push(
        repo_id,
        revision=revision,
        max_bytes=max_bytes,
        license=license,
        datasets=datasets,
        tags=tags,
        metrics=metrics,
        description=description,
    )
    require_path("folder", folder)
    contents = repository_contents(folder)
    check_links(folder)
    check_weights(contents)
    if samples is not None:
        contents[SAMPLES_FILE] = picture_bytes(samples)
    check_size(contents, max_bytes)
    own_card = read_card(Path(folder) / "README.md") if "README.md" in contents else None

    def card(name, earlier):
        samples = SAMPLES_FILE in contents
        return str(model_card(folder, name, license, datasets, tags, metrics, description, samples, earlier)).encode()

    contents["README.md"] = card(repo_id, own_card)
    if dry_run:
        return content_sizes(contents)
    require_write_access(token)
    require_hub(repo_id, "model", token)
    with clear_transport_errors(f"Pushing to {repo_id}"):
        api = HfApi(token=token)
        if private:
            require_not_public(api, repo_id, "model")
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        contents["README.md"] = card(repo_id, preferred_card(own_card, card_on_hub(repo_id, revision, token)))
        stale = replaced_files(api.list_repo_files(repo_id, revision=revision), contents)
        return commit_contents(api, repo_id, "model", contents, stale, commit_message, revision, create_pr)


PUSH_OPTIONS = {
    name
    for name, parameter in inspect.signature(push_model).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
}


def check_push(
    repo_id: str,
    safe_serialization: bool = True,
    *,
    revision: str | None = None,
    max_bytes: float = LARGEST_PUSH,
    license: str | None = None,
    datasets: list[str] | None = None,
    tags: list[str] | None = None,
    metrics: dict[str, float] | None = None,
    description: str | None = None,
    **others,
) -> None:
    """Raise a ValueError on arguments of a push that are out of range whatever the folder holds."""
    if not safe_serialization:
        raise ValueError("`safe_serialization` must be True: a repository's weights are safetensors.")
    check_names(repo_id, revision)
    require_bytes(max_bytes)
    check_card_words(license, datasets, tags, description)
    evaluation_results(metrics, datasets)


def check_names(repo_id: str, revision: str | None = None) -> None:
    """Raise a ValueError unless the Hub could have a repository and a branch of these names."""
    try:
        validate_repo_id(repo_id if isinstance(repo_id, str) else "")  # which accepts None
    except HFValidationError as error:
        raise ValueError(f"`repo_id` must be owner/name or name, but is {repo_id!r}: {error}") from error
    if revision is not None and not (isinstance(revision, str) and BRANCH.fullmatch(revision)):
        raise ValueError(f"`revision` must be the name of a branch, as git allows it, but is {revision!r}.")


def check_links(folder: str | Path) -> None:
    """Raise a ValueError if a link of the folder leads out of it: what lies there was not meant to be sent."""
    if links := links_outside(Path(folder)):
        raise ValueError(
            f"`folder` {folder} holds links that lead to folders, out of it or nowhere: {', '.join(links)}. Copy what "
            "shall be sent (`sde-diffusers export` copies a pipeline)."
        )


def check_weights(contents: Contents) -> None:
    """Raise a ValueError if weights are incomplete."""
    for name, source in contents.items():
        if name.endswith(".safetensors"):
            try:
                with safe_open(source, framework="pt"):
                    pass
            except SafetensorError as error:
                raise ValueError(f"{source} is no complete safetensors file: {error}.") from error


def commit_contents(api, repo_id, repo_type, contents, stale, message, revision, create_pr) -> CommitInfo:
    """One commit that writes `contents` and deletes the paths `stale`."""
    operations = [CommitOperationAdd(name, source) for name, source in contents.items()]
    operations += [CommitOperationDelete(name) for name in stale]
    message = message or f"Upload {len(contents)} files"
    return api.create_commit(
        repo_id, operations, commit_message=message, repo_type=repo_type, revision=revision, create_pr=create_pr
    )


def replaced_files(remote: list[str], contents: Contents) -> list[str]:
    """What new files replace in a repository under other names: shards of the same variant, versions of a module."""

    def role(path):
        folder, _, name = path.rpartition("/")
        if name.endswith(".py"):
            return folder, MODULE_DIGEST.sub("", name.removesuffix(".py"))
        match = WEIGHTS.fullmatch(name) or WEIGHTS_INDEX.fullmatch(name)
        return match and (folder, match["variant"], "weights")

    new = {role(path) for path in contents} - {None}
    return [path for path in remote if path not in contents and role(path) in new]


def card_on_hub(repo_id: str, revision: str | None, token: str | None) -> ModelCard | None:
    """The card that a repository has; never an older one of the cache, which would undo what was written since."""
    try:
        path = hf_hub_download(repo_id, "README.md", revision=revision, token=token, force_download=True)
    except LocalEntryNotFoundError:  # the Hub does not answer
        raise
    except EntryNotFoundError:
        return None
    except ValueError as error:  # so the client says that a forced download failed
        raise OSError(f"The card of {repo_id} cannot be read: {error.__cause__ or error}") from error
    return read_card(path)


def picture_bytes(picture: str | Path | Image.Image) -> bytes:
    """A picture as a PNG file."""
    if not isinstance(picture, Image.Image):
        try:
            picture = Image.open(picture)
            picture.load()
        except Exception as error:  # of any kind, since damaged files provoke any
            raise ValueError(f"`samples` {picture} cannot be read as a picture: {error}.") from error
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format="PNG")
    except OSError:
        raise ValueError(
            f"`samples` must be a picture that a PNG file can hold, such as of the mode L or RGB, but is one of the "
            f"mode {picture.mode}."
        ) from None
    return buffer.getvalue()
