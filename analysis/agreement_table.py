"""T10: every pair of cells of a block, image by image."""

from __future__ import annotations

import itertools

from analysis.agreement import Agreement, agreement, discordance
from analysis.design import Cell, block_name, cells_of
from analysis.frame import Frame, Raw, count, number, p_value, percent
from analysis.load import AnalysisError, GridResults
from analysis.stats import holm


def agreement_frame(results: GridResults) -> Frame:
    """T10: McNemar's test, error consistency and churn of all pairs of cells within a block.

    Raises:
        AnalysisError: no two cells of a block are done.
    """
    cells = [cell for cell in cells_of(results) if cell.row.done]
    pairs = [(one, other) for one, other in itertools.combinations(cells, 2) if one.block == other.block]
    if not pairs:
        raise AnalysisError("no two cells of a block are done")
    within = {cell.row.label: agreement(cell.row, cell.row) for cell in cells}
    tests = [discordance(one.row, other.row) for one, other in pairs]
    adjusted = holm([test.p for test in tests])
    rows, raw = [], []
    for (one, other), test, p in zip(pairs, tests, adjusted, strict=True):
        between = agreement(one.row, other.row)
        ceiling = _ceiling(within[one.row.label], within[other.row.label])
        rows.append(
            (
                block_name(one.block),
                _name(one),
                _name(other),
                count(test.only_one),
                count(test.only_other),
                p_value(p),
                number(between.kappa),
                number(ceiling),
                percent(between.churn, 1),
            )
        )
        values: Raw = {
            "block": block_name(one.block),
            "one": one.row.label,
            "other": other.row.label,
            "seed_one": test.seeds[0],
            "seed_other": test.seeds[1],
            "only_one": test.only_one,
            "only_other": test.only_other,
            "p": test.p,
            "p_holm": p,
            "kappa": between.kappa,
            "kappa_within": ceiling,
            "churn": between.churn,
            "num_pairs": between.pairs,
        }
        raw.append(values)
    columns = ("block", "one", "other", "only one right", "only other right", "p (Holm)", "κ", "κ of seeds", "churn %")
    seeds = sorted({test.seeds for test in tests})
    return Frame(
        title=f"T10, grid {results.name}: agreement of cells, image by image (exploratory)",
        notes=(
            "exploratory; McNemar's exact test of two checkpoints (seeds "
            + ", ".join(str(one) if one == other else f"{one} and {other}" for one, other in seeds)
            + f"), Holm over {len(pairs)} pairs: it says nothing of other seeds",
            "κ: consistency of being right or wrong beyond chance, mean over all pairs of runs; κ of seeds: the same "
            "between seeds of one cell, mean of both cells: as high as κ could be expected",
            "churn: share of images with another answer, mean over all pairs of runs",
        ),
        columns=columns,
        left=3,
        narrow=columns,
        rows=tuple(rows),
        raw=tuple(raw),
    )


def _name(cell: Cell) -> str:
    return f"{cell.row.label} ({cell.name.partition(': ')[2]})"


def _ceiling(one: Agreement, other: Agreement) -> float | None:
    known = [found.kappa for found in (one, other) if found.kappa is not None]
    return sum(known) / len(known) if known else None
