"""`experiments.yaml` -> `Grid`: every row a resolved `RunSpec` under its published label. No Ray, no torch.

Terms. An *axis* (dataset, model, ...) has named values, each a set of spec fields. A *matrix* is the product of axis
values over one *base*; `overrides` set fields where axis values meet; `rows` name the matrix's cells and give their
published values; `parents` are rows outside the matrix that others start from. `like` takes over another grid, whose
matrix may be narrowed.

A file's faults are gathered and raised at once, each with its place.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainable.models import nearest
from trainable.spec import InitSpec, RunSpec
from tuner.facts import Facts, PinnedFacts
from tuner.grid_file import (
    Block,
    Faults,
    Override,
    PublishedValues,
    Row,
    dotted,
    explain,
    inherit,
    leaves,
    read_experiments,
)
from tuner.yaml_file import as_text


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One row with one seed."""

    run_id: str
    label: str
    spec: RunSpec
    parents: tuple[str, ...]
    """Run ids that must be done before."""
    axes: dict[str, str]
    published: PublishedValues | None
    missing: str | None
    """Why the run cannot start whatever happens: data or weights that are not at hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What is true of a grid as a whole."""

    help: str
    published_eval: str | None
    """The evaluation that the published values are to be set beside."""
    overrides: dict[str, Any]
    """What the command line or other data changed against the file; empty for the full grid."""

    @property
    def variant(self) -> str:
        """`full`, or the hash of what was changed."""
        if not self.overrides:
            return "full"
        text = json.dumps(self.overrides, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True, kw_only=True, slots=True)
class GridRow:
    """One row of the table, whether or not it was selected."""

    label: str
    axes: dict[str, str]
    is_parent: bool
    """Whether the row stands outside the matrix, for others to start from."""
    published: PublishedValues | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A table of runs in the order of the study, parents last."""

    name: str
    header: Header
    rows: tuple[GridRow, ...]
    """All rows of the grid."""
    runs: tuple[PlannedRun, ...]
    """The selected rows and the parents they need, with every seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What the command line asks of a grid."""

    seeds: tuple[int, ...] | None = None
    """Replace the base's seed; every seed repeats the whole grid, parents included."""
    only: tuple[tuple[str, str], ...] = ()
    """(axis, value) pairs: values of one axis are alternatives, axes are conditions. `label` counts as an axis."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Spec fields to set in every row, by dotted path."""


def load_grid(path: Path, name: str, selection: Selection | None = None, facts: Facts | None = None) -> Grid:
    """Reads, expands, checks and resolves one grid.

    Args:
        path: the experiment file.
        name: the grid's name in it.
        selection: seeds, rows and overrides from the command line.
        facts: hashes of data and weights; without it only the pinned hashes of published data are known.

    Raises:
        GridError: all faults of the file and the selection at once, each with its place.
    """
    selection, facts = selection or Selection(), facts or PinnedFacts()
    faults = Faults(path)
    file = read_experiments(path, faults)
    if name not in file.grids:
        known = [*file.grids, *file.sweeps]
        faults.add(f"--grid {name}", f"is not one of {', '.join(known)}{nearest(name, known)}")
        faults.stop()
    block = inherit(file, name, faults)
    axes = {**file.axes, **block.axes}
    drafts = _expand(f"grids.{name}", block, axes, faults)
    faults.stop()
    chosen = _select(drafts, selection.only, axes, faults)
    runs: list[PlannedRun] = []
    for seed in selection.seeds or (None,):
        fields = dict(selection.fields) if seed is None else {**selection.fields, "seed": seed}
        runs += _resolve([draft.with_fields(fields) for draft in drafts], chosen, facts, faults)
    faults.stop()
    overrides = {**selection.fields, **_other_data(runs, facts)}
    header = Header(help=block.help, published_eval=block.published_eval, overrides=overrides)
    rows = tuple(
        GridRow(label=draft.label, axes=draft.axes, is_parent=draft.is_parent, published=draft.published)
        for draft in drafts
    )
    return Grid(name=name, header=header, rows=rows, runs=tuple(runs))


