"""Keys of a sampler's configuration."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType

from diffusers import ConfigMixin, SchedulerMixin

from sde_diffusers.known_keys import require_known_keys


class KnownKeysMixin(SchedulerMixin, ConfigMixin):
    """Of schedulers: keys that nobody takes are refused."""

    @classmethod
    def from_config(cls, config: dict | None = None, return_unused_kwargs: bool = False, **kwargs):
        """A scheduler as a configuration says, of this or another sampler; keys by name take the place of its own.

        Raises:
            ValueError: on what is no configuration, on keys by name that this sampler does not take, and on keys of
                the configuration that none does, unless the unused ones are to be returned; see also the constructor.
        """
        if not isinstance(config, (Mapping, NoneType)):
            raise ValueError(f"`config` must be a dict, such as `scheduler.config`, but is {config!r}.")
        if not return_unused_kwargs:
            require_known_keys(kwargs, [cls], cls.__name__)
            require_known_keys(config or {}, [cls, *cls._get_compatibles()], "The samplers")
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def save_pretrained(self, save_directory: str | Path, *args, **kwargs):
        """As in diffusers; `~` is the home folder."""
        super().save_pretrained(os.path.expanduser(save_directory), *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *args,
        return_unused_kwargs: bool = False,
        **kwargs,
    ):
        """As in diffusers. Keys in the file that no sampler takes, as of a newer version, are ignored with a warning;
        those that are given by name are refused as in `from_config`."""
        scheduler, unused = super().from_pretrained(
            pretrained_model_name_or_path and os.path.expanduser(pretrained_model_name_or_path),
            *args,
            return_unused_kwargs=True,
            **kwargs,
        )
        if not return_unused_kwargs:
            require_known_keys(unused.keys() & kwargs.keys(), [cls], cls.__name__)
        return (scheduler, unused) if return_unused_kwargs else scheduler
