"""Asks Optuna's TPE sampler for the next value of a row, as a function of what is known and of a position.

Every question builds a fresh study from the trials so far, so nothing lives in a sampler between questions: the same
history gives the same answer, in this invocation, after a kill, and in a replay of the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from tuner.space import Space, Value, fraction

STARTUP_TRIALS = 5
"""Values that are drawn at random before the sampler models anything."""
ATTEMPTS = 16
"""How often a value that was tried already is drawn anew."""
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "running": TrialState.RUNNING}


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """A trial as the sampler is told of it."""

    value: float
    state: str
    """complete, pruned (also when its loss diverged, then without an evaluation), or running."""
    top1: float | None
    """On the hold-out: the last evaluation, or the one at which it was pruned."""
    epoch: float | None
    """Of the evaluation at which it was pruned."""

    def as_dict(self) -> dict[str, Any]:
        """For the log."""
        return asdict(self)


def ask(space: Space, told: Sequence[Told], *position: object) -> Value | None:
    """The next value; None when the sampler names only values that were tried already.

    Args:
        space: an interval. Trials outside of it are left out.
        told: the row's trials in the order of their suggestion; running ones count as bad (constant liar), so that
            values asked for at the same time differ.
        position: seeds the sampler.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distribution: BaseDistribution = (
        IntDistribution(round(space.low), round(space.high), log=space.log)
        if space.integer
        else FloatDistribution(space.low, space.high, log=space.log)
    )
    tried = {trial.value for trial in told}
    for attempt in range(ATTEMPTS):
        seed = int(fraction(*position, attempt) * 2**32)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials([_frozen(trial, distribution) for trial in told if space.holds(trial.value)])
        value = space.rounded(study.ask({"value": distribution}).params["value"])
        if value not in tried:
            return value
    return None


def _frozen(trial: Told, distribution: BaseDistribution) -> optuna.trial.FrozenTrial:
    complete = trial.state == "complete"
    seen = {round(trial.epoch): trial.top1} if trial.epoch is not None and trial.top1 is not None else {}
    return create_trial(
        state=_STATES[trial.state],
        value=trial.top1 if complete else None,
        params={"value": trial.value},
        distributions={"value": distribution},
        intermediate_values=seen if trial.state == "pruned" else {},
    )
