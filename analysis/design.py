"""A grid's rows as cells of its design: block (data set, initial weights) x architecture x augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.load import AnalysisError, GridResults, ResultRow

ARCHITECTURE, AUGMENTATION, BASELINE = "model", "mix", "none"
"""The axes whose values are compared, and the augmentation that the others are compared with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One row in its place."""

    block: tuple[str, ...]
    """Values of all other axes, such as data set and initial weights."""
    architecture: str
    augmentation: str
    row: ResultRow

    @property
    def name(self) -> str:
        """The place in words."""
        return f"{block_name(self.block)}: {self.architecture} {augmentation_name(self.augmentation)}"


def cells_of(results: GridResults) -> list[Cell]:
    """The rows of a grid that have both axes, parents left out; of each block together, in the rows' order.

    Raises:
        AnalysisError: the grid has no such design, or two rows stand in one place.
    """
    rows = [row for row in results.rows if not row.is_parent]
    found: dict[tuple[tuple[str, ...], str, str], Cell] = {}
    for row in rows:
        if missing := [axis for axis in (ARCHITECTURE, AUGMENTATION) if axis not in row.axes]:
            raise AnalysisError(f"row {row.label} has no axis {' and no axis '.join(missing)}")
        block = tuple(
            _shown(axis, value) for axis, value in row.axes.items() if axis not in (ARCHITECTURE, AUGMENTATION)
        )
        cell = Cell(block=block, architecture=row.axes[ARCHITECTURE], augmentation=row.axes[AUGMENTATION], row=row)
        key = (block, cell.architecture, cell.augmentation)
        if key in found:
            raise AnalysisError(f"rows {found[key].row.label} and {row.label} stand in one cell: {cell.name}")
        found[key] = cell
    if not found:
        raise AnalysisError("no rows but parents")
    blocks = list(dict.fromkeys(cell.block for cell in found.values()))
    return sorted(found.values(), key=lambda cell: blocks.index(cell.block))


def baseline_of(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """The cell with the same block and architecture without augmentation; None for that cell itself."""
    if cell.augmentation == BASELINE:
        return None
    place = (cell.block, cell.architecture, BASELINE)
    return next((one for one in cells if (one.block, one.architecture, one.augmentation) == place), None)


def block_name(block: tuple[str, ...]) -> str:
    """A block in words."""
    return " ".join(block) or "all"


def augmentation_name(augmentation: str) -> str:
    """An augmentation as tables call it."""
    return {BASELINE: "default", "mixup": "MixUp", "cutmix": "CutMix"}.get(augmentation, augmentation)


def _shown(axis: str, value: str) -> str:
    if axis == "pretrained":
        return {"true": "pretrained", "false": "scratch"}.get(value, value)
    return value
