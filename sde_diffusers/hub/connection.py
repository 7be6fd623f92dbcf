"""The connection to the Hub: a limit of time for its first answer, and errors that say what was being done."""

import contextlib

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

PATIENCE = 10.0  # seconds that the Hub has for a first answer


def require_write_access(token: str | None) -> None:
    """Raise a LocalTokenNotFoundError if there is no token at all."""
    if not (token or get_token()):
        raise LocalTokenNotFoundError("Pushing needs a token of the Hub: run `hf auth login`, or set HF_TOKEN.")


def require_hub(repo_id: str, repo_type: str, token: str | bool | None) -> None:
    """Raise a ConnectionError if the Hub gives no answer of any kind within `PATIENCE` seconds.

    The client's own requests retry for long, and have no limit of time.
    """
    api = HfApi(token=token)
    try:
        api.repo_info(repo_id, repo_type=repo_type, timeout=PATIENCE)
    except HfHubHTTPError:
        return  # an answer, if only that there is no such repository
    except (OfflineModeIsEnabled, LocalTokenNotFoundError, HFValidationError):
        raise
    except Exception as error:  # of the HTTP library, which is another one from release to release
        raise ConnectionError(
            f"The Hub ({api.endpoint}) cannot be reached: {error or type(error).__name__}."
        ) from error


def require_not_public(api: HfApi, repo_id: str, repo_type: str) -> None:
    """Raise a ValueError if a repository that is to be private exists, and is public.

    The client's `create_repo` takes one that exists as it is, and says nothing.
    """
    if "/" not in repo_id:
        repo_id = f"{api.whoami()['name']}/{repo_id}"
    try:
        public = not api.repo_info(repo_id, repo_type=repo_type, timeout=PATIENCE).private
    except RepositoryNotFoundError:
        return
    if public:
        raise ValueError(
            f"`private` is True, but {repo_id} is a public repository: everybody would see what is pushed. Make it "
            "private in its settings, or push to another one."
        )


@contextlib.contextmanager
def clear_transport_errors(action: str):
    """Say what was being done where a connection breaks; all other errors pass."""
    try:
        yield
    except (OSError, RuntimeError, ValueError):
        raise
    except Exception as error:  # see `require_hub`
        raise ConnectionError(f"{action} failed: {error or type(error).__name__}.") from error