def list_grids(path: Path) -> list[tuple[str, int, str]]:
    """(name, number of rows, first line of help) of every grid of the file.

    Raises:
        GridError: any grid of the file has a fault.
    """
    faults = Faults(path)
    names = list(read_experiments(path, faults).grids)
    grids = [load_grid(path, name) for name in names]
    return [(grid.name, len(grid.runs), grid.header.help.strip().splitlines()[0]) for grid in grids]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draft:
    """A row as fields by dotted path, each with the place in the file that set it."""

    label: str
    place: str
    base: str
    """Place of the grid's base."""
    axes: dict[str, str]
    fields: dict[str, tuple[Any, str]]
    is_parent: bool
    published: PublishedValues | None

    def with_fields(self, fields: Mapping[str, Any]) -> _Draft:
        """The row with fields changed by the command line. A budget in steps gives way to one in epochs; rows that only
        evaluate keep doing that."""
        changed = {path: (value, f"command line, {path}") for path, value in fields.items()}
        if self._value("budget.epochs") == 0 or self._value("budget.steps") == 0:
            changed = {path: value for path, value in changed.items() if not path.startswith("budget.")}
        elif "budget.epochs" in changed and self._value("budget.steps") is not None:
            changed["budget.steps"] = (None, changed["budget.epochs"][1])
        return _Draft(
            label=self.label,
            place=self.place,
            base=self.base,
            axes=self.axes,
            fields={**self.fields, **changed},
            is_parent=self.is_parent,
            published=self.published,
        )

    def _value(self, path: str) -> Any:
        return self.fields[path][0] if path in self.fields else None


_Axes = Mapping[str, Mapping[str, Mapping[str, Any]]]


def _expand(place: str, block: Block, axes: _Axes, faults: Faults) -> list[_Draft]:
    """All rows of a grid: the matrix's cells in order (the last axis moves fastest), then the parents."""
    if not block.base:
        faults.add(f"{place}.base", "is missing; a grid needs a base (or `like` another grid)")
        faults.stop()
    matrix = {}
    for axis, values in block.matrix.items():
        texts = [as_text(value) for value in values]
        for number, value in enumerate(texts):
            _check_value(f"{place}.matrix.{axis}[{number}]", axis, value, axes, faults)
            if value in texts[:number]:
                faults.add(f"{place}.matrix.{axis}[{number}]", f'"{value}" is there twice')
        matrix[axis] = texts
    faults.stop()
    overrides = [
        _checked_override(f"{place}.overrides[{number}]", override, axes, faults)
        for number, override in enumerate(block.overrides)
    ]
    rows = {label: _row_axes(f"{place}.rows.{label}", row, axes, faults) for label, row in block.rows.items()}
    parents = {label: _row_axes(f"{place}.parents.{label}", row, axes, faults) for label, row in block.parents.items()}
    faults.stop()

    cells = [dict(zip(matrix, values, strict=True)) for values in itertools.product(*matrix.values())] if matrix else []
    named: dict[tuple[tuple[str, str], ...], str] = {}
    for label, at in rows.items():
        cell = tuple(sorted(at.items()))
        if matrix and at not in cells:
            shown = ", ".join(f"{axis} {value}" for axis, value in at.items())
            faults.add(f"{place}.rows.{label}.at", f"({shown}) is no cell of the matrix over {', '.join(matrix)}")
        if cell in named:
            faults.add(f"{place}.rows.{label}.at", f"is the cell of {named[cell]} too")
        named[cell] = label
    for label in parents.keys() & rows.keys():
        faults.add(f"{place}.parents.{label}", "is the label of a row too")

    def draft(label: str, at: dict[str, str], row: Row | None, where: str, is_parent: bool) -> _Draft:
        return _Draft(
            label=label,
            place=where,
            base=f"{place}.base",
            axes=at,
            fields=_fields(place, block, axes, at, overrides, row, where),
            is_parent=is_parent,
            published=row.published if row else None,
        )

    drafts = []
    for at in cells if matrix else rows.values():
        name = named.get(tuple(sorted(at.items())))
        where = f"{place}.rows.{name}" if name else f"{place}.matrix"
        drafts.append(draft(name or "-".join(at.values()), at, block.rows.get(name or ""), where, False))
    for label, at in parents.items():
        drafts.append(draft(label, at, block.parents[label], f"{place}.parents.{label}", True))
    if not drafts:
        faults.add(place, "has neither a matrix nor rows")
    return drafts


