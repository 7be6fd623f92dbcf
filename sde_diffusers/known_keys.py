"""Keys of a configuration that nobody takes: refused, since what they ask for would not be done."""

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
    known = sorted({key for cls in classes for key in inspect.signature(cls).parameters})
    for key in given:
        if key not in known and not key.startswith("_"):
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{who} can't take the key {key!r}: {hint}The keys are {', '.join(known)}.")
