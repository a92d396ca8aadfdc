"""Reads YAML strictly: YAML 1.2 scalars, text keys, no duplicate keys, no tags of Python, and no aliases that unfold
to more than a machine holds.

PyYAML alone reads `1e-3` as text, `no` as false, and keeps the last of two equal keys in silence.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

MAX_NODES = 2_000_000
"""With every alias unfolded; a grid of 10,000 rows written out has some 200,000."""


class YamlError(Exception):
    """The file cannot be read; the message names line and mend."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        self.flatten_mapping(node)
        mapping: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            key = str(key_node.value)
            if key in mapping:
                raise yaml.constructor.ConstructorError(None, None, f'key "{key}" is there twice', key_node.start_mark)
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    return loader.construct_mapping(node)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))  # 010 is ten
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ("merge", r"^<<$", "<"),
):
    _firsts = [*_first.replace("\0", ""), ""] if "\0" in _first else list(_first)
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _firsts)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        YamlError: absent, not YAML, or a key is there twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise YamlError(f"{path}: cannot be read ({error})") from None
    return copy.deepcopy(_content(text, path))


@lru_cache(maxsize=4)
def _content(text: str, path: Path) -> Any:
    """A command asks for its file several times, and the strict reader takes half a second for a thousand lines."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise YamlError(f"{where}: {error.problem or error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise YamlError(f"{path}: {error}") from None
    except RecursionError:
        raise YamlError(f"{path}: is nested too deeply to be an experiment file") from None


def _check_size(root: yaml.Node) -> None:
    """Aliases share what they name, but whoever walks the content walks it once for each: ten lines of ten aliases are
    ten thousand million values.

    Raises:
        ComposerError: too many values, or one that contains itself.
    """
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = None
            inner = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(size(part) for part in inner)
        known = sizes[id(node)]
        if known is None or known > MAX_NODES:
            why = "contains itself" if known is None else f"unfolds to more than {MAX_NODES:,} values"
            raise yaml.composer.ComposerError(None, None, f"{why} through its aliases; write it out", node.start_mark)
        return known

    size(root)


def as_text(value: Any) -> str:
    """A scalar as it is written in YAML, for comparing axis values."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
