"""What runs recorded along their training: any numeric column of any table whose rows have a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from analysis.compact import read_table
from analysis.load import AnalysisError
from trainable.records import Commit
from trainable.schemas import SCHEMAS
from trainable.storage import Storage

X_AXES = ("step", "epoch", "wall_s")
TRAIN = "train"
"""The split of a table that does not name one."""
_KEYS = ("run_id", "attempt_id", "eval_index", "split", "step", "epoch")
_CLOCKS = ("train_s", "evaluate_s")
_LOWER, _HIGHER = ("loss", "nll"), ("top",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """One column."""

    table: str
    column: str
    unit: str
    """As papers write it: %, nats, s; empty where it has none."""
    remark: str
    """What else its schema says of it."""

    @property
    def scale(self) -> float:
        """What its values are multiplied with to be shown."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def lower_is_better(self) -> bool | None:
        """None where neither is."""
        if any(part in self.column for part in _LOWER):
            return True
        return False if self.column.startswith(_HIGHER) else None


def quantities() -> dict[str, Quantity]:
    """By name: the column's own, and with its table's before it where another table has such a column too."""
    found: dict[str, Quantity] = {}
    for table, schema in SCHEMAS.items():
        if "step" not in schema.names:
            continue
        for field in schema:
            if field.name in _KEYS or not (pa.types.is_floating(field.type) or pa.types.is_integer(field.type)):
                continue
            told = (field.metadata or {}).get(b"unit", b"").decode()
            unit = told.replace(";", ",").partition(",")[0]
            name = f"{table}.{field.name}" if field.name in found else field.name
            found[name] = Quantity(
                table=table,
                column=field.name,
                unit={"fraction": "%"}.get(unit, unit),
                remark=", ".join(part for part in told.replace(";", ",").split(", ")[1:] if "null" not in part),
            )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One recorded value."""

    step: int
    x: float
    place: float
    """What runs are set side by side at: `x` itself, the step where `x` is a time."""
    value: float


Courses = dict[tuple[str, str], list[Point]]
"""By run id and split, in the order of the steps."""


def read_courses(storage: Storage, commits: Iterable[Commit], quantity: Quantity, x: str = "step") -> Courses:
    """A quantity along the training of every run that recorded it.

    Args:
        storage: the results root.
        commits: of the runs.
        quantity: the column.
        x: one of X_AXES; `wall_s` is seconds of training and evaluation up to then, on the run's own clock: it stands
            still while a run is stopped.

    Raises:
        AnalysisError: the quantity's table cannot tell `x`.
        RecordError: a stored file is damaged.
    """
    schema = SCHEMAS[quantity.table]
    needed = _CLOCKS if x == "wall_s" else (x,)
    if missing := [name for name in needed if name not in schema.names]:
        raise AnalysisError(f"--x {x}: table {quantity.table} has no column {missing[0]}; --x step will do")
    columns = dict.fromkeys([*(key for key in _KEYS if key in schema.names), *needed, quantity.column])
    having = [commit for commit in commits if any(file.table == quantity.table for file in commit.files)]
    rows = read_table(storage, quantity.table, having, list(columns)).to_pylist()
    rows.sort(key=lambda row: row["step"])
    clocks = _clocks(rows) if x == "wall_s" else {}
    found: Courses = {}
    for row in rows:
        value = row[quantity.column]
        if value is None or value != value:
            continue
        at = clocks[row["run_id"], row["step"]] if clocks else row[x]
        place = row["step"] if clocks else at
        point = Point(step=row["step"], x=float(at), place=float(place), value=float(value))
        found.setdefault((row["run_id"], row.get("split", TRAIN)), []).append(point)
    return found


def _clocks(rows: list[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """Seconds that a run had worked by every step, its evaluation included, which all splits share."""
    trained: dict[tuple[str, int], float] = {}
    evaluated: dict[tuple[str, int], float] = {}
    for row in rows:
        at = row["run_id"], row["step"]
        trained[at] = trained.get(at, 0.0) + (row["train_s"] or 0.0)
        evaluated[at] = max(evaluated.get(at, 0.0), row["evaluate_s"] or 0.0)
    spent: dict[str, float] = {}
    found = {}
    for run_id, step in trained:
        spent[run_id] = spent.get(run_id, 0.0) + trained[run_id, step] + evaluated[run_id, step]
        found[run_id, step] = spent[run_id]
    return found


def splits_of(courses: Iterable[Mapping[tuple[str, str], object]]) -> list[str]:
    """The splits that anything was recorded on: those of evaluations first."""
    found = {split for one in courses for _, split in one}
    return sorted(found, key=lambda split: (split == TRAIN, split))
