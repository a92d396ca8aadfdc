"""Any number of a grid's runs by any of its axes, and what one axis gains over one of its values.

    python -m analysis.pivot --grid paper --rows model,pretrained --columns dataset,mix --value top1
    python -m analysis.pivot --grid paper --rows model,pretrained --columns dataset,mix --gain mix=none
    python -m analysis.pivot --grid paper --rows model,mix --columns dataset --gain pretrained=false

An axis that is named neither in rows nor in columns is averaged over, and the table says so.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from analysis.frame import FORMATS, GAP, MINUS, Frame, Raw, interval, number, percent, points
from analysis.gates import read_evidence, row_health
from analysis.load import AnalysisError, GridResults, ResultRow, report_folder
from analysis.registration import registration
from analysis.results_table import watermarks
from analysis.selection import (
    add_filter,
    add_source,
    axes_of,
    chosen_rows,
    deliver,
    guarded,
    load_rows,
    names,
    value_name,
)
from analysis.stand_ins import SIGN, marked_grid, row_mark
from analysis.stats import ContrastResult, contrast
from analysis.sweeps import is_sweep
from trainable.metrics import METRICS
from trainable.schemas import EVAL_NAMES, TRIALS
from trainable.storage import Storage

Place = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is asked."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    value: str
    evaluation: str
    gain: tuple[str, str] | None
    """Axis, and the value that its others are compared with."""

    @property
    def column(self) -> str:
        """Of the runs' rows of `trials`."""
        return f"{self.evaluation}_{self.value}" if self.value in METRICS else self.value

    @property
    def is_fraction(self) -> bool:
        """Whether it is shown in percent."""
        return (TRIALS.field(self.column).metadata or {}).get(b"unit") == b"fraction"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One cell of the table."""

    rows: tuple[ResultRow, ...]
    value: float | None
    """Mean over rows of the mean over seeds; None where one of the rows has no run."""
    spread: float | None
    """Standard deviation over the seeds of its only row."""
    interval: tuple[float, float] | None
    """95 % of a gain in top-1, of an only row."""
    unhealthy: bool
    """Whether a row that it is made of is gated by a health rule."""
    stand_in: bool
    """Whether some run that it is made of began from random stand-ins of published weights."""
    single_seed: bool
    missing: tuple[str, ...]
    """Labels of rows without a value."""


def values() -> list[str]:
    """Everything that a pivot can be of: metrics of an evaluation, and numbers of a run."""
    fields = [field for field in TRIALS if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)]
    return [*METRICS, *(field.name for field in fields if not field.name.startswith(EVAL_NAMES))]


def pivot_frame(results: GridResults, request: Request, unhealthy: frozenset[str] = frozenset()) -> Frame:
    """The table.

    Args:
        results: the rows.
        request: what is asked.
        unhealthy: labels of rows that a health rule gates.

    Raises:
        AnalysisError: no row has a baseline to be compared with.
        RecordError: predictions are damaged.
    """
    cells: dict[tuple[Place, Place], list[ResultRow]] = {}
    for row in results.rows:
        if request.gain is None or row.axes.get(request.gain[0]) != request.gain[1]:
            cells.setdefault((_place(row, request.rows), _place(row, request.columns)), []).append(row)
    if not cells:
        axis, value = request.gain or ("", "")
        raise AnalysisError(f"--gain {axis}={value}: the rows have no other value of {axis}")
    down = _ordered(results, request.rows, {row for row, _ in cells})
    across = _ordered(results, request.columns, {column for _, column in cells})
    found = {place: _entry(results, rows, request, unhealthy) for place, rows in cells.items()}
    footnotes: list[str] = []
    rows, raw = [], []
    for place in down:
        entries = [found.get((place, column)) for column in across]
        rows.append((*place, *(_cell(entry, request, footnotes) for entry in entries)))
        numbers: Raw = dict(zip(request.rows, place, strict=True))
        for column, entry in zip(across, entries, strict=True):
            name = " ".join(f"{axis}={value}" for axis, value in zip(request.columns, column, strict=True)) or "value"
            numbers |= {name: entry.value if entry else None}
            if request.gain is not None and request.value == "top1":
                low, high = entry.interval if entry and entry.interval else (None, None)
                numbers |= {f"{name} low": low, f"{name} high": high}
        raw.append(numbers)
    headings = [
        [value_name(axis, value) for axis, value in zip(request.columns, place, strict=True)] for place in across
    ]
    left = len(request.rows)
    columns = (*request.rows, *(heading[-1] if heading else _named(request) for heading in headings))
    return Frame(
        title=f"grid {results.name}: {_title(request)}",
        notes=(*watermarks(results), *_notes(results, request, list(found.values())), *footnotes),
        columns=columns,
        left=left,
        narrow=columns,
        rows=tuple(rows),
        raw=tuple(raw),
        groups=(*[""] * left, *(", ".join(heading[:-1]) for heading in headings)) if len(request.columns) > 1 else (),
    )


def _place(row: ResultRow, axes: Sequence[str]) -> Place:
    return tuple(row.axes.get(axis, "") for axis in axes)


def _ordered(results: GridResults, axes: Sequence[str], places: set[Place]) -> list[Place]:
    """By the first axis, then by the next; values of an axis in the order in which the grid has them."""
    ranks = [list(dict.fromkeys(row.axes.get(axis, "") for row in results.rows)) for axis in axes]
    return sorted(places, key=lambda place: [rank.index(value) for rank, value in zip(ranks, place, strict=True)])


def _entry(results: GridResults, rows: Sequence[ResultRow], request: Request, unhealthy: frozenset[str]) -> Entry:
    bases = [_baseline(results, row, request) for row in rows] if request.gain else []
    used = [*rows, *(base for base in bases if base is not None)]
    missing = [row.label for row in used if not _values(row, request)]
    missing += [f"the baseline of {row.label}" for row, base in zip(rows, bases, strict=False) if base is None]
    value = spread = limits = None
    if not missing:
        value = float(np.mean([_mean(row, request) for row in rows]))
        value -= float(np.mean([_mean(base, request) for base in bases if base is not None])) if bases else 0.0
        seeds = _values(rows[0], request)
        if len(rows) == 1 and not bases and len(seeds) > 1:
            spread = float(np.std(seeds, ddof=1))
        if len(rows) == 1 and bases and bases[0] is not None and request.value == "top1":
            found = _contrast(rows[0], bases[0], request)
            value, limits = (found.estimate, found.interval) if found else (value, None)
    return Entry(
        rows=tuple(rows),
        value=value,
        spread=spread,
        interval=limits,
        unhealthy=any(row.label in unhealthy for row in used),
        stand_in=any(row_mark(row.done) for row in used),
        single_seed=min(len(row.done) for row in used) == 1,
        missing=tuple(dict.fromkeys(missing)),
    )


def _baseline(results: GridResults, row: ResultRow, request: Request) -> ResultRow | None:
    assert request.gain is not None
    wanted = {**row.axes, request.gain[0]: request.gain[1]}
    return next((one for one in results.rows if one.axes == wanted), None)


def _values(row: ResultRow, request: Request) -> list[float]:
    """Of every seed that has it."""
    return [float(run.trial[request.column]) for run in row.done if run.trial[request.column] is not None]


def _mean(row: ResultRow, request: Request) -> float:
    return float(np.mean(_values(row, request)))


def _contrast(row: ResultRow, base: ResultRow, request: Request) -> ContrastResult | None:
    """A gain in top-1 over images and seeds; None where the two were judged on different images."""
    arms = {"arm": row, "baseline": base}
    found = {name: [run.evaluations[request.evaluation] for run in one.done] for name, one in arms.items()}
    ids = found["arm"][0].sample_ids
    if any(not np.array_equal(one.sample_ids, ids) for runs in found.values() for one in runs):
        return None
    answers = {name: np.stack([one.correct for one in runs]) for name, runs in found.items()}
    return contrast({"arm": 1.0, "baseline": -1.0}, answers)


def _cell(entry: Entry | None, request: Request, footnotes: list[str]) -> str:
    if entry is None:
        return GAP
    if entry.value is None:
        note = f"without a value: {', '.join(entry.missing)}"
        known = [one.split(" ", 1)[1] for one in footnotes]
        if note not in known:
            footnotes.append(f"[{len(footnotes) + 1}] {note}")
            known.append(note)
        return f"{GAP} [{known.index(note) + 1}]"
    mark = (" †" if entry.unhealthy else "") + (f" {SIGN}" if entry.stand_in else "")
    if request.gain is None:
        spread = f" ± {_shown(entry.spread, request)}" if entry.spread is not None else ""
        return f"{_shown(entry.value, request)}{spread}{mark}"
    sign = "+" if entry.value > 0 else ""
    text = points(entry.value, 1) if request.is_fraction else f"{sign}{_shown(entry.value, request)}"
    return f"{text}{f' {interval(*entry.interval)}' if entry.interval else ''}{mark}"


def _shown(value: float, request: Request) -> str:
    if request.is_fraction:
        return percent(value)
    if request.value in METRICS:
        return number(value)
    digits = 4 - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, min(digits, 9))}f}".replace("-", MINUS)


def _named(request: Request) -> str:
    unit = (TRIALS.field(request.column).metadata or {}).get(b"unit", b"").decode()
    return f"{request.value}{' %' if request.is_fraction else f' ({unit})' if unit else ''}"


def _title(request: Request) -> str:
    of = f" of {request.evaluation}" if request.value in METRICS else ""
    gained = f", gain over {'='.join(request.gain)}" if request.gain else ""
    return f"{_named(request)}{of}{gained}"


def _notes(results: GridResults, request: Request, entries: Sequence[Entry]) -> list[str]:
    notes = []
    open_ = [axis for axis in axes_of(results) if axis not in (*request.rows, *request.columns)]
    if any(len(entry.rows) > 1 for entry in entries):
        counts = sorted({len(entry.rows) for entry in entries})
        among = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
        apart = ", ".join(open_) or "nothing but their labels"
        notes.append(f"EVERY CELL IS A MEAN OF {among} ROWS that differ in {apart}")
    known = [entry for entry in entries if entry.value is not None]
    seeds = sorted({len(row.done) for entry in known for row in entry.rows})
    if seeds:
        notes.append(f"mean over seeds ({' to '.join(dict.fromkeys((str(seeds[0]), str(seeds[-1]))))} a row)")
    if any(entry.spread is not None for entry in entries):
        notes[-1] += " ± standard deviation"
    if request.gain is not None:
        what = "percentage points" if request.is_fraction else "its own unit"
        notes.append(f"gain: less the row alike in all but {request.gain[0]}, which is {request.gain[1]}; {what}")
    if any(entry.interval for entry in entries):
        one = ", over images alone where a row has one seed: seed variance unknown"
        single = any(entry.single_seed for entry in entries if entry.interval)
        notes.append(f"[low, high]: 95 % two-way over images and seeds{one if single else ''}")
    if request.value in METRICS and request.evaluation == "best_on_test":
        notes.append("best_on_test: epoch chosen on the test set itself, so optimistic")
    if any(entry.unhealthy for entry in known):
        notes.append("†: the learning curve of some run fails a health rule; it is in all numbers")
    return notes


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m analysis.pivot`."""
    cli = argparse.ArgumentParser(prog="python -m analysis.pivot", description="Any number of runs by a grid's axes.")
    add_source(cli)
    cli.add_argument("--rows", metavar="AXIS,...", help="default: all axes that are not columns")
    cli.add_argument("--columns", metavar="AXIS,...", help="default: the last axis that is no row")
    cli.add_argument("--value", default="top1", metavar="NAME", help="default: top1; a wrong one lists all")
    cli.add_argument("--eval", default="final", choices=EVAL_NAMES, help="evaluation of a metric (default: final)")
    cli.add_argument("--gain", metavar="AXIS=VALUE", help="differences from the rows with this value, as mix=none")
    add_filter(cli)
    cli.add_argument("--name", default="pivot", help="stem of the files (default: pivot)")
    cli.add_argument("--format", default=",".join(FORMATS), help=f"any of {','.join(FORMATS)} (default: all)")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 when nothing could be shown."""
    options = parser().parse_args(argv)
    return guarded("analysis.pivot", lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    formats = names("--format", options.format, FORMATS)
    value, *others = names("--value", options.value, values())
    if others:
        raise AnalysisError(
            f"--value {options.value}: a table is of one value; give {value}, and call again for others"
        )
    storage = Storage(options.results)
    results = load_rows(storage, options.grid, options.variant)
    if is_sweep(storage, results.name):
        raise AnalysisError(
            f"--grid {results.name}: a sweep is chosen from on its hold-out; its response curves: python -m "
            f"analysis.tables --grid {results.name}"
        )
    results = chosen_rows(results, options.filter)
    request = requested(results, options.rows, options.columns, value, options.eval, options.gain)
    evidence, rules = read_evidence(storage, results), registration().health
    unhealthy = frozenset(row.label for row in results.rows if row_health(row.done, evidence, rules).gated)
    deliver(
        {options.name: marked_grid(pivot_frame(results, request, unhealthy), results)},
        report_folder(options.out, results.name, results.variant),
        formats,
    )
    return 0


def requested(
    results: GridResults, rows: str | None, columns: str | None, value: str, evaluation: str, gain: str | None
) -> Request:
    """What the options ask, checked against the grid's axes.

    Raises:
        AnalysisError: an axis or value is not the grid's, or an axis stands in rows and in columns.
    """
    axes = axes_of(results)
    down = names("--rows", rows, axes) if rows else None
    across = names("--columns", columns, axes) if columns else None
    if across is None:
        across = [axis for axis in axes if axis not in (down or ())][-1:]
    if down is None:
        down = [axis for axis in axes if axis not in across]
    if both := [axis for axis in down if axis in across]:
        raise AnalysisError(f"--rows {','.join(down)} --columns {','.join(across)}: {both[0]} stands in both")
    against = None
    if gain is not None:
        axis, equals, of = gain.partition("=")
        if not equals:
            raise AnalysisError(f"--gain {gain}: give AXIS=VALUE, such as mix=none; axes are {', '.join(axes)}")
        names("--gain", axis, axes)
        names(f"--gain {axis}", of, dict.fromkeys(row.axes[axis] for row in results.rows if axis in row.axes))
        against = axis, of
    return Request(rows=tuple(down), columns=tuple(across), value=value, evaluation=evaluation, gain=against)


if __name__ == "__main__":
    sys.exit(main())
