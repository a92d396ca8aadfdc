"""A sweep's response curves: every row and value with its top-1 on the hold-out, the chosen value, and which values
cannot be told from it; beside them the test top-1 of the chosen row and of the row's own value, as ordinary runs.

Read from the store alone: the sweep's manifests, the log of its decisions, and what its runs committed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.compact import read_table
from analysis.frame import Frame, Raw, interval, percent
from analysis.load import AnalysisError, SeedRun, chosen_manifests, final_top1, load_runs
from analysis.stand_ins import COLUMN, marked, row_mark
from analysis.stats import mean_interval, newcombe, wilson
from trainable import records
from trainable.storage import Storage
from trainable.sweep_records import Decision, DecisionLog, Score, pruned, read_scores

LEVELS = "▁▂▃▄▅▆▇█"
UNKNOWN = "·"


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One value of one row; of population-based training, one member's schedule of values."""

    value: Any
    scores: Mapping[int, Score]
    """Of the finished trials, by seed."""
    state: str
    """done, pruned (when and why), failed, or unfinished, in words."""
    pruned_epoch: float | None
    run_ids: tuple[str, ...]

    @property
    def top1(self) -> float | None:
        """Mean over seeds on the hold-out."""
        return float(np.mean([score.top1 for score in self.scores.values()])) if self.scores else None

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """95 %: of one seed over images (Wilson), of several over seeds."""
        scores = list(self.scores.values())
        if not scores:
            return None, None
        if len(scores) == 1:
            return wilson(_hits(scores[0]), scores[0].num_images)
        low, high = mean_interval([score.top1 for score in scores])
        return max(0.0, low), min(1.0, high)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweptRow:
    """One row with its curve."""

    label: str
    points: tuple[Point, ...]
    """By rising value; listed values that are no numbers in the order of their suggestion."""
    default: Any
    own: tuple[SeedRun, ...]
    """The row as the grid has it, by seed; perhaps not done."""
    chosen: Any
    """None while nothing is chosen."""
    winner: tuple[SeedRun, ...]
    """The row with the chosen value."""
    stand_in: str
    """Which random stand-ins of published weights its trials began from; empty: none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResults:
    """A variant of a sweep as the store holds it."""

    name: str
    variant: str
    help: str
    overrides: dict[str, Any]
    sweep: dict[str, Any]
    """As the newest manifest describes it."""
    rows: tuple[SweptRow, ...]
    left_out: tuple[str, ...]
    unread: tuple[str, ...]
    """Damaged manifests that were passed over, in words."""
    other_variants: tuple[str, ...]


def is_sweep(storage: Storage, name: str) -> bool:
    """Whether the store knows this name as a sweep."""
    for file in reversed(storage.names(f"grids/{name}")):
        try:
            newest = json.loads(storage.read(f"grids/{name}/{file}", at_most=records.RECORD_BYTES))
        except (ValueError, RecursionError):  # damaged: the one before it tells as well
            continue
        return isinstance(newest, dict) and newest.get("sweep") is not None
    return False


def load_sweep(storage: Storage, name: str, variant: str | None = None) -> SweepResults:
    """One sweep with everything that its trials and chosen rows left.

    Args:
        storage: the results root.
        name: the sweep.
        variant: `full` or the hash of another variant; None chooses.

    Raises:
        AnalysisError: no such sweep or variant, or several variants and none of them full.
        RecordError: a stored file is damaged, or its numbers do not follow from its predictions.
    """
    found = chosen_manifests(storage, name, variant)
    newest = found.newest
    log = DecisionLog(storage, name, newest["variant"], write=False)
    population = newest["sweep"]["scheduler"] == "pbt"
    suggested = [one for one in log.of("suggest") if (one["search"] == "pbt") == population]
    chosen = {one["row"]: one for one in log.of("choose") if isinstance(one["value"], list) == population}
    run_ids = {run_id for one in suggested for run_id in one["runs"].values()}
    trials = _Trials(storage, run_ids, log.decisions)
    entries = _rows(found.manifests)
    wanted = [*(entry["runs"] for entry in entries), *(choice["runs"] for choice in chosen.values())]
    ordinary = _runs(storage, wanted)
    told = _stand_ins(storage, run_ids)
    rows = []
    for entry in entries:
        mine = [one for one in suggested if one["row"] == entry["label"]]
        points = _members(mine, log.of("exploit"), trials) if population else _values(mine, trials)
        choice = chosen.get(entry["label"])
        rows.append(
            SweptRow(
                label=entry["label"],
                points=tuple(points),
                default=entry["default"],
                own=tuple(ordinary[run_id] for _, run_id in _by_seed(entry["runs"])),
                chosen=choice["value"] if choice else None,
                winner=tuple(ordinary[run_id] for _, run_id in _by_seed(choice["runs"])) if choice else (),
                stand_in="; ".join(
                    sorted({told[run_id] for one in points for run_id in one.run_ids if run_id in told})
                ),
            )
        )
    left_out = dict.fromkeys(label for manifest in found.manifests for label in manifest["sweep"]["left_out"])
    return SweepResults(
        name=name,
        variant=newest["variant"],
        help=newest["help"],
        overrides=newest["overrides"],
        sweep=newest["sweep"],
        rows=tuple(rows),
        left_out=tuple(left_out),
        unread=tuple(f"{path}: not a whole manifest; it does not count" for path in found.damaged),
        other_variants=found.other_variants,
    )


def sweep_frame(results: SweepResults) -> Frame:
    """One line a row and value; the row's own value stands there even where it was not tried."""
    lines = [line for row in results.rows for line in _lines(row, results)]
    if not lines:
        raise AnalysisError(
            f"sweep {results.name}: no trial was begun yet; run it: python -m tuner.run --grid {results.name}"
        )
    columns = tuple(lines[0][0])
    frame = Frame(
        title=f"sweep {results.name}: {results.help.strip()}",
        notes=tuple(_notes(results)),
        columns=columns,
        left=2,
        narrow=columns,
        rows=tuple(tuple(cells.values()) for cells, _ in lines),
        raw=tuple(raw for _, raw in lines),
    )
    marks = {row.label: row.stand_in or row_mark([run for run in row.own if run.trial]) for row in results.rows}
    known = {label: mark for label, mark in marks.items() if mark}
    return marked(frame, known, list(marks))


