"""What must hold of every run in a results store, each rule with the first row that breaks it.

The rules of predictions are asked whenever predictions are read, so that no table shows a number of a file that breaks
one; `analysis.check` asks all of them and prints what it found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainable import metrics
from trainable.dims import Samples
from trainable.schemas import spec_columns

RECOMPUTED_WITHIN = 1e-12
NLL_WITHIN = 1e-4
"""Of -ln p_label, relative to 1 + nll: both are stored in 32 bits."""
P_WITHIN = 1e-6
SMALLEST_P = 1e-37
"""Below it a 32-bit float has lost digits, and then its logarithm is not compared."""

RULES = {
    "files": "every file is there, whole, and what was committed",
    "rows": "one row per test image in every evaluation",
    "samples": "each test image of the run's data exactly once, in rising order",
    "labels": "labels are those of the data",
    "dataset": "rows are of the run and of the data set that they are filed under",
    "correct": "correct exactly where pred is the label",
    "rank": "label_rank 1 exactly where correct, ties aside; no rank beyond the number of classes",
    "probability": "probabilities are finite, within 0 and 1, and p_label is not above p_max",
    "nll": "nll is -ln p_label",
    "recomputed": "the trial's row follows from the predictions (1e-12)",
    "recall": "with balanced classes, macro recall is top-1",
    "epochs": "evaluations are numbered without gaps, at rising steps, each split once",
    "fractions": "every accuracy of a learning curve is a fraction, every loss finite",
    "splits": "evaluations are on the splits that the spec asks for, of as many images",
    "steps": "the table steps is there where the spec asks for it: a row a step, in keeping with the learning curve",
    "scalars": "the model's own numbers are finite",
    "identity": "the run's id is the hash of its spec, and its row says what the spec says",
    "seeds": "no two seeds of a row have the same predictions",
    "attempts": "committed attempts of one run agree",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """The first row that breaks a rule."""

    rule: str
    column: str
    row: int | None
    """Among the rows of the evaluation or table; None where no single row is at fault."""
    what: str

    def __str__(self) -> str:
        where = "" if self.row is None else f", row {self.row}"
        return f"column {self.column}{where}: {self.what}"


Arrays = Mapping[str, NDArray[Any]]


def prediction_faults(own: Arrays, trial: Mapping[str, Any], dataset: str, samples: Samples | None) -> list[Fault]:
    """What is wrong with the predictions of one evaluation; empty where nothing is.

    Args:
        own: the columns of `predictions`, [N] each, and the values of `run_id` and `dataset`.
        trial: the run's row of `trials`.
        dataset: that the commit names.
        samples: the test images of the data; None where the store does not know them.
    """
    num, classes = trial["num_test"], np.array(trial["classes"], np.int64)
    faults = _of_keys(own, trial, dataset)
    if len(own["sample_id"]) != num:
        faults.append(
            Fault(
                rule="rows",
                column="sample_id",
                row=None,
                what=f"{len(own['sample_id']):,} rows, the run has {num:,} test images",
            )
        )
    faults += _of_samples(own, trial, classes, samples)
    label, pred, correct, rank = (own[name] for name in ("label", "pred", "correct", "label_rank"))
    p_label, p_max, nll, sum_p2 = (own[name].astype(np.float64) for name in ("p_label", "p_max", "nll_nats", "sum_p2"))
    for name in ("label", "pred"):
        faults += _first("labels", name, ~np.isin(own[name], classes), own[name], "is no class of the run")
    faults += _first("correct", "correct", correct != (pred == label), correct, "contradicts pred and label")
    tied = np.abs(p_max - p_label) <= P_WITHIN
    faults += _first("rank", "label_rank", (rank < 1) | (rank > len(classes)), rank, f"is not 1..{len(classes)}")
    faults += _first("rank", "label_rank", (rank == 1) & ~correct, rank, "though the answer is wrong")
    faults += _first("rank", "label_rank", (rank > 1) & correct & (p_max < 1) & _alone(own), rank, "though correct")
    for name, values in (("p_label", p_label), ("p_max", p_max), ("sum_p2", sum_p2)):
        bad = ~np.isfinite(values) | (values < 0) | (values > 1 + P_WITHIN)
        faults += _first("probability", name, bad, own[name], "is no probability")
    faults += _first("probability", "p_label", p_label > p_max + P_WITHIN, own["p_label"], "is above p_max")
    faults += _first("probability", "p_label", correct & ~tied, own["p_label"], "is not p_max though correct")
    faults += _first("nll", "nll_nats", ~np.isfinite(nll) | (nll < 0), own["nll_nats"], "is no finite number above 0")
    faults += _first("nll", "nll_nats", ~_is_log(nll, p_label), own["nll_nats"], "is not -ln p_label")
    entropy = own["entropy_nats"].astype(np.float64)
    bad = ~np.isfinite(entropy) | (entropy < -P_WITHIN)
    return faults + _first("probability", "entropy_nats", bad, own["entropy_nats"], "is no entropy")


def _of_keys(own: Arrays, trial: Mapping[str, Any], dataset: str) -> list[Fault]:
    named = (("run_id", trial["run_id"]), ("dataset", trial["dataset"]), ("dataset", dataset))
    return [
        Fault(rule="dataset", column=column, row=None, what=f"says {', '.join(own[column])}, the run is of {expected}")
        for column, expected in named
        if own[column].tolist() != [expected]
    ]


def _of_samples(
    own: Arrays, trial: Mapping[str, Any], classes: NDArray[np.int64], samples: Samples | None
) -> list[Fault]:
    ids = own["sample_id"]
    later = np.concatenate([[False], np.diff(ids) <= 0])
    faults = _first("samples", "sample_id", later, ids, "stands twice or out of order")
    if samples is None or faults:
        return faults
    faults += _first("samples", "sample_id", ~np.isin(ids, samples.sample_ids), ids, "is no test image of the data")
    if faults:
        return faults
    labels = samples.labels[np.searchsorted(samples.sample_ids, ids)]
    faults += _first("labels", "label", labels != own["label"], own["label"], "is not the label that the data have")
    expected = int(np.isin(samples.labels, classes).sum())
    if trial["limit_eval"] is None and not faults and len(ids) != expected:
        missing = np.setdiff1d(samples.sample_ids[np.isin(samples.labels, classes)], ids)
        found = f"{len(ids):,} of the {expected:,} test images; image {missing[0]} is missing"
        faults.append(Fault(rule="samples", column="sample_id", row=None, what=found))
    return faults


def _alone(own: Arrays) -> NDArray[np.bool_]:
    """Where no second class can have the highest probability: then squares sum to less than two of its kind."""
    p_max, sum_p2 = own["p_max"].astype(np.float64), own["sum_p2"].astype(np.float64)
    alone: NDArray[np.bool_] = sum_p2 < 2 * p_max**2 - P_WITHIN
    return alone


def _is_log(nll: NDArray[np.float64], p_label: NDArray[np.float64]) -> NDArray[np.bool_]:
    with np.errstate(divide="ignore", invalid="ignore"):
        near = np.abs(nll + np.log(p_label)) <= NLL_WITHIN * (1 + np.abs(nll))
    known: NDArray[np.bool_] = near | (p_label < SMALLEST_P) & (nll > -np.log(SMALLEST_P) - 1)
    return known


def _first(rule: str, column: str, bad: NDArray[np.bool_], values: NDArray[Any], what: str) -> list[Fault]:
    """At most one fault: the first row where `bad` holds."""
    if not bad.any():
        return []
    row = int(np.argmax(bad))
    others = f" (so in {int(bad.sum()):,} rows)" if bad.sum() > 1 else ""
    return [Fault(rule=rule, column=column, row=row, what=f"{values[row]} {what}{others}")]


def recomputed_faults(own: Arrays, trial: Mapping[str, Any], name: str) -> list[Fault]:
    """Numbers of the trial's row that do not follow from the predictions of one evaluation."""
    faults = []
    numbers = metrics.summarise(own, np.array(trial["classes"], np.int16))
    for metric, value in numbers.items():
        stored = trial[f"{name}_{metric}"]
        if stored is None or not abs(stored - value) <= RECOMPUTED_WITHIN:
            what = f"recomputed from the predictions is {value!r}, the trial's row says {stored!r}"
            faults.append(Fault(rule="recomputed", column=metric, row=None, what=what))
    per_class = np.unique(own["label"], return_counts=True)[1]
    balanced = len(per_class) == len(trial["classes"]) and per_class.min() == per_class.max()
    if balanced and not abs(numbers["recall_macro"] - numbers["top1"]) <= RECOMPUTED_WITHIN:
        what = f"is {numbers['recall_macro']!r} on balanced classes, top-1 is {numbers['top1']!r}"
        faults.append(Fault(rule="recall", column="recall_macro", row=None, what=what))
    return faults


