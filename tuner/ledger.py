"""What the results store already holds of a grid, and the record of every invocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from trainable import manifests, provenance, records
from trainable.liveness import holder, is_held, this_process
from trainable.storage import Storage
from tuner.dag import RunDag, RunState
from tuner.grid import Grid, PlannedRun


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """A grid against a results store."""

    states: dict[str, RunState]
    """DONE, READY, WAITING, BLOCKED, HELD or PRUNED, by run id."""
    reasons: dict[str, str]
    """Why a run is blocked, was pruned, or who holds it, by run id."""
    begun: dict[str, str]
    """What earlier attempts left of a run that is not done, in words, by run id."""
    unusable: tuple[str, ...] = ()
    """Commits that do not count, in words; their runs are trained again."""

    def dag(self, grid: Grid) -> RunDag:
        """A fresh state machine that starts from this survey."""
        finished = {run_id: state for run_id, state in self.states.items() if state.is_finished()}
        return RunDag({run.run_id: run.parents for run in grid.runs}, finished)


def survey(storage: Storage, grid: Grid, pruned: Mapping[str, str] | None = None) -> Survey:
    """Looks at every run of a grid once. Reads commits and attempts, never trusts a folder's listing.

    Args:
        storage: the results root.
        grid: the runs to look for.
        pruned: why trials of a sweep were ended early, by run id; they are not continued.

    Raises:
        RecordError: the store is newer than this version.
    """
    unusable: list[str] = []
    commits = records.read_commits(storage, [run.run_id for run in grid.runs], unusable)
    finished, reasons = _finished(storage, grid.runs, commits, pruned or {}, grid)
    begun = _begun(storage, [run.run_id for run in grid.runs if run.run_id not in finished])
    for attempt in begun.values():
        if attempt.outcome is None and is_held(storage, attempt, this_process()):
            finished[attempt.run_id], reasons[attempt.run_id] = RunState.HELD, f"trained by {holder(attempt)}"
    dag = RunDag({run.run_id: run.parents for run in grid.runs}, finished)
    labels = {run.run_id: run.label for run in grid.runs}
    for run in grid.runs:
        if dag.states[run.run_id] is RunState.BLOCKED and run.run_id not in reasons:
            parent = next(parent for parent in run.parents if dag.states[parent] is not RunState.DONE)
            reasons[run.run_id] = f"its parent {labels[parent]} is blocked"
    left = {run_id: _left_by(attempt) for run_id, attempt in begun.items() if run_id not in finished}
    return Survey(states=dag.states, reasons=reasons, begun=left, unusable=tuple(unusable))


def survey_further(
    storage: Storage, grid: Grid, runs: Sequence[PlannedRun]
) -> tuple[dict[str, RunState], dict[str, str]]:
    """Looks at a few runs that join a grid while it runs.

    Returns:
        Those that are DONE or BLOCKED, and why they are blocked, by run id.

    Raises:
        RecordError: the store is damaged or newer than this version.
    """
    wanted = {run_id for run in runs for run_id in (run.run_id, *run.parents)}
    return _finished(storage, runs, records.read_commits(storage, wanted), {}, grid)


def _finished(
    storage: Storage,
    runs: Sequence[PlannedRun],
    commits: Mapping[str, records.Commit],
    pruned: Mapping[str, str],
    grid: Grid,
) -> tuple[dict[str, RunState], dict[str, str]]:
    """Runs to which nothing more will happen, and why where they are not done."""
    labels = {run.run_id: run.label for run in grid.runs}
    finished: dict[str, RunState] = {}
    reasons: dict[str, str] = {}
    for run in runs:
        if run.run_id in commits:
            finished[run.run_id] = RunState.DONE
        elif run.run_id in pruned:
            finished[run.run_id], reasons[run.run_id] = RunState.PRUNED, pruned[run.run_id]
        elif (reason := run.missing or _weightless_parent(storage, run, commits, labels)) is not None:
            finished[run.run_id], reasons[run.run_id] = RunState.BLOCKED, reason
    return finished, reasons


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


def _begun(storage: Storage, run_ids: Sequence[str]) -> dict[str, records.AttemptRecord]:
    """The last attempt of every run that had one."""
    return {record.run_id: record for record in records.read_attempts(storage, run_ids)} if run_ids else {}


def _left_by(attempt: records.AttemptRecord) -> str:
    return f"failed before: {attempt.error}" if attempt.outcome == "failed" else (attempt.outcome or "killed")


def write_manifest(
    storage: Storage,
    grid: Grid,
    states: Survey,
    command: Sequence[str],
    predicted: Mapping[str, Mapping[str, Any]],
    sweep: Mapping[str, Any] | None = None,
) -> str:
    """Records an invocation: which runs under which labels, what was overridden, with which code, at which cost; of a
    sweep also what was varied how, and the rows' own values.

    Returns:
        The manifest's path below the results root.
    """
    header = grid.header
    return manifests.write_manifest(
        storage,
        grid=grid.name,
        variant=header.variant,
        written_at=datetime.now(UTC),
        header={
            "help": header.help,
            "published_eval": header.published_eval,
            "overrides": header.overrides,
            "command": list(command),
            "code_tree_sha256": provenance.tree_sha256(),
        },
        rows=[
            {
                "label": row.label,
                "axes": row.axes,
                "is_parent": row.is_parent,
                "published": row.published.model_dump() if row.published else None,
            }
            for row in grid.rows
        ],
        runs=[
            {
                "label": run.label,
                "run_id": run.run_id,
                "seed": run.spec.seed,
                "parents": list(run.parents),
                "state": states.states[run.run_id].value,
                "reason": states.reasons.get(run.run_id),
                "predicted": predicted.get(run.run_id),
            }
            for run in grid.runs
        ],
        sweep=sweep,
    )
