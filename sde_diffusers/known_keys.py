"""Keys of a configuration, and options, that nobody takes: refused, since what they ask for would not be done."""

import difflib
import inspect
from collections.abc import Iterable


def require_known_keys(given: Iterable[str], classes: Iterable[type], who: str) -> None:
    """Raise a ValueError, which names the nearest and all that there are, on a key that no constructor takes.

    Args:
        given: keys; those that begin with "_" are diffusers' own.
        classes: whose constructors take keys.
        who: does not take such a key, for the message.
    """
    known = {key for cls in classes for key in inspect.signature(cls).parameters}
    require_known([key for key in given if not key.startswith("_")], known, who, "key")


def require_known(given: Iterable[str], known: Iterable[str], who: str, what: str) -> None:
    """Raise a ValueError, which names the nearest and all that there are, on a name that is not among the known.

    Args:
        who, what: what does not take such a name, and what names of this kind are, for the message.
    """
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{who} can't take the {what} {name!r}: {hint}The {what}s are {', '.join(known)}.")
