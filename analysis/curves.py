"""Curves of anything that runs recorded along their training.

    python -m analysis.curves --grid paper --y top1,loss_nats --filter resnet --group mix,pretrained

A row of panels for every quantity, a column for every split, a line for every group of rows: each row by itself unless
`--group` names axes. Seeds are a band. What a line stands for is printed, so that no run is merged unseen. Of what was
recorded at every step, a point is the mean over several: how many is said, and `--average 1` draws all.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.courses import TRAIN, X_AXES, Courses, Quantity, quantities, read_courses, splits_of
from analysis.figure_lint import lint
from analysis.figures_curves import FEW_SEEDS, band
from analysis.gates import read_evidence, row_health
from analysis.load import AnalysisError, GridResults, ResultRow, SeedRun, report_folder
from analysis.plotting import (
    COLOURS,
    FORMATS,
    LINES,
    WIDTH,
    Page,
    add_caption,
    legend,
    marked_page,
    new_figure,
    settle,
    shown,
    slug,
    style,
    text_width,
    write_files,
)
from analysis.registration import registration
from analysis.selection import (
    add_filter,
    add_source,
    axes_of,
    chosen_rows,
    guarded,
    load_rows,
    names,
    value_name,
)
from datasets.terminal import plain
from trainable import records
from trainable.storage import Storage

ARCH_AXIS = "model"
FEW_POINTS = 20
"""Of a line; up to so many are marked."""
MOST_POINTS = 250
"""Of a line; where more were recorded, neighbours are averaged until they are no more."""
BESIDE = 5
"""From so many lines on the legend stands beside the panels."""
X_NAMES = {"step": "step", "epoch": "epoch", "wall_s": "training and evaluation (s)"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The rows that one line stands for."""

    name: str
    rows: tuple[ResultRow, ...]
    unhealthy: bool
    """Whether a run failed a health rule, so that its cell is gated."""

    @property
    def runs(self) -> tuple[SeedRun, ...]:
        """Those that are done."""
        return tuple(run for row in self.rows for run in row.done)

    @property
    def models(self) -> set[str]:
        """The architectures of its rows."""
        return {row.axes.get(ARCH_AXIS, "") for row in self.rows}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A group's course on a split."""

    x: NDArray[np.float64]
    """[P], mean over runs, of the places at which every run has a value."""
    rows: tuple[NDArray[np.float64], ...]
    """[K, P] of every row."""

    @property
    def mean(self) -> NDArray[np.float64]:
        """[P], over rows of the mean over seeds."""
        found: NDArray[np.float64] = np.mean([row.mean(axis=0) for row in self.rows], axis=0)
        return found

    @property
    def edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Lower and upper edge [P] of a band over seeds; None with one seed, and of several rows, which are no repeats
        of each other."""
        return band(self.rows[0]) if len(self.rows) == 1 and len(self.rows[0]) > 1 else None

    def averaged(self, width: int) -> Line:
        """The means over so many neighbours of every run, the first ones together; the last may be of fewer."""
        if width == 1:
            return self
        starts = np.arange(0, len(self.x), width)
        counts = np.diff(starts, append=len(self.x))
        return Line(
            x=np.add.reduceat(self.x, starts) / counts,
            rows=tuple(np.add.reduceat(row, starts, axis=1) / counts for row in self.rows),
        )


def grouped(results: GridResults, axes: Sequence[str], unhealthy: frozenset[str] = frozenset()) -> list[Group]:
    """The groups that have a finished run; every row is one where no axes are given.

    Args:
        results: the rows.
        axes: rows alike in these are one group.
        unhealthy: labels of rows that a health rule gates.
    """
    found: dict[str, list[ResultRow]] = {}
    for row in results.rows:
        named = [value_name(axis, row.axes.get(axis, "")) for axis in axes]
        found.setdefault(", ".join(named) or row.label, []).append(row)
    return [
        Group(name=name, rows=tuple(rows), unhealthy=any(row.label in unhealthy for row in rows))
        for name, rows in found.items()
        if any(row.done for row in rows)
    ]


def line_of(group: Group, courses: Courses, split: str) -> Line | None:
    """A group's line; None where none of its runs recorded the quantity on this split.

    Raises:
        AnalysisError: its runs have no step in common.
    """
    found = [[{point.place: point for point in courses.get((run.run_id, split), ())} for run in row.done]
             for row in group.rows]  # fmt: skip
    rows = [own for row in found if (own := [points for points in row if points])]
    runs = [points for row in rows for points in row]
    if not runs:
        return None
    places = sorted(set.intersection(*(set(points) for points in runs)))
    if not places:
        raise AnalysisError(
            f"{group.name}: its {len(runs)} runs were never measured at the same step on {split}; --x epoch or a finer "
            "--group may do"
        )
    return Line(
        x=np.array([[points[place].x for place in places] for points in runs]).mean(axis=0),
        rows=tuple(np.array([[points[place].value for place in places] for points in row]) for row in rows),
    )


def looks(groups: Sequence[Group]) -> list[tuple[str, Any]]:
    """Colour and line style of every group: colour is the architecture, where that leaves enough styles to tell its
    rows apart.

    Raises:
        AnalysisError: more lines than can be told apart.
    """
    models = list(dict.fromkeys(model for group in groups for model in sorted(group.models)))
    single = all(len(group.models) == 1 for group in groups)
    places: list[int] = []
    for group in groups:
        places.append(sum(group.models == other.models for other in groups[: len(places)]))
    if single and 1 < len(models) <= len(COLOURS) and max(places) < len(LINES):
        colours = [COLOURS[models.index(next(iter(group.models)))] for group in groups]
        return [(colour, LINES[place]) for colour, place in zip(colours, places, strict=True)]
    if len(groups) > len(COLOURS) * len(LINES):
        raise AnalysisError(
            f"{len(groups)} lines cannot be told apart, at most {len(COLOURS) * len(LINES)} can; draw fewer with "
            "--filter, or one for several rows with --group"
        )
    return [(COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS)]) for i in range(len(groups))]


def draw(
    groups: Sequence[Group],
    courses: Mapping[str, Courses],
    splits: Sequence[str],
    *,
    x: str,
    name: str,
    title: str,
    average: int | None = None,
) -> Page:
    """The picture with its numbers.

    Args:
        groups: a line each.
        courses: by the quantity's name; a row of panels each.
        splits: a column of panels each.
        x: one of `courses.X_AXES`.
        name: stem of the files.
        title: of the grid, for the caption.
        average: over how many recorded values a point is the mean; None: as few as leave MOST_POINTS.

    Raises:
        AnalysisError: too many lines, or nothing to draw.
    """
    known = quantities()
    styles = looks(groups)
    beside = len(groups) >= BESIDE
    height = max(0.4 + 1.9 * len(courses), 0.5 + 0.16 * len(groups) if beside else 0)
    figure = new_figure(height + (0 if beside else 0.3))
    panels = figure.subplots(len(courses), len(splits), sharex=True, sharey="row", squeeze=False)
    numbers: list[dict[str, Any]] = []
    widths: dict[str, int] = {}
    for line, (y, course) in zip(panels, courses.items(), strict=True):
        lines = {(group.name, split): line_of(group, course, split) for group in groups for split in splits}
        most = max((len(found.x) for found in lines.values() if found is not None), default=1)
        widths[y] = width = min(average or math.ceil(most / MOST_POINTS), most)
        for axes, split in zip(line, splits, strict=True):
            for group, (colour, dashes) in zip(groups, styles, strict=True):
                if (found := lines[group.name, split]) is not None:
                    found = found.averaged(width)
                    _draw(axes, known[y], found, colour, dashes, group)
                    numbers += _numbers({"quantity": y, "split": split, "averaged": width}, x, found, group)
            if not axes.lines:
                axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes, fontsize=7)
                axes.set_axis_off()
        if first := next((axes for axes in line if axes.lines), None):
            first.set_ylabel(f"{shown(y, 28)} ({known[y].unit})" if known[y].unit else shown(y, 28))
            first.tick_params(labelleft=True)
    if not numbers:
        raise AnalysisError(f"--y {','.join(courses)}: no run that is done recorded it on {', '.join(splits)}")
    for column, split in zip(panels.T, splits, strict=True):
        column[0].set_title("train" if split == TRAIN else shown(split, 24))
        if last := next((axes for axes in reversed(column) if axes.lines), None):
            last.set_xlabel(X_NAMES[x])
            last.tick_params(labelbottom=True)
            last.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=x != "wall_s"))
    figure.align_ylabels()
    drawn = {row["group"] for row in numbers}
    handles = [
        Line2D([], [], color=colour, linestyle=dashes, label=shown(group.name, 30) + (" †" if group.unhealthy else ""))
        for group, (colour, dashes) in zip(groups, styles, strict=True)
        if group.name in drawn
    ]
    if beside:
        figure.legend(handles=handles, loc="outside right upper", handlelength=2.6)
    else:
        legend(figure, handles, ncols=_fitting(handles))
    caption = _caption(groups, widths, x, title)
    add_caption(figure, caption)
    alt = f"{' and '.join(courses)} by {x} of {len(handles)} groups of {title} on {', '.join(splits)}."
    run_ids = tuple(run.run_id for group in groups if group.name in drawn for run in group.runs)
    tables = tuple(dict.fromkeys(known[y].table for y in courses))
    return Page(name=name, figure=figure, caption=caption, alt=alt, numbers=numbers, run_ids=run_ids, tables=tables)


def _fitting(handles: Sequence[Line2D]) -> int:
    """Columns of a legend above the panels."""
    widest = max(text_width(str(handle.get_label()), 7) for handle in handles) / 72 + 0.55
    return max(1, int((WIDTH - 0.2) / widest))


def _draw(axes: Axes, quantity: Quantity, line: Line, colour: str, dashes: Any, group: Group) -> None:
    mean = quantity.scale * line.mean
    marker = "." if len(line.x) <= FEW_POINTS else "none"
    axes.plot(line.x, mean, color=colour, linestyle=dashes, linewidth=1.1, marker=marker, markersize=4)
    if (edges := line.edges) is not None:
        low, high = (quantity.scale * edge for edge in edges)
        axes.fill_between(line.x, low, high, color=colour, alpha=0.15, linewidth=0)
    if group.unhealthy:
        axes.plot(line.x[-1:], mean[-1:], color=colour, marker="o", markersize=4, markerfacecolor="white")


def _numbers(where: dict[str, Any], x: str, line: Line, group: Group) -> list[dict[str, Any]]:
    num_runs = sum(map(len, line.rows))
    of_line = {**where, "group": group.name, "num_rows": len(line.rows), "num_runs": num_runs}
    low, high = (edge.tolist() for edge in line.edges) if line.edges else ([None] * len(line.x),) * 2
    points = zip(line.x.tolist(), line.mean.tolist(), low, high, strict=True)
    return [{**of_line, x: at, "mean": mean, "low": lowest, "high": highest} for at, mean, lowest, highest in points]


def _caption(groups: Sequence[Group], widths: Mapping[str, int], x: str, title: str) -> str:
    known = quantities()
    lines = [f"{title}: {' and '.join(widths)} by {x}, mean over seeds."]
    lines += [f"{y}: {known[y].remark}." for y in widths if known[y].remark]
    lines += [f"{text}." for text in averages(widths)]
    counts = {len(group.runs) for group in groups if len(group.rows) == 1}
    if any(1 < count < FEW_SEEDS for count in counts):
        lines.append("Band: lowest to highest seed.")
    if any(count >= FEW_SEEDS for count in counts):
        lines.append(f"Band with {FEW_SEEDS} seeds or more: 95 % t-interval of the mean over seeds.")
    if merged := [group for group in groups if len(group.rows) > 1]:
        told = [f"{group.name}: {_members(group)}" for group in merged[:6]]
        told += [f"and {len(merged) - 6} more"] if len(merged) > 6 else []
        lines.append(f"Lines of several rows are their mean, without a band: {'; '.join(told)}.")
    if counts == {1}:
        lines.append("One seed, so no band.")
    if any(group.unhealthy for group in groups):
        lines.append("† a run failed a health rule: hollow end.")
    return " ".join(lines)


def averages(widths: Mapping[str, int]) -> list[str]:
    """Of which quantities a point is the mean of several values, and of how many."""
    return [f"{y}: a point is the mean of {width:,} successive values" for y, width in widths.items() if width > 1]


def _members(group: Group) -> str:
    empty = sum(not row.done for row in group.rows)
    return f"{len(group.rows)} rows, {len(group.runs)} runs" + (f", {empty} of the rows without any" if empty else "")


def told(groups: Sequence[Group], results: GridResults) -> list[str]:
    """What every line stands for and what is not drawn, for the screen."""
    lines = []
    for group in groups:
        seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in group.runs}))
        labels = f" ({', '.join(row.label for row in group.rows)})" if len(group.rows) > 1 else ""
        num = "1 run" if len(group.runs) == 1 else f"{len(group.runs)} runs"
        lines.append(f"{group.name}: {_members(group) if labels else num}{labels}, seed{'s' * (',' in seeds)} {seeds}")
    open_ = [
        f"{row.label} seed {run.seed} ({run.status})"
        for row in results.rows
        for run in row.runs
        if run.status != "done"
    ]
    open_ += [f"{row.label} (not selected yet)" for row in results.rows if not row.runs]
    return lines + ([f"not drawn: {', '.join(open_)}"] if open_ else [])


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m analysis.curves`."""
    cli = argparse.ArgumentParser(prog="python -m analysis.curves", description="Draw what runs recorded by step.")
    add_source(cli)
    cli.add_argument(
        "--y", default="top1", metavar="NAME,...", help="quantities (default: top1); a wrong one lists all"
    )
    cli.add_argument("--x", choices=X_AXES, default="step", help="default: step")
    cli.add_argument("--split", metavar="NAME,...", help="default: every split that they were recorded on")
    add_filter(cli)
    cli.add_argument("--group", metavar="AXIS,...", help="a line for all rows alike in these axes (default: each row)")
    cli.add_argument(
        "--average",
        type=int,
        metavar="N",
        help=f"a point is the mean of N successive values (default: as few as leave {MOST_POINTS} points)",
    )
    cli.add_argument("--name", default="curves", help="stem of the files (default: curves)")
    cli.add_argument("--format", default="svg,png", help=f"any of {','.join(FORMATS)} (default: svg,png)")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 1 when the picture has a fault that the lint names; 2 when nothing could be drawn."""
    options = parser().parse_args(argv)
    return guarded("analysis.curves", lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    formats = names("--format", options.format, FORMATS)
    known = quantities()
    wanted = names("--y", options.y, known)
    if options.average is not None and options.average < 1:
        raise AnalysisError(f"--average {options.average}: give 1 (every value) or more")
    storage = Storage(options.results)
    results = chosen_rows(load_rows(storage, options.grid, options.variant), options.filter)
    axes = names("--group", options.group, axes_of(results)) if options.group else []
    groups = grouped(results, axes, _unhealthy(storage, results))
    if not groups:
        raise AnalysisError(f"grid {results.name}: no run of these rows is done; python -m tuner.status tells why")
    commits = records.read_commits(storage, [run.run_id for group in groups for run in group.runs])
    courses = {y: read_courses(storage, commits.values(), known[y], options.x) for y in wanted}
    recorded = splits_of(courses.values())
    if not recorded:
        raise AnalysisError(f"--y {options.y}: none of these {len(commits)} runs recorded it")
    splits = names("--split", options.split, recorded) if options.split else recorded
    folder = report_folder(options.out, results.name, results.variant)
    with style():
        title = f"Grid {results.name}" if results.variant == "full" else f"Grid {results.name} ({results.variant})"
        look = {"x": options.x, "name": slug(options.name), "title": title, "average": options.average}
        page = marked_page(draw(groups, courses, splits, **look), results.rows)
        faults = lint(page.figure)
        settle(page.figure)
        files = [file for run_id in page.run_ids for file in commits[run_id].files if file.table in page.tables]
        facts = {
            "grid": results.name,
            "variant": results.variant,
            "y": wanted,
            "x": options.x,
            "splits": splits,
            "filter": options.filter,
            "group": axes,
            "averaged": {row["quantity"]: row["averaged"] for row in page.numbers},
            "inputs_sha256": {file.path: file.sha256 for file in files},
        }
        paths = write_files(page, folder, formats, facts)
    widths = {str(row["quantity"]): int(row["averaged"] or 1) for row in page.numbers}
    silent = [group.name for group in groups if group.name not in {row["group"] for row in page.numbers}]
    empty = [f"nothing of it recorded: {', '.join(silent)}"] if silent else []
    for line in [*told([one for one in groups if one.name not in silent], results), *empty, *averages(widths)]:
        print(plain(f"  {line}"))
    print(plain(f"{' and '.join(wanted)} by {options.x}: {'  '.join(map(str, paths[: len(formats)]))}"))
    for fault in faults:
        print(plain(f"analysis.curves: {fault}"), file=sys.stderr)
    return 1 if faults else 0


def _unhealthy(storage: Storage, results: GridResults) -> frozenset[str]:
    evidence = read_evidence(storage, results)
    rules = registration().health
    return frozenset(row.label for row in results.rows if row_health(row.done, evidence, rules).gated)


if __name__ == "__main__":
    sys.exit(main())
