"""What the command prints: the list of grids, the plan, and what became of it."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from datasets.store import NOT_PUBLISHED
from trainable.storage import Storage
from trainable.weights import NOT_PUBLISHED_WEIGHTS
from tuner.dag import RunState
from tuner.facts import LocalFacts
from tuner.grid import Grid, list_grids
from tuner.ledger import Survey
from tuner.plan import Plan, PredictionError
from tuner.progress import duration
from tuner.resources import GIB, Node
from tuner.sweep import sweep_names


def shown_labels(grid: Grid) -> dict[str, str]:
    """Labels by run id, with the seed where the grid has several."""
    several = len({run.spec.seed for run in grid.runs}) > 1
    return {run.run_id: f"{run.label}/{run.spec.seed}" if several else run.label for run in grid.runs}


def announce(grid: Grid, found: Survey, facts: LocalFacts, storage: Storage, console: Console) -> None:
    """One line on what is there and what is to be done, and what a reader of the results must know."""
    counts = _counts(found.states)
    todo = counts[RunState.READY] + counts[RunState.WAITING]
    held = f", {counts[RunState.HELD]} held" if counts[RunState.HELD] else ""
    _say(
        console,
        f"grid {grid.name} ({grid.header.variant}): {len(grid.runs)} runs, {counts[RunState.DONE]} done, {todo} to "
        f"run, {counts[RunState.BLOCKED]} blocked{held}; results in {storage.uri}",
    )
    for name in dict.fromkeys(run.spec.data.dataset for run in grid.runs):
        manifest = facts.manifest(name)
        if manifest is not None and not manifest.published:
            _say(console, f"  {name}: {NOT_PUBLISHED} (prepared from {manifest.source})")
    for init in {run.spec.init.source: run.spec.init for run in grid.runs if run.spec.init.sha256 is not None}.values():
        if (stand_in := facts.stand_in(init)) is not None:
            _say(console, f"  weights {init.source}: {NOT_PUBLISHED_WEIGHTS} ({stand_in})")
    if resumed := sum(text in ("killed", "stopped") for text in found.begun.values()):
        _say(console, f"  {resumed} begun earlier will continue from their checkpoints")
    for line in found.unusable:
        _say(console, f"  {line}: the run is trained again")
    _say_reasons(grid, found.states, found.reasons, console)


def conclude(
    grid: Grid,
    states: Mapping[str, RunState],
    reasons: Mapping[str, str],
    storage: Storage,
    console: Console,
    verdicts: Sequence[str] = (),
) -> None:
    """What became of every run, what a sweep chose, and where everything lies."""
    shown = ", ".join(f"{count} {state.value.upper()}" for state, count in _counts(states).items() if count)
    _say(console, f"grid {grid.name}: {shown}")
    _say_reasons(grid, states, reasons, console)
    for verdict in verdicts:
        _say(console, f"  {verdict}")
    where = f" --results {shlex.quote(storage.uri)}" if storage.uri != "results" else ""
    _say(console, f"  runs and logs  {storage.folder('runs')}")
    _say(console, f"  table          python -m analysis.tables --grid {grid.name}{where}")


def print_list(path: Path, console: Console) -> None:
    """The grids and sweeps of an experiment file."""
    table = Table(box=None, pad_edge=False)
    table.add_column("grid", no_wrap=True)
    table.add_column("rows", justify="right")
    table.add_column("")
    for name, count, text in list_grids(path):
        table.add_row(name, str(count), text)
    for name, text in sweep_names(path):
        table.add_row(name, "sweep", text)
    console.print(table)


def print_plan(grid: Grid, found: Survey, plan: Plan, console: Console) -> None:
    """The dry run for people: what would run, in which order, on which share, at which cost."""
    labels, order, marks = shown_labels(grid), plan.order(), {"measured": "", "scaled model": "~", "model": "?"}
    lines = []
    for run in grid.runs:
        cost = plan.costs[run.run_id]
        line = {"run": labels[run.run_id], "id": run.run_id}
        if cost:
            mark = marks[cost.basis]
            line |= {"steps": f"{cost.steps:,}", "parameters": f"{cost.num_parameters:,}", "FLOP": _flop(cost.flops)}
            line |= {"memory": mark + _gib(cost.memory_bytes), "time": mark + duration(plan.seconds[run.run_id])}
        begun = found.begun.get(run.run_id, "").split(":")[0]
        line["share"] = f"{plan.resources.bundle(run.run_id).share:g}"
        line["starts from"] = ", ".join(labels[parent] for parent in run.parents)
        line["order"] = str(order.get(run.run_id, ""))
        line["state"] = found.states[run.run_id].value + (f" ({begun})" if begun else "")
        lines.append(line)
    title = f"grid {grid.name} ({grid.header.variant})"
    columns = ["run", "id", "starts from", "steps", "parameters", "FLOP", "memory", "share", "time", "order", "state"]
    if not any(run.parents for run in grid.runs):
        columns.remove("starts from")
    for narrower in ("id", "starts from", "parameters", "steps", "FLOP", None):
        table = _plan_table(title, columns, lines)
        if narrower is None or _full_width(table, console) <= console.width:
            break
        columns.remove(narrower)  # a number that is cut off is no number
    console.print(table)
    _say(console, "  memory and time: measured on this kind of device; ~ scaled from other rows; ? from the cost model")
    total = sum(cost.flops for run_id, cost in plan.costs.items() if cost and run_id in order)
    blocked = sum(found.states[run_id] is RunState.BLOCKED for run_id in order)
    now = f" ({blocked} of them blocked now)" if blocked else ""
    _say(console, f"to run: {len(order)} runs{now}, {_flop(total)}FLOP; longest first, parents before children")
    makespan, bound = plan.schedule.makespan_s, plan.schedule.lower_bound_s
    above = f", {100 * (makespan / bound - 1):.0f} % above it" if bound else ""
    _say(
        console,
        f"on {_machines(plan.nodes)}: makespan {duration(makespan)}, lower bound {duration(bound)}{above}; "
        f"{plan.gpu_hours():.3g} GPU-hours, {plan.core_hours():.3g} core-hours",
    )
    _say_reasons(grid, found.states, found.reasons, console)


def _full_width(table: Table, console: Console) -> int:
    """Characters a line that the table takes when nothing is cut off."""
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


def _plan_table(title: str, columns: Sequence[str], lines: Sequence[Mapping[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in columns:
        table.add_column(
            name, justify="left" if name in ("run", "id", "starts from", "state") else "right", no_wrap=True
        )
    for line in lines:
        table.add_row(*(line.get(name, "") for name in columns))
    return table


def plan_as_json(grid: Grid, found: Survey, plan: Plan, sweep: Mapping[str, Any] | None = None) -> str:
    """The dry run for programs: one object whose `runs` lists every row with its whole spec; of a sweep also what is
    varied how, as `sweep`."""
    runs: list[dict[str, Any]] = []
    order = plan.order()
    for run in grid.runs:
        cost, bundle = plan.costs[run.run_id], plan.resources.bundle(run.run_id)
        runs.append(
            {
                "label": run.label,
                "run_id": run.run_id,
                "seed": run.spec.seed,
                "state": found.states[run.run_id].value,
                "reason": found.reasons.get(run.run_id),
                "order": order.get(run.run_id),
                "axes": run.axes,
                "parents": list(run.parents),
                "steps": cost.steps if cost else None,
                "num_parameters": cost.num_parameters if cost else None,
                "flops": cost.flops if cost else None,
                "memory_bytes": cost.memory_bytes if cost else None,
                "seconds": plan.seconds[run.run_id] if cost else None,
                "basis": cost.basis if cost else None,
                "gpu_share": bundle.share,
                "cpus": bundle.cpus,
                "starts_s": plan.schedule.starts_s.get(run.run_id),
                "published": run.published.model_dump() if run.published else None,
                "spec": run.spec.model_dump(mode="json"),
            }
        )
    header = {"grid": grid.name, "variant": grid.header.variant, "overrides": grid.header.overrides}
    totals = {
        "makespan_s": plan.schedule.makespan_s,
        "lower_bound_s": plan.schedule.lower_bound_s,
        "gpu_hours": plan.gpu_hours(),
        "core_hours": plan.core_hours(),
    }
    return json.dumps({**header, **totals, **({"sweep": sweep} if sweep else {}), "runs": runs}, indent=1)


def print_errors(errors: Sequence[PredictionError], console: Console) -> None:
    """How far predictions were from what was measured, by what they rested on."""
    for basis in dict.fromkeys(error.basis for error in errors):
        mine = [error for error in errors if error.basis == basis]
        parts = [_error("time", [error.seconds for error in mine])]
        if memory := [error.memory for error in mine if error.memory is not None]:
            parts.append(_error("memory", memory))
        count = f"{len(mine)} run{'s' if len(mine) > 1 else ''}"
        _say(console, f"  measured over predicted ({basis}, {count}): {', '.join(parts)}")


def _error(name: str, ratios: Sequence[float]) -> str:
    return f"{name} {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})"


def _machines(nodes: Sequence[Node]) -> str:
    """Machines in words, alike ones together."""
    kinds: dict[str, int] = {}
    for node in nodes:
        card = f" of {_gib(node.gpu_memory_bytes)}" if node.gpu_memory_bytes else ""
        text = f"{node.cpus:g} CPUs" + (f" and {node.gpus:g} GPUs{card}" if node.gpus else "")
        kinds[text] = kinds.get(text, 0) + 1
    return "; ".join(text if count == 1 else f"{count} machines with {text} each" for text, count in kinds.items())


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _flop(number: float) -> str:
    """Three digits and an SI prefix: 1.34 P."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12)):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number / 1e9:.3g} G"


def _counts(states: Mapping[str, RunState]) -> dict[RunState, int]:
    return {state: sum(one is state for one in states.values()) for state in RunState}


def _say_reasons(grid: Grid, states: Mapping[str, RunState], reasons: Mapping[str, str], console: Console) -> None:
    """Why runs failed or are blocked and who holds them, runs of the same reason together."""
    labels = shown_labels(grid)
    groups: dict[tuple[str, str], list[str]] = {}
    for run_id, state in states.items():
        if state in (RunState.FAILED, RunState.BLOCKED, RunState.HELD):
            groups.setdefault((state.value.upper(), reasons.get(run_id, "")), []).append(labels[run_id])
    for (heading, reason), members in groups.items():
        _say(console, f"  {heading} {', '.join(members)}: {reason}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
