"""T1: a grid's results, the study's rows in its order, published value beside ours, gaps shown as gaps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.frame import Frame, Raw, interval, number, percent, points
from analysis.load import GridResults, ResultRow, SeedRun, final_top1
from analysis.stand_ins import marks_of, note
from analysis.stats import contrast, macro_f1_values

_METRICS = (
    ("top5", "top-5 %"),
    ("precision_macro", "precision %"),
    ("recall_macro", "recall %"),
    ("f1_macro", "F1 %"),
    ("nll_nats", "NLL"),
    ("ece_em15", "ECE %"),
)


Health = Mapping[str, tuple[str, ...]]
"""Codes of the health rules that a run failed, by run id."""


def results_frame(results: GridResults, health: Health | None = None) -> Frame:
    """T1: one line a row of the grid.

    `final` is the last step's evaluation, the primary one. `best_on_test` chose its epoch on the test set, as the
    study did, and stands there only to be set beside the published value.

    Args:
        results: the grid.
        health: of its runs; None where it was not asked for.
    """
    axes = list(dict.fromkeys(axis for row in results.rows for axis in row.axes))
    published = any(row.published for row in results.rows)
    selected = [name for name in ("best_on_val", "best_on_test") if _has(results, name)]
    footnotes: list[str] = []
    lines = [_line(row, axes, published, selected, results, health or {}, footnotes) for row in results.rows]
    columns = tuple(lines[0][0])
    shown = {"run", *axes, "seeds", "published %", *(f"{name} %" for name in selected), "difference", "final %"}
    shown |= {"95 % CI", "notes"}
    return Frame(
        title=f"grid {results.name}: {results.help.strip()}",
        notes=(*watermarks(results), *_legend(results, published, selected), *footnotes),
        columns=columns,
        left=1 + len(axes),
        narrow=tuple(column for column in columns if column in shown),
        rows=tuple(tuple(cells.values()) for cells, _ in lines),
        raw=tuple(raw for _, raw in lines),
    )


def _line(
    row: ResultRow,
    axes: list[str],
    published: bool,
    selected: list[str],
    results: GridResults,
    health: Health,
    footnotes: list[str],
) -> tuple[dict[str, str], Raw]:
    """One row as cells by column, and as numbers."""
    done = row.done
    label = f"{row.label} (parent)" if row.is_parent else row.label
    cells = {"run": label, **{axis: row.axes.get(axis, "") for axis in axes}, "seeds": str(len(done))}
    if row.axes.get("dataset") in _unpublished(results):
        cells["dataset"] += "*"
    raw: Raw = {"run": row.label, **{axis: row.axes.get(axis, "") for axis in axes}, "num_seeds": len(done)}
    raw["run_ids"] = " ".join(run.run_id for run in row.runs)
    if published:
        value = row.published.get("top1")
        cells["published %"], raw["published_top1"] = percent(value), value
    for name in selected:
        mean = _mean(done, name, "top1")
        cells[f"{name} %"], raw[f"{name}_top1"] = percent(mean), mean
    if published:
        ours = _mean(done, results.published_eval or "final", "top1")
        theirs = row.published.get("top1")
        gap = ours - theirs if ours is not None and theirs is not None else None
        cells["difference"], raw["difference"] = points(gap), gap
    mean, (low, high), deviation = final_top1(done, images=results.verified)
    cells["final %"] = percent(mean) + (f" ± {percent(deviation)}" if deviation is not None else "")
    cells["95 % CI"] = interval(low, high)
    raw |= {"final_top1": mean, "final_top1_sd": deviation, "final_top1_low": low, "final_top1_high": high}
    for metric, title in _METRICS:
        value = _mean(done, "final", metric)
        cells[title] = number(value) if metric == "nll_nats" else percent(value)
        raw[f"final_{metric}"] = value
        if metric == "f1_macro":
            low, high = _f1_interval(done) if results.verified else (None, None)
            cells["F1 95 % CI"] = interval(low, high)
            raw |= {"final_f1_macro_low": low, "final_f1_macro_high": high}
    remarks = _remarks(row, health)
    cells["notes"], raw["notes"] = _marks(remarks, footnotes), "; ".join(remarks)
    return cells, raw


def _has(results: GridResults, name: str) -> bool:
    return any(name in run.evaluations for row in results.rows for run in row.done) or results.published_eval == name


def _mean(runs: tuple[SeedRun, ...], name: str, metric: str) -> float | None:
    values = [run.evaluations[name].metrics[metric] for run in runs if name in run.evaluations]
    return float(np.mean(values)) if values else None


def _f1_interval(runs: tuple[SeedRun, ...]) -> tuple[float | None, float | None]:
    """95 % interval of `final` macro F1."""
    values = [
        macro_f1_values(run.final.predictions.labels, run.final.predictions.predicted, len(run.trial["classes"]))
        for run in runs
    ]
    if not values:
        return None, None
    low, high = contrast({"row": 1.0}, {"row": np.stack(values)}).interval
    return max(0.0, low), min(1.0, high)


def _remarks(row: ResultRow, health: Health) -> list[str]:
    """What a reader must know of a row, each once, with the seeds it concerns where they are several."""
    remarks: dict[str, list[int]] = {}
    if not row.runs:
        remarks["not selected yet"] = []
    for run in row.runs:
        if run.status != "done":
            known = run.status.upper() if run.status in ("failed", "blocked") else ""
            text = f"{known}: {run.reason}" if known else run.reason
            remarks.setdefault(text, []).append(run.seed)
            continue
        if run.trial["steps"] == 0:
            remarks.setdefault("evaluated only, not trained", []).append(run.seed)
        if (resumed := _resumed(run.trial)) is not None:
            remarks.setdefault(resumed, []).append(run.seed)
        for code in health.get(run.run_id, ()):
            remarks.setdefault(f"UNHEALTHY: its learning curve fails the rule {code}", []).append(run.seed)
        if run.trial["attempt_number"] is not None and run.trial["attempt_number"] > 1:
            remarks.setdefault(f"finished by attempt {run.trial['attempt_number']}", []).append(run.seed)
    several = len(row.runs) > 1
    found = [f"seed {', '.join(map(str, seeds))}: {text}" if several else text for text, seeds in remarks.items()]
    note = row.published.get("note")
    return [*found, f"published: {note}"] if note else found


def _resumed(trial: dict[str, Any]) -> str | None:
    """Under what a run was continued that was not so before."""
    changes: dict[str, None] = {}
    try:
        for resume in json.loads(trial["attempt_resumed_under_json"] or "[]"):
            for name, (old, new) in resume["changed"].items():
                changes[f"{name} {old} to {new}"] = None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        changes["what changed cannot be read"] = None
    if not changes and trial["attempt_numerics_changed"]:  # recorded by a version that did not say which
        changes["threads, libraries or device"] = None
    return f"resumed under other conditions, so bits may differ: {', '.join(changes)}" if changes else None


def _marks(remarks: list[str], footnotes: list[str]) -> str:
    """Numbers of the footnotes of a row; equal remarks share a number."""
    numbers = []
    for remark in remarks:
        known = [note.split(" ", 1)[1] for note in footnotes]
        if remark not in known:
            footnotes.append(f"[{len(footnotes) + 1}] {remark}")
            known.append(remark)
        numbers.append(f"[{known.index(remark) + 1}]")
    return " ".join(numbers)


def watermarks(results: GridResults) -> list[str]:
    """What a reader of any table of this grid must know first."""
    changed = {key: value for key, value in results.overrides.items() if not _is_data(key, value)}
    marks = []
    if changed:
        shown = ", ".join(f"{key}={value}" for key, value in changed.items())
        marks.append(f"SHORT OR CHANGED RUN ({shown}): not to be compared with published values")
    marks += [f"* {name}: not the published data" for name in sorted(_unpublished(results))]
    marks += [told for told in (note(marks_of(results.rows)),) if told]
    marks += [f"{line}: run the grid again" for line in results.unread]
    if results.other_variants:
        marks.append(f"other variants in this store: {', '.join(results.other_variants)} (--variant)")
    return marks


def _unpublished(results: GridResults) -> set[str]:
    """Data sets of this grid's runs whose content is not the published one."""
    trials = [run.trial for row in results.rows for run in row.done]
    return {str(trial["dataset"]) for trial in trials if not trial["dataset_published"]}


