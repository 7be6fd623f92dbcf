"""A configuration is a dataclass: filled by YAML files and key=value words, and checked before any work is done.

A file may name another one as its `base` (relative to its own folder) and then holds only what differs. Texts need no
quotes, whatever YAML takes them for (see `text_keys.py`), and may begin with `~/` for the home folder. Every error
names the key, its value and what is allowed, or the nearest key.
"""

import difflib
import inspect
import math
import os
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from run.text_keys import BASE, read_file, read_words
from run.written_folder import write_whole


class ConfigError(ValueError):
    """What the user asked for cannot be done; the message says why, and what could be, in one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


# What values are allowed: in words, and the test of a value.
POSITIVE = ("a finite number above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = ("a finite number of at least 0", lambda value: 0 <= value < math.inf)
FRACTION = ("in [0, 1)", lambda value: 0 <= value < 1)
COUNT = ("at least 1", lambda value: value >= 1)
NATURAL = ("at least 0", lambda value: value >= 0)
SEED = ("an integer from 0 to 2^64 - 1", lambda seed: 0 <= seed < 2**64)


def one_of(choices):
    """The rule of a value that is one of these."""
    return (f"one of {', '.join(choices)}", lambda value: value in choices)


def read_arguments(schema: type, rules: dict, arguments: list[str], example: str):
    """The configuration that command-line arguments describe: `FILE.yaml key=value section.key=value ...`.

    Args:
        schema, rules: see `merge`.
        example: a command line, for the error that there is no file.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    if not arguments or "=" in arguments[0]:
        raise ConfigError(f"the first argument must be a YAML file, as in: {example}")
    return merge(schema, rules, arguments[:1], arguments[1:])


def merge(schema: type, rules: dict, files: list[str], overrides: list[str], **given):
    """An instance of the dataclass `schema`: YAML files, then key=value words, then `given` values (rank rising).

    Args:
        rules: {dotted key: (what is allowed, in words; the test of a value that is not null)}.
        given: texts, by the name of their key; or such dictionaries, for sections.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise ConfigError(f"argument {override!r} must have the form key=value, as in seed=1")
    structure = OmegaConf.structured(schema)
    told = {key: value for key, value in _flat(given).items() if value is not None}
    for override in overrides:
        key, _, value = map(str.strip, override.partition("="))
        if key in told and value != told[key]:
            raise ConfigError(f"{key} is {told[key]} already, and {override} says otherwise: give one of them")
    try:
        config = structure
        contents = [_read_yaml(Path(path).expanduser(), schema) for path in files]
        for content in (*contents, read_words(overrides, schema), OmegaConf.create(_from_home(given))):
            config = _merged(config, content, rules)
        if missing := OmegaConf.missing_keys(config):
            raise ConfigError(f"these keys must be given: {', '.join(sorted(missing))}")
        config = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error, structure)) from error
    except YAMLError as error:
        raise ConfigError(f"an argument cannot be read: {error}") from error
    except TypeError as error:  # a list where a section is, say
        raise ConfigError(f"{' '.join(overrides)}: {error}") from error
    for key, (allowed, rule) in rules.items():
        value = config
        for name in key.split("."):
            value = getattr(value, name)
        if value is not None and not rule(value):
            raise ConfigError(f"{key} must be {allowed}, but is {value!r}")
    return config


def save_config(config, path: Path) -> None:
    """Write the whole configuration, defaults included, as a YAML file that can be read again."""
    write_whole(path, lambda incomplete: OmegaConf.save(OmegaConf.structured(config), incomplete))


def as_dict(config) -> dict[str, Any]:
    """The configuration as {dotted key: value}, of types that JSON has."""
    return _flat(OmegaConf.to_container(OmegaConf.structured(config)))


def construct(section: str, cls, arguments: dict[str, Any]):
    """`cls(**arguments)`, with errors that name the section and the nearest allowed keys.

    Raises:
        ConfigError: on an unknown key or a value that the class refuses.
    """
    allowed = [name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs")]
    for key in arguments:
        if key not in allowed:
            raise ConfigError(f"{section}.{key} is not a key. {_near(key, allowed)}")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{section}: {error}") from error


def _flat(node, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of dictionaries in dictionaries, with lists for tuples."""
    if not isinstance(node, dict):
        return {prefix[:-1]: list(node) if isinstance(node, tuple) else node}
    return {key: value for name in node for key, value in _flat(node[name], f"{prefix}{name}.").items()}


def _merged(config: DictConfig, content: DictConfig, rules: dict) -> DictConfig:
    """`content` over `config`; ConfigError for what OmegaConf refuses without naming its key."""
    try:
        return OmegaConf.merge(config, content)
    except (OmegaConfBaseException, TypeError) as error:
        if getattr(error, "full_key", None):
            raise
        key, value = _refused(config, OmegaConf.to_container(content))
        section = OmegaConf.select(config, key)
        if key in rules:
            allowed = rules[key][0]
        elif isinstance(section, DictConfig):
            keys = f" {', '.join(section)}" if is_dataclass(OmegaConf.get_type(section)) else ""
            allowed = f"a section of keys{keys} and their values"
        else:
            raise
        raise ConfigError(f"{key} must be {allowed}, but is {value!r}") from error


def _refused(config: DictConfig, content: dict) -> tuple[str, Any]:
    """The dotted key and the value of what cannot be merged into `config`; "" if it is none alone."""
    for name, value in content.items():
        try:
            OmegaConf.merge(config, {name: value})
        except (OmegaConfBaseException, TypeError):
            if isinstance(value, dict) and isinstance(section := config[name], DictConfig):
                key, value = _refused(section, value)
                return f"{name}.{key}", value
            return name, value
    return "", None


def _from_home(given):
    """A text with the home folder for ~; dictionaries of them likewise, and None as it is."""
    if isinstance(given, dict):
        return {key: _from_home(value) for key, value in given.items()}
    return os.path.expanduser(given) if isinstance(given, str) else given


def _read_yaml(path: Path, schema: type, above: tuple[Path, ...] = ()) -> DictConfig:
    if path.resolve() in above:
        raise ConfigError(f"{path} is its own base, by way of {above[-1].name}")
    if not path.is_file():
        raise ConfigError(f"there is no configuration file {path}")
    try:
        content = read_file(path, schema)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path} holds a list or mapping that contains itself") from None
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path} must hold keys and values, as in steps: 1000")
    base = content.pop(BASE, None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base must be the path of one configuration file, but is {base!r}")
    return _merged(_read_yaml(path.parent / base, schema, (*above, path.resolve())), content, {})


def _explain(error: OmegaConfBaseException, schema: DictConfig) -> str:
    reason = str(error).splitlines()[0]
    *parents, name = str(error.full_key or "").split(".")
    parent = OmegaConf.select(schema, ".".join(parents)) if parents else schema
    known = isinstance(parent, DictConfig) and name.partition("[")[0] in list(parent)  # `in` denies ???
    if error.full_key and isinstance(parent, DictConfig) and not known:
        return f"{error.full_key} is not a key. {_near(name, list(parent))}"
    if error.full_key and "is not a ListConfig" in reason:
        return f"{error.full_key} must be a list in brackets, as in [a, b]"
    return f"{error.full_key}: {reason}" if error.full_key else reason


def _near(name: str, allowed: list[str]) -> str:
    matches = difflib.get_close_matches(str(name), allowed)
    return f"Did you mean {' or '.join(matches)}?" if matches else f"Allowed: {', '.join(allowed)}."
