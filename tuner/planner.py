"""A sweep in the making: which runs it has so far, which come next, what was decided. No Ray.

The planner is asked whenever Ray Tune has room for another trial. It looks at the states of its runs and at what they
reached on the hold-out, and answers with further runs; every decision is in the log before the run is handed out. Built
anew over the same results store it comes to the same place, so an interrupted sweep goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from trainable import records
from trainable.storage import Storage
from trainable.sweep_records import Decision, DecisionLog, Score, pruned, read_scores
from tuner.dag import RunState
from tuner.facts import Facts
from tuner.grid import Grid, PlannedRun, Selection
from tuner.grid_file import GridError
from tuner.ledger import survey
from tuner.population import Population
from tuner.row_search import Search, ValueSearch, View
from tuner.space import Value
from tuner.sweep import OpenedSweep, SweptRow, open_sweep, sweep_names
from tuner.sweep_file import Choices

DIVERGED = "NonFiniteLoss"


class SweepPlanner:
    """Proposes a sweep's runs.

    Args:
        opened: the sweep and its rows.
        storage: the results root.
        write: False decides without writing the log, for a dry run.

    Raises:
        RecordError: the store is damaged or newer than this version.
    """

    def __init__(self, opened: OpenedSweep, storage: Storage, *, write: bool) -> None:
        self.sweep, self._opened, self.storage = opened.sweep, opened, storage
        self.grid: Grid = opened.grid
        """All runs so far: parents, trials, chosen rows."""
        self.log = DecisionLog(storage, self.sweep.name, opened.grid.header.variant, write=write)
        self._scores: dict[str, Score] = {}
        self._suggested = {run_id for decision in self.log.of("suggest") for run_id in decision["runs"].values()}
        self._chosen = {decision["row"]: decision for decision in self.log.of("choose")}
        ended = self.log.of("diverged") if self.sweep.scheduler == "none" else self.log.decisions
        self._pruned = dict(pruned(ended))
        self._searches: list[Search] = [self._search(row) for row in opened.rows]
        adopted = [run for search in self._searches for run in search.trials()]
        self._trials = {run.run_id: run for run in adopted}
        self._include(adopted)
        self._stand_ins: dict[str, PlannedRun] = {}
        while self.more(survey(storage, self.grid, self.pruned).states, idle=False):
            pass

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person should know before the sweep starts."""
        return self._opened.notices

    @property
    def pruned(self) -> dict[str, str]:
        """Why trials were ended early, by run id."""
        return {run_id: str(decision["why"]) for run_id, decision in self._pruned.items()}

    @property
    def verdicts(self) -> list[str]:
        """What became of every row's search, in words; of those that go on, nothing."""
        return [search.verdict for search in self._searches if search.verdict]

    def is_settled(self) -> bool:
        """Whether a value was chosen for every row."""
        return all(search.found for search in self._searches)

    def remaining(self) -> int:
        """How many more runs may come at most."""
        return sum(search.remaining() for search in self._searches)

    def more(self, states: Mapping[str, RunState], *, idle: bool) -> list[PlannedRun]:
        """Further runs, which are part of `grid` from now on.

        Args:
            states: of all runs of `grid`.
            idle: a place is free and nothing that is known can start; only then is a sampler asked, since every
                trial that finishes first makes its answer better.
        """
        self._read_scores(states)
        view = View(states=states, scores=self._scores, pruned=self._pruned, idle=False)
        found: list[PlannedRun] = []
        for search in self._searches:
            found += self._take(search, view)
        if not found and idle:
            view = dataclasses.replace(view, idle=True)
            for search in sorted(self._searches, key=lambda search: len(search.trials())):
                if found := self._take(search, view):
                    break
        return found

    def trial(self, run_id: str) -> PlannedRun | None:
        """The trial of this id; None for parents and chosen rows, which no scheduler may stop."""
        return self._trials.get(run_id)

    def prune(self, decision: Decision) -> None:
        """Notes that a scheduler ended a trial; the decision is in the log already."""
        self._pruned[decision["run_id"]] = decision

    def ended_early(self, run_id: str, failure: str | None) -> str | None:
        """Why a trial that ended without a commit counts as pruned: a scheduler stopped it, or it diverged, which is a
        result of its value and not a fault. None for everything else."""
        if run_id in self._pruned:
            return str(self._pruned[run_id]["why"])
        if failure is None or not failure.startswith(DIVERGED) or run_id not in self._trials:
            return None
        decision = {"kind": "diverged", "row": self.row_of(run_id), "run_id": run_id, "why": failure}
        self.log.add([decision])
        self._pruned[run_id] = decision
        return failure

    def prospect(self) -> Grid:
        """All runs so far and the rows as the grid has them, which stand for what may come: what further runs need of
        a machine, and what they cost."""
        known = {run.run_id for run in self.grid.runs}
        bases = [run for row in self._opened.rows for run in row.base.values() if run.run_id not in known]
        return dataclasses.replace(self.grid, runs=(*self.grid.runs, *bases))

    def stand_in(self, run: PlannedRun) -> PlannedRun:
        """The run of `prospect` that a further run resembles: its row's, of the same seed."""
        return self._stand_ins[run.run_id]

    def describe(self) -> dict[str, Any]:
        """For the manifest: what is varied how, over which rows with which own values."""
        sweep = self.sweep
        return {
            "field": sweep.field,
            "over": sweep.over,
            "space": dataclasses.asdict(sweep.space),
            "search": sweep.search,
            "trials": sweep.trials,
            "scheduler": sweep.scheduler,
            "generations": sweep.generations if sweep.scheduler == "pbt" else None,
            "set": dict(sweep.set),
            "left_out": list(self._opened.left_out),
            "rows": [
                {
                    "label": row.label,
                    "default": row.default,
                    "runs": {str(seed): run.run_id for seed, run in row.base.items()},
                }
                for row in self._opened.rows
            ],
        }

    def _search(self, row: SweptRow) -> Search:
        if self.sweep.scheduler == "pbt":
            return Population(self.sweep, row)
        return ValueSearch(self.sweep, row, self._adopted(row))

    def _adopted(self, row: SweptRow) -> list[Value]:
        """Values of earlier invocations that count on: TPE's, and whatever was begun. A suggestion whose run would have
        another id today belongs to another sweep of the same name."""
        mine = [decision for decision in self.log.of("suggest") if decision["row"] == row.label]
        same = {
            decision["value"]: decision
            for decision in mine
            if decision["search"] != "pbt" and row.space.holds(decision["value"]) and _is_same(row, decision)
        }
        ids = {run_id for decision in same.values() for run_id in decision["runs"].values()}
        begun = set(records.read_commits(self.storage, ids))
        begun |= {record.run_id for record in records.read_attempts(self.storage, ids)}
        return [
            value
            for value, decision in same.items()
            if begun & set(decision["runs"].values()) or (decision["search"] == self.sweep.search == "tpe")
        ]

    def _take(self, search: Search, view: View) -> list[PlannedRun]:
        """One search's step: its decisions into the log, its runs into the grid."""
        step = search.step(view)
        self.log.add([decision for decision in step.decisions if self._is_news(decision)])
        if not step.runs:
            return []
        self._trials |= {run.run_id: run for run in search.trials()}
        self._stand_ins |= {run.run_id: search.row.base[run.spec.seed] for run in step.runs}
        return self._include(step.runs)

    def _include(self, runs: list[PlannedRun]) -> list[PlannedRun]:
        """Those of the runs that are not part of the grid yet, which they become."""
        known = {run.run_id for run in self.grid.runs}
        new = list({run.run_id: run for run in runs if run.run_id not in known}.values())
        self.grid = dataclasses.replace(self.grid, runs=(*self.grid.runs, *new))
        return new

    def _is_news(self, decision: Decision) -> bool:
        """Whether the log lacks a decision: a planner that is built anew decides what is there already again."""
        if decision["kind"] == "suggest":
            news = not set(decision["runs"].values()) <= self._suggested
            self._suggested |= set(decision["runs"].values())
            return news
        if decision["kind"] == "choose":
            before = self._chosen.get(decision["row"])
            self._chosen[decision["row"]] = decision
            return before != decision
        return decision not in self.log.decisions

    def _read_scores(self, states: Mapping[str, RunState]) -> None:
        wanted = [
            run_id for run_id in self._trials if states.get(run_id) is RunState.DONE and run_id not in self._scores
        ]
        if wanted:
            self._scores |= read_scores(self.storage, wanted)

    def row_of(self, run_id: str) -> str:
        """The label of the row that a trial belongs to."""
        return next(search.row.label for search in self._searches if run_id in {run.run_id for run in search.trials()})


def _is_same(row: SweptRow, decision: Decision) -> bool:
    return any(row.trial(seed, decision["value"]).run_id == decision["runs"].get(str(seed)) for seed in row.base)


def open_planner(
    path: Path, name: str, choices: Choices, selection: Selection, facts: Facts, storage: Storage, *, write: bool
) -> SweepPlanner | None:
    """The planner of a sweep, see `open_sweep` and `SweepPlanner`; None where the name is none of a sweep.

    Raises:
        GridError: faults of the sweep, or choices of a sweep for what is none.
    """
    if name in dict(sweep_names(path)):
        return SweepPlanner(open_sweep(path, name, choices, selection, facts), storage, write=write)
    if given := choices.given():
        raise GridError(f"--{next(iter(given))} goes with a sweep, and {name} is none")
    return None


def announce_sweep(planner: SweepPlanner | None, console: Console) -> None:
    """What a reader of a sweep's plan must know beyond its runs."""
    lines = list(planner.notices) if planner else []
    if planner and (more := planner.remaining()):
        lines.append(f"up to {more} more runs will be proposed on the way: by the search, and the chosen rows")
    for line in lines:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
