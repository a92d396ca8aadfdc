"""The tables of a grid: T1, its results, on the screen, and all of them in files. Of a sweep: its response curves, see
`sweeps.py`.

    python -m analysis.tables [--grid paper] [--tables T1,T2] [--format md,html]

Every format of a table is written from one display frame, so that no two of them can differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from rich.console import Console

from analysis.agreement_table import agreement_frame
from analysis.attempts_table import attempts_frame
from analysis.best_table import looks_frame
from analysis.calibration_table import calibration_frame
from analysis.cost_table import cost_frame
from analysis.frame import FORMATS, RENDERERS, Frame, show
from analysis.gates import Evidence, grid_health, read_evidence
from analysis.hypotheses import Judgement, judge
from analysis.hypothesis_tables import equivalence_frame, sensitivity_frame, tests_frame
from analysis.load import AnalysisError, GridResults, load_results, report_folder
from analysis.paper_table import paper_frame
from analysis.per_class_table import per_class_frame
from analysis.power import power_frame
from analysis.published_table import published_frame
from analysis.registration import RegistrationError, registration
from analysis.results_table import Health, results_frame, watermarks
from analysis.scalars_table import scalars_frame
from analysis.stand_ins import marked_grid
from analysis.sweeps import curves, is_sweep, load_sweep, sweep_frame
from datasets.terminal import Terminal, plain
from trainable.credentials import redacted
from trainable.manifests import grid_names
from trainable.records import RecordError
from trainable.storage import Storage, StorageError


class Source:
    """A grid with what several of its tables ask for, each read once."""

    def __init__(self, storage: Storage, results: GridResults) -> None:
        self.storage = storage
        self.results = results

    @cached_property
    def evidence(self) -> dict[str, Evidence]:
        """Of every run that is done: its learning curve, spec and code.

        Raises:
            RecordError: a stored file is damaged.
        """
        return read_evidence(self.storage, self.results)

    @cached_property
    def judgement(self) -> Judgement:
        """Of the registered hypotheses.

        Raises:
            AnalysisError: none is stated for such a grid.
        """
        return judge(self.results, self.evidence, registration())

    @cached_property
    def health(self) -> Health | None:
        """Of every run; None of a large grid, whose learning curves are as many files.

        Raises:
            RecordError: a stored file is damaged.
        """
        return grid_health(self.results, self.evidence, registration().health) if self.results.verified else None


TABLES: dict[str, Callable[[Source], Frame]] = {
    "T1": lambda source: results_frame(source.results, source.health),
    "T2": lambda source: paper_frame(source.results, source.health),
    "T3": lambda source: tests_frame(source.results, source.judgement),
    "T4": lambda source: equivalence_frame(source.results, source.judgement),
    "T5": lambda source: sensitivity_frame(source.results, source.evidence, source.judgement),
    "T6": lambda source: power_frame(source.results, source.judgement),
    "T7": lambda source: published_frame(source.results),
    "T8": lambda source: calibration_frame(source.storage, source.results),
    "T9": lambda source: per_class_frame(source.storage, source.results),
    "T10": lambda source: agreement_frame(source.results),
    "T11": lambda source: cost_frame(source.storage, source.results),
    "T12": lambda source: attempts_frame(source.storage, source.results),
    "T15": lambda source: looks_frame(source.storage, source.results, source.evidence, on_test=True),
    "T16": lambda source: looks_frame(source.storage, source.results, source.evidence, on_test=False),
    "T17": lambda source: scalars_frame(source.results),
}
"""In this order; `analysis.features` makes T13 and T14. Each raises `AnalysisError` with the reason where a grid cannot
have it."""
OF_TRIALS = ("T1", "T7", "T11", "T12")
"""Tables that open no predictions: of a large grid, those that are made unless others are named."""


def build(source: Source, name: str) -> Frame:
    """One table of a grid: its watermarks first, what it was made from last.

    Raises:
        AnalysisError: the grid cannot have this table; the message says why.
        RecordError: a stored file is damaged.
    """
    frame = marked_grid(TABLES[name](source), source.results)
    first = [note for note in watermarks(source.results) if note not in frame.notes]
    return dataclasses.replace(frame, notes=(*first, *frame.notes, *_made_from(source.results)))


def _made_from(results: GridResults) -> list[str]:
    """From which runs and under which registration; the same for the same runs, however often they were killed."""
    if not results.done:
        return []
    digest = hashlib.sha256(" ".join(sorted(run.run_id for run in results.done)).encode()).hexdigest()
    standing = registration().standing([run.trial["ended_at"] for run in results.done])
    return [f"from {len(results.done):,} runs of grid {results.name} ({results.variant}), {digest[:12]}; {standing}"]


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m analysis.tables`."""
    cli = argparse.ArgumentParser(prog="python -m analysis.tables", description="Print and write a grid's results.")
    cli.add_argument("--grid", metavar="NAME", help="default: every grid in the store")
    cli.add_argument("--variant", help="full, or the hash of a shortened variant")
    cli.add_argument("--results", default="results", metavar="URI", help="results root (default: results)")
    cli.add_argument("--out", type=Path, default=Path("reports"), metavar="DIR", help="default: reports")
    cli.add_argument("--format", default=",".join(FORMATS), help=f"any of {','.join(FORMATS)} (default: all)")
    cli.add_argument("--tables", help=f"any of {','.join(TABLES)} (default: all that the grid can have)")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 when nothing could be shown."""
    options = parser().parse_args(argv)
    formats = options.format.split(",")
    tables = options.tables.split(",") if options.tables else []
    for option, given, known in (("format", formats, FORMATS), ("tables", tables, TABLES)):
        if unknown := [name for name in given if name not in known]:
            said = f'analysis.tables: --{option}: "{unknown[0]}" is not one of {", ".join(known)}'
            print(plain(said), file=sys.stderr)
            return 2
    try:
        storage = Storage(options.results)
        names = [options.grid] if options.grid else grid_names(storage)
        if not names:
            raise AnalysisError(f"--results {options.results}: holds no grid; run one: python -m tuner.run --grid demo")
        for name in names:
            _show_grid(storage, name, options.variant, tables, formats, options.out)
    except (AnalysisError, RecordError, RegistrationError, StorageError) as error:
        print(plain(f"analysis.tables: {redacted(str(error))}"), file=sys.stderr)
        return 2
    return 0


def _show_grid(
    storage: Storage, name: str, variant: str | None, tables: list[str], formats: list[str], out: Path
) -> None:
    """Prints T1, or the tables that were named, and writes all of them.

    Raises:
        AnalysisError: no such grid or variant, or it cannot have a table that was named.
    """
    console = Terminal() if sys.stdout.isatty() else Terminal(width=240)
    if is_sweep(storage, name):
        if others := [table for table in tables if table != "T1"]:
            raise AnalysisError(f"--tables {others[0]}: {name} is a sweep, which has T1 alone")
        sweep = load_sweep(storage, name, variant)
        frames, folder = {"T1": sweep_frame(sweep)}, report_folder(out, name, sweep.variant)
        show(frames["T1"], console)
        _say(console, curves(sweep))
    else:
        results = load_results(storage, name, variant)
        frames, folder = _frames(storage, results, tables, console), report_folder(out, name, results.variant)
    folder.mkdir(parents=True, exist_ok=True)
    for table, frame in frames.items():
        for kind in formats:
            (folder / f"{table}.{kind}").write_text(RENDERERS[kind](frame), encoding="utf-8")
    names = [",".join(given) if len(given) == 1 else f"{{{','.join(given)}}}" for given in (list(frames), formats)]
    _say(console, [f"written: {folder}/{names[0]}.{names[1]}"])


def _frames(storage: Storage, results: GridResults, tables: list[str], console: Console) -> dict[str, Frame]:
    frames = {}
    left_out = []
    source = Source(storage, results)
    for table in tables or (TABLES if results.verified else OF_TRIALS):
        try:
            frames[table] = build(source, table)
        except AnalysisError as error:
            if table in tables:
                raise AnalysisError(f"--tables {table}: grid {results.name}: {error}") from None
            left_out.append(f"{table} ({error})")
    for table in tables or ["T1"]:
        show(frames[table], console)
    if left_out:
        _say(console, [f"not for this grid: {', '.join(left_out)}"])
    if not tables and not results.verified:
        others = ",".join(table for table in TABLES if table not in OF_TRIALS)
        _say(console, [f"not made of so many runs unless named: --tables {others}"])
        if not storage.names("compacted"):
            _say(console, ["python -m analysis.compact makes reading so many runs several times as fast"])
    return frames


def _say(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
