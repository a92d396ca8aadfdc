"""Reads a grid from a results store: which rows it has, which runs stand for them, and what those runs predicted.

A grid's table is its full variant, else its only one, else the choices are listed. Runs are taken from commits alone;
every number is recomputed from the stored predictions and must equal the run's own row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainable import metrics, records
from trainable.records import RecordError
from trainable.storage import Storage

FULL = "full"
RECOMPUTED_WITHIN = 1e-12


class AnalysisError(Exception):
    """What was asked for is not in the store; the message names what is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One evaluation of one run, recomputed from its stored predictions."""

    metrics: dict[str, float]
    sample_ids: NDArray[np.int32]
    """[N] int32, rising."""
    correct: NDArray[np.bool_]
    """[N] bool."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedRun:
    """One row with one seed."""

    seed: int
    run_id: str
    status: str
    """done, failed, blocked, unfinished, or not run."""
    reason: str
    trial: dict[str, Any]
    """The run's row of `trials`; empty unless done."""
    evaluations: dict[str, Evaluation]
    """By evaluation name; empty unless done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultRow:
    """One row of the grid with all its seeds."""

    label: str
    axes: dict[str, str]
    is_parent: bool
    published: dict[str, Any]
    """The study's values as fractions; empty where it has none."""
    runs: tuple[SeedRun, ...]

    @property
    def done(self) -> tuple[SeedRun, ...]:
        """The runs that are done, by seed."""
        return tuple(run for run in self.runs if run.status == "done")


@dataclass(frozen=True, kw_only=True, slots=True)
class GridResults:
    """A variant of a grid as the store holds it."""

    name: str
    variant: str
    help: str
    published_eval: str | None
    overrides: dict[str, Any]
    rows: tuple[ResultRow, ...]
    other_variants: tuple[str, ...]


def grid_names(storage: Storage) -> list[str]:
    """The grids of which the store has a manifest."""
    from pyarrow.fs import FileSelector, FileType

    selector = FileSelector("grids", recursive=False, allow_not_found=True)
    return sorted(info.base_name for info in storage.fs.get_file_info(selector) if info.type == FileType.Directory)


def load_results(storage: Storage, name: str, variant: str | None = None) -> GridResults:
    """One grid with everything that its runs left.

    Args:
        storage: the results root.
        name: the grid.
        variant: `full` or the hash of another variant; None chooses.

    Raises:
        AnalysisError: no such grid or variant, or several variants and none of them full.
        RecordError: a stored file is damaged, or its numbers do not follow from its predictions.
    """
    manifests = _manifests(storage, name)
    variants = {manifest["variant"]: manifest for manifest in manifests}  # the newest of each, they are in order
    if variant is None:
        variant = FULL if FULL in variants else next(iter(variants)) if len(variants) == 1 else None
    if variant is None or variant not in variants:
        choices = "; ".join(f"--variant {key} ({_overrides(manifest)})" for key, manifest in variants.items())
        raise AnalysisError(f"grid {name}: choose one of its {len(variants)} variants: {choices}")
    newest = variants[variant]
    mine = [manifest for manifest in reversed(manifests) if manifest["variant"] == variant]
    commits = records.read_commits(storage, {entry["run_id"] for manifest in mine for entry in manifest["runs"]})
    entries = _entries(mine, commits)
    loaded = _Loader(storage, [entry["run_id"] for entry in entries], commits)
    return GridResults(
        name=name,
        variant=variant,
        help=newest["help"],
        published_eval=newest["published_eval"],
        overrides=newest["overrides"],
        rows=tuple(
            ResultRow(
                label=row["label"],
                axes=row["axes"],
                is_parent=row["is_parent"],
                published={key: value for key, value in (row["published"] or {}).items() if value is not None},
                runs=tuple(loaded.run(entry) for entry in entries if entry["label"] == row["label"]),
            )
            for row in newest["rows"]
        ),
        other_variants=tuple(key for key in variants if key != variant),
    )


