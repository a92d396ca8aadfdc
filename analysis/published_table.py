"""T7: the study's published values beside ours, with the error of their difference."""

from __future__ import annotations

import numpy as np

from analysis.frame import GAP, Frame, Raw, interval, percent, points
from analysis.load import AnalysisError, GridResults, ResultRow
from analysis.stats import contrast_of_shares, newcombe, wilson

METRICS = (
    ("top5", "top-5 %"),
    ("precision_macro", "precision %"),
    ("recall_macro", "recall %"),
    ("f1_macro", "F1 %"),
)


def published_frame(results: GridResults) -> Frame:
    """T7: one line a row that was published.

    Raises:
        AnalysisError: nothing was published, or no run is done.
    """
    rows = [row for row in results.rows if row.published.get("top1") is not None]
    if not rows:
        raise AnalysisError("the grid has no published values")
    name = results.published_eval or "final"
    footnotes: list[str] = []
    lines = [_line(row, name, footnotes) for row in rows]
    columns = tuple(lines[0][0])
    notes = [
        f"ours: evaluation {name}, as published; mean over seeds",
        "95 % CI: Wilson of one checkpoint on other images; of ours with several seeds also over seeds. The published "
        "value is of one seed, whose run-to-run variance is not known",
        "difference: ours less published, in percentage points; its interval takes both as judged independently, since "
        "the published answers to single images are not known (Newcombe; with several seeds, both errors added)",
        "other columns: published / ours",
    ]
    if name == "best_on_test":
        notes.append("best_on_test: epoch chosen on the test set itself, so both are optimistic")
    return Frame(
        title=f"T7, grid {results.name}: published and ours",
        notes=(*notes, *footnotes),
        columns=columns,
        left=1,
        narrow=columns,
        rows=tuple(tuple(cells.values()) for cells, _ in lines),
        raw=tuple(raw for _, raw in lines),
    )


def _line(row: ResultRow, name: str, footnotes: list[str]) -> tuple[dict[str, str], Raw]:
    theirs = float(row.published["top1"])
    runs = [run for run in row.done if name in run.evaluations]
    num = runs[0].trial["num_test"] if runs else None
    ours = [run.evaluations[name].metrics["top1"] for run in runs]
    mean = float(np.mean(ours)) if ours else None
    their_interval = wilson(round(theirs * num), num) if num else (None, None)
    our_interval: tuple[float | None, float | None] = (None, None)
    gap_interval: tuple[float | None, float | None] = (None, None)
    if num and len(ours) == 1:
        hits = (round(ours[0] * num), num)
        our_interval, gap_interval = wilson(*hits), newcombe(hits, (round(theirs * num), num))
    elif num:
        low, high = contrast_of_shares({"ours": 1.0}, {"ours": ours}, num).interval
        our_interval = (max(0.0, low), min(1.0, high))
        both = contrast_of_shares({"ours": 1.0, "theirs": -1.0}, {"ours": ours, "theirs": [theirs]}, num)
        gap_interval = both.interval
    gap = None if mean is None else mean - theirs
    cells = {
        "run": row.label,
        "published %": percent(theirs),
        "its 95 % CI": interval(*their_interval),
        "ours %": percent(mean),
        "our 95 % CI": interval(*our_interval),
        "seeds": str(len(runs)),
        "difference": points(gap),
        "its CI": interval(*gap_interval),
    }
    raw: Raw = {
        "run": row.label,
        "num_seeds": len(runs),
        "published_top1": theirs,
        "published_low": their_interval[0],
        "published_high": their_interval[1],
        "top1": mean,
        "top1_low": our_interval[0],
        "top1_high": our_interval[1],
        "difference": gap,
        "difference_low": gap_interval[0],
        "difference_high": gap_interval[1],
    }
    for metric, title in METRICS:
        value = row.published.get(metric)
        own = float(np.mean([run.evaluations[name].metrics[metric] for run in runs])) if runs else None
        cells[title] = GAP if value is None and own is None else f"{percent(value)} / {percent(own)}"
        raw[f"published_{metric}"], raw[metric] = value, own
    note = row.published.get("note")
    if note:
        footnotes.append(f"[{len(footnotes) + 1}] published: {note}")
    cells["notes"] = f"[{len(footnotes)}]" if note else ""
    raw["notes"] = str(note or "")
    return cells, raw
