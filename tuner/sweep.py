"""A sweep and the rows it goes over: from the block in `experiments.yaml` to checked trials.

Terms. A sweep varies one spec field of every row of a grid. A *trial* is a row with a value of that field and with the
sweep's `set` (a hold-out); it is an ordinary run with an ordinary id. The row with the *chosen* value, without the
`set`, is an ordinary run too, and the grid's own where the chosen value is the row's own. Parents are trained as the
grid has them and are shared by all trials.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainable.models import nearest
from trainable.spec import RunSpec
from tuner.facts import Facts
from tuner.grid import Grid, PlannedRun, Selection, load_grid
from tuner.grid_file import Faults, dotted, explain, leaves, read_experiments
from tuner.space import Space, Value
from tuner.sweep_file import Choices, Sweep, check_sweep


@dataclass(frozen=True, kw_only=True, slots=True)
class SweptRow:
    """One row of the grid that is swept over, with all its seeds."""

    label: str
    base: Mapping[int, PlannedRun]
    """The row as the grid has it, by seed."""
    default: Value
    """Its own value of the field."""
    space: Space
    set: Mapping[str, Any]
    """The sweep's `set`, less what the command line sets."""
    field: str

    def trial(self, seed: int, value: Value, name: str = "", more: Mapping[str, Any] | None = None) -> PlannedRun:
        """A trial; `more` are further fields, `name` goes before the value in its label."""
        return self._run(seed, {**self.set, self.field: value, **(more or {})}, f"{name}{self.shown(value)}")

    def chosen(self, seed: int, value: Value, name: str = "", more: Mapping[str, Any] | None = None) -> PlannedRun:
        """The row with a chosen value and without the sweep's `set`."""
        return self._run(seed, {self.field: value, **(more or {})}, f"chosen {name}{self.shown(value)}")

    def shown(self, value: Value) -> str:
        """A value for people: lr=0.001."""
        return f"{self.field.rsplit('.', 1)[-1]}={shown_value(value)}"

    def _run(self, seed: int, fields: Mapping[str, Any], name: str) -> PlannedRun:
        base = self.base[seed]
        spec = with_fields(base.spec, fields)
        if spec == base.spec:
            return base
        parents = (str(spec.init.source),) if spec.init.kind == "parent" else ()
        return dataclasses.replace(
            base, run_id=spec.run_id, spec=spec, label=f"{self.label} {name}", parents=parents, published=None
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedSweep:
    """A sweep with its rows, ready to be planned."""

    sweep: Sweep
    rows: tuple[SweptRow, ...]
    grid: Grid
    """The grid's parents that the rows need, under the sweep's name; trials are added to it."""
    notices: tuple[str, ...]
    """What a person should know of the rows, such as those that were left out."""
    left_out: tuple[str, ...]
    """Labels of the rows whose field is null."""


def sweep_names(path: Path) -> list[tuple[str, str]]:
    """(name, first line of help) of every sweep of the file.

    Raises:
        GridError: the file has a fault.
    """
    sweeps = read_experiments(path, Faults(path)).sweeps
    return [(name, block.help.strip().splitlines()[0]) for name, block in sweeps.items()]


def open_sweep(path: Path, name: str, choices: Choices, selection: Selection, facts: Facts) -> OpenedSweep:
    """Reads and checks a sweep, and every trial that its space allows at its ends.

    Args:
        path: the experiment file.
        name: one of its sweeps.
        choices: what the command line says of the sweep.
        selection: seeds, rows and fields from the command line; they hold for trials and chosen rows.
        facts: hashes of data and weights.

    Raises:
        GridError: all faults at once, each with its place.
    """
    faults = Faults(path)
    file = read_experiments(path, faults)
    block = file.sweeps[name]
    sweep, found = check_sweep(name, block, choices, file.grids, dict(leaves(block.set)))
    for place, message in found:
        faults.add(place, message)
    faults.stop()
    assert sweep is not None
    grid = load_grid(path, sweep.over, selection, facts)
    rows, left_out, others = _rows(sweep, grid, selection, faults)
    faults.stop()
    for row in rows:
        _check_trials(sweep, row, faults)
    if sweep.scheduler == "pbt" and len(selection.seeds or ()) > 1:
        faults.add("--seeds", "pbt follows one population; give one seed at a time")
    faults.stop()
    overrides = {**grid.header.overrides, **({"over": sweep.over} if sweep.over != block.over else {})}
    header = dataclasses.replace(grid.header, help=sweep.help, overrides=overrides)
    needed = {parent for row in rows for run in row.base.values() for parent in _ancestors(run, grid)}
    labels = {row.label for row in rows} | {run.label for run in others if run.run_id in needed}
    return OpenedSweep(
        sweep=sweep,
        rows=tuple(rows),
        grid=Grid(
            name=name,
            header=header,
            rows=tuple(row for row in grid.rows if row.label in labels),
            runs=tuple(run for run in grid.runs if run.run_id in needed),
        ),
        notices=tuple(_notices(sweep, rows, left_out, {run.run_id: run for run in grid.runs})),
        left_out=tuple(left_out),
    )


def with_fields(spec: RunSpec, fields: Mapping[str, Any]) -> RunSpec:
    """A resolved spec with fields set by dotted path.

    Raises:
        ValidationError: a value is not allowed.
    """
    nested = spec.model_dump(mode="json")
    for path, value in fields.items():
        node = nested
        *parts, last = path.split(".")
        for part in parts:
            node = node[part]
        node[last] = value
    return RunSpec.model_validate_json(json.dumps(nested))


def shown_value(value: Value) -> str:
    """A value as text: numbers without superfluous digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rows(
    sweep: Sweep, grid: Grid, selection: Selection, faults: Faults
) -> tuple[list[SweptRow], list[str], list[PlannedRun]]:
    """The selected rows whose field has a value; labels of those whose field is null; all other runs."""
    parents = {row.label for row in grid.rows if row.is_parent}
    wanted: dict[str, set[str]] = {}
    for axis, value in selection.only:
        wanted.setdefault(axis, set()).add(value)
    by_label: dict[str, dict[int, PlannedRun]] = {}
    others: list[PlannedRun] = []
    for run in grid.runs:
        of = {**run.axes, "label": run.label}
        selected = all(of.get(axis) in values for axis, values in wanted.items())
        if selected and (run.label not in parents or "label" in wanted):
            by_label.setdefault(run.label, {})[run.spec.seed] = run
        else:
            others.append(run)
    rows: list[SweptRow] = []
    left_out: list[str] = []
    fields = {path: value for path, value in sweep.set.items() if path not in selection.fields}
    for label, base in by_label.items():
        spec = next(iter(base.values())).spec
        for path in sweep.set:
            _field(spec, path, f"{sweep.place}.set.{path}", faults)
        value = _field(spec, sweep.field, f"{sweep.place}.field", faults)
        if value is None:
            left_out.append(label)
            continue
        integer = isinstance(value, int) and not isinstance(value, bool)
        space = dataclasses.replace(sweep.space, integer=integer)
        rows.append(SweptRow(label=label, base=base, default=value, space=space, set=fields, field=sweep.field))
    if not rows:
        faults.add(f"{sweep.place}.field", f"{sweep.field} is null in every selected row of {grid.name}")
    return rows, left_out, others


def _field(spec: RunSpec, path: str, place: str, faults: Faults) -> Any:
    """A field's value by dotted path."""
    node: Any = spec.model_dump(mode="json")
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            known = [name for name, _ in leaves(spec.model_dump(mode="json"))]
            faults.add(place, f'"{path}" is no field of a spec{nearest(path, known)}')
            faults.stop()
        node = node[part]
    if isinstance(node, dict):
        faults.add(place, f'"{path}" is a whole part of a spec; name one of its fields: {", ".join(node)}')
        faults.stop()
    return node


def _check_trials(sweep: Sweep, row: SweptRow, faults: Faults) -> None:
    """The row's trials at all listed values, or at both ends of the interval: are they specs, and honest ones?"""
    seed, base = next(iter(row.base.items()))
    for value in row.space.values or (row.space.at(0.0), row.space.at(1.0)):
        try:
            spec = row.trial(seed, value).spec
            row.chosen(seed, value)
        except ValidationError as error:
            for fault in error.errors():
                path = dotted(fault["loc"])
                where = f"{sweep.place}.set.{path}" if path in sweep.set else f"{sweep.place}.space"
                faults.add(where, f"{path or 'the spec'} of {row.label}: {explain(fault)}")
            continue
        if not spec.data.val_fraction > 0:
            faults.add(
                f"{sweep.place}.set", "must hold images out, on which to choose: set data.val_fraction, such as 0.1"
            )
        if "best_on_test" in spec.evaluate.select:
            faults.add(
                f"{sweep.place}.set",
                "trials must not choose on the test set; set evaluate.select to [best_on_val] or []",
            )
        if spec.init.checkpoint == "best_on_test":
            faults.add(
                f"{sweep.place}.over",
                f"{row.label} starts from its parent's best_on_test, which was chosen on the test set; use last",
            )
        if sweep.scheduler != "none":
            _check_epochs(sweep, row, [("its trials", spec), ("the row", base.spec)], faults)


def _check_epochs(sweep: Sweep, row: SweptRow, specs: Sequence[tuple[str, RunSpec]], faults: Faults) -> None:
    """A scheduler counts in epochs; pbt cuts them into generations."""
    for name, spec in specs:
        epochs = spec.budget.epochs
        if epochs is None:
            faults.add(
                f"{sweep.place}.scheduler",
                f"{sweep.scheduler} counts in epochs, and the budget of {row.label} is in steps; use none",
            )
        elif sweep.scheduler == "pbt" and epochs % sweep.generations:
            faults.add(
                f"{sweep.place}.generations",
                f"{epochs} epochs of {row.label} ({name}) cannot be cut into {sweep.generations} equal parts; give "
                "--epochs or generations that fit",
            )


def _ancestors(run: PlannedRun, grid: Grid) -> set[str]:
    by_id = {one.run_id: one for one in grid.runs}
    found: set[str] = set()
    todo = list(run.parents)
    while todo:
        run_id = todo.pop()
        found.add(run_id)
        todo += by_id[run_id].parents
    return found


def _notices(
    sweep: Sweep, rows: Sequence[SweptRow], left_out: Sequence[str], by_id: Mapping[str, PlannedRun]
) -> list[str]:
    notices = []
    if left_out:
        notices.append(f"left out of {sweep.name}: {', '.join(left_out)} ({sweep.field} is null there)")
    leaking = [row.label for row in rows if _parent_saw_hold_out(row, by_id)]
    if leaking:
        notices.append(f"{', '.join(leaking)}: the parent was trained on held-out images, so the hold-out flatters")
    return notices


def _parent_saw_hold_out(row: SweptRow, by_id: Mapping[str, PlannedRun]) -> bool:
    """Whether the images that the row's trials are judged on may have been among its parents' training images."""
    seed, base = next(iter(row.base.items()))
    trial = row.trial(seed, row.space.values[0] if row.space.values else row.space.at(0.0)).spec.data
    todo = list(base.parents)
    while todo:
        parent = by_id[todo.pop()]
        todo += parent.parents
        data = parent.spec.data
        apart = data.classes is not None and trial.classes is not None and not set(data.classes) & set(trial.classes)
        same = (data.val_fraction, data.val_seed) == (trial.val_fraction, trial.val_seed)
        if data.dataset == trial.dataset and not apart and not same:
            return True
    return False
