"""What a sweep leaves in the results store besides its runs: the log of its decisions; and what its trials reached.

The log is append-only, `sweeps/<sweep>/<variant>/<time>-<id>.json`, each file a list of decisions that were taken
together. A decision is a JSON object whose `kind` is one of

    suggest   a value was proposed for a row: row, value, seeds and run ids, search, and why
    rung      a scheduler looked at a trial's evaluation: scheduler, group, run_id, epoch, val_top1, action, why
    diverged  a trial's loss was no finite number any more: row, value, run_id, why
    exploit   population-based training gave a member another's weights: row, generation, member, source, value, why
    choose    a row's value was chosen: row, value, seeds and run ids of the chosen row, scores, why

Trials are judged on the hold-out alone: `read_scores` reads no column and no row of the test split.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from trainable import records
from trainable.records import RECORD_BYTES, RUN_ID, RecordError
from trainable.storage import Storage

Decision = dict[str, Any]
LOG_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A finished trial on the hold-out: its last evaluation."""

    top1: float
    """Fraction of the held-out images."""
    num_images: int
    epoch: float


class DecisionLog:
    """The decisions of one sweep in one variant.

    Args:
        storage: the results root.
        sweep: the sweep's name.
        variant: `full`, or the hash of what the command line changed.
        write: False keeps new decisions in memory only, for a dry run.

    Raises:
        RecordError: a file of the log is damaged or newer than this version.
    """

    def __init__(self, storage: Storage, sweep: str, variant: str, *, write: bool = True) -> None:
        self._storage, self._write = storage, write
        self._folder = f"sweeps/{sweep}/{variant}"
        files = [self._read(f"{self._folder}/{name}") for name in storage.names(self._folder)]
        files.sort(key=lambda file: int(file["number"]))  # names break ties: two drivers may have taken one number
        self._number = max((int(file["number"]) for file in files), default=0)
        self.decisions: list[Decision] = [decision for file in files for decision in file["decisions"]]
        """All of them, in the order in which they were taken."""

    def add(self, decisions: list[Decision]) -> None:
        """Appends decisions that were taken together.

        Raises:
            StorageError: cannot be written.
        """
        if not decisions:
            return
        self._number += 1
        self.decisions += decisions
        if self._write:
            now = datetime.now(UTC)
            content = {
                "schema_version": LOG_VERSION,
                "number": self._number,
                "written_at": now.isoformat(),
                "decisions": decisions,
            }
            path = f"{self._folder}/{now:%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:6]}.json"
            self._storage.publish(path, json.dumps(content, indent=1, sort_keys=True).encode())

    def of(self, kind: str) -> list[Decision]:
        """The decisions of one kind, in order."""
        return [decision for decision in self.decisions if decision["kind"] == kind]

    def _read(self, path: str) -> dict[str, Any]:
        where = self._storage.folder(path)
        try:
            file: dict[str, Any] = json.loads(self._storage.read(path, at_most=RECORD_BYTES))
            version = file["schema_version"]
            newer = version > LOG_VERSION
            whole = newer or (isinstance(file["number"], int) and all(_names_runs(one) for one in file["decisions"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = newer = False
        if not whole:
            raise RecordError(f"{where}: no decisions of a sweep; move it away and run the sweep again")
        if newer:
            raise RecordError(f"{where}: written with version {version}, this one reads up to {LOG_VERSION}; update it")
        return file


def read_scores(storage: Storage, run_ids: Iterable[str]) -> dict[str, Score]:
    """What committed runs reached on their hold-outs, by run id; runs that are not done or hold nothing out are absent.

    Raises:
        RecordError: a stored file is damaged.
    """
    commits = records.read_commits(storage, run_ids)
    return {run_id: score for run_id, commit in commits.items() if (score := _score(storage, commit)) is not None}


def _score(storage: Storage, commit: records.Commit) -> Score | None:
    columns = ["split", "eval_index", "epoch", "num_images", "top1"]
    rows = records.read_table(storage, "epochs", [commit], columns).to_pylist()
    held_out = [row for row in rows if row["split"] == "val"]
    if not held_out:
        return None
    last = max(held_out, key=lambda row: int(row["eval_index"]))
    return Score(top1=last["top1"], num_images=last["num_images"], epoch=last["epoch"])


def _names_runs(decision: Decision) -> bool:
    """Whether a decision says its kind, and names runs by nothing but their ids."""
    ids = [*decision.get("runs", {}).values(), *([decision["run_id"]] if "run_id" in decision else [])]
    return isinstance(decision["kind"], str) and all(re.fullmatch(RUN_ID, one) for one in ids)


def pruned(decisions: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The decisions that ended trials early, by run id: a scheduler's stop, or a loss that was no finite number."""
    return {
        decision["run_id"]: decision
        for decision in decisions
        if decision["kind"] == "diverged" or (decision["kind"] == "rung" and decision["action"] == "stop")
    }
