"""Runs that began from random stand-ins of published weights, and how everything that shows a number of theirs says so.

`trials.init_stand_in` names the stand-in of a run's own file or of an ancestor's. A table has a note before all others,
a sign at the lines of such rows and, in CSV, where no note can stand, a column; a figure's caption begins with it. What
has no such run is as it would be without all this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from analysis.frame import Frame
from analysis.load import GridResults, ResultRow, SeedRun
from trainable.weights import NOT_PUBLISHED_WEIGHTS

SIGN = "§"
COLUMN = "init_stand_in"
"""Of `trials`, and of every CSV."""
WORDS = f"weights are {NOT_PUBLISHED_WEIGHTS}"
NAMED = 12
"""Rows that are named one by one."""
_KEYS = ("run", "row", "one", "other")
"""Columns of CSVs that hold a row's label."""

Marks = Mapping[str, str]
"""By a row's label, which stand-ins its runs began from; rows that have none are left out."""


def stand_in_of(run: SeedRun) -> str | None:
    """Which stand-in a run began from; None where none is known: a store of before the column has nulls there."""
    told = run.trial.get(COLUMN)
    return None if told is None else str(told)


def row_mark(runs: Sequence[SeedRun]) -> str:
    """Which stand-ins some seeds of a row began from, with the seeds where it is not all of them; empty: none."""
    found: dict[str, list[int]] = {}
    for run in runs:
        if (told := stand_in_of(run)) is not None:
            found.setdefault(told, []).append(run.seed)
    if not found:
        return ""
    if len(found) == 1 and sum(map(len, found.values())) == len(runs):
        return next(iter(found))
    return "; ".join(f"{told} in the run of seed {', '.join(map(str, seeds))}" for told, seeds in found.items())


def marks_of(rows: Sequence[ResultRow]) -> dict[str, str]:
    """The marks of some rows."""
    return {row.label: mark for row in rows if (mark := row_mark(row.done))}


def remark(mark: str) -> str:
    """What is said of a row or run with this mark."""
    return f"{WORDS} ({mark})"


def note(marks: Marks) -> str:
    """The note that stands before all others: each stand-in with its rows. Empty: there are none."""
    told = [f"{labels}: {remark(mark)}" for mark, labels in _rows_by_mark(marks).items()]
    return f"{SIGN} {'; '.join(told)}" if told else ""


def _rows_by_mark(marks: Marks) -> dict[str, str]:
    """The labels in words."""
    found: dict[str, list[str]] = {}
    for label, mark in marks.items():
        found.setdefault(mark, []).append(label)
    return {
        mark: ", ".join([*labels[:NAMED], *([f"{len(labels) - NAMED:,} more rows"] if len(labels) > NAMED else [])])
        for mark, labels in found.items()
    }


def marked(frame: Frame, marks: Marks, labels: Collection[str]) -> Frame:
    """The table with the note first, the sign at every line of a marked row, and the column at the end of the CSV.

    Args:
        frame: with a line of `raw` for every row.
        marks: of the rows that it may show.
        labels: of all rows that it may show.
    """
    if not marks:
        return frame
    first = note(marks)
    rows, raw = [], []
    for cells, values in zip(frame.rows, frame.raw, strict=True):
        shown = [str(values[key]) for key in _KEYS if str(values.get(key)) in labels]
        own = {label: marks[label] for label in shown if label in marks}
        rows.append(_signed(cells, own, frame.left))
        raw.append({**values, COLUMN: column(own if shown else marks)})
    notes = frame.notes if first in frame.notes else (first, *frame.notes)
    return dataclasses.replace(frame, notes=notes, rows=tuple(rows), raw=tuple(raw))


def marked_grid(frame: Frame, results: GridResults) -> Frame:
    """A table of a grid's rows, marked."""
    return marked(frame, marks_of(results.rows), [row.label for row in results.rows])


def _signed(cells: tuple[str, ...], marks: Marks, left: int) -> tuple[str, ...]:
    """The sign goes to the text that names the row, else to the line's first."""
    signed = list(cells)
    for label in marks:
        place = next((i for i, cell in enumerate(signed[:left]) if f"{cell} ".startswith(f"{label} ")), 0)
        signed[place] = f"{signed[place]} {SIGN}" if not signed[place].endswith(SIGN) else signed[place]
    return tuple(signed)


def column(marks: Marks) -> str | None:
    """Each stand-in with its rows: of a line that names rows, of those; of any other, all of the grid."""
    return "; ".join(f"{mark} ({labels})" for mark, labels in _rows_by_mark(marks).items()) or None