def curves(results: SweepResults) -> list[str]:
    """The response curves as one line of blocks a row, from the lowest to the highest top-1 of that row."""
    pictures = []
    width = max((len(row.label) for row in results.rows), default=0)
    for row in results.rows:
        known = [point.top1 for point in row.points if point.top1 is not None]
        if len(known) < 2 or results.sweep["scheduler"] == "pbt":
            continue
        low, high = min(known), max(known)
        blocks = "".join(
            UNKNOWN if top1 is None else LEVELS[round((top1 - low) / ((high - low) or 1.0) * (len(LEVELS) - 1))]
            for top1 in (point.top1 for point in row.points)
        )
        ends = f"{_shown(row.points[0].value)} to {_shown(row.points[-1].value)}"
        pictures.append(f"{row.label:{width}}  {blocks}  {percent(low)} to {percent(high)} % at {ends}")
    return pictures


class _Trials:
    """What became of a sweep's trials."""

    def __init__(self, storage: Storage, run_ids: set[str], decisions: Sequence[Decision]) -> None:
        self.scores = read_scores(storage, run_ids)
        self._pruned = pruned(decisions)
        self._attempts = {record.run_id: record for record in records.read_attempts(storage, run_ids)}

    def is_begun(self, run_ids: Sequence[str]) -> bool:
        return any(run_id in self.scores or run_id in self._attempts for run_id in run_ids)

    def point(self, value: Any, runs: Mapping[int, str]) -> Point:
        scores = {seed: self.scores[run_id] for seed, run_id in runs.items() if run_id in self.scores}
        state, epoch = "done", None
        for run_id in runs.values():
            if run_id not in self.scores:
                state, epoch = self._unfinished(run_id)
        return Point(value=value, scores=scores, state=state, pruned_epoch=epoch, run_ids=tuple(runs.values()))

    def _unfinished(self, run_id: str) -> tuple[str, float | None]:
        """In words, and the epoch at which a scheduler ended it."""
        if (decision := self._pruned.get(run_id)) is not None:
            if decision["kind"] == "diverged":
                return f"diverged: {decision['why']}", None
            at, most = decision["epoch"], decision["max_epochs"]
            return f"pruned at epoch {at:g} of {most:g} with {percent(decision['val_top1'])} %", at
        attempt = self._attempts.get(run_id)
        if attempt is not None and attempt.outcome == "failed":
            return f"failed: {attempt.error}", None
        return "unfinished" if attempt is not None else "not run yet", None


