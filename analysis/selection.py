"""What the commands have in common that are asked for rows of a grid or a sweep: where they look, which rows, how names
that do not exist are refused, where their files go.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from analysis.frame import FORMATS, RENDERERS, Frame, show
from analysis.load import AnalysisError, GridResults, ResultRow, chosen_grid, load_results, load_runs, read_trials
from analysis.registration import RegistrationError
from analysis.sweeps import is_sweep, load_sweep
from datasets.terminal import Terminal, plain
from trainable import records
from trainable.credentials import redacted
from trainable.models import nearest
from trainable.records import RecordError
from trainable.storage import Storage, StorageError


def add_source(cli: argparse.ArgumentParser) -> None:
    """The options that say where to read and where to write."""
    cli.add_argument("--grid", metavar="NAME", help="default: the only grid in the store")
    cli.add_argument("--variant", help="full, or the hash of a shortened variant")
    cli.add_argument("--results", default="results", metavar="URI", help="results root (default: results)")
    cli.add_argument("--out", type=Path, default=Path("reports"), metavar="DIR", help="default: reports")


def add_filter(cli: argparse.ArgumentParser) -> None:
    """The option that chooses rows."""
    cli.add_argument(
        "--filter", metavar="REGEX", help='rows whose "label axis=value ..." it is found in (default: all but parents)'
    )


def guarded(name: str, run: Callable[[], int]) -> int:
    """Runs a command; what cannot be done is one line on standard error and exit code 2."""
    try:
        return run()
    except (AnalysisError, RecordError, RegistrationError, StorageError, OSError) as error:
        print(plain(f"{name}: {redacted(str(error))}"), file=sys.stderr)
        return 2


def names(option: str, given: str, known: Iterable[str]) -> list[str]:
    """The names of a list with commas, each once.

    Raises:
        AnalysisError: one of them is not known; the message names all that are, and the nearest.
    """
    allowed = list(known)
    found = list(dict.fromkeys(part.strip() for part in given.split(",")))
    for name in found:
        if name not in allowed:
            raise AnalysisError(f'{option}: "{name}" is not one of {", ".join(allowed)}{nearest(name, allowed)}')
    return found


def load_rows(storage: Storage, grid: str | None, variant: str | None = None) -> GridResults:
    """A grid, or a sweep whose rows and values stand as rows with the axes `row` and the varied field.

    Raises:
        AnalysisError: no such grid, several to choose from, or a sweep whose trials are no ordinary runs.
        RecordError: a stored file is damaged.
    """
    grid = chosen_grid(storage, grid)
    if is_sweep(storage, grid):
        return _sweep_rows(storage, grid, variant)
    return load_results(storage, grid, variant)


def _sweep_rows(storage: Storage, name: str, variant: str | None) -> GridResults:
    sweep = load_sweep(storage, name, variant)
    if sweep.sweep["scheduler"] == "pbt":
        raise AnalysisError(
            f"--grid {name}: a member of population-based training is several runs one after another, and no row; its "
            f"response curves: python -m analysis.tables --grid {name}"
        )
    points = [(row.label, point) for row in sweep.rows for point in row.points]
    commits = records.read_commits(storage, [run_id for _, point in points for run_id in point.run_ids])
    trials = read_trials(storage, list(commits.values()))
    rows = []
    for label, point in points:
        ended = [
            {"run_id": run_id, "seed": trials[run_id]["seed"], "reason": None}
            for run_id in point.run_ids
            if run_id in trials
        ]
        axes = {"row": label, sweep.sweep["field"]: str(point.value)}
        runs = tuple(sorted(load_runs(storage, ended), key=lambda run: run.seed))
        shown = f"{label} {sweep.sweep['field']}={point.value}"
        rows.append(ResultRow(label=shown, axes=axes, is_parent=False, published={}, runs=runs))
    return GridResults(
        name=name,
        variant=sweep.variant,
        help=sweep.help,
        published_eval=None,
        overrides=sweep.overrides,
        rows=tuple(rows),
        unread=sweep.unread,
        other_variants=sweep.other_variants,
        verified=True,
    )


def chosen_rows(results: GridResults, pattern: str | None) -> GridResults:
    """The results with the rows that a regular expression finds; without one, all but those that others start from.

    Raises:
        AnalysisError: it is no regular expression, or finds no row.
    """
    if pattern is None:
        return replace(results, rows=tuple(row for row in results.rows if not row.is_parent))
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise AnalysisError(f"--filter {pattern}: no regular expression: {error}") from None
    rows = tuple(row for row in results.rows if wanted.search(described(row)))
    if not rows:
        shown = "; ".join(described(row) for row in results.rows[:3])
        raise AnalysisError(f"--filter {pattern}: is found in none of the {len(results.rows)} rows, such as {shown}")
    return replace(results, rows=rows)


def described(row: ResultRow) -> str:
    """A row as `--filter` sees it."""
    return " ".join([row.label, *(f"{axis}={value}" for axis, value in row.axes.items())])


def axes_of(results: GridResults) -> list[str]:
    """The axes that rows have, in the grid's order."""
    return list(dict.fromkeys(axis for row in results.rows for axis in row.axes))


def value_name(axis: str, value: str) -> str:
    """A value as it stands in a heading; with its axis where it says nothing alone."""
    return f"{axis}={value}" if value in ("true", "false", "") or _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def deliver(frames: Mapping[str, Frame], folder: Path, formats: Sequence[str] = FORMATS) -> None:
    """Prints tables and writes each in every format.

    Raises:
        OSError: the folder cannot be written.
    """
    console = Terminal() if sys.stdout.isatty() else Terminal(width=240)
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        show(frame, console)
        for kind in formats:
            (folder / f"{name}.{kind}").write_text(RENDERERS[kind](frame), encoding="utf-8")
    stems, kinds = (",".join(given) if len(given) == 1 else f"{{{','.join(given)}}}" for given in (frames, formats))
    console.print(f"  written: {folder}/{stems}.{kinds}", markup=False, highlight=False, soft_wrap=True)
