"""Pipelines at home on the Hub: saving, pushing and pulling complete repositories.

A repository holds the weights as safetensors, the configurations, the code that loads them where this package is not
installed (`single_file.py`), a card (`model_card.py`) and, if there is one, a grid of samples. A push is one commit:
it is there as a whole or not at all.
"""

import contextlib
import io
import json
import logging
import sys
import tempfile
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from PIL import Image

from sde_diffusers.class_names import DATA_KEYS
from sde_diffusers.model_card import SAMPLES_FILE, WEIGHTS, WEIGHTS_INDEX, model_card, preferred_card, read_card
from sde_diffusers.single_file import REMOTE_PACKAGE, save_modules, write

PATIENCE = 10.0  # seconds that the Hub has for a first answer
LARGEST_PUSH = 20 * 10**9  # bytes
PICKLES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")
hub_log = logging.getLogger(__name__)

Contents = dict[str, Path | bytes]  # of a repository: path -> file of this machine, or content


class HubPipelineMixin:
    """Saving and loading of pipelines with repositories that carry their own code; before `DiffusionPipeline`."""

    def save_pretrained(
        self,
        save_directory,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ):
        """Save weights, configurations and the code that loads them where this package is not installed.

        The arguments are those of `DiffusionPipeline.save_pretrained`; with `push_to_hub=True` also those of
        `push_to_hub`, `repo_id` being the folder's name by default.
        """
        options = {} if push_to_hub else kwargs
        for name, component in self.components.items():
            if component is not None and self.config[name][0] is None:  # an optional one that was assigned later
                self.register_modules(**{name: component})
        super().save_pretrained(save_directory, safe_serialization, variant, max_shard_size, **options)
        save_modules(self, save_directory)
        forget_origins(save_directory)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", Path(save_directory).resolve().name)
            push_model(save_directory, repo_id, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs,
    ) -> CommitInfo | dict[str, int]:
        """Send the pipeline to the Hub as a complete repository.

        Args:
            repo_id: "owner/name", or "name" for one of your own; it is created if there is none.
            safe_serialization: only True: pickles can hold any code.
            variant: part of the weights' file names, such as "fp16".
            max_shard_size: weights above this size are split, such as "5GB".
            commit_message, private, token, create_pr, and others by name: see `push_model`.

        Returns:
            The commit, a string that is its address; with `dry_run=True` {path: bytes}.

        Raises:
            see `push_model`.
        """
        if not safe_serialization:
            raise ValueError("`safe_serialization` must be True: a repository's weights are safetensors.")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
            return push_model(
                folder,
                repo_id,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                private=private,
                token=token,
                create_pr=create_pr,
                **kwargs,
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a pipeline from a folder or from the Hub; the arguments are those of `DiffusionPipeline`.

        No code of the repository is executed: its classes are looked up in this package.

        Raises:
            OSError: if there is no such folder or repository, or neither the Hub nor a copy of it can be reached.
        """
        if cls._package() is not None and not Path(pretrained_model_name_or_path).is_dir():
            keys = ("cache_dir", "force_download", "local_files_only", "token", "revision")
            options = {key: kwargs.pop(key) for key in keys if key in kwargs}
            pretrained_model_name_or_path = pull_model(
                str(pretrained_model_name_or_path), variant=kwargs.get("variant"), **options
            )
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        for name in pipeline.components.keys() - kwargs.keys():
            warn_of_missing_keys(pretrained_model_name_or_path, name, getattr(pipeline, name))
        return pipeline

    @classmethod
    def load_config(cls, *args, **kwargs):
        """As in diffusers, but with the classes of a saved folder's own modules mapped to this package's."""
        config = super().load_config(*args, **kwargs)
        package = cls._package()
        if package is not None and isinstance(config, dict):
            if isinstance(config.get("_class_name"), (list, tuple)):
                config["_class_name"] = config["_class_name"][1]
            for name, value in config.items():
                if isinstance(value, (list, tuple)) and len(value) == 2 and hasattr(package, str(value[1])):
                    config[name] = [package.__name__, value[1]]
        return config

    @classmethod
    def _package(cls):
        """The installed package, or None where this class comes from a saved folder."""
        name = HubPipelineMixin.__module__.split(".")[0]
        return sys.modules[name] if name != REMOTE_PACKAGE else None


def warn_of_missing_keys(folder: str | Path, name: str, component) -> None:
    """Say which keys a loaded component's configuration lacks: files of an older version, or damaged ones."""
    config = getattr(component, "config", {})
    missing = sorted(set(config.get("_use_default_values", [])) - set(DATA_KEYS))
    if missing:
        defaults = ", ".join(f"{key}={config[key]!r}" for key in missing)
        hub_log.warning("The configuration of %s in %s lacks keys; defaults are used: %s.", name, folder, defaults)


def forget_origins(folder: str | Path) -> None:
    """Take out of a saved pipeline where its networks were loaded from: a path of this machine."""
    for path in Path(folder).glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            write(path, json.dumps(config, indent=2) + "\n")


# What a push sends.


def folder_contents(folder: str | Path) -> Contents:
    """The files of a folder, less hidden ones and Python's caches.

    Raises:
        ValueError: if there is no such folder, or it holds pickles, which run any code when they are loaded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a folder, but {folder} is not.")
    contents = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            contents["/".join(parts)] = path
    pickles = [name for name in contents if name.endswith(PICKLES)]
    if pickles:
        raise ValueError(f"`folder` {folder} holds pickles, which are not pushed: {', '.join(pickles)}.")
    return contents


def missing_from(contents: Contents) -> list[str]:
    """What a saved pipeline lacks to be a complete repository, in words."""
    if "model_index.json" not in contents:
        return ["model_index.json"]
    index = json.loads(contents["model_index.json"].read_text(encoding="utf-8"))
    missing = []
    if not isinstance(index.get("_class_name"), list):
        missing.append("the pipeline's code")
    elif f"{index['_class_name'][0]}.py" not in contents:
        missing.append(f"{index['_class_name'][0]}.py")
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or value[0] is None:
            continue
        files = [path.split("/", 1)[1] for path in contents if path.startswith(f"{name}/")]
        if value[0] not in ("diffusers", "transformers") and f"{value[0]}.py" not in files:
            missing.append(f"{name}/{value[0]}.py")
        if "config.json" in files and not any(file.endswith(".safetensors") for file in files):
            missing.append(f"{name}/*.safetensors")
        if not any(file.endswith("config.json") for file in files):
            missing.append(f"{name}/*config.json")
    for path, source in contents.items():
        if ".safetensors.index." in path:
            shards = json.loads(source.read_text(encoding="utf-8"))["weight_map"].values()
            expected = dict.fromkeys(f"{path.rpartition('/')[0]}/{shard}" for shard in shards)
            missing += [shard for shard in expected if shard not in contents]
    return missing


def content_sizes(contents: Contents) -> dict[str, int]:
    """Bytes of each file."""
    return {
        name: len(source) if isinstance(source, bytes) else source.stat().st_size for name, source in contents.items()
    }


def check_size(contents: Contents, max_bytes: int) -> None:
    """Raise a ValueError if a push would send more than `max_bytes`."""
    sizes = content_sizes(contents)
    if sum(sizes.values()) > max_bytes:
        largest = max(sizes, key=sizes.get)
        raise ValueError(
            f"{len(sizes)} files of {sum(sizes.values()) / 1e9:.3g} GB would be sent (the largest: {largest}), "
            f"but `max_bytes` allows {max_bytes / 1e9:.3g} GB."
        )


def picture_bytes(picture: str | Path | Image.Image) -> bytes:
    """A picture as a PNG file."""
    if not isinstance(picture, Image.Image):
        picture = Image.open(picture)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


# Push and pull.


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    max_bytes: int = LARGEST_PUSH,
    dry_run: bool = False,
    samples: str | Path | Image.Image | None = None,
    license: str | None = None,
    datasets: list[str] | None = None,
    tags: list[str] | None = None,
    metrics: dict[str, float] | None = None,
    description: str | None = None,
) -> CommitInfo | dict[str, int]:
    """Send a saved pipeline's folder to the Hub, with a card, in one commit.

    A README.md in the folder, or else one on the Hub, keeps its text if it was written by hand; weights that the new
    ones replace under other names are deleted from the repository. The folder itself is left alone.

    Args:
        folder: of the pipeline, as `save_pretrained` writes it.
        repo_id: "owner/name", or "name" for one of your own; it is created if there is none.
        commit_message: of the commit.
        private: whether a repository that is created is private; None = as your account has it.
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
        ValueError: on arguments out of range or an incomplete folder, before anything is sent.
        ConnectionError: if the Hub cannot be reached.
        OSError: if it refuses, as huggingface_hub says it (`HfHubHTTPError`, `LocalTokenNotFoundError`).
        RuntimeError: if a file cannot be uploaded.
    """
    contents = folder_contents(folder)
    missing = missing_from(contents)
    if missing:
        raise ValueError(
            f"`folder` {folder} is no complete pipeline: {', '.join(missing)} missing. Save it with "
            "`ScoreSdePipeline.save_pretrained`."
        )
    if samples is not None:
        contents[SAMPLES_FILE] = picture_bytes(samples)
    check_size(contents, max_bytes)
    own_card = read_card(contents["README.md"]) if "README.md" in contents else None

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
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        contents["README.md"] = card(repo_id, preferred_card(own_card, card_on_hub(repo_id, revision, token)))
        stale = replaced_files(api.list_repo_files(repo_id, revision=revision), contents)
        return commit_contents(api, repo_id, "model", contents, stale, commit_message, revision, create_pr)


def commit_contents(api, repo_id, repo_type, contents, stale, message, revision, create_pr) -> CommitInfo:
    """One commit that writes `contents` and deletes the paths `stale`."""
    operations = [CommitOperationAdd(name, source) for name, source in contents.items()]
    operations += [CommitOperationDelete(name) for name in stale]
    message = message or f"Upload {len(contents)} files"
    return api.create_commit(
        repo_id, operations, commit_message=message, repo_type=repo_type, revision=revision, create_pr=create_pr
    )


def replaced_files(remote: list[str], contents: Contents) -> list[str]:
    """Weights of a repository that would be loaded instead of new ones: the same variant in other shards."""

    def weights(path):
        folder, _, name = path.rpartition("/")
        match = WEIGHTS.fullmatch(name) or WEIGHTS_INDEX.fullmatch(name)
        return match and (folder, match["variant"])

    new = {weights(path) for path in contents} - {None}
    return [path for path in remote if path not in contents and weights(path) in new]


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
    unreachable = None
    try:
        if not local_files_only:
            require_hub(repo_id, "model", token)
    except ConnectionError as error:
        if force_download:
            raise
        unreachable = error
    except HFValidationError as error:
        raise OSError(f"{repo_id} is neither a folder nor the id of a repository.") from error
    if unreachable is not None:
        hub_log.warning("%s Looking for %s in the cache.", unreachable, repo_id)
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
        raise OSError(f"{unreachable} The cache holds no complete copy of {repo_id}.") from error
    except HFValidationError as error:
        raise OSError(f"{repo_id} is neither a folder nor the id of a repository.") from error


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


@contextlib.contextmanager
def clear_transport_errors(action: str):
    """Say what was being done where a connection breaks; all other errors pass."""
    try:
        yield
    except (OSError, RuntimeError, ValueError):
        raise
    except Exception as error:  # see `require_hub`
        raise ConnectionError(f"{action} failed: {error or type(error).__name__}.") from error
