"""The form of `experiments.yaml`: its blocks, `like`, and faults that are gathered before they are raised."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from datasets.spec import Spec
from trainable.models import nearest
from trainable.records import NAME
from tuner.sweep_file import SweepBlock
from tuner.yaml_file import YamlError, as_text, read_yaml

MAX_LABEL = 200
_ALLOWED = "use letters, digits, '.', '_' and '-', a letter or digit first, at most 100"


class GridError(Exception):
    """The experiment file or the command line does not describe a grid; the message lists every fault."""


class PublishedValues(Spec):
    """What the study printed for a row, as fractions; outside of the run's identity."""

    top1: float | None = None
    top5: float | None = None
    precision_macro: float | None = None
    recall_macro: float | None = None
    f1_macro: float | None = None
    step: int | None = None
    """Where the study saw this top1."""
    train_top1: float | None = None
    """On the first training images, where the study evaluated those too (`evaluate.train_first`)."""
    train_step: int | None = None
    """Where it saw that."""
    note: str | None = None


class Override(Spec):
    """Fields to set in the rows whose axes have these values."""

    when: dict[str, Any]
    set: dict[str, Any]


class Row(Spec):
    """One named row."""

    at: dict[str, Any]
    set: dict[str, Any] = Field(default_factory=dict)
    published: PublishedValues | None = None


class Block(Spec):
    """One grid as written."""

    help: str
    like: str | None = None
    published_eval: str | None = None
    base: dict[str, Any] | None = None
    axes: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    matrix: dict[str, list[Any]] = Field(default_factory=dict)
    overrides: list[Override] = Field(default_factory=list)
    rows: dict[str, Row] = Field(default_factory=dict)
    parents: dict[str, Row] = Field(default_factory=dict)
    set: dict[str, Any] = Field(default_factory=dict)


class ExperimentFile(Spec):
    """The whole file."""

    version: int
    axes: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    grids: dict[str, Block]
    sweeps: dict[str, SweepBlock] = Field(default_factory=dict)


class Faults:
    """Faults of one file with their places, each once, in the order of their discovery."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, None] = {}

    def add(self, place: str, message: str) -> None:
        """Notes a fault."""
        self._found[f"{place}: {message}"] = None

    def stop(self) -> None:
        """Raises when there is any fault."""
        if self._found:
            count = len(self._found)
            head = f"{self._path}: {count} fault{'s' if count > 1 else ''}"
            raise GridError("\n  ".join([head, *self._found]))


def read_experiments(path: Path, faults: Faults) -> ExperimentFile:
    """Reads and types a file.

    Raises:
        GridError: unreadable, or of another form.
    """
    try:
        content = read_yaml(path)
    except YamlError as error:
        raise GridError(str(error)) from None
    try:
        file = ExperimentFile.model_validate(content)
    except ValidationError as error:
        for fault in error.errors():
            faults.add(dotted(fault["loc"]) or "the file", explain(fault))
        faults.stop()
        raise
    if file.version != 1:
        faults.add("version", f"is {file.version}; this version of the project reads 1")
    for name in file.sweeps.keys() & file.grids.keys():
        faults.add(f"sweeps.{name}", "is the name of a grid too; --grid could not tell them apart, rename one")
    _check_names(file, faults)
    faults.stop()
    return file


def _check_names(file: ExperimentFile, faults: Faults) -> None:
    """Names of grids and sweeps become folders; labels and axis values are printed, one on a line."""
    for kind, names in (("grids", file.grids), ("sweeps", file.sweeps)):
        for name in names:
            if not re.fullmatch(NAME, name):
                faults.add(kind, f"{json.dumps(name)} cannot be a name: it becomes a folder's; {_ALLOWED}")
    for place, axes in [
        ("axes", file.axes),
        *((f"grids.{name}.axes", block.axes) for name, block in file.grids.items()),
    ]:
        for axis, values in axes.items():
            _check_printable(place, [axis, *values], faults)
    for name, block in file.grids.items():
        _check_printable(f"grids.{name}", [*block.rows, *block.parents], faults)


def _check_printable(place: str, texts: Iterable[str], faults: Faults) -> None:
    for text in texts:
        if not text.isprintable() or not 0 < len(text) <= MAX_LABEL:
            faults.add(
                place, f"{json.dumps(text[:MAX_LABEL])} must be one line of 1 to {MAX_LABEL} printable characters"
            )


def inherit(file: ExperimentFile, name: str, faults: Faults) -> Block:
    """The block with everything that it takes over through `like`."""
    block, seen = file.grids[name], [name]
    while block.like is not None:
        if block.like not in file.grids or block.like in seen:
            why = "refers back to itself" if block.like in seen else "is no grid of this file"
            faults.add(f"grids.{seen[-1]}.like", f'"{block.like}" {why}{nearest(block.like, file.grids)}')
            faults.stop()
        for own in ("base", "overrides", "rows", "parents"):
            if getattr(block, own):
                faults.add(f"grids.{seen[-1]}.{own}", f"cannot stand beside like: {block.like}; use set")
        other = file.grids[block.like]
        for axis in block.matrix.keys() - other.matrix.keys():
            faults.add(f"grids.{seen[-1]}.matrix.{axis}", f"is no axis of the matrix of {block.like}")
        faults.stop()
        matrix = {**other.matrix, **block.matrix}
        seen.append(block.like)
        block = other.model_copy(
            update={
                "help": block.help,
                "axes": {**other.axes, **block.axes},
                "matrix": matrix,
                "rows": {label: row for label, row in other.rows.items() if _within(row, matrix)},
                "set": {**other.set, **block.set},
                "published_eval": block.published_eval or other.published_eval,
            }
        )
    return block


def _within(row: Row, matrix: Mapping[str, list[Any]]) -> bool:
    """Whether a row taken over from another grid is still a cell of the narrowed matrix."""
    return all(as_text(row.at.get(axis)) in map(as_text, values) for axis, values in matrix.items())


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(dotted path, value) of every field, however deep it is nested."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def dotted(loc: tuple[int | str, ...]) -> str:
    """A pydantic location as it is written in YAML: grids.paper.matrix.mix[2]."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def explain(fault: Any) -> str:
    """A pydantic fault in our words: what was given, what is allowed."""
    kind, given, context = fault["type"], fault.get("input"), fault.get("ctx", {})
    shown = json.dumps(given) if isinstance(given, str | int | float | bool | type(None)) else type(given).__name__
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "is no known field"
    if kind == "literal_error":
        allowed = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ")
        return f"{shown} is not one of {allowed}{nearest(str(given), allowed.split(', '))}"
    if kind == "value_error":
        return str(context.get("error", fault["msg"]))
    return f"{shown}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
