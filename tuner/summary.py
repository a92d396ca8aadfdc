"""What the command prints: the list of grids, the plan, and what became of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from datasets.store import NOT_PUBLISHED
from trainable.storage import Storage
from tuner.cost import Cost
from tuner.dag import RunState
from tuner.facts import LocalFacts
from tuner.grid import Grid, list_grids
from tuner.ledger import Survey


def shown_labels(grid: Grid) -> dict[str, str]:
    """Labels by run id, with the seed where the grid has several."""
    several = len({run.spec.seed for run in grid.runs}) > 1
    return {run.run_id: f"{run.label}/{run.spec.seed}" if several else run.label for run in grid.runs}


def announce(grid: Grid, found: Survey, facts: LocalFacts, storage: Storage, console: Console) -> None:
    """One line on what is there and what is to be done, and what a reader of the results must know."""
    counts = _counts(found.states)
    todo = counts[RunState.READY] + counts[RunState.WAITING]
    _say(
        console,
        f"grid {grid.name} ({grid.header.variant}): {len(grid.runs)} runs, {counts[RunState.DONE]} done, {todo} to "
        f"run, {counts[RunState.BLOCKED]} blocked; results in {storage.uri}",
    )
    for name in dict.fromkeys(run.spec.data.dataset for run in grid.runs):
        manifest = facts.manifest(name)
        if manifest is not None and not manifest.published:
            _say(console, f"  {name}: {NOT_PUBLISHED} (prepared from {manifest.source})")
    if resumed := sum(text in ("killed", "stopped") for text in found.begun.values()):
        _say(console, f"  {resumed} begun earlier will continue from their checkpoints")
    _say_reasons(grid, found.states, found.reasons, console)


def conclude(
    grid: Grid, states: Mapping[str, RunState], reasons: Mapping[str, str], storage: Storage, console: Console
) -> None:
    """What became of every run, and where everything lies."""
    shown = ", ".join(f"{count} {state.value.upper()}" for state, count in _counts(states).items() if count)
    _say(console, f"grid {grid.name}: {shown}")
    _say_reasons(grid, states, reasons, console)
    where = f" --results {shlex.quote(storage.uri)}" if storage.uri != "results" else ""
    _say(console, f"  runs and logs  {storage.folder('runs')}")
    _say(console, f"  table          python -m analysis.tables --grid {grid.name}{where}")


def print_list(path: Path, console: Console) -> None:
    """The grids of an experiment file."""
    table = Table(box=None, pad_edge=False)
    table.add_column("grid", no_wrap=True)
    table.add_column("rows", justify="right")
    table.add_column("")
    for name, count, text in list_grids(path):
        table.add_row(name, str(count), text)
    console.print(table)


def print_plan(
    grid: Grid, found: Survey, costs: Mapping[str, Cost | None], ranks: Mapping[str, int], console: Console
) -> None:
    """The dry run for people: what would run, in which order, at which cost."""
    table = Table(box=None, pad_edge=False, title=f"grid {grid.name} ({grid.header.variant})", title_justify="left")
    for name in ("run", "id", "steps", "parameters", "FLOP", "order", "state"):
        numeric = name in ("steps", "parameters", "FLOP", "order")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    labels = shown_labels(grid)
    for run in grid.runs:
        cost = costs[run.run_id]
        numbers = (f"{cost.steps:,}", f"{cost.num_parameters:,}", _flop(cost.flops)) if cost else ("", "", "")
        begun = found.begun.get(run.run_id, "").split(":")[0]
        state = found.states[run.run_id].value + (f" ({begun})" if begun else "")
        table.add_row(labels[run.run_id], run.run_id, *numbers, str(ranks.get(run.run_id, "")), state)
    console.print(table)
    total = sum(cost.flops for run_id, cost in costs.items() if cost and run_id in ranks)
    _say(console, f"to run: {len(ranks)} runs, {_flop(total)}FLOP; order: longest first, parents before children")
    _say_reasons(grid, found.states, found.reasons, console)


def plan_as_json(grid: Grid, found: Survey, costs: Mapping[str, Cost | None], ranks: Mapping[str, int]) -> str:
    """The dry run for programs: one object whose `runs` lists every row with its whole spec."""
    runs: list[dict[str, Any]] = []
    for run in grid.runs:
        cost = costs[run.run_id]
        runs.append(
            {
                "label": run.label,
                "run_id": run.run_id,
                "seed": run.spec.seed,
                "state": found.states[run.run_id].value,
                "reason": found.reasons.get(run.run_id),
                "order": ranks.get(run.run_id),
                "axes": run.axes,
                "parents": list(run.parents),
                "steps": cost.steps if cost else None,
                "num_parameters": cost.num_parameters if cost else None,
                "flops": cost.flops if cost else None,
                "published": run.published.model_dump() if run.published else None,
                "spec": run.spec.model_dump(mode="json"),
            }
        )
    header = {"grid": grid.name, "variant": grid.header.variant, "overrides": grid.header.overrides}
    return json.dumps({**header, "runs": runs}, indent=1)


def _flop(number: float) -> str:
    """Three digits and an SI prefix: 1.34 P."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12)):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number / 1e9:.3g} G"


def _counts(states: Mapping[str, RunState]) -> dict[RunState, int]:
    return {state: sum(one is state for one in states.values()) for state in RunState}


def _say_reasons(grid: Grid, states: Mapping[str, RunState], reasons: Mapping[str, str], console: Console) -> None:
    """Why runs failed or are blocked, runs of the same reason together."""
    labels = shown_labels(grid)
    groups: dict[tuple[str, str], list[str]] = {}
    for run_id, state in states.items():
        if state in (RunState.FAILED, RunState.BLOCKED):
            groups.setdefault((state.value.upper(), reasons.get(run_id, "")), []).append(labels[run_id])
    for (heading, reason), members in groups.items():
        _say(console, f"  {heading} {', '.join(members)}: {reason}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
