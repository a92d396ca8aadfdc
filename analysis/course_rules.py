"""What must hold of what a run recorded along its training, against what its spec asked for: which splits were
evaluated, the table `steps`, the model's own numbers. `rules.py` has the names of the rules and the rest of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.rules import Fault

Columns = Mapping[str, NDArray[Any]]
WITHIN = 1e-6
"""Relative; of a mean that was summed in another order, and of a learning rate."""


def split_faults(rows: Sequence[Mapping[str, Any]], spec: Mapping[str, Any], trial: Mapping[str, Any]) -> list[Fault]:
    """Whether the splits of a run's learning curves are those that its spec asks for, of as many images.

    Args:
        rows: of `epochs`, as recorded.
        spec: the run's, as its canonical JSON has it: what is at its default is left out.
        trial: the run's row of `trials`.
    """
    images = {"test": trial["num_test"]}
    if trial["num_val"]:
        images["val"] = trial["num_val"]
    if (first := _asked(spec, "train_first")) is not None:
        images[f"train_{first}"] = first
    known = {row["split"] for row in rows}
    expected = {*images, *(["train"] if trial["steps"] else [])}
    if known != expected:
        what = f"has {', '.join(sorted(known)) or 'none'}, its spec asks for {', '.join(sorted(expected))}"
        return [Fault(rule="splits", column="split", row=None, what=what)]
    for number, row in enumerate(rows):
        asked = images.get(row["split"])
        if asked is not None and row["num_images"] not in (asked, None):
            what = f"{row['num_images']:,} of split {row['split']}, which has {asked:,}"
            return [Fault(rule="splits", column="num_images", row=number, what=what)]
    return []


def step_faults(
    steps: Columns | None,
    rows: Sequence[Mapping[str, Any]],
    spec: Mapping[str, Any],
    trial: Mapping[str, Any],
) -> list[Fault]:
    """What is wrong with a run's table `steps`; that it is missing, or there unasked, too.

    Args:
        steps: its columns, [S] each; None where the run has no such table.
        rows: of `epochs`, as recorded: the same training by evaluation.
        spec: the run's, as its canonical JSON has it.
        trial: the run's row of `trials`.
    """
    asked = bool(_asked(spec, "record_steps"))
    if steps is None or not asked:
        if (steps is not None) == asked:
            return []
        what = "the table is missing, and the spec asks for it" if asked else "the spec asks for no such table"
        return [_fault("step", None, what)]
    number, num = steps["step"], trial["steps"]
    if len(number) != num:
        return [_fault("step", None, f"{len(number):,} rows, the run has {num:,} steps")]
    bad = number != np.arange(1, num + 1)
    faults = _first("step", bad, number, "is not one above the row before")
    epoch = steps["epoch"].astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity less itself
        above = np.isfinite(epoch) & (np.diff(epoch, prepend=0.0) > 0)
    faults += _first("epoch", ~above, epoch, "is not above the row before")
    for column in ("lr", "loss_nats", "loss_total_nats", "grad_norm"):
        values = steps[column].astype(np.float64)
        faults += _first(column, ~np.isfinite(values) | (values < 0), values, "is no finite number from 0 on")
    top1 = steps["top1"].astype(np.float64)
    faults += _first("top1", ~((top1 >= 0) & (top1 <= 1)), top1, "is no fraction")
    return faults or _against_epochs(steps, rows)


def _against_epochs(steps: Columns, rows: Sequence[Mapping[str, Any]]) -> list[Fault]:
    """The training rows of `epochs` tell the same: their rate is the last step's, and their loss, a mean over the steps
    since the evaluation before, lies among the losses of those steps."""
    before = 0
    for row in (row for row in rows if row["split"] == "train"):
        last = row["step"]
        if not before < last <= len(steps["step"]):
            return [_fault("step", None, f"epochs has an evaluation at step {last}, which it has not")]
        rate = float(steps["lr"][last - 1])
        if row["lr"] is not None and not math.isclose(rate, row["lr"], rel_tol=WITHIN):
            return [_fault("lr", last - 1, f"{rate!r}, epochs says {row['lr']!r} at this step")]
        own = steps["loss_total_nats"][before:last]
        low, high = float(own.min()) * (1 - WITHIN), float(own.max()) * (1 + WITHIN)
        if row["loss_nats"] is not None and not low <= row["loss_nats"] <= high:
            what = f"{low:.6g} to {high:.6g} in steps {before + 1} to {last}, epochs says {row['loss_nats']:.6g}"
            return [_fault("loss_total_nats", before, what)]
        before = last
    return []


def _asked(spec: Mapping[str, Any], field: str) -> Any:
    """What a spec says under `evaluate`; None where it says nothing."""
    evaluate = spec.get("evaluate")
    return evaluate.get(field) if isinstance(evaluate, dict) else None


def scalar_faults(trial: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with the model's own numbers; an older version recorded none."""
    try:
        scalars_in(trial["final_scalars_json"])
    except ValueError as error:
        return [Fault(rule="scalars", column="final_scalars_json", row=None, what=str(error))]
    return []


def scalars_in(text: str | None) -> dict[str, float]:
    """The model's own numbers after the last step by name, from the text in `trials`; empty where there is none.

    Raises:
        ValueError: it is no JSON object of finite numbers.
    """
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError("is no JSON object")
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise ValueError(f"{name}: {str(value)[:40]} is no finite number")
    return {name: float(value) for name, value in found.items()}


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _fault(column: str, row: int | None, what: str) -> Fault:
    return Fault(rule="steps", column=column, row=row, what=what)


def _first(column: str, bad: NDArray[np.bool_], values: NDArray[Any], what: str) -> list[Fault]:
    """At most one fault: the first row where `bad` holds."""
    if not bad.any():
        return []
    row = int(np.argmax(bad))
    others = f" (so in {int(bad.sum()):,} rows)" if bad.sum() > 1 else ""
    return [_fault(column, row, f"{values[row]} {what}{others}")]
