"""One row's search for a value: which trials to run next, and which value to choose. No Ray, no disk, no clock.

What is proposed and chosen is a function of the results so far. Only TPE also depends on what was running when it was
asked; so its answers are read back from the log, never asked for twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from trainable.sweep_records import Decision, Score
from tuner.dag import RunState
from tuner.grid import PlannedRun
from tuner.space import Value
from tuner.sweep import SweptRow, shown_value
from tuner.sweep_file import Sweep


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What is known of a sweep's runs."""

    states: Mapping[str, RunState]
    scores: Mapping[str, Score]
    """Of the trials that are done."""
    pruned: Mapping[str, Mapping[str, Any]]
    """The decisions that ended trials early."""
    idle: bool
    """Whether a place is free and nothing else can start."""

    def settled(self, runs: Iterable[PlannedRun]) -> bool:
        """Whether nothing more will happen to these runs."""
        return all(run.run_id in self.states and self.states[run.run_id].is_finished() for run in runs)

    def is_pruned(self, run: PlannedRun) -> bool:
        """Whether a trial was ended early."""
        return self.states.get(run.run_id) is RunState.PRUNED


@dataclass(kw_only=True, slots=True)
class Step:
    """What a search wants next."""

    runs: list[PlannedRun] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)


class Search(Protocol):
    """A row's search."""

    row: SweptRow
    verdict: str
    """What became of the search, in words; empty while it goes on."""
    found: bool
    """Whether a value was chosen."""

    def step(self, view: View) -> Step:
        """What to run next. Called again and again with what has become known."""

    def remaining(self) -> int:
        """How many more runs it may propose at most."""

    def trials(self) -> list[PlannedRun]:
        """All trials so far."""


