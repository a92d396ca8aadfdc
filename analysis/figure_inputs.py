"""What figures are drawn from: a grid's rows as cells of a design, its runs' curves and per-image predictions.

A cell is one architecture with one augmentation in one block; a block is everything else that rows of the grid differ
in (data set, initialisation). The axes named `model` and `mix` say which is which; nothing knows any model's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.epochs import read_epochs
from analysis.gates import Evidence, grid_health, row_health
from analysis.hypotheses import Judgement, Reading, find_design, judge
from analysis.load import AnalysisError, GridResults, ResultRow, SeedRun
from analysis.plotting import Palette
from analysis.registration import registration
from analysis.tables import Source
from trainable import records
from trainable.dims import read_class_names
from trainable.storage import Storage

ARCH_AXIS, AUG_AXIS, DATASET_AXIS = "model", "mix", "dataset"
BASELINE = "none"
UNKNOWN = "unknown"
"""What is said of a row that neither names its value nor has a run that tells it."""
BLOCKS_PER_PAGE = 4
ASSUMED_RUN_SD = 0.005
"""Of top-1 from seed to seed, where one seed does not tell; a fraction, and always labelled as assumed."""


class MissingInputs(Exception):
    """A figure cannot be drawn from what the store holds; the message says what is not there and what would mend it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One row of the grid at its place in the design."""

    block: tuple[str, ...]
    """The row's other axes; these and the next two as `Inputs.say` names them."""
    arch: str
    aug: str
    row: ResultRow

    @property
    def runs(self) -> tuple[SeedRun, ...]:
        """The runs that are done, by seed."""
        return self.row.done

    @property
    def place(self) -> dict[str, Any]:
        """Where it stands, as columns of the plotted numbers."""
        return {"row": self.row.label, "block": ", ".join(self.block), "arch": self.arch, "aug": self.aug}

    @property
    def dataset(self) -> str:
        """The data set that its runs were judged on; empty where none is done."""
        return str(self.runs[0].trial["dataset"]) if self.runs else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """What the runs of a cell said about the test images; N images, K seeds."""

    sample_ids: NDArray[np.int32]
    """[N], rising."""
    labels: NDArray[np.int16]
    """[N], the data's number of the class."""
    pred: NDArray[np.int16]
    """[K, N]"""
    confidence: NDArray[np.float64]
    """[K, N], the probability of the predicted class."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """[K, N]"""
        found: NDArray[np.bool_] = self.pred == self.labels
        return found


@dataclass(kw_only=True)
class Inputs:
    """A grid for figures. Curves and predictions are read when a figure asks for them, and once."""

    storage: Storage
    results: GridResults
    _predictions: dict[str, Predictions] = field(default_factory=dict)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The grid's own rows, in its order; parents are no part of the design."""
        rows = [row for row in self.results.rows if not row.is_parent]
        found = [self._cell(row, self._varying(rows)) for row in rows]
        taken = Counter((cell.block, cell.arch, cell.aug) for cell in found)
        return tuple(
            cell
            if taken[cell.block, cell.arch, cell.aug] == 1
            else Cell(block=(*cell.block, cell.row.label), arch=cell.arch, aug=cell.aug, row=cell.row)
            for cell in found
        )

    def _cell(self, row: ResultRow, block_axes: Sequence[str]) -> Cell:
        trial = row.done[0].trial if row.done else {}
        arch = row.axes.get(ARCH_AXIS) or str(trial.get("model") or UNKNOWN)
        aug = row.axes.get(AUG_AXIS) or str(trial.get("mix") or UNKNOWN)
        return Cell(
            block=tuple(self.say(axis, row.axes[axis]) for axis in block_axes if axis in row.axes),
            arch=self.say(ARCH_AXIS, arch),
            aug=self.say(AUG_AXIS, aug),
            row=row,
        )

    @cached_property
    def _names(self) -> dict[tuple[str, str], str]:
        """What the registration calls an axis' value, where it has a design for this grid."""
        try:
            design = find_design(self.results, registration())
        except AnalysisError:
            return {}
        single = {part: next(iter(axes.items())) for part, axes in design.roles.items() if len(axes) == 1}
        return {item: registration().name(part, "en") for part, item in single.items()}

    def say(self, axis: str, value: str) -> str:
        """An axis' value as figures name it: as the registration does, else the value itself, and with the axis' name
        where it is true or false."""
        return self._names.get((axis, value)) or (f"{axis}={value}" if value in ("true", "false") else value)

    @staticmethod
    def _varying(rows: Sequence[ResultRow]) -> tuple[str, ...]:
        """The axes that make up a block, the data set first."""
        axes = dict.fromkeys(axis for row in rows for axis in row.axes if axis not in (ARCH_AXIS, AUG_AXIS))
        return tuple(sorted(axes, key=lambda axis: axis != DATASET_AXIS))

    @cached_property
    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """In the grid's order."""
        return tuple(dict.fromkeys(cell.block for cell in self.cells))

    @cached_property
    def palette(self) -> Palette:
        """Architectures in the grid's order; augmentations likewise, the baseline first."""
        augs = dict.fromkeys(cell.aug for cell in self.cells if cell.aug != UNKNOWN)
        return Palette(
            archs=tuple(dict.fromkeys(cell.arch for cell in self.cells if cell.arch != UNKNOWN)),
            augs=tuple(sorted(augs, key=lambda aug: aug != self.say(AUG_AXIS, BASELINE))),
        )

    def block_pages(self) -> list[tuple[tuple[str, ...], ...]]:
        """The blocks that have a finished run, in groups that fit on a page.

        Raises:
            MissingInputs: no run is done.
        """
        live = [block for block in self.blocks if any(cell.runs for cell in self.cells if cell.block == block)]
        if not live:
            raise MissingInputs("no run of this grid is done; run it: python -m tuner.run --grid " + self.results.name)
        return [tuple(live[i : i + BLOCKS_PER_PAGE]) for i in range(0, len(live), BLOCKS_PER_PAGE)]

    def cell(self, block: tuple[str, ...], arch: str, aug: str) -> Cell | None:
        """The cell of a design's place; None where the grid has none or none of its runs is done."""
        for cell in self.cells:
            if (cell.block, cell.arch, cell.aug) == (block, arch, aug) and cell.runs:
                return cell
        return None

    def baseline(self) -> str:
        """The augmentation that others are compared with.

        Raises:
            MissingInputs: the grid has none.
        """
        name = self.say(AUG_AXIS, BASELINE)
        if name not in self.palette.augs or len(self.palette.augs) < 2:
            raise MissingInputs(f'the grid has no axis {AUG_AXIS} with the value "{BASELINE}" and others beside it')
        return name

    @cached_property
    def source(self) -> Source:
        """The grid as its tables see it, so that figures and tables ask for nothing twice."""
        return Source(self.storage, self.results)

    @property
    def evidence(self) -> dict[str, Evidence]:
        """What gates look at, by run id."""
        return self.source.evidence

    @cached_property
    def failed(self) -> dict[str, tuple[str, ...]]:
        """Runs that failed a health rule, and which, by run id."""
        return grid_health(self.results, self.evidence, registration().health)

    def is_gated(self, cell: Cell) -> bool:
        """Whether the cell is not estimable by a health rule; where the rule's gate has lifted it is."""
        return bool(row_health(cell.runs, self.evidence, registration().health).gated)

    def mark(self, cell: Cell) -> str:
        """What stands beside the cell: † gated by a health rule, ‡ so in so many seeds that it is the treatment's."""
        health = row_health(cell.runs, self.evidence, registration().health)
        return "†" if health.gated else "‡" if health.lifted else ""

    @cached_property
    def judgement(self) -> Judgement:
        """The registered hypotheses, read the registered way.

        Raises:
            MissingInputs: none is registered for a grid of this design.
        """
        try:
            return self.source.judgement
        except AnalysisError as error:
            raise MissingInputs(str(error)) from None

    @cached_property
    def ungated_judgement(self) -> Judgement:
        """The same with the health gate open: what a gated contrast would be."""
        reading = Reading(evaluation=registration().inference.evaluation, health=False)
        return judge(self.results, self.evidence, registration(), reading, with_scales=False)

    @cached_property
    def commits(self) -> dict[str, records.Commit]:
        """Of the runs that are done."""
        return records.read_commits(self.storage, [run.run_id for cell in self.cells for run in cell.runs])

    @cached_property
    def curves(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of `epochs`, by run id."""
        return read_epochs(self.storage, list(self.commits.values()))

    def predictions(self, cell: Cell) -> Predictions:
        """What the cell's runs predicted after the last step.

        Raises:
            MissingInputs: its seeds were judged on different images.
            RecordError: a stored file is damaged, or its numbers are not those of the run's row.
        """
        if cell.row.label not in self._predictions:
            self._predictions[cell.row.label] = self._read(cell)
        return self._predictions[cell.row.label]

    def _read(self, cell: Cell) -> Predictions:
        found = [run.final.predictions for run in cell.runs]
        if any(not np.array_equal(one.sample_ids, found[0].sample_ids) for one in found):
            raise MissingInputs(f"row {cell.row.label}: its seeds were judged on different images")
        return Predictions(
            sample_ids=found[0].sample_ids,
            labels=found[0].labels,
            pred=np.stack([one.predicted for one in found]),
            confidence=np.stack([one.confidence for one in found]).astype(np.float64),
        )

    def class_names(self, cell: Cell) -> dict[int, str]:
        """Name by number; `class 7` where the store does not say.

        Raises:
            RecordError: the file is damaged, or is of other data.
        """
        trial = cell.runs[0].trial
        names = {number: f"class {number}" for number in trial["classes"]}
        return names | read_class_names(self.storage, trial["dataset"], trial["content_sha256"])

    def hashes(self, run_ids: Iterable[str], tables: Sequence[str]) -> dict[str, str]:
        """SHA-256 by path of the stored files that a figure was drawn from."""
        files = [self.commits[run_id].file(table) for run_id in run_ids if run_id in self.commits for table in tables]
        return {file.path: file.sha256 for file in files}


def seeds_and_images(cells: Sequence[Cell]) -> str:
    """How many seeds, images, epochs and which checkpoint stand behind a figure: a part of its caption."""
    images = sorted({run.trial["num_test"] for cell in cells for run in cell.runs})
    return f"{seeds_of(cells)}, {value_range(images)} test images, checkpoint after the last step ({epochs_of(cells)})."


def seeds_of(cells: Sequence[Cell]) -> str:
    """How many seeds stand behind a figure, in words."""
    seeds = sorted({len(cell.runs) for cell in cells if cell.runs})
    return f"{value_range(seeds)} seed{'' if seeds == [1] else 's'} a cell"


def epochs_of(cells: Sequence[Cell]) -> str:
    """How long the runs behind a figure were trained, in words."""
    epochs = {round(run.trial["epochs"], 2) for cell in cells for run in cell.runs}
    return f"{value_range(sorted(epochs))} epochs"


MARKS = {
    "†": "† a run failed a health rule, so the cell is not estimable: hollow. ",
    "‡": "‡ several seeds fail a health rule, so that is what the treatment does. ",
}


def told_marks(marks: Iterable[str]) -> str:
    """What the marks in a figure mean: a part of its caption."""
    found = set(marks)
    return "".join(text for mark, text in MARKS.items() if mark in found)


def value_range(values: Sequence[float]) -> str:
    """The lowest and the highest of sorted values, in words."""
    if not values:
        return "no"
    low, high = (f"{value:,.10g}" for value in (values[0], values[-1]))
    return low if low == high else f"{low} to {high}"
