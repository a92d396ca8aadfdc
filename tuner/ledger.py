"""What the results store already holds of a grid, and the record of every invocation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from trainable import provenance, records
from trainable.storage import Storage
from tuner.dag import RunDag, RunState
from tuner.grid import Grid, PlannedRun


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """A grid against a results store."""

    states: dict[str, RunState]
    """DONE, READY, WAITING or BLOCKED, by run id."""
    reasons: dict[str, str]
    """Why a run is blocked, by run id."""
    begun: dict[str, str]
    """What earlier attempts left of a run that is not done, in words, by run id."""

    def dag(self, grid: Grid) -> RunDag:
        """A fresh state machine that starts from this survey."""
        finished = {run_id: state for run_id, state in self.states.items() if state.is_finished()}
        return RunDag({run.run_id: run.parents for run in grid.runs}, finished)


def survey(storage: Storage, grid: Grid) -> Survey:
    """Looks at every run of a grid once. Reads commits and attempts, never trusts a folder's listing.

    Raises:
        RecordError: the store is damaged or newer than this version.
    """
    commits = records.read_commits(storage, [run.run_id for run in grid.runs])
    labels = {run.run_id: run.label for run in grid.runs}
    reasons: dict[str, str] = {}
    finished: dict[str, RunState] = {}
    for run in grid.runs:
        if run.run_id in commits:
            finished[run.run_id] = RunState.DONE
            continue
        if (reason := run.missing or _weightless_parent(storage, run, commits, labels)) is not None:
            finished[run.run_id], reasons[run.run_id] = RunState.BLOCKED, reason
    dag = RunDag({run.run_id: run.parents for run in grid.runs}, finished)
    for run in grid.runs:
        if dag.states[run.run_id] is RunState.BLOCKED and run.run_id not in reasons:
            parent = next(parent for parent in run.parents if dag.states[parent] is not RunState.DONE)
            reasons[run.run_id] = f"its parent {labels[parent]} is blocked"
    return Survey(states=dag.states, reasons=reasons, begun=_begun(storage, grid, commits))


def _weightless_parent(
    storage: Storage, run: PlannedRun, commits: Mapping[str, records.Commit], labels: Mapping[str, str]
) -> str | None:
    """A parent that is done but whose weights were swept away."""
    for parent in run.parents:
        if parent in commits and not storage.exists(f"runs/{parent}/checkpoint/last/state.safetensors"):
            return (
                f"its parent {labels[parent]} is done, but {storage.folder(f'runs/{parent}/checkpoint')} is gone; put "
                f"it back, or remove {storage.folder('commits')}/{parent}--*.json to have the parent trained again"
            )
    return None


def _begun(storage: Storage, grid: Grid, commits: Mapping[str, records.Commit]) -> dict[str, str]:
    last: dict[str, records.AttemptRecord] = {}
    for record in records.read_attempts(storage, [run.run_id for run in grid.runs]):
        last[record.run_id] = record
    return {
        run_id: f"failed before: {record.error}" if record.outcome == "failed" else (record.outcome or "killed")
        for run_id, record in last.items()
        if run_id not in commits
    }


def write_manifest(storage: Storage, grid: Grid, states: Survey, command: Sequence[str]) -> str:
    """Records an invocation: which runs under which labels, what was overridden, with which code.

    Returns:
        The manifest's path below the results root.
    """
    now = datetime.now(UTC)
    header = grid.header
    content: dict[str, Any] = {
        "schema_version": 1,
        "grid": grid.name,
        "variant": header.variant,
        "help": header.help,
        "published_eval": header.published_eval,
        "overrides": header.overrides,
        "command": list(command),
        "written_at": now.isoformat(),
        "code_tree_sha256": provenance.tree_sha256(),
        "rows": [
            {
                "label": row.label,
                "axes": row.axes,
                "is_parent": row.is_parent,
                "published": row.published.model_dump() if row.published else None,
            }
            for row in grid.rows
        ],
        "runs": [
            {
                "label": run.label,
                "run_id": run.run_id,
                "seed": run.spec.seed,
                "parents": list(run.parents),
                "state": states.states[run.run_id].value,
                "reason": states.reasons.get(run.run_id),
            }
            for run in grid.runs
        ],
    }
    path = f"grids/{grid.name}/{header.variant}--{now:%Y%m%dT%H%M%S.%f}.json"
    storage.publish(path, json.dumps(content, indent=1).encode())
    return path
