"""Keys of a configuration that no sampler takes: refused, since what they ask for would not be done."""

import difflib
import inspect
from collections.abc import Iterable

from diffusers import ConfigMixin, SchedulerMixin


def require_known_keys(given: Iterable[str], classes: Iterable[type], who: str) -> None:
    """Raise a ValueError, which names the nearest and all that there are, on a key that no constructor takes.

    Args:
        given: keys; those that begin with "_" are diffusers' own.
        classes: whose constructors take keys.
        who: does not take such a key, for the message.
    """
    known = sorted({key for cls in classes for key in inspect.signature(cls).parameters})
    for key in given:
        if key not in known and not key.startswith("_"):
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{who} can't take the key {key!r}: {hint}The keys are {', '.join(known)}.")


class KnownKeysMixin(SchedulerMixin, ConfigMixin):
    """Of schedulers: keys that nobody takes are refused."""

    @classmethod
    def from_config(cls, config: dict | None = None, return_unused_kwargs: bool = False, **kwargs):
        """A scheduler as a configuration says, of this or another sampler; keys by name take the place of its own.

        Raises:
            ValueError: on keys by name that this sampler does not take, and on keys of the configuration that none
                does, unless the unused ones are to be returned; see also the constructor.
        """
        if not return_unused_kwargs:
            require_known_keys(kwargs, [cls], cls.__name__)
            require_known_keys(config or {}, [cls, *cls._get_compatibles()], "The samplers")
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @classmethod
    def from_pretrained(cls, *args, return_unused_kwargs: bool = False, **kwargs):
        """As in diffusers. Keys in the file that no sampler takes, as of a newer version, are ignored with a warning;
        those that are given by name are refused as in `from_config`."""
        scheduler, unused = super().from_pretrained(*args, return_unused_kwargs=True, **kwargs)
        if not return_unused_kwargs:
            require_known_keys(unused.keys() & kwargs.keys(), [cls], cls.__name__)
        return (scheduler, unused) if return_unused_kwargs else scheduler
