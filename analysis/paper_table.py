"""T2, the paper's table: architectures and augmentations down, blocks across; what is best and what ties with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.design import BASELINE, Cell, augmentation_name, baseline_of, block_name, cells_of
from analysis.frame import GAP, Frame, Raw, interval, percent, points
from analysis.load import AnalysisError, GridResults
from analysis.results_table import Health
from analysis.stand_ins import SIGN, row_mark
from analysis.stats import ContrastResult, contrast, holm

ALPHA = 0.05
UNHEALTHY = "†"
_UNHEALTHY_NOTE = f"{UNHEALTHY}: the learning curve of some run fails a health rule; it is in all numbers"


def paper_frame(results: GridResults, health: Health | None = None) -> Frame:
    """T2: top-1 and its difference from the default, in percentage points, by cell.

    Args:
        results: the grid.
        health: of its runs; None where it was not asked for.

    Raises:
        AnalysisError: the grid has no augmentation to compare, or no run is done.
    """
    cells = cells_of(results)
    if not any(cell.row.done for cell in cells):
        raise AnalysisError("no run is done")
    if not any(baseline_of(cell, cells) for cell in cells):
        raise AnalysisError(f'no augmentation beside "{BASELINE}"')
    blocks = list(dict.fromkeys(cell.block for cell in cells))
    arms = list(dict.fromkeys((cell.architecture, cell.augmentation) for cell in cells))
    place = {(cell.block, cell.architecture, cell.augmentation): cell for cell in cells}
    best = {block: _best([cell for cell in cells if cell.block == block]) for block in blocks}
    rows, raw, bold = [], [], set()
    for number, (architecture, augmentation) in enumerate(arms):
        line = [architecture, augmentation_name(augmentation)]
        values: Raw = {"model": architecture, "mix": augmentation}
        for i, block in enumerate(blocks):
            cell = place.get((block, architecture, augmentation))
            base = baseline_of(cell, cells) if cell else None
            gain = difference(cell, base) if cell and base else None
            top1 = _top1(cell)
            broken = any(run.run_id in (health or {}) for run in cell.row.done) if cell else False
            random = row_mark(cell.row.done) if cell else ""
            line += [
                percent(top1) + (f" {UNHEALTHY}" if broken else "") + (f" {SIGN}" if random else ""),
                _gain(gain) if augmentation != BASELINE else "",
            ]
            if (block, architecture, augmentation) in best[block]:
                bold.add((number, 2 + 2 * i))
            name = block_name(block)
            low, high = gain.interval if gain else (None, None)
            values |= {
                f"{name} top1": top1,
                f"{name} num_seeds": len(cell.row.done) if cell else 0,
                f"{name} unhealthy": int(broken),
                f"{name} best": int((block, architecture, augmentation) in best[block]),
                f"{name} gain": gain.estimate if gain else None,
                f"{name} gain_low": low,
                f"{name} gain_high": high,
            }
        rows.append(tuple(line))
        raw.append(values)
    groups = tuple(name for block in blocks for name in (block_name(block),) * 2)
    columns = ("model", "augmentation", *("top-1 %", "Δ pp [95 % CI]") * len(blocks))
    return Frame(
        title=f"T2, grid {results.name}: top-1 and its gain over the default",
        notes=(
            *_notes(results),
            *((_UNHEALTHY_NOTE,) if any(UNHEALTHY in cell for row in rows for cell in row) else ()),
        ),
        columns=columns,
        left=2,
        narrow=columns,
        rows=tuple(rows),
        raw=tuple(raw),
        groups=("", "", *groups),
        bold=frozenset(bold),
    )


def difference(one: Cell, other: Cell) -> ContrastResult | None:
    """Top-1 of the one less that of the other, two-way over images and seeds; None where either has no run.

    Raises:
        AnalysisError: they were judged on different images.
    """
    if not one.row.done or not other.row.done:
        return None
    first, second = one.row.done[0].final, other.row.done[0].final
    if not np.array_equal(first.sample_ids, second.sample_ids):
        raise AnalysisError(f"{one.row.label} and {other.row.label} were judged on different images")
    cells = {name: np.stack([run.final.correct for run in cell.row.done]) for name, cell in (("1", one), ("0", other))}
    return contrast({"1": 1.0, "0": -1.0}, cells)


def _best(cells: Sequence[Cell]) -> set[tuple[tuple[str, ...], str, str]]:
    """The best cell of a block and all that cannot be told from it, by Holm over their differences."""
    known = sorted((cell for cell in cells if cell.row.done), key=lambda cell: _top1(cell) or 0.0, reverse=True)
    if not known:
        return set()
    top, *others = known
    found = [difference(top, cell) for cell in others]
    adjusted = holm([one.p for one in found if one is not None])
    tied = [cell for cell, p in zip(others, adjusted, strict=True) if p >= ALPHA]
    return {(cell.block, cell.architecture, cell.augmentation) for cell in (top, *tied)}


def _top1(cell: Cell | None) -> float | None:
    if cell is None or not cell.row.done:
        return None
    return float(np.mean([run.final.metrics["top1"] for run in cell.row.done]))


def _gain(gain: ContrastResult | None) -> str:
    return GAP if gain is None else f"{points(gain.estimate, 1)} {interval(*gain.interval)}"


def _notes(results: GridResults) -> list[str]:
    counts = sorted({len(row.done) for row in results.rows if not row.is_parent})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    num = sorted({run.trial["num_test"] for run in results.done})
    epochs = sorted({run.trial["epochs"] for run in results.done})
    notes = [
        f"evaluation final (after the last step, {' or '.join(f'{one:g}' for one in epochs)} epochs); mean over seeds "
        f"({seeds} a cell), {' or '.join(f'{one:,}' for one in num)} test images",
        "Δ: less the default of the same model and block; 95 % CI two-way over images and seeds"
        + ("; of one seed: these checkpoints on other images, seed variance unknown" if counts[0] < 2 else ""),
        "bold: the best of a block and all that differ from it with p of .05 or more (two-sided, Holm over its block)",
    ]
    if any(len(row.done) == 0 for row in results.rows if not row.is_parent):
        notes.append(f"{GAP}: no run of this cell is done")
    return notes