def _manifests(storage: Storage, name: str) -> list[dict[str, Any]]:
    """All manifests of a grid, oldest first."""
    files = storage.names(f"grids/{name}")
    if not files:
        known = ", ".join(grid_names(storage)) or "none"
        raise AnalysisError(f"--grid {name}: {storage.uri} has no such grid; it has {known}")
    manifests = [json.loads(storage.read(f"grids/{name}/{file}")) for file in files]
    return sorted(manifests, key=lambda manifest: manifest["written_at"])


def _overrides(manifest: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in manifest["overrides"].items()) or "as in the file"


def _entries(manifests: list[dict[str, Any]], commits: dict[str, records.Commit]) -> list[dict[str, Any]]:
    """The run that stands for every label and seed: of the newest invocation, by seed.

    A run that was blocked there (weights or data not at hand) gives way to an older one that is done.
    """
    chosen: dict[tuple[str, int], dict[str, Any]] = {}
    for manifest in manifests:  # newest first
        for entry in manifest["runs"]:
            known = chosen.get((entry["label"], entry["seed"]))
            blocked = known is not None and known["state"] == "blocked" and known["run_id"] not in commits
            if known is None or (blocked and entry["run_id"] in commits):
                chosen[entry["label"], entry["seed"]] = entry
    return sorted(chosen.values(), key=lambda entry: (entry["label"], entry["seed"]))


class _Loader:
    """Reads runs of a store: attempts and trial rows once, predictions run by run."""

    def __init__(self, storage: Storage, run_ids: list[str], commits: dict[str, records.Commit]) -> None:
        self._storage = storage
        self._commits = {run_id: commits[run_id] for run_id in run_ids if run_id in commits}
        self._attempts = {record.run_id: record for record in records.read_attempts(storage, run_ids)}
        trials = records.read_table(storage, "trials", self._commits.values()).to_pylist()
        self._trials = {trial["run_id"]: trial for trial in trials}

    def run(self, entry: dict[str, Any]) -> SeedRun:
        run_id = entry["run_id"]
        if run_id in self._commits:
            trial = self._trials[run_id]
            return SeedRun(
                seed=entry["seed"],
                run_id=run_id,
                status="done",
                reason="",
                trial=trial,
                evaluations=self._evaluations(self._commits[run_id], trial),
            )
        status, reason = self._unfinished(entry)
        return SeedRun(seed=entry["seed"], run_id=run_id, status=status, reason=reason, trial={}, evaluations={})

    def _unfinished(self, entry: dict[str, Any]) -> tuple[str, str]:
        attempt = self._attempts.get(entry["run_id"])
        if attempt is not None and attempt.outcome == "failed":
            return "failed", attempt.error or ""
        if attempt is not None:
            return "unfinished", "not finished; run the grid again to continue it"
        if entry["reason"]:
            return "blocked", entry["reason"]
        return "not run", "not run yet"

    def _evaluations(self, commit: records.Commit, trial: dict[str, Any]) -> dict[str, Evaluation]:
        columns = ["eval_name", "sample_id", "label", "pred", "correct", "label_rank", "p_label", "p_max", "nll_nats"]
        table = records.read_table(self._storage, "predictions", [commit], [*columns, "sum_p2"])
        classes = np.array(trial["classes"], np.int16)
        names = np.asarray(table["eval_name"].to_pylist())
        arrays = {column: table[column].to_numpy() for column in (*columns[1:], "sum_p2")}
        found = {}
        for name in dict.fromkeys(names.tolist()):
            own = {column: values[names == name] for column, values in arrays.items()}
            numbers = metrics.summarise(own, classes)
            _check_recomputed(self._storage, commit, name, numbers, trial)
            found[name] = Evaluation(metrics=numbers, sample_ids=own["sample_id"], correct=own["correct"])
        return found


def _check_recomputed(
    storage: Storage, commit: records.Commit, name: str, numbers: dict[str, float], trial: dict[str, Any]
) -> None:
    for metric, value in numbers.items():
        stored = trial[f"{name}_{metric}"]
        if stored is None or abs(stored - value) > RECOMPUTED_WITHIN:
            raise RecordError(
                f"{storage.folder(commit.file('predictions').path)}: {name} {metric} recomputed from the predictions "
                f"is {value!r}, the trial's row says {stored!r}; remove the run's commit and run the grid again"
            )
