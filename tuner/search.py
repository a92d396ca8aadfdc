"""The Ray Tune searcher that hands out a grid's runs: parents before children, longest first.

Tune asks `suggest` for the next trial whenever it has room. None means "not now" (everything that is left waits for a
parent); FINISHED means that nothing can start any more. None is never answered while nothing runs, or Tune would
poll for ten minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.search import Searcher

from tuner.dag import RunDag, RunState

DIED = "its process died too often without getting on; a machine short of memory kills so, see the run's log.txt"


class RunSearcher(Searcher):
    """Walks a `RunDag`.

    Args:
        dag: the grid's states.
        priority: larger starts earlier, by run id.
        config: the trial's configuration of a run id.
        failure: the reason a finished trial gives for its failure, or for not having begun; None where it succeeded.
        more_memory: asked after an out-of-memory; True when the run shall be tried again with more.
        grow: adds further runs to the states, told whether nothing that is known can start; whether it added any.
        early: why a run that ended without a commit, perhaps with a failure, counts as pruned; None where it does not.
    """

    def __init__(
        self,
        dag: RunDag,
        priority: Mapping[str, float],
        config: Callable[[str], dict[str, Any]],
        failure: Callable[[dict[str, Any]], str | None],
        more_memory: Callable[[str], bool] = lambda run_id: False,
        grow: Callable[[bool], bool] = lambda idle: False,
        early: Callable[[str, str | None], str | None] = lambda run_id, reason: None,
    ) -> None:
        super().__init__(metric=None, mode=None)
        self._dag, self._priority, self._config, self._failure = dag, priority, config, failure
        self._more_memory, self._grow, self._early = more_memory, grow, early
        self._runs: dict[str, str] = {}
        self._progress: dict[str, float] = {}
        self._progress_at_death: dict[str, float] = {}
        self.reasons: dict[str, str] = {}
        """Why runs failed, were pruned or are held by another process, by run id."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next run's configuration."""
        self._grow(False)
        while not (ready := self._dag.ready()) and self._grow(True):
            pass
        if ready:
            run_id = max(ready, key=lambda one: self._priority[one])
            self._dag.start(run_id)
            self._runs[trial_id] = run_id
            return self._config(run_id)
        running = any(state is RunState.RUNNING for state in self._dag.states.values())
        return None if running else Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Notes how far the run is."""
        if (run_id := self._runs.get(trial_id)) is not None:
            self._progress[run_id] = float(result["progress"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Moves the run to its end state. A trial that was only stopped ends where it began: not finished.

        A process that died too often for Tune (`error`) is started again as long as the run gets on between its deaths:
        machines that come and go must not end a training of days.
        """
        run_id = self._runs.pop(trial_id, None)
        if run_id is None:
            return
        reason = self._failure(result or {})
        if (result or {}).get("out_of_memory") and self._more_memory(run_id):
            self._dag.retry(run_id)
            return
        if error and self._progress.get(run_id, 0.0) > self._progress_at_death.get(run_id, 0.0):
            self._progress_at_death[run_id] = self._progress[run_id]
            self._dag.retry(run_id)
            return
        committed = bool((result or {}).get("committed"))
        if not committed and (why := self._early(run_id, reason)) is not None:
            self.reasons[run_id] = why
            self._dag.finish(run_id, RunState.PRUNED)
        elif error or reason is not None:
            self.reasons[run_id] = reason or DIED
            self._dag.finish(run_id, RunState.HELD if (result or {}).get("held") else RunState.FAILED)
        elif committed:
            self._dag.finish(run_id, RunState.DONE)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for `Tuner.restore`, which is never used here

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the results store is the state, and every invocation surveys it anew."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore, see `save`."""