class ValueSearch:
    """Tries values of a row's field and chooses the one with the highest mean top-1 on the hold-out.

    Args:
        sweep: which search, how many trials.
        row: the row.
        adopted: values of earlier searches that count, in the order in which they were suggested.
    """

    def __init__(self, sweep: Sweep, row: SweptRow, adopted: Iterable[Value] = ()) -> None:
        self.sweep, self.row = sweep, row
        self.verdict, self.found = "", False
        self._trials: dict[Value, dict[int, PlannedRun]] = {}
        self._exhausted = False
        self._adopted = list(adopted)
        for value in self._adopted:
            self._try(value)

    def trials(self) -> list[PlannedRun]:
        """All trials so far, by value and seed."""
        return [run for runs in self._trials.values() for run in runs.values()]

    def remaining(self) -> int:
        """How many more runs it may propose at most."""
        if self.verdict:
            return 0
        open_values = 0 if self._exhausted else max(0, self.sweep.trials - len(self._trials))
        return (open_values + 1) * len(self.row.base)

    def step(self, view: View) -> Step:
        """New trials; when all are finished, the row with the chosen value."""
        step = Step()
        if not self.verdict:
            step.decisions += [self._suggestion(value, "tried by an earlier invocation") for value in self._adopted]
            self._adopted = []
            self._propose(view, step)
            if self._exhausted and not step.runs and view.settled(self.trials()):
                self._choose(view, step)
        return step

    def _propose(self, view: View, step: Step) -> None:
        sweep, row = self.sweep, self.row
        if self._exhausted:
            return
        if sweep.search != "tpe":
            values = (
                row.space.grid(sweep.trials)
                if sweep.search == "grid"
                else row.space.draw(sweep.trials, sweep.name, row.label)
            )
            for number, value in enumerate(values):
                if value not in self._trials:
                    step.runs += self._try(value)
                    step.decisions.append(self._suggestion(value, f"value {number + 1} of {len(values)}"))
            order = dict.fromkeys([*values, *self._trials])  # ties go to the first, whichever was begun first
            self._trials = {value: self._trials[value] for value in order}
            self._exhausted = True
            return
        blocked = any(view.states.get(run.run_id) is RunState.BLOCKED for run in self.trials())
        self._exhausted = blocked or len(self._trials) >= sweep.trials
        parents = {parent for run in self.row.base.values() for parent in run.parents}
        if view.idle and not self._exhausted and all(view.states[parent].is_finished() for parent in parents):
            self._ask(view, step)  # not before its trial could start: every result until then makes the answer better

    def _ask(self, view: View, step: Step) -> None:
        from tuner import tpe  # optuna takes a second to import: only where it is asked

        number, told = len(self._trials), self._told(view)
        value = tpe.ask(self.row.space, told, self.sweep.name, self.row.label, number)
        if value is None:
            self._exhausted = True
            return
        step.runs += self._try(value)
        decision = self._suggestion(value, f"after {sum(trial.state == 'complete' for trial in told)} finished trials")
        step.decisions.append({**decision, "number": number, "told": [trial.as_dict() for trial in told]})

    def _told(self, view: View) -> list[Any]:
        from tuner.tpe import Told

        told = []
        for value, runs in self._trials.items():
            assert isinstance(value, float | int), "tpe searches intervals"
            ended = [view.pruned[run.run_id] for run in runs.values() if view.is_pruned(run)]
            scores = [view.scores[run.run_id].top1 for run in runs.values() if run.run_id in view.scores]
            if ended:
                last = ended[0]
                told.append(Told(value=value, state="pruned", top1=last.get("val_top1"), epoch=last.get("epoch")))
            elif len(scores) == len(runs):
                told.append(Told(value=value, state="complete", top1=float(np.mean(scores)), epoch=None))
            elif not view.settled(runs.values()):
                told.append(Told(value=value, state="running", top1=None, epoch=None))
        return told

    def _try(self, value: Value) -> list[PlannedRun]:
        self._trials[value] = {seed: self.row.trial(seed, value) for seed in self.row.base}
        return list(self._trials[value].values())

    def _suggestion(self, value: Value, why: str) -> Decision:
        return {
            "kind": "suggest",
            "row": self.row.label,
            "value": value,
            "runs": {str(seed): run.run_id for seed, run in self._trials[value].items()},
            "search": self.sweep.search,
            "why": why,
        }

    def _choose(self, view: View, step: Step) -> None:
        if (problem := unjudged(self.trials(), view)) is not None:
            self.verdict = f"{self.row.label}: nothing chosen, {problem}"
            return
        scores = {
            value: {seed: view.scores[run.run_id].top1 for seed, run in runs.items() if run.run_id in view.scores}
            for value, runs in self._trials.items()
        }
        value = best_value(scores)
        if value is None:
            self.verdict = f"{self.row.label}: nothing chosen, every trial was pruned or diverged"
            return
        runs = {seed: self.row.chosen(seed, value) for seed in self.row.base}
        mean = float(np.mean(list(scores[value].values())))
        self.found = True
        found = f"{self.row.shown(value)} of {len(scores)} values"
        self.verdict = f"{self.row.label}: {found}, top-1 {100 * mean:.2f} % on the hold-out"
        step.runs += runs.values()
        step.decisions.append(
            {
                "kind": "choose",
                "row": self.row.label,
                "value": value,
                "runs": {str(seed): run.run_id for seed, run in runs.items()},
                "scores": [[one, {str(seed): top1 for seed, top1 in of.items()}] for one, of in scores.items()],
                "why": f"highest mean top-1 on the hold-out ({mean:.6f}) among {sum(map(bool, scores.values()))} "
                f"finished of {len(scores)} values; the row's own is {shown_value(self.row.default)}",
            }
        )


def best_value(scores: Mapping[Value, Mapping[int, float]]) -> Value | None:
    """The value to choose: among those finished with the most seeds, the one of the highest mean; ties to the first.

    Args:
        scores: top-1 on the hold-out by value and seed, in the order of the trials.

    Returns:
        None when no trial is finished.
    """
    seeds = max((len(of) for of in scores.values()), default=0)
    means = {value: float(np.mean(list(of.values()))) for value, of in scores.items() if of and len(of) == seeds}
    return max(means, key=lambda value: means[value]) if means else None


def unjudged(trials: Iterable[PlannedRun], view: View) -> str | None:
    """Why a choice would be hasty: trials that failed or are blocked may yet finish; None when all were judged."""
    for run in trials:
        state = view.states[run.run_id]
        if state in (RunState.FAILED, RunState.BLOCKED):
            return f"{run.label} is {state.value}; mend that and run the sweep again"
        if state is RunState.DONE and run.run_id not in view.scores:
            return f"{run.label} holds no image out; raise data.val_fraction in the sweep's set"
    return None
