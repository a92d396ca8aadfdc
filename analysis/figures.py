"""The paper's figures of a grid, from its results store.

    python -m analysis.figures --grid paper [--figures F1,F4]

Every picture is written as SVG and PNG (PDF on demand) beside the plotted numbers (`<id>.csv`) and what they came from
(`<id>.json`). The same store gives the same bytes. A figure whose inputs are missing says which and why.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.figure_inputs import Inputs, MissingInputs
from analysis.figure_lint import lint
from analysis.figures_agreement import agreement
from analysis.figures_calibration import reliability, risk_coverage
from analysis.figures_classes import per_class
from analysis.figures_confusion import confusion, confusion_difference
from analysis.figures_curves import learning_curves
from analysis.figures_effects import gains, interaction
from analysis.figures_hypotheses import equivalence, forest, power
from analysis.figures_runs import completeness, cost
from analysis.figures_transfer import transfer
from analysis.load import AnalysisError, chosen_grid, load_results, report_folder
from analysis.plotting import FORMATS, Page, marked_page, settle, style, write_files
from analysis.registration import RegistrationError, registration
from analysis.sweeps import is_sweep
from datasets.terminal import plain
from trainable.credentials import redacted
from trainable.records import RecordError
from trainable.storage import Storage, StorageError


@dataclass(frozen=True, kw_only=True, slots=True)
class FigureKind:
    """A figure of the paper."""

    id: str
    title: str
    draw: Callable[[Inputs], list[Page]]
    """Raises MissingInputs where the store does not hold what it needs."""


OF_CHECKPOINTS = {"F12": "attribution", "F13": "likeness of features"}
"""Figures that need the networks themselves: `analysis.features` draws them."""
FIGURES: tuple[FigureKind, ...] = (
    FigureKind(id="F1", title="interaction of architecture and augmentation", draw=interaction),
    FigureKind(id="F2", title="registered contrasts and verdicts", draw=forest),
    FigureKind(id="F3", title="equivalence", draw=equivalence),
    FigureKind(id="F4", title="learning curves", draw=learning_curves),
    FigureKind(id="F5", title="simple gains", draw=gains),
    FigureKind(id="F6", title="confusions", draw=confusion),
    FigureKind(id="F7", title="what augmentations change of the confusions", draw=confusion_difference),
    FigureKind(id="F8", title="gains by class", draw=per_class),
    FigureKind(id="F9", title="reliability", draw=reliability),
    FigureKind(id="F10", title="risk by coverage", draw=risk_coverage),
    FigureKind(id="F11", title="error consistency", draw=agreement),
    FigureKind(id="F14", title="variance components and power", draw=power),
    FigureKind(id="F15", title="completeness", draw=completeness),
    FigureKind(id="F16", title="accuracy by device time", draw=cost),
    FigureKind(id="F17", title="accuracy by data of pretraining", draw=transfer),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A figure's outcome."""

    kind: FigureKind
    paths: tuple[Path, ...]
    missing: str
    """Why it could not be drawn; empty where it was."""
    faults: tuple[str, ...]
    """What the lint found."""


