"""Reads a grid from a results store: which rows it has, which runs stand for them, and what those runs predicted.

Rows come from the manifests (`trainable.manifests` has the rule for variants), runs from commits alone. The numbers of
a run are those of its row of `trials`. Up to `VERIFIED_UP_TO` runs each is recomputed from the stored predictions at
once and must be equal; of larger grids the predictions are read and checked when a table needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.compact import read_table
from analysis.evaluations import Evaluation, evaluations_of
from analysis.stats import contrast, contrast_of_shares, mean_interval, wilson
from trainable import dims, records
from trainable.manifests import Chosen, ManifestError, choose_manifests, grid_names
from trainable.records import RecordError
from trainable.storage import Storage

VERIFIED_UP_TO = 2000
"""Runs: with 10,000 test images each, about a minute of one core."""

_NEEDED = ("seed", "num_test", "classes", "epochs", "model", "mix", "final_top1", "ended_at")
"""Columns of `trials` that every run has."""


class AnalysisError(Exception):
    """What was asked for is not in the store; the message names what is."""


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

    @property
    def final(self) -> Evaluation:
        """The evaluation after the last step; only of a run that is done."""
        return self.evaluations["final"]


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
    unread: tuple[str, ...]
    """Damaged records that were passed over, in words."""
    other_variants: tuple[str, ...]
    verified: bool
    """Whether every number was recomputed from the predictions."""

    @property
    def done(self) -> tuple[SeedRun, ...]:
        """All runs that are done, in the rows' order."""
        return tuple(run for row in self.rows for run in row.done)


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
    chosen = chosen_manifests(storage, name, variant)
    newest = chosen.newest
    unread = [f"{path}: not a whole manifest; it does not count" for path in chosen.damaged]
    commits = records.read_commits(storage, chosen.run_ids(), unread)
    entries = chosen.entries(commits)
    loaded = _Loader(storage, [entry["run_id"] for entry in entries], commits)
    runs: dict[str, list[SeedRun]] = {}
    for entry in entries:
        runs.setdefault(entry["label"], []).append(loaded.run(entry))
    results = GridResults(
        name=name,
        variant=newest["variant"],
        help=newest["help"],
        published_eval=newest["published_eval"],
        overrides=newest["overrides"],
        rows=tuple(
            ResultRow(
                label=row["label"],
                axes=row["axes"],
                is_parent=row["is_parent"],
                published={key: value for key, value in (row["published"] or {}).items() if value is not None},
                runs=tuple(runs.get(row["label"], ())),
            )
            for row in newest["rows"]
        ),
        unread=tuple(unread),
        other_variants=chosen.other_variants,
        verified=sum(run.status == "done" for found in runs.values() for run in found) <= VERIFIED_UP_TO,
    )
    if results.verified:
        for row in results.rows:
            verify(row)
    return results


def verify(row: ResultRow) -> None:
    """Reads and checks the predictions of a row's runs.

    Raises:
        RecordError: a file is damaged, breaks a rule, has other numbers than its run's row, or two seeds have the same
            predictions: one run counted twice.
    """
    known: dict[str, SeedRun] = {}
    for run in row.done:
        other = known.setdefault(run.final.predictions.digest, run)
        if other.run_id != run.run_id:
            raise RecordError(
                f"{run.final.reader.path}: the very predictions of seed {other.seed} ({other.run_id}) under seed "
                f"{run.seed} of {row.label}: one run counted twice; move the copy's commit away"
            )
        one, two = row.done[0].final.predictions, run.final.predictions
        if not np.array_equal(one.sample_ids, two.sample_ids) or not np.array_equal(one.labels, two.labels):
            raise RecordError(
                f"{run.final.reader.path}: other test images or labels than those of seed {row.done[0].seed} of "
                f"{row.label} ({row.done[0].final.reader.path}); a row's seeds must be judged on the same images"
            )


def load_runs(storage: Storage, entries: list[dict[str, Any]]) -> list[SeedRun]:
    """Runs with everything that they left.

    Args:
        storage: the results root.
        entries: run_id, seed, and the reason why it could not start (None where it could), of each.

    Raises:
        RecordError: a stored file is damaged, or its numbers do not follow from its predictions.
    """
    run_ids = [entry["run_id"] for entry in entries]
    loaded = _Loader(storage, run_ids, records.read_commits(storage, run_ids))
    runs = [loaded.run(entry) for entry in entries]
    for run in runs:
        if run.evaluations:
            _ = run.final.predictions
    return runs