def _fields(
    place: str,
    block: Block,
    axes: _Axes,
    at: dict[str, str],
    overrides: list[tuple[dict[str, str], dict[str, Any], str]],
    row: Row | None,
    where: str,
) -> dict[str, tuple[Any, str]]:
    """A row's fields: base, then axis values, overrides, the row's own, and the grid's `set`."""
    fields = _placed(block.base or {}, f"{place}.base")
    for axis, value in at.items():
        home = f"{place}.axes" if axis in block.axes else "axes"
        fields |= _placed(axes[axis][value], f"{home}.{axis}.{value}")
    for when, settings, override_place in overrides:
        if all(at.get(axis) == value for axis, value in when.items()):
            fields |= _placed(settings, f"{override_place}.set")
    if row is not None:
        fields |= _placed(row.set, f"{where}.set")
    return fields | _placed(block.set, f"{place}.set")


def _placed(settings: Mapping[str, Any], place: str) -> dict[str, tuple[Any, str]]:
    """Fields by dotted path, however deep they are nested in the file, each with its place."""
    return {path: (value, f"{place}.{path}") for path, value in leaves(settings)}


def _check_value(place: str, axis: str, value: str, axes: _Axes, faults: Faults) -> None:
    if axis not in axes:
        faults.add(place, f'"{axis}" is no axis; axes are {", ".join(axes)}{nearest(axis, axes)}')
    elif value not in axes[axis]:
        faults.add(place, f'"{value}" is not one of {", ".join(axes[axis])}{nearest(value, axes[axis])}')


def _checked_override(
    place: str, override: Override, axes: _Axes, faults: Faults
) -> tuple[dict[str, str], dict[str, Any], str]:
    when = {axis: as_text(value) for axis, value in override.when.items()}
    for axis, value in when.items():
        _check_value(f"{place}.when.{axis}", axis, value, axes, faults)
    return when, override.set, place


def _row_axes(place: str, row: Row, axes: _Axes, faults: Faults) -> dict[str, str]:
    at = {axis: as_text(value) for axis, value in row.at.items()}
    for axis, value in at.items():
        _check_value(f"{place}.at.{axis}", axis, value, axes, faults)
    return at


def _select(drafts: list[_Draft], only: tuple[tuple[str, str], ...], axes: _Axes, faults: Faults) -> set[str]:
    """Labels of the rows that `--only` keeps (parents are added where they are needed)."""
    wanted: dict[str, set[str]] = {}
    for axis, value in only:
        used = [draft.label if axis == "label" else draft.axes.get(axis, "") for draft in drafts]
        known = [name for name in (used if axis == "label" else axes.get(axis, {})) if name in used]
        if not known:
            names = ["label", *dict.fromkeys(name for draft in drafts for name in draft.axes)]
            faults.add(f"--only {axis}={value}", f'"{axis}" is not one of {", ".join(names)}{nearest(axis, names)}')
        elif value not in known:
            faults.add(f"--only {axis}={value}", f'"{value}" is not one of {", ".join(known)}{nearest(value, known)}')
        wanted.setdefault(axis, set()).add(value)
    faults.stop()
    chosen = set()
    for draft in drafts:
        of = {**draft.axes, "label": draft.label}
        by_name = "label" in wanted  # a parent is chosen by its name, or because a chosen row needs it
        if all(of.get(axis) in values for axis, values in wanted.items()) and (by_name or not draft.is_parent):
            chosen.add(draft.label)
    if not chosen:
        faults.add("--only", "no row of the grid has all of these values")
    faults.stop()
    return chosen


