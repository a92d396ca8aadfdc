"""Ends hopeless trials of a sweep by Ray Tune's own schedulers, and logs each decision.

Trials are compared within one row and seed only: a ViT is not stopped because a ResNet learns faster. Each such group
has a scheduler of its own (asynchronous successive halving, or median stopping), which is told of every evaluation on
the hold-out in the order of arrival. The log holds all that it was told, so an interrupted sweep builds the schedulers
anew by replaying the log, and what they did can be checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from trainable.sweep_records import Decision
from tuner.planner import SweepPlanner

REDUCTION = 3
"""asha lets the best third of a rung go on; rungs are at grace, 3 x grace, 9 x grace, ... epochs."""
MIN_OTHERS = 3
"""median stops nobody before it knows so many others."""
_SETTINGS = {"time_attr": "epoch", "metric": "val_top1", "mode": "max"}


@dataclass(frozen=True)
class _Member:
    """What Ray's schedulers know of a trial: its name."""

    trial_id: str


class Judge:
    """The schedulers of all groups, without Tune around them."""

    def __init__(self) -> None:
        self._schedulers: dict[tuple[str, str], Any] = {}
        self._members: set[tuple[tuple[str, str], str]] = set()
        self._seen: set[tuple[str, float]] = set()

    def judge(self, evaluation: Decision) -> Decision | None:
        """A `rung` decision about an evaluation.

        Args:
            evaluation: scheduler (asha or median), group, run_id, epoch, val_top1, max_epochs, grace_epochs.

        Returns:
            The evaluation with `kind`, `action` (continue, stop, or finish at the end of the budget) and `why`; None
            where nothing is decided: between asha's rungs, and for an evaluation that was judged before (a killed
            trial makes its last ones again).
        """
        run_id, epoch = evaluation["run_id"], evaluation["epoch"]
        if (run_id, epoch) in self._seen:
            return None
        self._seen.add((run_id, epoch))
        key = evaluation["scheduler"], evaluation["group"]
        if key not in self._schedulers:
            self._schedulers[key] = _scheduler(evaluation)
        scheduler, member = self._schedulers[key], _Member(run_id)
        if (key, run_id) not in self._members:
            self._members.add((key, run_id))
            scheduler.on_trial_add(None, member)
        result = {"epoch": epoch, "val_top1": evaluation["val_top1"]}
        if epoch >= evaluation["max_epochs"]:  # trained to the end: nothing is left to save
            scheduler.on_trial_complete(None, member, result)
            return {**evaluation, "kind": "rung", "action": "finish", "why": "the end of its budget"}
        asha = evaluation["scheduler"] == "asha"
        why = _asha_reason(scheduler, member, result) if asha else None
        if asha and why is None:
            return None
        stop = scheduler.on_trial_result(None, member, result) == TrialScheduler.STOP
        why = why or _median_reason(scheduler, member, result)
        return {**evaluation, "kind": "rung", "action": "stop" if stop else "continue", "why": why}

    def replay(self, decisions: Iterable[Decision]) -> list[Decision]:
        """Judges logged evaluations anew, in their order; equal to the log as long as Ray's schedulers are the same."""
        return [now for decision in decisions if (now := self.judge(_evaluation(decision))) is not None]


class PruningScheduler(FIFOScheduler):
    """Tune's scheduler of a sweep: asks the judge about every evaluation of a trial, logs, and obeys.

    Args:
        planner: knows the trials and holds the log.
    """

    def __init__(self, planner: SweepPlanner) -> None:
        super().__init__()
        self._planner, self._judge = planner, Judge()
        self._judge.replay(planner.log.of("rung"))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP for a trial that is no longer promising; parents and chosen rows always go on."""
        run = self._planner.trial(trial.config["run_id"])
        held_out = [row for row in result.get("rows") or () if row["split"] == "val"]
        if run is None or not held_out:
            return str(TrialScheduler.CONTINUE)
        sweep = self._planner.sweep
        decision = self._judge.judge(
            {
                "scheduler": sweep.scheduler,
                "group": f"{self._planner.row_of(run.run_id)} seed {run.spec.seed}",
                "run_id": run.run_id,
                "epoch": held_out[-1]["epoch"],
                "val_top1": held_out[-1]["top1"],
                "max_epochs": run.spec.budget.epochs,
                "grace_epochs": sweep.grace_epochs,
            }
        )
        if decision is None:
            return str(TrialScheduler.CONTINUE)
        self._planner.log.add([decision])
        if decision["action"] != "stop":
            return str(TrialScheduler.CONTINUE)
        self._planner.prune(decision)
        return str(TrialScheduler.STOP)


def _scheduler(evaluation: Decision) -> Any:
    grace, most = evaluation["grace_epochs"], evaluation["max_epochs"]
    if evaluation["scheduler"] == "asha":
        return AsyncHyperBandScheduler(
            **_SETTINGS,
            grace_period=min(grace, most),
            max_t=most,
            reduction_factor=REDUCTION,
            stop_last_trials=False,
        )
    return MedianStoppingRule(
        **_SETTINGS,
        grace_period=grace,
        min_samples_required=MIN_OTHERS,
        min_time_slice=math.inf,  # never pause a trial in favour of others
    )


def _evaluation(decision: Decision) -> Decision:
    return {name: value for name, value in decision.items() if name not in ("kind", "action", "why")}


def _asha_reason(scheduler: Any, member: _Member, result: dict[str, float]) -> str | None:
    """The rung and its cutoff, as they stand before the scheduler is told of the evaluation; None between rungs."""
    (bracket,) = scheduler._brackets
    for milestone, recorded in bracket._rungs:
        if result["epoch"] >= milestone:
            if member.trial_id in recorded:
                break
            cutoff = bracket.cutoff(recorded)
            if cutoff is None:
                return f"first at the rung of epoch {milestone:g}"
            side = "below" if result["val_top1"] < cutoff else "not below"
            return f"{side} the cutoff {cutoff:.6f} of {len(recorded)} others at the rung of epoch {milestone:g}"
    return None


def _median_reason(scheduler: Any, member: _Member, result: dict[str, float]) -> str:
    """Its best value and the median of the others' running means, once the scheduler was told."""
    if result["epoch"] < scheduler._grace_period:
        return "within the grace period"
    others = [other for other in scheduler._trials_beyond_time(result["epoch"]) if other != member]
    if len(others) < MIN_OTHERS:
        return f"{len(others)} others came this far, {MIN_OTHERS} are needed"
    median = float(np.median([scheduler._running_mean(other, result["epoch"]) for other in others]))
    best = float(scheduler._best_result(member))
    side = "below" if best < median else "not below"
    return f"its best {best:.6f} is {side} the median {median:.6f} of {len(others)} others' running means"
