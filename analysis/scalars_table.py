"""T17: numbers that models learnt of themselves, such as temperatures of attention, beside the published ones.

A number's name may end in its part (`temperature.0` is of the first block); numbers that differ in that alone are one
line. Names that end otherwise (`input_norm.mean`, `input_norm.var`) are of different things.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.course_rules import scalars_in
from analysis.frame import GAP, Frame, Raw, number
from analysis.load import AnalysisError, GridResults, ResultRow, SeedRun
from trainable.records import RecordError

_PART = re.compile(r"\.\d+$")


def scalars_frame(results: GridResults) -> Frame:
    """T17: a line a row and quantity.

    Raises:
        AnalysisError: no run has such a number.
        RecordError: what a run recorded is no number.
    """
    footnotes: list[str] = []
    lines = [
        _line(row, quantity, values, footnotes)
        for row in results.rows
        for quantity, values in _by_quantity(row.done).items()
    ]
    if not lines:
        raise AnalysisError("no model of this grid has numbers of its own, such as learnt temperatures")
    columns = tuple(lines[0][0])
    several = any(len(row.done) > 1 for row in results.rows)
    return Frame(
        title=f"T17, grid {results.name}: what models learnt of themselves, after the last step",
        notes=(
            "mean ± sample standard deviation over the parts (blocks) of a model"
            + ("; both, and the lowest and highest, as the mean over seeds" if several else ""),
            *footnotes,
        ),
        columns=columns,
        left=2,
        narrow=columns,
        rows=tuple(tuple(cells.values()) for cells, _ in lines),
        raw=tuple(raw for _, raw in lines),
    )


def _by_quantity(runs: Sequence[SeedRun]) -> dict[str, list[NDArray[np.float64]]]:
    """[P] values over the parts, of every seed, by quantity."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    for run in runs:
        try:
            scalars = scalars_in(run.trial["final_scalars_json"])
        except ValueError as error:
            raise RecordError(
                f"run {run.run_id}: trials.final_scalars_json: {error}; move the run's commit away and run the grid "
                "again"
            ) from None
        parts: dict[str, list[float]] = {}
        for name, value in scalars.items():
            parts.setdefault(_PART.sub("", name), []).append(value)
        for quantity, values in parts.items():
            found.setdefault(quantity, []).append(np.array(values))
    return found


def _line(
    row: ResultRow, quantity: str, seeds: Sequence[NDArray[np.float64]], footnotes: list[str]
) -> tuple[dict[str, str], Raw]:
    parts = sorted({len(values) for values in seeds})
    mean, low, high = (float(np.mean([of(values) for values in seeds])) for of in (np.mean, np.min, np.max))
    spread = float(np.mean([np.std(values, ddof=1) for values in seeds])) if parts[0] > 1 else None
    note = row.published.get("note")
    told = str(note) if note and quantity in note else ""
    if told:
        footnotes.append(f"[{len(footnotes) + 1}] published: {told}")
    cells = {
        "run": row.label,
        "quantity": quantity,
        "seeds": str(len(seeds)),
        "parts": " to ".join(str(one) for one in dict.fromkeys((parts[0], parts[-1]))),
        "mean ± sd": number(mean) + (f" ± {number(spread, 4)}" if spread is not None else ""),
        "lowest": number(low) if parts[-1] > 1 else GAP,
        "highest": number(high) if parts[-1] > 1 else GAP,
        "notes": f"[{len(footnotes)}]" if told else "",
    }
    raw: Raw = {
        "run": row.label,
        "quantity": quantity,
        "num_seeds": len(seeds),
        "num_parts": parts[-1],
        "mean": mean,
        "sd": spread,
        "lowest": low,
        "highest": high,
        "mean_by_seed": " ".join(repr(float(values.mean())) for values in seeds),
        "notes": told,
    }
    return cells, raw
