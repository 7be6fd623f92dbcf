"""Pulling a model from the Hub, without its code."""

import logging
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from sde_diffusers.hub.connection import clear_transport_errors, require_hub

pull_log = logging.getLogger(__name__)


def pull_model(
    repo_id: str,
    variant: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> str:
    """Download configurations and weights, but no code, into the cache of huggingface_hub.

    With `variant`, weights of all variants are downloaded: a component may have none of this one.

    Returns:
        The folder. Where the Hub cannot be reached within seconds, it is that of an earlier download.

    Raises:
        OSError: if there is no such repository, or the Hub cannot be reached and there is no earlier download.
    """
    unreachable = None if local_files_only else unreachable_hub(repo_id, token)
    if unreachable is not None:
        if force_download:
            raise unreachable
        pull_log.warning("%s Looking for %s in the cache.", unreachable, repo_id)
    try:
        with clear_transport_errors(f"Downloading {repo_id}"):
            return snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only or unreachable is not None,
                allow_patterns=["*.json", "*.safetensors"],
                ignore_patterns=None if variant else ["*diffusion_pytorch_model.*.safetensors"],
            )
    except LocalEntryNotFoundError as error:
        if unreachable is None:
            raise
        raise without_copy(repo_id, unreachable) from error
    except HFValidationError as error:
        raise OSError(f"{repo_id} is neither a folder nor the id of a repository.") from error


def unreachable_hub(repo_id: str, token: str | bool | None = None) -> ConnectionError | None:
    """Why the Hub cannot be reached, if so.

    Raises:
        OSError: if there is no such folder, and can be no such repository.
    """
    try:
        require_hub(repo_id, "model", token)
    except ConnectionError as error:
        return error
    except HFValidationError as error:
        raise OSError(f"{repo_id} is neither a folder nor the id of a repository.") from error
    return None


def cached_copy(repo_id: str, unreachable: ConnectionError) -> str:
    """The folder of an earlier download, or an OSError if there is none."""
    pull_log.warning("%s Looking for %s in the cache.", unreachable, repo_id)
    try:
        return snapshot_download(repo_id, local_files_only=True)
    except LocalEntryNotFoundError as error:
        raise without_copy(repo_id, unreachable) from error


def without_copy(repo_id: str, unreachable: ConnectionError) -> OSError:
    """The error where all three fail: folder, Hub and cache."""
    return OSError(f"There is no folder {repo_id}. {unreachable} The cache holds no complete copy of {repo_id}.")
