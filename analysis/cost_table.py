"""T11: what every row cost, and what its gain cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from analysis.design import baseline_of, cells_of
from analysis.frame import GAP, Frame, Raw, count, number, percent, points
from analysis.load import AnalysisError, GridResults, ResultRow, SeedRun
from trainable.costs import CostRecord, records_of
from trainable.storage import Storage

GIB = 1 << 30


def cost_frame(storage: Storage, results: GridResults) -> Frame:
    """T11: one line a row with runs that are done, means over seeds.

    Raises:
        AnalysisError: no run is done.
    """
    rows = [row for row in results.rows if row.done]
    if not rows:
        raise AnalysisError("no run is done")
    known = records_of(storage, [run.trial["attempt_id"] for run in results.done])
    baselines = _baselines(results)
    lines = [_line(row, baselines.get(row.label), known) for row in rows]
    columns = tuple(lines[0][0])
    return Frame(
        title=f"T11, grid {results.name}: cost",
        notes=(
            "mean over seeds; wall h: training and evaluation of one run, on a shared card prolonged by its neighbours",
            "GPU-h: wall h times the share of the card that was set aside for the run; a gap on a CPU",
            "images/s: of training; peak GiB: on the card, else in RAM",
            "pp per GPU-h (on a CPU per wall h): gain in top-1 over the default of the same block and model, by hours",
        ),
        columns=columns,
        left=2,
        narrow=columns,
        rows=tuple(tuple(cells.values()) for cells, _ in lines),
        raw=tuple(raw for _, raw in lines),
    )


def _baselines(results: GridResults) -> dict[str, ResultRow]:
    """The default's row of every row that has one; empty where the grid has no such design."""
    try:
        cells = cells_of(results)
    except AnalysisError:
        return {}
    return {cell.row.label: base.row for cell in cells if (base := baseline_of(cell, cells)) is not None}


def _line(row: ResultRow, base: ResultRow | None, known: Mapping[str, CostRecord]) -> tuple[dict[str, str], Raw]:
    trials = [run.trial for run in row.done]
    costs = [known[trial["attempt_id"]] for trial in trials if trial["attempt_id"] in known]
    wall = float(np.mean([_hours(run) for run in row.done]))
    card = _mean([_hours(run) * cost.gpu_fraction for run in row.done if (cost := _on_card(run, known)) is not None])
    speed = _mean([trial["train_images_per_s"] for trial in trials if trial["train_images_per_s"] is not None])
    memory = _mean([trial["peak_memory_bytes"] for trial in trials if trial["peak_memory_bytes"] is not None])
    top1 = _top1(row)
    before = _top1(base) if base is not None else None
    gain = top1 - before if top1 is not None and before is not None else None
    hours = card if card is not None else wall
    rate = gain / hours if gain is not None and hours else None
    device = ", ".join(sorted({cost.device_name for cost in costs}))
    parameters = trials[0]["num_parameters"]
    cells = {
        "run": row.label,
        "device": device or GAP,
        "seeds": str(len(trials)),
        "parameters": count(parameters),
        "wall h": number(wall, 2),
        "GPU-h": number(card, 2),
        "images/s": count(speed),
        "peak GiB": number(memory / GIB if memory is not None else None, 2),
        "top-1 %": percent(top1),
        "gain pp": points(gain, 1),
        "pp per GPU-h": points(rate, 1),
    }
    raw: Raw = {
        "run": row.label,
        "device": device,
        "num_seeds": len(trials),
        "num_parameters": parameters,
        "wall_h": wall,
        "gpu_h": card,
        "train_images_per_s": speed,
        "peak_memory_bytes": memory,
        "final_top1": top1,
        "gain": gain,
        "gain_per_hour": rate,
    }
    return cells, raw


def _hours(run: SeedRun) -> float:
    return float(run.trial["train_s"] + run.trial["evaluate_s"]) / 3600


def _on_card(run: SeedRun, known: Mapping[str, CostRecord]) -> CostRecord | None:
    cost = known.get(run.trial["attempt_id"])
    return cost if cost is not None and cost.device == "cuda" else None


def _top1(row: ResultRow) -> float | None:
    return _mean([run.final.metrics["top1"] for run in row.done])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
