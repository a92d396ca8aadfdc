"""T15 and T16: the highest of all evaluations of a split beside the published one, of grids that evaluate some training
images too; a table for the test images, one for those. `best.py` says which evaluation is the best.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from analysis.best import Best, bests_of, looks_of, mean, mean_value, number_range
from analysis.courses import quantities, read_courses, splits_of
from analysis.frame import GAP, Frame, Raw, count, percent, points
from analysis.gates import Evidence
from analysis.load import AnalysisError, GridResults, ResultRow
from trainable import records
from trainable.storage import Storage

TEST = "test"
_TRAIN_FIRST = re.compile(r"train_\d+")
_PUBLISHED = {True: ("top1", "step"), False: ("train_top1", "train_step")}
"""The published value and its step, of the test images or of the training images."""


def looks_frame(storage: Storage, results: GridResults, evidence: Mapping[str, Evidence], *, on_test: bool) -> Frame:
    """T15, of the test images, or T16, of the first training images: a line a row, the highest accuracy first.

    Raises:
        AnalysisError: no run was evaluated on training images too, so that T1 and T7 say all.
        RecordError: a stored file is damaged.
    """
    name = "T15" if on_test else "T16"
    commits = records.read_commits(storage, [run.run_id for run in results.done])
    courses = read_courses(storage, commits.values(), quantities()["top1"])
    extra = [split for split in splits_of([courses]) if _TRAIN_FIRST.fullmatch(split)]
    if not extra:
        raise AnalysisError("no run was evaluated on its first training images (evaluate.train_first)")
    splits = [TEST] if on_test else extra
    found = [(split, row, bests) for split in splits for row, bests in bests_of(results, courses, split)]
    found.sort(key=lambda one: -mean([best.point.value for best in one[2]]))
    known = {row.label for _, row, _ in found}
    key, _ = _PUBLISHED[on_test]
    open_ = [row for row in results.rows if row.label not in known and row.published.get(key) is not None]
    open_.sort(key=lambda row: -row.published[key])
    footnotes: list[str] = []
    lines = [
        _line(results, split, row, bests, _remarks(row, split, evidence), footnotes, on_test)
        for split, row, bests in [*found, *((splits[0], row, []) for row in open_)]
    ]
    columns = tuple(lines[0][0])
    looks = looks_of([(row, bests) for _, row, bests in found])
    silent = [row.label for row in results.rows if row.label not in known and row not in open_]
    if len(splits) < 2:
        columns = tuple(column for column in columns if column != "split")
    return Frame(
        title=f"{name}, grid {results.name}: the highest accuracy on {' or '.join(splits)}, published and ours",
        notes=(*_notes(results, splits, looks, silent), *footnotes),
        columns=columns,
        left=1 if len(splits) < 2 else 2,
        narrow=columns,
        rows=tuple(tuple(cells[column] for column in columns) for cells, _ in lines),
        raw=tuple(raw for _, raw in lines),
    )


def _line(
    results: GridResults,
    split: str,
    row: ResultRow,
    bests: Sequence[Best],
    remarks: Sequence[str],
    footnotes: list[str],
    on_test: bool,
) -> tuple[dict[str, str], Raw]:
    value, step = (row.published.get(key) for key in _PUBLISHED[on_test])
    best, last = [one.point.value for one in bests], [one.last.value for one in bests]
    ours = last if on_test and results.published_eval in (None, "final") else best
    gap = mean(ours) - value if ours and value is not None else None
    steps, tied = [one.point.step for one in bests], [one.num_tied for one in bests]
    marks = []
    for remark in remarks:
        known = [note.split(" ", 1)[1] for note in footnotes]
        if remark not in known:
            footnotes.append(f"[{len(footnotes) + 1}] {remark}")
            known.append(remark)
        marks.append(f"[{known.index(remark) + 1}]")
    cells = {
        "run": row.label,
        "split": split,
        "seeds": str(len(bests)),
        "our maximum %": mean_value(best, fraction=True) if best else GAP,
        "its step": number_range(steps) if steps else GAP,
        "tied": number_range(tied) if tied else GAP,
        "our last %": mean_value(last, fraction=True) if last else GAP,
        "published %": percent(value),
        "published step": count(step),
        "difference": points(gap),
        "notes": " ".join(marks),
    }
    raw: Raw = {
        "run": row.label,
        "split": split,
        "num_seeds": len(bests),
        "best_top1": mean(best) if best else None,
        "last_top1": mean(last) if last else None,
        "step_by_seed": " ".join(map(str, steps)),
        "tied_by_seed": " ".join(map(str, tied)),
        "published_top1": value,
        "published_step": step,
        "difference": gap,
        "notes": "; ".join(remarks),
    }
    return cells, raw


def _remarks(row: ResultRow, split: str, evidence: Mapping[str, Evidence]) -> list[str]:
    """What sets a row's number on this split apart: in its spec, and in what was published of it."""
    found = []
    if split != TEST and any(evidence[run.run_id].spec.get("evaluate.train_augmented") for run in row.done):
        found.append("seen through the random augmentation of training: not comparable with the other rows")
    note = row.published.get("note")
    if note and split in note:
        found.append(f"published: {note}")
    return found


def _notes(results: GridResults, splits: Sequence[str], looks: str, silent: Sequence[str]) -> list[str]:
    several = any(len(row.done) > 1 for row in results.rows)
    on_test = splits == [TEST]
    compared = "last" if on_test and results.published_eval in (None, "final") else "maximum"
    return [
        f"maximum: the highest of {looks} evaluations, picked by these very images, so optimistic, and more so the "
        "more there were",
        *([] if on_test else ["training images: what a model remembers of them, and not how well it generalises"]),
        "its step: the first with that value; tied: how many evaluations have it. Where several do, the step says "
        "nothing, here as in what was published",
        "last: the evaluation after the last step, chosen by nothing",
        f"difference: our {compared} less published, in percentage points"
        + ("; T7 has intervals" if on_test else "")
        + ("; several seeds: mean of each one's best ± standard deviation" if several else ""),
        *([f"neither run nor published: {', '.join(silent)}"] if silent else []),
    ]
