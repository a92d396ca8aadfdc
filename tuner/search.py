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


class RunSearcher(Searcher):
    """Walks a `RunDag`.

    Args:
        dag: the grid's states.
        priority: larger starts earlier, by run id.
        config: the trial's configuration of a run id.
        failure: the reason a finished trial gives for its failure; None where it succeeded.
    """

    def __init__(
        self,
        dag: RunDag,
        priority: Mapping[str, float],
        config: Callable[[str], dict[str, Any]],
        failure: Callable[[dict[str, Any]], str | None],
    ) -> None:
        super().__init__(metric=None, mode=None)
        self._dag, self._priority, self._config, self._failure = dag, priority, config, failure
        self._runs: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        """Why runs failed, by run id."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next run's configuration."""
        ready = self._dag.ready()
        if ready:
            run_id = max(ready, key=lambda one: self._priority[one])
            self._dag.start(run_id)
            self._runs[trial_id] = run_id
            return self._config(run_id)
        running = any(state is RunState.RUNNING for state in self._dag.states.values())
        return None if running else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Moves the run to its end state. A trial that was only stopped ends where it began: not finished."""
        run_id = self._runs.pop(trial_id, None)
        if run_id is None:
            return
        reason = self._failure(result or {})
        if error or reason is not None:
            self.reasons[run_id] = reason or "its process died too often; see the run's log.txt"
            self._dag.finish(run_id, RunState.FAILED)
        elif (result or {}).get("committed"):
            self._dag.finish(run_id, RunState.DONE)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for `Tuner.restore`, which is never used here

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the results store is the state, and every invocation surveys it anew."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore, see `save`."""
