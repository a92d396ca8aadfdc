"""Every rule of `rules.py` asked of every run of a grid; what cannot be read is a fault like any other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analysis.compact import check_owner
from analysis.course_rules import scalar_faults, split_faults, step_faults
from analysis.evaluations import digest_of, read_arrays
from analysis.gates import failed_rules
from analysis.load import chosen_manifests, read_trials, unfinished
from analysis.registration import registration
from analysis.rules import RULES, Fault, epoch_faults, identity_faults, prediction_faults, recomputed_faults
from analysis.stand_ins import COLUMN
from trainable import dims, records
from trainable.records import Commit, RecordError
from trainable.schemas import EPOCHS, EVAL_NAMES, STEPS, TRIALS, is_volatile
from trainable.storage import Storage


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFault:
    """A fault of one run, or of the store where no run is named."""

    rule: str
    label: str
    seed: int | None
    run_id: str
    what: str
    """With the file, and the column and first bad row where there is one."""

    def __str__(self) -> str:
        run = f"{self.label} seed {self.seed} ({self.run_id}): " if self.run_id else ""
        return f"{run}{self.what}"


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditedRun:
    """One row with one seed."""

    label: str
    seed: int
    run_id: str
    status: str
    """done, failed, blocked, unfinished, or not run."""
    reason: str
    attempts: tuple[str, ...]
    """How every attempt ended, oldest first: done, failed, stopped, or killed (it may still be running)."""
    health: tuple[str, ...]
    """Codes of the health rules that its learning curve fails."""
    stand_in: str | None = None
    """Which random weights stood in for published ones, its own or an ancestor's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What was asked of a grid and what was found."""

    grid: str
    variant: str
    help: str
    labels: tuple[str, ...]
    """Every row, in the grid's order, whether it has runs or not."""
    runs: tuple[AuditedRun, ...]
    asked: Mapping[str, int]
    """How often each rule was asked."""
    faults: tuple[RunFault, ...]
    unknown: tuple[str, ...]
    """What could not be asked, in words."""

    @property
    def num_done(self) -> int:
        """Runs whose files were asked."""
        return sum(run.status == "done" for run in self.runs)


def audit_grid(storage: Storage, name: str, variant: str | None = None) -> Audit:
    """Asks every rule of every run of one variant of a grid.

    Raises:
        AnalysisError: no such grid or variant, or several variants and none of them full.
        RecordError: the store is of a newer version, or all manifests are damaged.
    """
    chosen = chosen_manifests(storage, name, variant)
    lost: list[tuple[str, str]] = []
    commits = records.read_every_commit(storage, chosen.run_ids(), lost)
    entries = chosen.entries(commits)
    auditor = _Auditor(storage)
    for path in chosen.damaged:
        auditor.found("files", None, f"{path}: not a whole manifest; run the grid again, which writes another")
    by_run = {entry["run_id"]: entry for entry in entries}
    for run_id, line in lost:
        auditor.found("files", by_run.get(run_id), f"{line}; run the grid again")
    attempts: dict[str, list[records.AttemptRecord]] = {}
    for record in records.read_attempts(storage, by_run):
        attempts.setdefault(record.run_id, []).append(record)
    runs = []
    for entry in entries:
        own = attempts.get(entry["run_id"], [])
        status, reason = "done", ""
        if entry["run_id"] in commits:
            auditor.run(entry, commits[entry["run_id"]])
        else:
            status, reason = unfinished(entry, own[-1] if own else None)
        runs.append(
            AuditedRun(
                label=entry["label"],
                seed=entry["seed"],
                run_id=entry["run_id"],
                status=status,
                reason=reason,
                attempts=tuple(record.outcome or "killed" for record in own),
                health=auditor.health.get(entry["run_id"], ()),
                stand_in=auditor.stand_ins.get(entry["run_id"]),
            )
        )
    return Audit(
        grid=name,
        variant=chosen.newest["variant"],
        help=chosen.newest["help"],
        labels=tuple(row["label"] for row in chosen.newest["rows"]),
        runs=tuple(runs),
        asked=auditor.asked,
        faults=tuple(auditor.faults),
        unknown=tuple(auditor.unknown),
    )


