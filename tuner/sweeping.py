"""A sweep within a grid that is running: takes the planner's further runs into the states, the order and the board."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuner.dag import RunDag, RunState
from tuner.grid import PlannedRun
from tuner.ledger import survey_further
from tuner.plan import Plan
from tuner.planner import SweepPlanner
from tuner.progress import Board
from tuner.summary import shown_labels


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweeping:
    """What `run_grid` needs of a sweep."""

    planner: SweepPlanner
    board: Board
    plan: Plan
    """Of the planner's `prospect`; further runs join it."""
    labels: dict[str, str]
    """By run id, as board, gauges and loggers show them; further runs join."""

    def scheduler(self) -> Any:
        """Tune's scheduler for this sweep, brought to where the log ends; None where no trial is ended early."""
        if self.planner.sweep.scheduler not in ("asha", "median"):
            return None
        from tuner.pruning import PruningScheduler  # imports Ray

        return PruningScheduler(self.planner)

    def hooks(self, dag: RunDag, runs: dict[str, PlannedRun], priority: dict[str, float]) -> dict[str, Any]:
        """`grow` and `early` for a `RunSearcher` over these states, runs and priorities, which `grow` adds to."""

        def grow(idle: bool) -> bool:
            new = self.planner.more(dag.states, idle=idle)
            if not new:
                return False
            finished, reasons = survey_further(self.planner.storage, self.planner.grid, new)
            self.labels.update(shown_labels(self.planner.grid))
            for run in new:
                runs[run.run_id] = run
                like = self.planner.stand_in(run)
                parts = (run.spec.budget.epochs or 1) / (like.spec.budget.epochs or 1)  # a generation is a part of it
                self.plan.add(run.run_id, like.run_id, parts)
                priority[run.run_id] = self.plan.seconds[run.run_id]
                dag.add(run.run_id, run.parents, finished.get(run.run_id, RunState.WAITING))
                state, reason = dag.states[run.run_id], reasons.get(run.run_id)
                self.board.add(run.run_id, self.labels[run.run_id], priority[run.run_id], state, reason)
            return True

        return {"grow": grow, "early": self.planner.ended_early}