def _is_data(key: str, value: object) -> bool:
    """Whether an override only tells that other data were prepared; the trials say that themselves."""
    return key.startswith("data.") and isinstance(value, str) and len(value) == 64


def _legend(results: GridResults, published: bool, selected: list[str]) -> list[str]:
    trials = [run.trial for row in results.rows for run in row.done]
    if not trials:
        return []
    several = any(len(row.done) > 1 for row in results.rows)
    lines = ["final: after the last step" + (", mean over seeds ± standard deviation" if several else "")]
    if any(len(row.done) == 1 for row in results.rows):
        lines.append("95 % CI of one seed: Wilson, for this checkpoint on other images; seed variance unknown")
    if several and results.verified:
        lines.append("95 % CI of several seeds: two-way over images and seeds")
    elif several:
        lines.append(
            "95 % CI of several seeds: over seeds and images, from accuracies alone, so wider than it could be"
        )
    if results.verified:
        lines.append("F1 95 % CI: by the delta method, over images and, of several seeds, over seeds")
    else:
        lines.append(
            f"{len(trials):,} runs: numbers as the runs recorded them; python -m analysis.check recomputes each from "
            "its predictions"
        )
    if "best_on_test" in selected:
        lines.append(
            "best_on_test: epoch chosen on the test set itself, so optimistic; to be set beside published values"
        )
    if published:
        lines.append(f"difference: ours ({results.published_eval or 'final'}) less published, in percentage points")
    return lines