class _Auditor:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.asked = dict.fromkeys(RULES, 0)
        self.faults: list[RunFault] = []
        self.unknown: dict[str, None] = {}
        self.health: dict[str, tuple[str, ...]] = {}
        self.stand_ins: dict[str, str] = {}
        self._samples: dict[tuple[str, str | None], dims.Samples | None] = {}
        self._seeds: dict[tuple[str, str], dict[str, Any]] = {}

    def found(self, rule: str, entry: Mapping[str, Any] | None, what: str) -> None:
        run = entry or {"label": "", "seed": None, "run_id": ""}
        self.faults.append(RunFault(rule=rule, label=run["label"], seed=run["seed"], run_id=run["run_id"], what=what))

    def _ask(self, entry: Mapping[str, Any], path: str, rules: Sequence[str], faults: Sequence[Fault]) -> None:
        for rule in rules:
            self.asked[rule] += 1
        for fault in faults:
            self.found(fault.rule, entry, f"{self._storage.folder(path)}: {fault}")

    def run(self, entry: Mapping[str, Any], commits: Sequence[Commit]) -> None:
        """All rules of one run; a file that cannot be read ends the questions that need it."""
        commit = commits[-1]
        self.asked["files"] += 1
        try:
            trial = read_trials(self._storage, [commit])[commit.run_id]
            epochs = self._own("epochs", commit, list(EPOCHS.names)).to_pylist()
            (spec,) = self._own("provenance", commit, ["run_id", "spec_json"]).to_pylist()
            steps = self._steps(commit)
            self._own("logits", commit, ["run_id"])
            arrays = read_arrays(self._storage, commit)
        except (RecordError, ValueError) as error:
            self.found("files", entry, str(error))
            return
        if (told := trial[COLUMN]) is not None:
            self.stand_ins[commit.run_id] = told
        faults = identity_faults(trial, spec["spec_json"])
        self._ask(entry, commit.file("trials").path, ["identity", "scalars"], [*faults, *scalar_faults(trial)])
        broken = epoch_faults(epochs)
        self._ask(entry, commit.file("epochs").path, ["epochs", "fractions"], broken)
        if not faults and not broken:
            self._course(entry, commit, epochs, steps, json.loads(spec["spec_json"]), trial)
        if failed := failed_rules(_curve(epochs), registration().health):
            self.health[commit.run_id] = failed
        path = commit.file("predictions").path
        named = [name for name in EVAL_NAMES if trial[f"{name}_top1"] is not None]
        if set(named) != set(arrays):
            what = f"{self._storage.folder(path)}: evaluations {', '.join(arrays)}, the row has {', '.join(named)}"
            self.found("rows", entry, what)
        samples = self._samples_of(entry, trial)
        asked = ["rows", "labels", "dataset", "correct", "rank", "probability", "nll", "samples"]
        for name in (name for name in named if name in arrays):
            own = arrays[name]
            found = prediction_faults(own, trial, commit.dataset, samples)
            self._ask(entry, path, asked, [_of(name, fault) for fault in found])
            if not found:
                again = [_of(name, fault) for fault in recomputed_faults(own, trial, name)]
                self._ask(entry, path, ["recomputed", "recall"], again)
        if "final" in arrays:
            self._seed(entry, path, arrays["final"])
        for other in commits[:-1]:
            self._same(entry, other, commit, trial, arrays)

    def _own(self, name: str, commit: Commit, columns: list[str]) -> pa.Table:
        table = records.read_table(self._storage, name, [commit], columns)
        check_owner(self._storage, commit, name, table)
        return table

    def _steps(self, commit: Commit) -> dict[str, NDArray[Any]] | None:
        """The columns of the table `steps`; None where the run has none."""
        if not any(file.table == "steps" for file in commit.files):
            return None
        table = self._own("steps", commit, list(STEPS.names)).combine_chunks()
        return {name: table[name].to_numpy(zero_copy_only=False) for name in STEPS.names}

    def _course(
        self,
        entry: Mapping[str, Any],
        commit: Commit,
        epochs: Sequence[Mapping[str, Any]],
        steps: Mapping[str, NDArray[Any]] | None,
        spec: Mapping[str, Any],
        trial: Mapping[str, Any],
    ) -> None:
        """What was recorded along the training, against what the spec asked for."""
        self._ask(entry, commit.file("epochs").path, ["splits"], split_faults(epochs, spec, trial))
        faults = step_faults(steps, epochs, spec, trial)
        path = f"commits/{commit.run_id}--{commit.attempt_id}.json" if steps is None else commit.file("steps").path
        self._ask(entry, path, ["steps"] if steps is not None or faults else [], faults)

    def _samples_of(self, entry: Mapping[str, Any], trial: Mapping[str, Any]) -> dims.Samples | None:
        key = (trial["dataset"], trial["content_sha256"])
        if key not in self._samples:
            try:
                self._samples[key] = dims.read_samples(self._storage, *key)
            except RecordError as error:
                self._samples[key] = None
                self.found("files", entry, str(error))
        if self._samples[key] is None:
            self.unknown[f"{key[0]}: labels and samples: the store does not hold its test images (dims/samples)"] = None
        return self._samples[key]

    def _seed(self, entry: Mapping[str, Any], path: str, own: Mapping[str, Any]) -> None:
        """Against the other seeds of the row."""
        self.asked["seeds"] += 1
        digest = digest_of(*(own[name] for name in ("sample_id", "pred", "p_label", "p_max")))
        known = self._seeds.setdefault((entry["label"], digest), dict(entry))
        if known["run_id"] != entry["run_id"]:
            what = f"the very predictions of seed {known['seed']} ({known['run_id']}): one run counted twice"
            self.found("seeds", entry, f"{self._storage.folder(path)}: {what}")

    def _same(
        self,
        entry: Mapping[str, Any],
        other: Commit,
        commit: Commit,
        trial: Mapping[str, Any],
        arrays: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """An older commit of the same run must hold the same results."""
        self.asked["attempts"] += 1
        try:
            theirs = read_trials(self._storage, [other])[other.run_id]
            answers = read_arrays(self._storage, other)
            before, after = (self._steps(one) or {} for one in (other, commit))
        except (RecordError, ValueError) as error:
            self.found("files", entry, str(error))
            return
        columns = [name for name in TRIALS.names if not is_volatile(name) and name != "run_id"]
        if other.schema_version != commit.schema_version:  # what one of them did not know yet is null there
            columns = [name for name in columns if theirs[name] is not None and trial[name] is not None]
        differ = [name for name in columns if theirs[name] != trial[name]]
        differ += [
            f"steps {name}"
            for name in STEPS.names
            if not is_volatile(name) and not np.array_equal(before.get(name, np.zeros(0)), after.get(name, np.zeros(0)))
        ]
        differ += [
            f"{name} {column}"
            for name in arrays
            for column, values in arrays[name].items()
            if name not in answers or not np.array_equal(values, answers[name][column])
        ]
        if differ:
            what = f"attempts {other.attempt_id} and {commit.attempt_id} differ in {', '.join(differ[:4])}"
            self.found("attempts", entry, f"{self._storage.folder(commit.file('trials').path)}: {what}")


def _of(name: str, fault: Fault) -> Fault:
    return Fault(rule=fault.rule, column=f"{fault.column} of {name}", row=fault.row, what=fault.what)


def _curve(epochs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Top-1 by evaluation, of the hold-out, or of the test split where there is none."""
    curves = {
        split: [row["top1"] for row in epochs if row["split"] == split and row["top1"] is not None]
        for split in ("val", "test")
    }
    return curves["val"] or curves["test"]
