"""T12: every attempt at every run of a grid, with what it ran on, and why it does or does not count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.frame import GAP, Frame, Raw, count
from analysis.load import AnalysisError, GridResults
from trainable import records
from trainable.records import AttemptRecord
from trainable.storage import Storage

_COLUMNS = ["run_id", "attempt_id", "code_git_sha", "code_git_dirty", "code_tree_sha256", "host_device"]


def attempts_frame(storage: Storage, results: GridResults) -> Frame:
    """T12: one line an attempt, by row, seed and number.

    Raises:
        AnalysisError: nothing was attempted.
        RecordError: stored provenance is damaged.
    """
    runs = [(row, run) for row in results.rows for run in row.runs]
    run_ids = [run.run_id for _, run in runs]
    attempts: dict[str, list[AttemptRecord]] = {}
    for record in records.read_attempts(storage, run_ids):
        attempts.setdefault(record.run_id, []).append(record)
    commits = records.read_every_commit(storage, run_ids)
    every = [commit for found in commits.values() for commit in found]
    known = {
        (row["run_id"], row["attempt_id"]): row
        for row in records.read_table(storage, "provenance", every, _COLUMNS).to_pylist()
    }
    rows, raw = [], []
    for row, run in runs:
        used = commits[run.run_id][-1].attempt_id if run.run_id in commits else None
        committed = {commit.attempt_id for commit in commits.get(run.run_id, ())}
        for attempt in attempts.get(run.run_id, ()):
            state = _state(attempt, committed)
            counts, why = _counts(attempt, state, used)
            values = _values(attempt, run.trial, known.get((run.run_id, attempt.attempt_id), {}))
            rows.append(
                (
                    row.label,
                    str(run.seed),
                    run.run_id,
                    state,
                    f"{attempt.started_at:%Y-%m-%d %H:%M}",
                    str(attempt.number),
                    count(values["minutes"]),
                    _short(values["code"]) + ("*" if values["dirty"] else ""),
                    _short(values["data"]),
                    "yes" if counts else "no",
                    why,
                )
            )
            line: Raw = {
                "run": row.label,
                "seed": run.seed,
                "run_id": run.run_id,
                "attempt_id": attempt.attempt_id,
                "number": attempt.number,
                "state": state,
                "started_at": attempt.started_at.isoformat(),
                "ended_at": attempt.ended_at.isoformat() if attempt.ended_at else None,
                "code_git_sha": values["git"],
                "code_git_dirty": values["dirty"],
                "code_tree_sha256": values["code"],
                "content_sha256": values["data"],
                "device": values["device"],
                "used": int(counts),
                "why": why,
            }
            raw.append(line)
    if not rows:
        raise AnalysisError("nothing was attempted")
    columns = ("run", "seed", "run id", "state", "started", "number", "minutes", "code", "data", "used", "notes")
    codes = {line["code_tree_sha256"] for line in raw if line["used"] and line["code_tree_sha256"]}
    return Frame(
        title=f"T12, grid {results.name}: attempts and provenance",
        notes=(
            "the run id is the hash of the whole configuration; code: hash of the source (*: with changes in no "
            "commit), data: hash of the pixels and labels; known of attempts that committed",
            f"the runs used were trained by {len(codes)} version{'' if len(codes) == 1 else 's'} of the source",
        ),
        columns=columns,
        left=5,
        narrow=columns,
        rows=tuple(rows),
        raw=tuple(raw),
    )


def _state(attempt: AttemptRecord, committed: set[str]) -> str:
    if attempt.attempt_id in committed:
        return "done"
    return attempt.outcome or "killed or running"


def _counts(attempt: AttemptRecord, state: str, used: str | None) -> tuple[bool, str]:
    """Whether an attempt's results are the ones that tables show, and why not."""
    if attempt.attempt_id == used:
        return True, ""
    if state == "failed":
        return False, attempt.error or "failed"
    if state == "done":
        return False, "a later attempt committed too" if used else "its commit does not count: files are damaged"
    return False, "continued by a later attempt" if used else "not finished"


def _values(attempt: AttemptRecord, trial: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    dirty = provenance.get("code_git_dirty")
    minutes = (attempt.ended_at - attempt.started_at).total_seconds() / 60 if attempt.ended_at else None
    return {
        "minutes": minutes,
        "git": provenance.get("code_git_sha"),
        "dirty": None if dirty is None else int(dirty),
        "code": provenance.get("code_tree_sha256"),
        "data": trial.get("content_sha256") if provenance else None,
        "device": provenance.get("host_device"),
    }


def _short(digest: str | None) -> str:
    return digest[:8] if digest else GAP