def final_top1(
    runs: tuple[SeedRun, ...], *, images: bool = True
) -> tuple[float | None, tuple[float | None, float | None], float | None]:
    """Mean, 95 % interval and (with several seeds) standard deviation of `final` top-1.

    Args:
        runs: the seeds of a row.
        images: whether to read the predictions of several seeds for the two-way interval. Else all seeds are taken to
            be right on the same images, or to differ by nothing else than their seeds, whichever is wider: on the
            safe side.

    Raises:
        AnalysisError: the seeds judged different images.
        RecordError: predictions are damaged.
    """
    done = [run for run in runs if run.evaluations]
    if not done:
        return None, (None, None), None
    top1 = [run.final.metrics["top1"] for run in done]
    num = done[0].trial["num_test"]
    if len(done) == 1:
        return top1[0], wilson(round(top1[0] * num), num), None
    mean = float(np.mean(top1))
    if images:
        found = [run.final for run in done]
        if any(not np.array_equal(one.sample_ids, found[0].sample_ids) for one in found):
            raise AnalysisError(
                f"runs {', '.join(run.run_id for run in runs)}: seeds of one row judged different images"
            )
        low, high = contrast({"row": 1.0}, {"row": np.stack([one.correct for one in found])}).interval
    else:
        both, seeds = contrast_of_shares({"row": 1.0}, {"row": top1}, num).interval, mean_interval(top1)
        low, high = min(both[0], seeds[0]), max(both[1], seeds[1])
    return mean, (max(0.0, low), min(1.0, high)), float(np.std(top1, ddof=1))


def report_folder(out: Path, name: str, variant: str) -> Path:
    """Where the files made of a variant of a grid go."""
    return out / (name if variant == "full" else f"{name}-{variant}")


def chosen_grid(storage: Storage, name: str | None) -> str:
    """The grid that was named, or the only one of a store.

    Raises:
        AnalysisError: none was named, and the store holds none or several.
    """
    if name is not None:
        return name
    known = grid_names(storage)
    if len(known) != 1:
        raise AnalysisError(f"--grid: choose one of {', '.join(known)}" if known else f"{storage.uri} holds no grid")
    return known[0]


def chosen_manifests(storage: Storage, name: str, variant: str | None) -> Chosen:
    """The manifests of one variant of a grid.

    Raises:
        AnalysisError: no such grid or variant, or several variants and none of them full.
    """
    try:
        return choose_manifests(storage, name, variant)
    except ManifestError as error:
        raise AnalysisError(str(error)) from None


class _Loader:
    """Reads runs of a store: attempts and trial rows once; predictions are left to the evaluations."""

    def __init__(self, storage: Storage, run_ids: list[str], commits: dict[str, records.Commit]) -> None:
        self._storage = storage
        self._commits = {run_id: commits[run_id] for run_id in run_ids if run_id in commits}
        self._attempts = {record.run_id: record for record in records.read_attempts(storage, run_ids)}
        self._trials = read_trials(storage, list(self._commits.values()))
        self._samples: dict[tuple[str, str | None], dims.Samples | None] = {}

    def run(self, entry: dict[str, Any]) -> SeedRun:
        run_id = entry["run_id"]
        if run_id in self._commits:
            trial = self._trials[run_id]
            if trial["seed"] != entry["seed"]:
                raise RecordError(
                    f"{self._storage.folder(self._commits[run_id].file('trials').path)}: is of seed {trial['seed']}, a "
                    f"manifest of the grid says seed {entry['seed']}; move that manifest away and run the grid again"
                )
            return SeedRun(
                seed=entry["seed"],
                run_id=run_id,
                status="done",
                reason="",
                trial=trial,
                evaluations=evaluations_of(self._storage, self._commits[run_id], trial, self._samples_of(trial)),
            )
        status, reason = unfinished(entry, self._attempts.get(run_id))
        return SeedRun(seed=entry["seed"], run_id=run_id, status=status, reason=reason, trial={}, evaluations={})

    def _samples_of(self, trial: dict[str, Any]) -> dims.Samples | None:
        key = (trial["dataset"], trial["content_sha256"])
        if key not in self._samples:
            self._samples[key] = dims.read_samples(self._storage, *key)
        return self._samples[key]


def unfinished(entry: Mapping[str, Any], attempt: records.AttemptRecord | None) -> tuple[str, str]:
    """Status and reason of a run that is not done, from its manifest's entry and its last attempt."""
    if attempt is not None and attempt.outcome == "failed":
        return "failed", attempt.error or ""
    if attempt is not None:
        return "unfinished", "not finished; run the grid again to continue it"
    if entry["reason"]:
        return "blocked", entry["reason"]
    return "not run", "not run yet"


def read_trials(storage: Storage, commits: list[records.Commit]) -> dict[str, dict[str, Any]]:
    """The row of `trials` of every commit, by run id.

    Raises:
        RecordError: a file is damaged, or is not the row of the run whose commit names it.
    """
    rows = read_table(storage, "trials", commits).combine_chunks().to_pylist()
    position = 0
    found = {}
    for commit in commits:
        record = commit.file("trials")
        own = rows[position : position + record.rows]
        position += record.rows
        if [(row["run_id"], row["dataset"]) for row in own] != [(commit.run_id, commit.dataset)]:
            raise RecordError(
                f"{storage.folder(record.path)}: is not the one row of run {commit.run_id} on {commit.dataset}; move "
                "the run's commit away and run the grid again"
            )
        if empty := [name for name in _NEEDED if own[0][name] is None]:
            raise RecordError(
                f"{storage.folder(record.path)}: column {empty[0]} has no value; move the run's commit away and run "
                "the grid again"
            )
        found[commit.run_id] = own[0]
    return found
