"""How an invocation ended, for programs: one JSON object with every run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trainable import records
from trainable.storage import Storage
from tuner.dag import RunState
from tuner.grid import Grid


def end_as_json(
    grid: Grid, states: Mapping[str, RunState], reasons: Mapping[str, str], storage: Storage, *, interrupted: bool
) -> str:
    """Every run with how it ended. Of one that is done, as the store has them: `top1` (fraction, of the final
    evaluation on the test split) and `seconds` (training and evaluation, over all its attempts).

    Raises:
        RecordError: a committed file is damaged.
    """
    commits = records.read_commits(storage, [run.run_id for run in grid.runs])
    columns = ["run_id", "final_top1", "train_s", "evaluate_s"]
    trials = records.read_table(storage, "trials", commits.values(), columns).to_pylist()
    by_id: dict[str, dict[str, Any]] = {trial["run_id"]: trial for trial in trials}

    def described(run_id: str) -> dict[str, Any]:
        state, trial = states[run_id], by_id.get(run_id)
        return {
            "state": state.value,
            "reason": reasons.get(run_id) if state in (RunState.FAILED, RunState.BLOCKED, RunState.HELD) else None,
            "top1": trial["final_top1"] if trial else None,
            "seconds": trial["train_s"] + trial["evaluate_s"] if trial else None,
        }

    content = {
        "grid": grid.name,
        "variant": grid.header.variant,
        "results": storage.uri,
        "interrupted": interrupted,
        "runs": [
            {"label": run.label, "seed": run.spec.seed, "run_id": run.run_id, **described(run.run_id)}
            for run in grid.runs
        ],
    }
    return json.dumps(content, indent=1)