def epoch_faults(rows: Sequence[Mapping[str, Any]]) -> list[Fault]:
    """What is wrong with a run's learning curves.

    Args:
        rows: of `epochs`, as recorded.
    """
    faults: list[Fault] = []
    expected: dict[str, int] = {}
    steps: dict[str, int] = {}
    for number, row in enumerate(rows):
        split, index = row["split"], row["eval_index"]
        if index != expected.get(split, 0):
            what = f"{split} evaluation {index} where {expected.get(split, 0)} belongs"
            faults.append(Fault(rule="epochs", column="eval_index", row=number, what=what))
            break
        only = row["step"] == 0 == index and len(rows) == len({row["split"] for row in rows})  # nothing was trained
        if row["step"] <= steps.get(split, 0) and not only:
            what = f"{split} step {row['step']} is not above the one before, {steps.get(split, 0)}"
            faults.append(Fault(rule="epochs", column="step", row=number, what=what))
            break
        expected[split], steps[split] = index + 1, row["step"]
    if len(set(expected.values())) > 1:
        what = ", ".join(f"{split} has {count}" for split, count in sorted(expected.items()))
        faults.append(Fault(rule="epochs", column="split", row=None, what=f"evaluations: {what}"))
    for column in ("top1", "top5", "top1_mixed", "mix_lam_mean"):
        for number, row in enumerate(rows):
            if row[column] is not None and not 0 <= row[column] <= 1:
                what = f"{row['split']} {row[column]!r} is no fraction"
                faults.append(Fault(rule="fractions", column=column, row=number, what=what))
                break
    for number, row in enumerate(rows):
        if row["loss_nats"] is None or not np.isfinite(row["loss_nats"]):
            what = f"{row['split']} {row['loss_nats']!r} is no finite number"
            faults.append(Fault(rule="fractions", column="loss_nats", row=number, what=what))
            break
    return faults


def identity_faults(trial: Mapping[str, Any], spec_json: str | None) -> list[Fault]:
    """Whether a run's id is the hash of its spec, and its row says what the spec says.

    Args:
        trial: the run's row of `trials`.
        spec_json: the canonical text of its spec, of `provenance`.
    """
    found = hashlib.sha256((spec_json or "").encode()).hexdigest()[:16]
    if found != trial["run_id"]:
        what = f"hashes to {found}, the run is {trial['run_id']}"
        return [Fault(rule="identity", column="spec_json", row=None, what=what)]
    try:
        expected = spec_columns(json.loads(spec_json or ""))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"has no {error.args[0]}: no spec" if isinstance(error, KeyError) else "is no spec"
        return [Fault(rule="identity", column="spec_json", row=None, what=what)]
    return [
        Fault(rule="identity", column=column, row=None, what=f"{trial[column]!r}, its spec says {value!r}")
        for column, value in expected.items()
        if trial[column] != value
    ]