def _rows(manifests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all invocations of a variant, with the seeds of all of them; the newest tells a row's own value."""
    rows: dict[str, dict[str, Any]] = {}
    for manifest in reversed(manifests):
        for entry in manifest["sweep"]["rows"]:
            known = rows.get(entry["label"], {"runs": {}})
            same = known.get("default") == entry["default"]
            rows[entry["label"]] = {**entry, "runs": {**(known["runs"] if same else {}), **entry["runs"]}}
    return list(rows.values())


def _values(suggested: Sequence[Decision], trials: _Trials) -> list[Point]:
    """A row's values; where a value was suggested again (more seeds, another hold-out), the newest run of each seed."""
    runs: dict[Any, dict[int, str]] = {}
    for one in suggested:
        own = runs.setdefault(one["value"], {})
        own |= dict(_by_seed(one["runs"]))
    numeric = all(isinstance(value, float | int) for value in runs)
    begun = {value: dict(sorted(of.items())) for value, of in runs.items() if trials.is_begun(list(of.values()))}
    points = [trials.point(value, of) for value, of in begun.items()]
    return sorted(points, key=lambda point: point.value) if numeric else points


def _members(suggested: Sequence[Decision], exploits: Sequence[Decision], trials: _Trials) -> list[Point]:
    """The members of the last generation, each with the schedule of its line of descent."""
    if not suggested:
        return []
    sources = {(one["row"], one["generation"], one["member"]): one["source"] for one in exploits}
    at = {(one["generation"], one["member"]): one for one in suggested}
    last = max(generation for generation, _ in at)
    points = []
    for (generation, member), one in at.items():
        if generation != last:
            continue
        schedule, origin = [one["value"]], member
        for before in range(last, 0, -1):
            origin = sources.get((one["row"], before, origin), origin)
            schedule.insert(0, at[before - 1, origin]["value"])
        points.append(trials.point(schedule, dict(_by_seed(one["runs"]))))
    return points


def _runs(storage: Storage, wanted: Sequence[Mapping[str, str]]) -> dict[str, SeedRun]:
    """Ordinary runs by run id, each read once; `wanted` are run ids by seed."""
    seeds = {run_id: seed for runs in wanted for seed, run_id in _by_seed(runs)}
    entries = [{"run_id": run_id, "seed": seed, "reason": None} for run_id, seed in seeds.items()]
    return {run.run_id: run for run in load_runs(storage, entries)}


def _stand_ins(storage: Storage, run_ids: set[str]) -> dict[str, str]:
    """Which random stand-ins runs that are done began from, by run id."""
    commits = list(records.read_commits(storage, run_ids).values())
    found = read_table(storage, "trials", commits, ["run_id", COLUMN]).to_pylist()
    return {row["run_id"]: row[COLUMN] for row in found if row[COLUMN] is not None}


def _by_seed(runs: Mapping[str, str]) -> list[tuple[int, str]]:
    """(seed, run id), by rising seed."""
    return sorted((int(seed), run_id) for seed, run_id in runs.items())


def _lines(row: SweptRow, results: SweepResults) -> list[tuple[dict[str, str], Raw]]:
    best = next((point for point in row.points if point.value == row.chosen), None)
    lines = [_line(row, point, best, results) for point in row.points]
    if any(run.status == "done" for run in row.own) and all(point.value != row.default for point in row.points):
        own = Point(value=row.default, scores={}, state="not tried", pruned_epoch=None, run_ids=())
        lines.append(_line(row, own, best, results))
    return lines


def _line(row: SweptRow, point: Point, best: Point | None, results: SweepResults) -> tuple[dict[str, str], Raw]:
    """One value of a row as cells by column, and as numbers."""
    name = results.sweep["field"].rsplit(".", 1)[-1]
    is_own = point.value == row.default
    verdict = _verdict(point, best)
    shown = row.winner if point is best else row.own if is_own else ()
    done = tuple(run for run in shown if run.status == "done")
    test, (test_low, test_high), _ = final_top1(done)
    low, high = point.interval
    cells = {
        "run": row.label,
        name: _shown(point.value) + (" (own)" if is_own else ""),
        "seeds": str(len(point.scores)),
        "hold-out %": percent(point.top1),
        "95 % CI": interval(low, high),
        "test %": percent(test) if shown else "",
        "test 95 % CI": interval(test_low, test_high) if shown else "",
        "notes": verdict,
    }
    raw: Raw = {
        "run": row.label,
        "field": results.sweep["field"],
        "value": _shown(point.value) if isinstance(point.value, list) else point.value,
        "is_default": int(is_own),
        "is_chosen": int(point is best),
        "num_seeds": len(point.scores),
        "holdout_top1": point.top1,
        "holdout_low": low,
        "holdout_high": high,
        "verdict": verdict,
        "pruned_epoch": point.pruned_epoch,
        "test_top1": test,
        "test_low": test_low,
        "test_high": test_high,
        "trial_run_ids": " ".join(point.run_ids),
        "test_run_ids": " ".join(run.run_id for run in shown),
    }
    return cells, raw


def _verdict(point: Point, best: Point | None) -> str:
    if point is best:
        return "chosen"
    if point.state != "done":
        return point.state
    if best is None:
        return "done"
    return "worse" if is_apart(best, point) else "cannot be told from the chosen"


def is_apart(best: Point, other: Point) -> bool:
    """Whether the 95 % interval of the difference on the hold-out leaves 0 out: over images for one seed (Newcombe's,
    which takes the two for independent and so is wide), over seeds that both have where they are several."""
    seeds = sorted(best.scores.keys() & other.scores.keys())
    if not seeds:
        return False
    if len(seeds) == 1:
        one, two = best.scores[seeds[0]], other.scores[seeds[0]]
        low, high = newcombe((_hits(one), one.num_images), (_hits(two), two.num_images))
    else:
        low, high = mean_interval([best.scores[seed].top1 - other.scores[seed].top1 for seed in seeds])
    return low > 0 or high < 0


def _notes(results: SweepResults) -> list[str]:
    sweep = results.sweep
    notes = []
    if results.overrides:
        shown = ", ".join(f"{key}={str(value)[:16]}" for key, value in results.overrides.items())
        notes.append(f"CHANGED AGAINST THE FILE ({shown})")
    notes += [f"{line}: run the sweep again" for line in results.unread]
    if results.other_variants:
        notes.append(f"other variants in this store: {', '.join(results.other_variants)} (--variant)")
    notes.append(
        f"{sweep['field']} over {sweep['over']}: search {sweep['search']}, scheduler {sweep['scheduler']}; trials with "
        + ", ".join(f"{path}={value}" for path, value in sweep["set"].items())
    )
    notes.append("hold-out: top-1 at the last step on training images held out; the value was chosen on them alone,")
    notes.append("so the chosen value's own figure is the best of several and somewhat high")
    notes.append("95 % CI: one seed over images (Wilson), several over seeds; a difference likewise")
    notes.append("test: the row trained without the hold-out, at the chosen value and at its own, after the last step")
    if sweep["scheduler"] == "pbt":
        notes.append("a schedule is one value a generation; optimiser moments begin anew with each")
    if results.left_out:
        notes.append(f"left out, {sweep['field']} being null: {', '.join(results.left_out)}")
    return notes


def _hits(score: Score) -> int:
    return round(score.top1 * score.num_images)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " > ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
