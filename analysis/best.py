"""The best evaluation of every row, a table for every split: which value, at which step.

    python -m analysis.best --grid paper [--by top1] [--filter resnet]

The split that a table is of has chosen the step, so a table of the test set is chosen on the test set, and says so; the
last evaluation, which nothing has chosen, stands beside it. Of equal values the one at the smaller step counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.courses import TRAIN, Courses, Point, Quantity, quantities, read_courses, splits_of
from analysis.frame import FORMATS, Frame, Raw, number, percent, points
from analysis.load import AnalysisError, GridResults, ResultRow, report_folder
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
)
from analysis.stand_ins import marked_grid
from trainable import records
from trainable.storage import Storage


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """Of one run on one split."""

    seed: int
    point: Point
    num_tied: int
    """How many evaluations reached the same value."""
    last: Point
    num_evaluations: int


def best_of(course: Sequence[Point], seed: int, *, lower_is_better: bool) -> Best:
    """The best point of a course, that at the smallest step where several are equal.

    Args:
        course: in the order of the steps; not empty.
        seed: of the run.
        lower_is_better: for a loss.
    """
    value = (min if lower_is_better else max)(point.value for point in course)
    tied = [point for point in course if point.value == value]
    return Best(seed=seed, point=tied[0], num_tied=len(tied), last=course[-1], num_evaluations=len(course))


Bests = list[tuple[ResultRow, list[Best]]]
"""Rows, each with the best of every seed."""


def bests_of(results: GridResults, courses: Courses, split: str, *, lower_is_better: bool = False) -> Bests:
    """The rows of which a run recorded the quantity on a split, the best first, by the mean over seeds."""
    found: Bests = []
    for row in results.rows:
        own = [(run.seed, courses.get((run.run_id, split), [])) for run in row.done]
        if bests := [best_of(course, seed, lower_is_better=lower_is_better) for seed, course in own if course]:
            found.append((row, bests))
    sign = 1 if lower_is_better else -1
    return sorted(found, key=lambda one: sign * mean([best.point.value for best in one[1]]))


def looks_of(found: Bests) -> str:
    """From how many evaluations bests were picked, in words."""
    return number_range([best.num_evaluations for _, bests in found for best in bests])


def best_frame(results: GridResults, courses: Courses, by: str, split: str) -> Frame:
    """A line a row, the best first; mean over seeds of each seed's best.

    Raises:
        AnalysisError: no run recorded the quantity on this split.
    """
    quantity = quantities()[by]
    found = bests_of(results, courses, split, lower_is_better=bool(quantity.lower_is_better))
    if not found:
        raise AnalysisError(f"--by {by}: no run recorded it on {split}")
    axes = axes_of(results)
    unit = " %" if quantity.unit == "%" else f" ({quantity.unit})" if quantity.unit else ""
    lines = [_line(row, bests, axes, by, unit, quantity) for row, bests in found]
    without = [row.label for row in results.rows if row not in [row for row, _ in found]]
    columns = tuple(lines[0][0])
    return Frame(
        title=f"grid {results.name}: best {by} on {split}",
        notes=(
            *watermarks(results),
            *([_CHOSEN_ON_TEST] if split == "test" else []),
            *([_ON_TRAIN] if split == TRAIN else []),
            f"best of {looks_of(found)} evaluations, chosen on {split} itself; the smaller step where several are "
            "equal; tied: how many were",
            "last: the last evaluation, chosen by nothing; several seeds: mean of each one's best ± standard deviation",
            *([f"without this value: {', '.join(without)}"] if without else []),
        ),
        columns=columns,
        left=1 + len(axes),
        narrow=columns,
        rows=tuple(tuple(cells.values()) for cells, _ in lines),
        raw=tuple(raw for _, raw in lines),
    )


_CHOSEN_ON_TEST = (
    "CHOSEN ON THE TEST SET: every best is optimistic, and the more so the more evaluations it was picked from"
)
_ON_TRAIN = "train: mean over the batches since the evaluation before, while the weights moved"


def _line(
    row: ResultRow, bests: Sequence[Best], axes: Sequence[str], by: str, unit: str, quantity: Quantity
) -> tuple[dict[str, str], Raw]:
    best, last = [one.point.value for one in bests], [one.last.value for one in bests]
    steps, tied = [one.point.step for one in bests], [one.num_tied for one in bests]
    fraction = quantity.unit == "%"
    gap = mean(best) - mean(last)
    cells = {"row": row.label, **{axis: row.axes.get(axis, "") for axis in axes}, "seeds": str(len(bests))}
    cells |= {
        f"best{unit}": mean_value(best, fraction=fraction),
        "step": number_range(steps),
        "tied": number_range(tied),
        f"last{unit}": mean_value(last, fraction=fraction),
        "best less last": points(gap) if fraction else number(gap),
    }
    raw: Raw = {"row": row.label, **{axis: row.axes.get(axis, "") for axis in axes}, "num_seeds": len(bests)}
    raw |= {f"best_{by}": mean(best), f"last_{by}": mean(last)}
    raw |= {
        "seeds": " ".join(str(one.seed) for one in bests),
        "best_by_seed": " ".join(repr(value) for value in best),
        "step_by_seed": " ".join(map(str, steps)),
        "tied_by_seed": " ".join(map(str, tied)),
    }
    return cells, raw


def mean(values: Sequence[float]) -> float:
    """Over seeds."""
    return float(np.mean(values))


def mean_value(values: Sequence[float], *, fraction: bool) -> str:
    """Mean over seeds, of several ± their standard deviation."""
    write = percent if fraction else number
    spread = f" ± {write(float(np.std(values, ddof=1)))}" if len(values) > 1 else ""
    return f"{write(mean(values))}{spread}"


def number_range(values: Sequence[int]) -> str:
    """Lowest and highest of whole numbers."""
    low, high = f"{min(values):,}", f"{max(values):,}"
    return low if low == high else f"{low} to {high}"


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m analysis.best`."""
    cli = argparse.ArgumentParser(prog="python -m analysis.best", description="The best evaluation of every row.")
    add_source(cli)
    cli.add_argument("--by", default="top1", metavar="NAME", help="quantity with a better end (default: top1)")
    cli.add_argument("--split", metavar="NAME,...", help="default: every split that it was recorded on")
    add_filter(cli)
    cli.add_argument("--format", default=",".join(FORMATS), help=f"any of {','.join(FORMATS)} (default: all)")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 when nothing could be shown."""
    options = parser().parse_args(argv)
    return guarded("analysis.best", lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    formats = names("--format", options.format, FORMATS)
    directed = {name: one for name, one in quantities().items() if one.lower_is_better is not None}
    by, *others = names("--by", options.by, directed)
    if others:
        raise AnalysisError(f"--by {options.by}: one quantity decides; give {by}, and call again for {others[0]}")
    storage = Storage(options.results)
    results = chosen_rows(load_rows(storage, options.grid, options.variant), options.filter)
    commits = records.read_commits(storage, [run.run_id for run in results.done])
    courses = read_courses(storage, commits.values(), directed[by])
    recorded = splits_of([courses])
    if not recorded:
        raise AnalysisError(f"--by {by}: none of the {len(results.done)} runs that are done recorded it")
    splits = names("--split", options.split, recorded) if options.split else recorded
    frames = {f"best-{by}-{split}": marked_grid(best_frame(results, courses, by, split), results) for split in splits}
    deliver(frames, report_folder(options.out, results.name, results.variant), formats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
