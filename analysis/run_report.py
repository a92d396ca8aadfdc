"""One run in full: precision, recall and F1 of every class, which class it took for which, and of `final` a picture of
that.

python -m analysis.run_report Exp-10/223 --grid paper
python -m analysis.run_report 3f0c9f2e5d1b7a64
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.figure_inputs import Cell, Inputs
from analysis.figure_lint import lint
from analysis.figures_confusion import confusion
from analysis.frame import FORMATS, Frame, Raw, count, percent, to_csv
from analysis.load import AnalysisError, GridResults, ResultRow, SeedRun, report_folder
from analysis.plotting import marked_page, settle, slug, style, write_files
from analysis.results_table import watermarks
from analysis.selection import add_source, deliver, guarded, load_rows, names
from analysis.stand_ins import marked_grid
from datasets.terminal import plain
from trainable.manifests import grid_names
from trainable.models import nearest
from trainable.storage import Storage


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """A run's answers by class, [C] each, and as they were given, [C, C]."""

    classes: NDArray[np.int64]
    """The data's numbers, rising."""
    counts: NDArray[np.int64]
    """[C, C]: images of the row's class that were taken for the column's."""

    @property
    def support(self) -> NDArray[np.int64]:
        """Images of each class."""
        found: NDArray[np.int64] = self.counts.sum(axis=1)
        return found

    @property
    def precision(self) -> NDArray[np.float64]:
        """Of those taken for a class the share that is it; 0 where none was."""
        return _share(self.counts.diagonal(), self.counts.sum(axis=0))

    @property
    def recall(self) -> NDArray[np.float64]:
        """Of a class the share that was taken for it; 0 where the test split has none of it."""
        return _share(self.counts.diagonal(), self.support)

    @property
    def f1(self) -> NDArray[np.float64]:
        """Harmonic mean of both; 0 where both are."""
        return _share(2 * self.counts.diagonal(), self.counts.sum(axis=0) + self.support)


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return found


def by_class(labels: NDArray[Any], predicted: NDArray[Any], classes: NDArray[Any]) -> Classes:
    """A run's answers by class.

    Args:
        labels: [N], numbers of the right classes.
        predicted: [N], of the answers.
        classes: [C], all numbers that a run could answer.
    """
    ordered = np.sort(classes).astype(np.int64)
    num = len(ordered)
    flat = np.searchsorted(ordered, labels) * num + np.searchsorted(ordered, predicted)
    return Classes(classes=ordered, counts=np.bincount(flat, minlength=num * num).reshape(num, num))


def report_frame(results: GridResults, row: ResultRow, run: SeedRun, evaluation: str, class_names: list[str]) -> Frame:
    """A line a class, then accuracy and the two means, as scikit-learn's classification report has them.

    Raises:
        RecordError: predictions are damaged.
    """
    found = _classes(run, evaluation)
    total = int(found.support.sum())
    accuracy = float(found.counts.diagonal().sum()) / total
    columns_of = (found.precision, found.recall, found.f1)
    lines: list[tuple[str, str, list[float | None], int]] = [
        (str(number), name, [float(column[i]) for column in columns_of], int(found.support[i]))
        for i, (number, name) in enumerate(zip(found.classes, class_names, strict=True))
    ]
    lines.append(("", "accuracy", [None, None, accuracy], total))
    for name, weights in (("macro mean", None), ("mean weighted by images", found.support)):
        lines.append(("", name, [float(np.average(column, weights=weights)) for column in columns_of], total))
    keys = ("class", "name", "precision", "recall", "f1", "images")
    raw: list[Raw] = [dict(zip(keys, (*line[:2], *line[2], line[3]), strict=True)) for line in lines]
    columns = ("class", "name", "precision %", "recall %", "F1 %", "images")
    return Frame(
        title=f"run {run.run_id}: {row.label}, seed {run.seed}, by class",
        notes=(
            *watermarks(results),
            f"evaluation {evaluation} (step {run.trial[f'{evaluation}_step']:,}) on the test images",
            *(["best_on_test: epoch chosen on the test set itself"] if evaluation == "best_on_test" else []),
            "precision of a class that was never answered counts as 0",
        ),
        columns=columns,
        left=2,
        narrow=columns,
        rows=tuple((*line[:2], *map(percent, line[2]), count(line[3])) for line in lines),
        raw=tuple(raw),
    )


def confusion_frame(row: ResultRow, run: SeedRun, evaluation: str) -> Frame:
    """Counts: a line a true class, a column a predicted one, by the data's numbers."""
    found = _classes(run, evaluation)
    numbers = [str(number) for number in found.classes]
    return Frame(
        title=f"run {run.run_id}: {row.label}, seed {run.seed}, confusions",
        notes=(),
        columns=("true", *numbers),
        left=1,
        narrow=("true", *numbers),
        rows=tuple((number, *map(str, line)) for number, line in zip(numbers, found.counts.tolist(), strict=True)),
        raw=tuple(
            {"true": number, **dict(zip(numbers, line, strict=True))}
            for number, line in zip(numbers, found.counts.tolist(), strict=True)
        ),
    )


