"""T8: calibration by row."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from analysis.calibration import Tempered, equal_mass, temper
from analysis.compact import check_owner
from analysis.frame import Frame, Raw, interval, number, percent, points
from analysis.load import AnalysisError, GridResults, ResultRow, SeedRun
from analysis.stats import contrast
from trainable import records
from trainable.storage import Storage


def calibration_frame(storage: Storage, results: GridResults) -> Frame:
    """T8: one line a row with runs that are done, means over seeds of evaluation `final`.

    Raises:
        AnalysisError: no run is done.
        RecordError: stored logits are damaged.
    """
    rows = [row for row in results.rows if row.done]
    if not rows:
        raise AnalysisError("no run is done")
    commits = records.read_commits(storage, [run.run_id for run in results.done])
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # logits are most of a store's bytes
        tempered = dict(pool.map(lambda run: (run.run_id, _tempered(storage, commits[run.run_id], run)), results.done))
    lines = [_line(row, [tempered[run.run_id] for run in row.done]) for row in rows]
    columns = tuple(lines[0][0])
    notes = (
        "evaluation final, mean over seeds; ECE over 15 bins of equal mass",
        "debiased %: root of the mean squared gap, less what chance adds to it; 0 where that leaves nothing",
        "confidence less accuracy, in percentage points: above 0 is over-confident; 95 % CI two-way over images and "
        "seeds, of one seed over images alone",
        "T: temperature fitted on one half of each class's test images and applied to the other half, and the reverse "
        "(logits of a hold-out are not stored)",
    )
    return Frame(
        title=f"T8, grid {results.name}: calibration",
        notes=notes,
        columns=columns,
        left=1,
        narrow=columns,
        rows=tuple(tuple(cells.values()) for cells, _ in lines),
        raw=tuple(raw for _, raw in lines),
    )


def _line(row: ResultRow, tempered: Sequence[Tempered]) -> tuple[dict[str, str], Raw]:
    found = [run.final for run in row.done]
    means = {
        metric: float(np.mean([one.metrics[metric] for one in found]))
        for metric in ("nll_nats", "brier", "ece_em15", "ece_ew15")
    }
    answers = [one.predictions for one in found]
    square = float(np.mean([equal_mass(one.correct, one.confidence).debiased_square for one in answers]))
    gaps = np.stack([one.confidence.astype(np.float64) - one.correct for one in answers])
    gap = contrast({"row": 1.0}, {"row": gaps})
    temperature = float(np.exp(np.mean([np.log(one.temperature) for one in tempered])))
    after = float(np.mean([one.bins.error for one in tempered]))
    nll = float(np.mean([one.nll_nats for one in tempered]))
    after_square = float(np.mean([one.bins.debiased_square for one in tempered]))
    cells = {
        "run": row.label,
        "seeds": str(len(found)),
        "NLL": number(means["nll_nats"]),
        "Brier": number(means["brier"]),
        "ECE %": percent(means["ece_em15"]),
        "debiased %": percent(max(0.0, square) ** 0.5),
        "confidence less accuracy": points(gap.estimate, 1),
        "95 % CI": interval(*gap.interval),
        "T": number(temperature, 2),
        "NLL after T": number(nll),
        "ECE after T %": percent(after),
        "debiased after T %": percent(max(0.0, after_square) ** 0.5),
    }
    raw: Raw = {
        "run": row.label,
        "num_seeds": len(found),
        **{f"final_{metric}": value for metric, value in means.items()},
        "debiased_square_em15": square,
        "gap": gap.estimate,
        "gap_low": gap.interval[0],
        "gap_high": gap.interval[1],
        "temperature": temperature,
        "tempered_nll_nats": nll,
        "tempered_ece_em15": after,
        "tempered_debiased_square_em15": after_square,
    }
    return cells, raw


def _tempered(storage: Storage, commit: records.Commit, run: SeedRun) -> Tempered:
    logits = read_logits(storage, commit, run)
    positions = np.searchsorted(np.array(run.trial["classes"]), run.final.predictions.labels)
    return temper(logits, positions, run.final.correct)


def read_logits(storage: Storage, commit: records.Commit, run: SeedRun) -> NDArray[np.float32]:
    """The logits of evaluation `final`, [N, C] float32 (stored in 16 bits), in the order of its predictions.

    Raises:
        RecordError: the file is damaged, of other images or another run, holds numbers that are not finite, or does not
            give the stored answers.
    """
    num, classes = len(run.final.sample_ids), len(run.trial["classes"])
    columns = ["run_id", "eval_name", "sample_id", "logits"]
    table = records.read_table(storage, "logits", [commit], columns, first=num)
    check_owner(storage, commit, "logits", table)
    names = set(table["eval_name"].unique().to_pylist())
    values = table["logits"].combine_chunks()
    flat = np.asarray(values.flatten(), np.float32)
    same = np.array_equal(table["sample_id"].to_numpy(), run.final.sample_ids)
    if names != {"final"} or not same or len(flat) != num * classes or values.null_count or not np.isfinite(flat).all():
        raise records.RecordError(
            f"{storage.folder(commit.file('logits').path)}: not {classes} finite logits for each of the {num:,} images "
            "of final; move the run's commit away and run the grid again"
        )
    logits = flat.reshape(num, classes)
    answers = np.searchsorted(np.array(run.trial["classes"]), run.final.predictions.predicted)
    lower = logits[np.arange(num), answers] < logits.max(axis=1)
    if lower.any():
        raise records.RecordError(
            f"{storage.folder(commit.file('logits').path)}: row {int(np.argmax(lower))}: the predicted class has not "
            "the highest logit; move the run's commit away and run the grid again"
        )
    return logits