def _resolve(drafts: list[_Draft], chosen: set[str], facts: Facts, faults: Faults) -> list[PlannedRun]:
    """Specs in topological order, so that a child's spec holds its parent's id; returned in the order of the rows."""
    by_label = {draft.label: draft for draft in drafts}
    done: dict[str, PlannedRun] = {}
    needed: set[str] = set()

    def resolve(label: str, chain: tuple[str, ...]) -> PlannedRun | None:
        if label in done:
            return done[label]
        draft = by_label[label]
        values = {path: value for path, (value, _) in draft.fields.items()}
        parent = None
        if values.get("init.kind") == "parent":
            source = values.get("init.source")
            where = draft.fields["init.source"][1] if "init.source" in draft.fields else draft.place
            if source not in by_label:
                labels = list(by_label)
                faults.add(where, f'"{source}" is no row of this grid{nearest(str(source), labels)}')
                return None
            if source in (*chain, label):
                circle = " -> ".join([*chain, label, str(source)])
                faults.add(where, f"parents form a circle: {circle}")
                return None
            parent = resolve(str(source), (*chain, label))
            if parent is None:
                return None
            values["init.source"] = parent.run_id
        spec = _spec(draft, values, facts, faults)
        if spec is None:
            return None
        planned = PlannedRun(
            run_id=spec.run_id,
            label=label,
            spec=spec,
            parents=(parent.run_id,) if parent else (),
            axes=draft.axes,
            published=draft.published,
            missing=facts.missing(spec),
        )
        if parent:
            needed.add(parent.label)
        done[label] = planned
        return planned

    for draft in drafts:
        if draft.label in chosen:
            resolve(draft.label, ())
    return [done[draft.label] for draft in drafts if draft.label in done and draft.label in chosen | needed]


def _spec(draft: _Draft, values: dict[str, Any], facts: Facts, faults: Faults) -> RunSpec | None:
    """Validates one row and fills in the hashes of its data and weights."""
    values.setdefault("data.content_sha256", facts.content_sha256(str(values.get("data.dataset"))))
    values.setdefault("init.sha256", None)
    nested: dict[str, Any] = {}
    for path, value in values.items():
        node = nested
        *parts, last = path.split(".")
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value
    try:
        spec = RunSpec.model_validate_json(json.dumps(nested))
    except ValidationError as error:
        for fault in error.errors():
            path = dotted(fault["loc"])
            if fault["type"] == "missing":
                hint = "is set by neither base, axes nor row; nothing has a hidden default, set it in the base"
                faults.add(f"{draft.base}.{path}", hint)
            else:
                faults.add(_place_of(path, draft), explain(fault))
        return None
    if spec.init.kind in ("hub", "file") and spec.init.sha256 is None:
        sha256 = facts.weights_sha256(spec.init)
        spec = spec.model_copy(update={"init": InitSpec(**{**spec.init.model_dump(), "sha256": sha256})})
    return spec


def _place_of(path: str, draft: _Draft) -> str:
    """Where the faulty field was set; the row itself where it was set nowhere or is a whole part."""
    if path in draft.fields:
        return draft.fields[path][1]
    inner = [where for own, (_, where) in draft.fields.items() if path and path.startswith(own + ".")]
    return inner[0] if inner else f"{draft.place}{': ' if path else ''}{path}"


def _other_data(runs: list[PlannedRun], facts: Facts) -> dict[str, Any]:
    """Data whose content is not the published one: they make another variant of the grid."""
    hashes = {run.spec.data.dataset: run.spec.data.content_sha256 for run in runs}
    pinned = PinnedFacts()
    return {
        f"data.{name}": sha256
        for name, sha256 in sorted(hashes.items())
        if sha256 is not None and pinned.content_sha256(name) not in (None, sha256)
    }