def _classes(run: SeedRun, evaluation: str) -> Classes:
    answers = run.evaluations[evaluation].predictions
    return by_class(answers.labels, answers.predicted, np.array(run.trial["classes"]))


def find_run(
    storage: Storage, grid: str | None, variant: str | None, asked: str
) -> tuple[GridResults, ResultRow, SeedRun]:
    """The run that was asked for, with its row and grid.

    Args:
        storage: the results root.
        grid: its name; None looks into every grid.
        variant: of the grid; None chooses.
        asked: a run id, LABEL/SEED, or a LABEL that has one seed.

    Raises:
        AnalysisError: there is none, several, or it is not done.
    """
    known = grid_names(storage)
    found = []
    seen: list[str] = []
    for name in [grid] if grid else known:
        results = load_rows(storage, name, variant)
        for row in results.rows:
            for run in row.runs:
                spelled = (run.run_id, f"{row.label}/{run.seed}", row.label)
                seen += spelled[1:]
                if asked in spelled:
                    found.append((results, row, run))
    several = {(run.run_id) for _, _, run in found}
    if not found:
        where = f"grid {grid}" if grid else f"the grids {', '.join(known)}" if known else f"{storage.uri}"
        raise AnalysisError(
            f"{asked}: no run of {where}; give a run id or LABEL/SEED{nearest(asked, dict.fromkeys(seen))}"
        )
    if len(several) > 1:
        choices = ", ".join(f"{row.label}/{run.seed} (grid {results.name})" for results, row, run in found[:8])
        raise AnalysisError(f"{asked}: is {len(several)} runs; choose one of {choices}")
    results, row, run = found[0]
    if run.status != "done":
        raise AnalysisError(f"{row.label}/{run.seed}: {run.status}: {run.reason}")
    return results, row, run


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m analysis.run_report`."""
    cli = argparse.ArgumentParser(prog="python -m analysis.run_report", description="One run by class.")
    cli.add_argument("run", metavar="RUN", help="a run id, LABEL/SEED, or a LABEL that has one seed")
    add_source(cli)
    cli.add_argument("--eval", default="final", metavar="NAME", help="final (default), best_on_val or best_on_test")
    cli.add_argument("--format", default=",".join(FORMATS), help=f"any of {','.join(FORMATS)} (default: all)")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 1 when the picture has a fault that the lint names; 2 when nothing could be shown."""
    options = parser().parse_args(argv)
    return guarded("analysis.run_report", lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    formats = names("--format", options.format, FORMATS)
    storage = Storage(options.results)
    results, row, run = find_run(storage, options.grid, options.variant, options.run)
    (evaluation,) = names("--eval", options.eval, run.evaluations)
    alone = dataclasses.replace(row, runs=(run,))
    own = dataclasses.replace(results, rows=(alone,))
    inputs = Inputs(storage=storage, results=own)
    named = inputs.class_names(Cell(block=(), arch="", aug="", row=alone))
    class_names = [named[number] for number in sorted(run.trial["classes"])]
    stem, folder = f"run-{slug(row.label)}-{run.seed}", report_folder(options.out, results.name, results.variant)
    deliver({stem: marked_grid(report_frame(own, row, run, evaluation, class_names), own)}, folder, formats)
    table = folder / f"{stem}-confusion.csv"
    table.write_text(to_csv(marked_grid(confusion_frame(row, run, evaluation), own)), encoding="utf-8")
    print(plain(f"  confusions: {table}"))
    if evaluation != "final":
        return 0
    faults, pictures = _draw(inputs, f"{stem}-confusion-picture", folder, run)
    print(plain(f"  picture: {'  '.join(map(str, pictures))}"))
    for fault in faults:
        print(plain(f"analysis.run_report: {fault}"), file=sys.stderr)
    return 1 if faults else 0


def _draw(inputs: Inputs, name: str, folder: Path, run: SeedRun) -> tuple[list[str], list[Path]]:
    """F6 of this run alone; what the lint says of it, and its pictures."""
    with style():
        (drawn,) = confusion(inputs)
        page = marked_page(drawn, inputs.results.rows)
        faults = lint(page.figure)
        settle(page.figure)
        facts = {
            "grid": inputs.results.name,
            "variant": inputs.results.variant,
            "run": run.run_id,
            "inputs_sha256": inputs.hashes([run.run_id], page.tables),
        }
        return faults, write_files(dataclasses.replace(page, name=name), folder, ("svg", "png"), facts)[:2]


if __name__ == "__main__":
    sys.exit(main())
