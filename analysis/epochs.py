"""Learning curves of runs, checked by whoever reads them: nobody shows a number of one that breaks a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.compact import read_table
from analysis.rules import epoch_faults
from trainable.records import Commit, RecordError
from trainable.storage import Storage

_COLUMNS = ("run_id", "eval_index", "split", "step", "epoch", "top1", "top5", "top1_mixed", "mix_lam_mean", "loss_nats")


def read_epochs(storage: Storage, commits: Sequence[Commit]) -> dict[str, list[dict[str, Any]]]:
    """The rows of `epochs` of every run as recorded, by run id.

    Raises:
        RecordError: a file is damaged, is of another run, or breaks a rule.
    """
    found: dict[str, list[dict[str, Any]]] = {commit.run_id: [] for commit in commits}
    for row in read_table(storage, "epochs", commits, list(_COLUMNS)).to_pylist():
        found[row["run_id"]].append(row)
    for commit in commits:
        if faults := epoch_faults(found[commit.run_id]):
            raise RecordError(
                f"{storage.folder(commit.file('epochs').path)}: {faults[0]}; move the run's commit away and run the "
                "grid again"
            )
    return found
