"""A grid's report: one HTML page that needs nothing else, the same as Markdown, and `paper/` with tables and figures.

    python -m analysis.report --grid paper [--lang ko]

Verdicts first, then what they rest on, then everything else that the store holds. The same store gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from analysis.figure_inputs import Inputs
from analysis.figures import FIGURES, Drawn, draw_figures, draw_from_store, load_inputs
from analysis.frame import Frame, to_csv, to_tex
from analysis.load import AnalysisError, report_folder
from analysis.registration import RegistrationError
from analysis.report_content import Drawing, Made, judged, report_of
from analysis.report_found import drawing, found_features
from analysis.report_page import to_markdown_report, to_page
from analysis.report_svg import SvgError
from analysis.sentences import LANGUAGES
from analysis.tables import OF_TRIALS, TABLES, build
from datasets.terminal import plain
from trainable.credentials import redacted
from trainable.records import RecordError
from trainable.storage import Storage, StorageError

BY_ROW = ("F6", "F7")
"""Figures with a page a row or a pair of rows."""
APART_FROM = 8
"""Rows from which a second process pays."""
FORMATS = ("svg", "pdf")


def write_report(inputs: Inputs, folder: Path, lang: str) -> Path:
    """Writes the report of a grid with everything that belongs to it; returns the page's path.

    Raises:
        RecordError: a stored file is damaged.
        OSError: the folder cannot be written.
    """
    (folder / "paper").mkdir(parents=True, exist_ok=True)
    reasons: dict[str, str] = {}
    frames, drawn = _make(inputs, folder, reasons)
    pictures = {one.kind.id: _drawings(one) for one in drawn}
    reasons |= {one.kind.id: one.missing for one in drawn if one.missing}
    found = found_features(inputs, folder, lang)
    for name in (name for name in found.frames if (folder / f"{name}.tex").exists()):
        shutil.copyfile(folder / f"{name}.tex", folder / "paper" / f"{name}.tex")
    faults = [fault for one in drawn for fault in one.faults]
    made = Made(
        frames=frames | found.frames,
        pictures=pictures | found.pictures,
        reasons=reasons,
        features=found.told,
        faults=faults,
    )
    report = report_of(inputs, judged(inputs), made, lang)
    page = folder / "report.html"
    page.write_text(to_page(report), encoding="utf-8")
    (folder / "report.md").write_text(to_markdown_report(report), encoding="utf-8")
    return page


def _make(inputs: Inputs, folder: Path, reasons: dict[str, str]) -> tuple[dict[str, Frame], list[Drawn]]:
    """All tables and figures. Figures with a page a row are half of the work, so a second process draws them."""
    results = inputs.results
    kinds = list(FIGURES) if results.verified else []  # they need every run's curve or predictions
    num_cells = sum(bool(cell.runs) for cell in inputs.cells)
    apart = [kind for kind in kinds if kind.id in BY_ROW and num_cells >= APART_FROM]
    here = [kind for kind in kinds if kind not in apart]
    if not apart:
        return _tables(inputs, folder, reasons), draw_figures(inputs, here, folder, FORMATS)
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        ids = [kind.id for kind in apart]
        other = pool.submit(draw_from_store, inputs.storage.uri, results.name, results.variant, ids, folder, FORMATS)
        frames = _tables(inputs, folder, reasons)
        drawn = draw_figures(inputs, here, folder, FORMATS)
        try:
            run_ids, drawn_apart = other.result()
        except BrokenProcessPool:  # killed, as for want of memory
            run_ids, drawn_apart = set(), []
    if run_ids != {run.run_id for run in results.done}:  # or the grid is running: one report speaks of one state
        drawn_apart = draw_figures(inputs, apart, folder, FORMATS)
    order = [kind.id for kind in kinds]
    return frames, sorted([*drawn, *drawn_apart], key=lambda one: order.index(one.kind.id))


def _tables(inputs: Inputs, folder: Path, reasons: dict[str, str]) -> dict[str, Frame]:
    """The grid's tables, each written as numbers and for the paper; why others cannot be goes into `reasons`."""
    frames = {}
    for name in TABLES if inputs.results.verified else OF_TRIALS:
        try:
            frames[name] = build(inputs.source, name)
        except AnalysisError as error:
            reasons[name] = str(error)
            continue
        (folder / f"{name}.csv").write_text(to_csv(frames[name]), encoding="utf-8")
        (folder / "paper" / f"{name}.tex").write_text(to_tex(frames[name]), encoding="utf-8")
    return frames


def _drawings(drawn: Drawn) -> list[Drawing]:
    """A figure's pages as they were written; those for the paper go to its folder."""
    pages = []
    for path in drawn.paths:
        if path.suffix == ".pdf":
            path.replace(path.parent / "paper" / path.name)
        elif path.suffix == ".json":
            facts = json.loads(path.read_text(encoding="utf-8"))
            pages.append(drawing(path, facts))
    return pages


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m analysis.report`."""
    cli = argparse.ArgumentParser(prog="python -m analysis.report", description="Write a grid's report.")
    cli.add_argument("--grid", metavar="NAME", help="default: the only grid in the store")
    cli.add_argument("--variant", help="full, or the hash of a shortened variant")
    cli.add_argument("--results", default="results", metavar="URI", help="results root (default: results)")
    cli.add_argument("--out", type=Path, default=Path("reports"), metavar="DIR", help="default: reports")
    cli.add_argument("--lang", choices=LANGUAGES, default="en", help="of headings and sentences (default: en)")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when there is nothing to report on."""
    options = parser().parse_args(argv)
    try:
        inputs = load_inputs(Storage(options.results), options.grid, options.variant)
        results = inputs.results
        folder = report_folder(options.out, results.name, results.variant)
        page = write_report(inputs, folder, options.lang)
    except (AnalysisError, RecordError, RegistrationError, StorageError, SvgError, OSError) as error:
        print(plain(f"analysis.report: {redacted(str(error))}"), file=sys.stderr)
        return 2
    print(plain(f"{page}  {page.stat().st_size / 1e6:.1f} MB"))
    print(plain(f"{page.with_suffix('.md')}  {folder / 'paper'}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
