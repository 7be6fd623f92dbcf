"""Pipelines at home on the Hub: saving, pushing and pulling complete repositories.

A repository holds the weights as safetensors, the configurations, the code that loads them where this package is not
installed (`single_file.py`), a card (`model_card.py`) and, if there is one, a grid of samples.
"""

import inspect
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from diffusers import ModelMixin, SchedulerMixin
from huggingface_hub import CommitInfo

from sde_diffusers.class_names import DATA_KEYS
from sde_diffusers.hub.pull import pull_model
from sde_diffusers.hub.push import PUSH_OPTIONS, check_push, push_model
from sde_diffusers.known_keys import require_known
from sde_diffusers.saved_folders.folder_options import require_dtypes, require_path, require_save_options
from sde_diffusers.saved_folders.single_file import (
    REMOTE_PACKAGE,
    is_module_of,
    save_modules,
    sdes_of_others,
    source_of,
)
from sde_diffusers.saved_folders.stale_files import stale_files
from sde_diffusers.saved_folders.trusted_libraries import require_no_code_named, require_trusted_libraries
from sde_diffusers.saved_folders.whole_folder import load_whole, whole_save

hub_log = logging.getLogger(__name__)

GIVEN: ContextVar[dict[str, list[str | None]]] = ContextVar("what `base_of` says of components that a caller gives")

Pipeline = TypeVar("Pipeline", bound="HubPipelineMixin")


class HubPipelineMixin:
    """Saving and loading of pipelines with repositories that carry their own code; before `DiffusionPipeline`."""

    components: dict[str, Any]  # of `DiffusionPipeline`
    config: Any
    register_modules: Callable[..., None]

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ):
        """Save weights, configurations and the code that loads them where this package is not installed.

        The arguments are those of `DiffusionPipeline.save_pretrained` and, for `push_to_hub=True`, those of
        `push_to_hub`, `repo_id` being the folder's name by default. The code of a network of one's own is not saved,
        as a warning says: load it with its class, and give it to `from_pretrained`.

        A save is whole: until all is written the folder stays as it was, and then nothing is left of what it replaces
        (`stale_files.py` says what that is), while other files stay. Several threads or processes may save at once.

        Raises:
            ValueError: on arguments out of range or of other names; if the folder, or one that is needed within, is a
                file, or is on another disk by a link; if the code of an SDE of one's own cannot be saved.
            OSError: if something cannot be written; the folder is then as it was.
        """
        save = super().save_pretrained  # type: ignore[misc]
        own = inspect.signature(save).parameters.keys() - {"kwargs"}
        require_known(kwargs, {"repo_id", *own, *PUSH_OPTIONS}, "save_pretrained", "argument")
        require_save_options(variant, max_shard_size)
        require_path("save_directory", save_directory)
        options = {key: kwargs.pop(key) for key in [*kwargs] if key in own}
        repo_id = kwargs.pop("repo_id", Path(save_directory).expanduser().resolve().name)
        if push_to_hub:
            check_push(repo_id, safe_serialization, **kwargs)
        for name, component in self.components.items():
            if component is not None and self.config[name][0] is None:  # an optional one that was assigned later
                self.register_modules(**{name: component})
        for component in self.components.values():
            if others := sdes_of_others(component):
                source_of(type(component), others)  # refused, if at all, before anything is written
        with whole_save(save_directory, stale_files) as folder:
            save(folder, safe_serialization, variant, max_shard_size, **options)
            save_modules(self, folder)
            forget_origins(folder)
        if push_to_hub:
            push_model(Path(save_directory).expanduser(), repo_id, **kwargs)

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
        require_known(kwargs, PUSH_OPTIONS, "push_to_hub", "argument")
        check_push(repo_id, safe_serialization, **kwargs)
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
    def from_pretrained(cls: type[Pipeline], pretrained_model_name_or_path: str | Path, **kwargs) -> Pipeline:
        """Load a pipeline from a folder or from the Hub; the arguments are those of `DiffusionPipeline`.

        No code of the repository is executed: its classes are looked up in this package. Components that are given by
        name, such as `unet=`, take the place of the saved ones, which may then be of any class. Of a folder into which
        others save meanwhile one of the saved states is loaded, whole.

        Raises:
            ValueError: if a component that is not given is of another library than this package, diffusers and
                transformers, its configuration names code, or its weights do not fit; on a dtype that is none of
                torch.
            OSError: if there is no such folder or repository, or neither the Hub nor a copy of it can be reached.
        """
        require_dtypes(kwargs)
        where = "the path of a folder or the id of a repository"
        require_path("pretrained_model_name_or_path", pretrained_model_name_or_path, where)
        pretrained_model_name_or_path = os.path.expanduser(pretrained_model_name_or_path)
        if cls._package() is not None and not Path(pretrained_model_name_or_path).is_dir():
            keys = ("cache_dir", "force_download", "local_files_only", "token", "revision")
            options = {key: kwargs.pop(key) for key in keys if key in kwargs}
            pretrained_model_name_or_path = pull_model(
                str(pretrained_model_name_or_path), variant=kwargs.get("variant"), **options
            )
        load = super().from_pretrained  # type: ignore[misc]

        def checked_load():
            given = {name: base for name, value in kwargs.items() if (base := base_of(value)) is not None}
            before = GIVEN.set(given)
            try:
                if cls._package() is not None:
                    config = cls.load_config(pretrained_model_name_or_path)
                    loaded = {name: value for name, value in config.items() if name not in given}
                    require_no_code_named(pretrained_model_name_or_path, loaded)
                return load(pretrained_model_name_or_path, **kwargs)
            finally:
                GIVEN.reset(before)

        pipeline = load_whole(pretrained_model_name_or_path, checked_load)
        for name in pipeline.components.keys() - kwargs.keys():
            warn_of_missing_keys(pretrained_model_name_or_path, name, getattr(pipeline, name))
        return pipeline

    @classmethod
    def load_config(cls, *args, **kwargs):
        """As in diffusers, but with the classes of a saved folder's own modules mapped to this package's.

        Within `from_pretrained`, a component that is given is there by its base in diffusers, by which that checks it.

        Raises:
            ValueError: if a component is of another library than this package, diffusers and transformers.
        """
        config = super().load_config(*args, **kwargs)  # type: ignore[misc]
        package = cls._package()
        if package is not None and isinstance(config, dict):
            if isinstance(config.get("_class_name"), (list, tuple)):
                config["_class_name"] = config["_class_name"][1]
            for name, value in config.items():
                if not isinstance(value, (list, tuple)) or len(value) != 2:
                    continue
                if name in GIVEN.get({}):
                    config[name] = GIVEN.get()[name]
                elif is_module_of(getattr(package, str(value[1]), None), str(value[0])):
                    config[name] = [package.__name__, value[1]]
            require_trusted_libraries(config, args[0] if args else cls.__name__, package.__name__)
        return config

    @classmethod
    def _package(cls):
        """The installed package, or None where this class comes from a saved folder."""
        name = HubPipelineMixin.__module__.split(".")[0]
        return sys.modules[name] if name != REMOTE_PACKAGE else None


def base_of(component) -> list[str | None] | None:
    """How a pipeline's index names the base in diffusers of a component, or none; None for what has no such base."""
    if component is None:
        return [None, None]
    component = getattr(component, "_orig_mod", component)  # a compiled network is wrapped
    bases = [base for base in (ModelMixin, SchedulerMixin) if isinstance(component, base)]
    return ["diffusers", bases[0].__name__] if bases else None


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
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