def draw_figures(inputs: Inputs, kinds: Sequence[FigureKind], folder: Path, formats: Sequence[str]) -> list[Drawn]:
    """Draws figures and writes their files.

    Raises:
        RecordError: a stored file is damaged.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for kind in kinds:
        with style():
            try:
                pages = pages_of(kind, inputs)
            except MissingInputs as missing:
                done.append(Drawn(kind=kind, paths=(), missing=str(missing), faults=()))
                continue
            faults = [f"{page.name}: {fault}" for page in pages for fault in lint(page.figure)]
            for page in pages:
                settle(page.figure)
            paths = [path for page in pages for path in _write(inputs, kind, page, folder, formats)]
        done.append(Drawn(kind=kind, paths=tuple(paths), missing="", faults=tuple(faults)))
    return done


def pages_of(kind: FigureKind, inputs: Inputs) -> list[Page]:
    """A figure's pages, marked where runs began from stand-ins of published weights.

    Raises:
        MissingInputs: the store does not hold what it needs.
        RecordError: a stored file is damaged.
    """
    return [marked_page(page, inputs.results.rows) for page in kind.draw(inputs)]


def draw_from_store(
    uri: str, grid: str, variant: str, ids: Sequence[str], folder: Path, formats: Sequence[str]
) -> tuple[set[str], list[Drawn]]:
    """Figures of a grid drawn from its store alone, so in another process too; and which runs were found done.

    Raises:
        AnalysisError, RecordError: as `load_inputs` does.
        OSError: the folder cannot be written.
    """
    inputs = load_inputs(Storage(uri), grid, variant)
    drawn = draw_figures(inputs, [kind for kind in FIGURES if kind.id in ids], folder, formats)
    return {run.run_id for run in inputs.results.done}, drawn


def _write(inputs: Inputs, kind: FigureKind, page: Page, folder: Path, formats: Sequence[str]) -> list[Path]:
    grid = inputs.results
    command = f"python -m analysis.figures --grid {grid.name} --variant {grid.variant} --figures {kind.id}"
    return write_page(inputs, page, folder, formats, {"figure": kind.id, "title": kind.title, "command": command})


def write_page(
    inputs: Inputs, page: Page, folder: Path, formats: Sequence[str], facts: Mapping[str, Any]
) -> list[Path]:
    """Writes a page in every format, its numbers and its origin.

    Args:
        inputs: what it was drawn from.
        page: laid out.
        folder: exists.
        formats: of `plotting.FORMATS`.
        facts: for the JSON: figure, title, command, and whatever else belongs there.

    Returns:
        The files.
    """
    origin = {
        "grid": inputs.results.name,
        "variant": inputs.results.variant,
        "inputs_sha256": inputs.hashes(page.run_ids, page.tables),
        "preregistration_sha256": registration().digest,
        **facts,
    }
    return write_files(page, folder, formats, origin)


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m analysis.figures`."""
    cli = argparse.ArgumentParser(prog="python -m analysis.figures", description="Draw a grid's figures.")
    cli.add_argument("--grid", metavar="NAME", help="default: the only grid in the store")
    cli.add_argument("--variant", help="full, or the hash of a shortened variant")
    cli.add_argument("--results", default="results", metavar="URI", help="results root (default: results)")
    cli.add_argument("--out", type=Path, default=Path("reports"), metavar="DIR", help="default: reports")
    cli.add_argument("--figures", metavar="ID,...", help="F1 to F17 (default: all)")
    cli.add_argument("--format", default="svg,png", help=f"any of {','.join(FORMATS)} (default: svg,png)")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 1 when a figure has a fault that the lint names; 2 when nothing could be drawn."""
    options = parser().parse_args(argv)
    known = {kind.id: kind for kind in FIGURES}
    wanted = options.figures.split(",") if options.figures else [*known, *OF_CHECKPOINTS]
    formats = options.format.split(",")
    for option, given, allowed in (("--figures", wanted, [*known, *OF_CHECKPOINTS]), ("--format", formats, FORMATS)):
        if unknown := [one for one in given if one not in allowed]:
            print(
                plain(f'analysis.figures: {option}: "{unknown[0]}" is not one of {", ".join(allowed)}'), file=sys.stderr
            )
            return 2
    try:
        inputs = load_inputs(Storage(options.results), options.grid, options.variant)
        results = inputs.results
        folder = report_folder(options.out, results.name, results.variant)
        drawn = draw_figures(inputs, [known[one] for one in dict.fromkeys(wanted) if one in known], folder, formats)
    except (AnalysisError, RecordError, RegistrationError, StorageError, OSError) as error:
        print(plain(f"analysis.figures: {redacted(str(error))}"), file=sys.stderr)
        return 2
    for one in drawn:
        if one.missing:
            print(plain(f"{one.kind.id:<4} {one.kind.title}: not drawn: {one.missing}"))
            continue
        pages = [str(path) for path in one.paths if path.suffix == f".{formats[0]}"]
        print(plain(f"{one.kind.id:<4} {one.kind.title}: {'  '.join(pages)}"))
        for fault in one.faults:
            print(plain(f"analysis.figures: {fault}"), file=sys.stderr)
    for name in (one for one in OF_CHECKPOINTS if one in wanted):
        command = f"python -m analysis.features --grid {results.name}"
        print(plain(f"{name:<4} {OF_CHECKPOINTS[name]}: drawn from checkpoints: {command}"))
    if not any(one.paths for one in drawn):
        return 2
    return 1 if any(one.faults for one in drawn) else 0


def load_inputs(storage: Storage, grid: str | None, variant: str | None = None) -> Inputs:
    """A grid as figures need it.

    Raises:
        AnalysisError: no such grid, several to choose from, or a sweep.
        RecordError: a stored file is damaged.
    """
    grid = chosen_grid(storage, grid)
    if is_sweep(storage, grid):
        raise AnalysisError(f"--grid {grid}: a sweep; its response curves: python -m analysis.tables --grid {grid}")
    return Inputs(storage=storage, results=load_results(storage, grid, variant))


if __name__ == "__main__":
    sys.exit(main())
