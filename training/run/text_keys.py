"""Keys of type text hold what was written, in files and on the command line.

YAML turns unquoted words into other things: `no` into false, `2024_01` into 202401, `1:30` into 90, `010` into 8, and
`1e3` into 1000. Here the types of a configuration's dataclass decide: where they say `str`, also within lists,
dictionaries and nested dataclasses, a word stays the word; where they say `int` or `float`, its digits are decimal
(`010` is ten); where they say nothing, `010` is ten, too, and `1:30` and `2024_01` are texts. Of numbers only 0 and 1
stand for a `bool`. `null`, `~` and nothing at all still mean "no value", unless quoted, and a text that begins with
`~/` means the home folder.
"""

import os
import re
from dataclasses import is_dataclass
from io import StringIO
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf

TAGS = "tag:yaml.org,2002:"
BASE = "base"  # of a file; no key of a schema


def read_file(path: Path, schema: type) -> Any:
    """The content of a YAML file for the dataclass `schema`, as OmegaConf gives it; YAMLError if it is not YAML."""
    with path.open(encoding="utf-8") as file:
        node = yaml.compose(file, Loader=yaml.SafeLoader)
    return OmegaConf.load(StringIO("" if node is None else yaml.serialize(_quoted(node, schema))))


def read_words(words: list[str], schema: type) -> DictConfig:
    """What `key=value` and `section.key=value` words say, for the dataclass `schema`; YAMLError as above."""
    content = OmegaConf.create()
    for word in words:
        key, _, written = word.partition("=")
        kind = _kind_at(schema, key)
        if str in _kinds(kind):
            OmegaConf.update(content, key, _written_text(written))
        else:
            try:
                node = yaml.compose(written, Loader=yaml.SafeLoader)
                value = written if node is None else yaml.serialize(_quoted(node, kind))
            except yaml.YAMLError as error:
                raise yaml.YAMLError(f"{word}: {error}") from error
            content.merge_with_dotlist([f"{key}={value}"])
    return content


def _written_text(written: str) -> str | None:
    """A text on the command line: all of it, whatever YAML would make of it, unless it is one quoted string."""
    if written[:1] in ("'", '"'):
        try:
            node = yaml.compose(written, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            return written
        return os.path.expanduser(node.value) if isinstance(node, yaml.ScalarNode) else written
    return None if written in ("", "~", "null", "Null", "NULL") else os.path.expanduser(written)


def _quoted(node: yaml.Node, kind: Any, seen: set | None = None) -> yaml.Node:
    """The YAML tree with its words in quotes wherever `kind`, a type, wants texts or whole numbers."""
    seen = set() if seen is None else seen
    if isinstance(node, yaml.ScalarNode):
        if _kinds(kind) & {str, int, float} and node.tag != f"{TAGS}null":
            return yaml.ScalarNode(f"{TAGS}str", os.path.expanduser(_number(node)), style='"')
        if node.tag in (f"{TAGS}int", f"{TAGS}float"):
            if bool in _kinds(kind) and node.value not in ("0", "1"):
                raise yaml.YAMLError(f"{node.value!r} is neither true nor false")
            if ":" in node.value or "_" in node.value:
                return yaml.ScalarNode(f"{TAGS}str", node.value, style='"')
            if re.fullmatch(r"[-+]?0\d+", node.value):
                return yaml.ScalarNode(node.tag, str(int(node.value)))
    elif id(node) not in seen:  # an alias stands for the node itself
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            node.value = [(_key(key), _quoted(value, _kind_in(kind, key), seen)) for key, value in node.value]
        else:
            node.value = [_quoted(item, _item_kind(kind, k), seen) for k, item in enumerate(node.value)]
    return node


def _number(node: yaml.ScalarNode) -> str:
    """Its text; of infinity and NaN, which YAML writes with a dot, as Python writes it."""
    return (
        re.sub(r"\.(inf|nan)$", r"\1", node.value, flags=re.IGNORECASE) if node.tag == f"{TAGS}float" else node.value
    )


def _key(node: yaml.Node) -> yaml.Node:
    """Keys are words as well; `<<` takes in another mapping."""
    if node.tag == f"{TAGS}merge" or not isinstance(node, yaml.ScalarNode):
        return node
    return yaml.ScalarNode(f"{TAGS}str", node.value, style='"')


def _kinds(kind: Any) -> set:
    """The alternatives of a type, such as `str` and `None` of `str | None`."""
    arguments = set(get_args(kind)) if NoneType in get_args(kind) else {kind}
    return arguments - {NoneType}


def _kind_in(kind: Any, key: yaml.Node) -> Any:
    """The type of what a mapping of the type `kind` holds at `key`."""
    if not isinstance(key, yaml.ScalarNode):
        return Any
    return kind if key.tag == f"{TAGS}merge" else _member(kind, key.value)


def _member(kind: Any, name: str) -> Any:
    (kind,) = _kinds(kind) if len(_kinds(kind)) == 1 else (Any,)
    if is_dataclass(kind):
        return str if name == BASE else get_type_hints(kind).get(name, Any)
    if get_origin(kind) is dict:
        return get_args(kind)[1]
    return _item_kind(kind, int(name)) if name.isdecimal() else Any


def _item_kind(kind: Any, index: int) -> Any:
    """The type of one item of a list or tuple; a list that is merged into a mapping (`<<`) has items of its type."""
    (kind,) = _kinds(kind) if len(_kinds(kind)) == 1 else (Any,)
    if is_dataclass(kind):
        return kind
    arguments = get_args(kind)
    if get_origin(kind) is list:
        return arguments[0]
    return arguments[index] if get_origin(kind) is tuple and index < len(arguments) else Any


def _kind_at(schema: type, key: str) -> Any:
    """The type of a dotted key; `[k]` stands for an item."""
    kind = schema
    for name in re.split(r"[.\[\]]+", key.rstrip("]")):
        kind = _member(kind, name)
    return kind
