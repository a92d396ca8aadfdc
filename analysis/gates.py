"""What may stand against using a run or a set of cells: a broken learning curve, or cells that differ in more than the
axes they are compared on. Gates look at a run's own curve and at specs and code, never at a contrast.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from analysis.compact import read_table
from analysis.duplicates import Duplicates, find_duplicates
from analysis.epochs import read_epochs
from analysis.load import GridResults, ResultRow, SeedRun
from analysis.registration import HealthRule, Homogeneity
from analysis.rules import identity_faults
from trainable import records
from trainable.records import RecordError
from trainable.storage import Storage

MIXED_CODE = "trained by several versions of the code"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What gates look at, of one run."""

    curve: tuple[float, ...]
    """Top-1 by evaluation: of the hold-out, or of the test split where there is none."""
    test_curve: tuple[float, ...]
    """Top-1 on the test split, by evaluation."""
    spec: dict[str, Any]
    """The run's spec by dotted path."""
    code: str
    """SHA-256 of the source that trained it; empty where it was not recorded."""
    ended_at: datetime
    duplicates: Duplicates | None = None
    """Its test images that are in the training split too, or nearly so; None: the store does not know the images."""


def read_evidence(storage: Storage, results: GridResults) -> dict[str, Evidence]:
    """The evidence of every run of a grid that is done, by run id.

    Raises:
        RecordError: a stored file is damaged, or a learning curve or a spec breaks a rule.
    """
    contents = {
        run.run_id: (run.trial["dataset"], run.trial["content_sha256"]) for row in results.rows for run in row.done
    }
    duplicates = {content: find_duplicates(storage, *content) for content in dict.fromkeys(contents.values())}
    run_ids = list(contents)
    commits = list(records.read_commits(storage, run_ids).values())
    curves = read_epochs(storage, commits)
    trials = {run.run_id: run.trial for row in results.rows for run in row.done}
    paths = {commit.run_id: storage.folder(commit.file("provenance").path) for commit in commits}
    found = {}
    columns = ["run_id", "spec_json", "code_tree_sha256", "ended_at"]
    for row in read_table(storage, "provenance", commits, columns).to_pylist():
        run_id = row["run_id"]
        if faults := identity_faults(trials[run_id], row["spec_json"]):
            raise RecordError(f"{paths[run_id]}: {faults[0]}; move the run's commit away and run the grid again")
        val, test = (
            tuple(one["top1"] for one in curves[run_id] if one["split"] == split and one["top1"] is not None)
            for split in ("val", "test")
        )
        found[run_id] = Evidence(
            curve=val or test,
            test_curve=test,
            spec=_flat(json.loads(row["spec_json"])),
            code=row["code_tree_sha256"] or "",
            ended_at=row["ended_at"],
            duplicates=duplicates[contents[run_id]],
        )
    return found


def _flat(spec: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in spec.items():
        leaves |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return leaves


def failed_rules(curve: Sequence[float], rules: Sequence[HealthRule]) -> tuple[str, ...]:
    """The codes of the rules that a curve fails: it peaked in the first share of its evaluations and then fell.

    Args:
        curve: top-1 by evaluation.
        rules: of the registration.
    """
    failed = []
    for rule in rules:
        if len(curve) < rule.least_evaluations:
            continue
        peak = max(range(len(curve)), key=lambda i: curve[i])  # the first of equal ones
        if peak + 1 <= rule.peak_within * len(curve) and curve[-1] < rule.final_below * curve[peak]:
            failed.append(rule.code)
    return tuple(failed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What the health rules say of a row."""

    failed: dict[int, tuple[str, ...]]
    """Codes by seed, of the seeds that failed any."""
    gated: tuple[str, ...]
    """Codes for which the row is not estimable until the runs are repeated."""
    lifted: tuple[str, ...]
    """Codes that so many seeds failed that it is what the treatment does."""


def row_health(runs: Sequence[SeedRun], evidence: Mapping[str, Evidence], rules: Sequence[HealthRule]) -> Health:
    """The health of a row's runs that are done."""
    failed = {run.seed: failed_rules(evidence[run.run_id].curve, rules) for run in runs}
    failed = {seed: codes for seed, codes in failed.items() if codes}
    counts = {rule: sum(rule.code in codes for codes in failed.values()) for rule in rules}
    return Health(
        failed=failed,
        gated=tuple(rule.code for rule, count in counts.items() if 0 < count < rule.lifts_at),
        lifted=tuple(rule.code for rule, count in counts.items() if count >= rule.lifts_at),
    )


def grid_health(
    results: GridResults, evidence: Mapping[str, Evidence], rules: Sequence[HealthRule]
) -> dict[str, tuple[str, ...]]:
    """The codes that every run of a grid failed, by run id; runs that failed none are left out."""
    codes = {run.run_id: failed_rules(evidence[run.run_id].curve, rules) for row in results.rows for run in row.done}
    return {run_id: failed for run_id, failed in codes.items() if failed}


def differences(
    rows: Sequence[ResultRow], evidence: Mapping[str, Evidence], rule: Homogeneity
) -> tuple[list[str], list[str]]:
    """In what the cells of a contrast differ that they must not, and what is to be marked.

    Returns:
        Reasons that make the contrast not estimable, and marks.
    """
    specs: dict[tuple[str, str], tuple[ResultRow, SeedRun, dict[str, Any]]] = {}
    for row in rows:
        for run in row.done:
            spec = {field: value for field, value in evidence[run.run_id].spec.items() if field not in rule.always}
            if spec.get("init.kind") == "parent":  # every seed has its own parent
                spec["init.source"] = "parent"
            specs.setdefault((row.label, json.dumps(spec, sort_keys=True)), (row, run, spec))
    reasons: dict[str, None] = {}
    for (row1, run1, spec1), (row2, run2, spec2) in itertools.combinations(specs.values(), 2):
        apart = {axis for axis in {**row1.axes, **row2.axes} if row1.axes.get(axis) != row2.axes.get(axis)}
        free = tuple(field for axis in sorted(apart) for field in rule.free.get(axis, (f"{axis}.",)))
        for field in sorted(spec1.keys() | spec2.keys()):
            if spec1.get(field) != spec2.get(field) and not field.startswith(free):
                one, other = f"{row1.label} (seed {run1.seed})", f"{row2.label} (seed {run2.seed})"
                reasons[f"{one} and {other} differ in {field}: {spec1.get(field)} and {spec2.get(field)}"] = None
    codes = sorted({evidence[run.run_id].code for row in rows for run in row.done})
    mixed = [f"{MIXED_CODE}: {len(codes)}"] if len(codes) > 1 else []
    return (list(reasons), mixed) if rule.code == "mark" else ([*reasons, *mixed], [])


def counted_twice(row: ResultRow) -> str | None:
    """Two seeds of a row with the very same numbers: one run counted twice. None where there are none."""
    known: dict[str, int] = {}
    for run in row.done:
        numbers = json.dumps({name: found.metrics for name, found in run.evaluations.items()}, sort_keys=True)
        if numbers in known:
            return (
                f"{row.label}: seeds {known[numbers]} and {run.seed} have the same predictions, one run counted twice"
            )
        known[numbers] = run.seed
    return None
