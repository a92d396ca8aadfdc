"""Which runs are waiting, ready, running, done, failed or blocked: a state machine without clock, disk or Ray."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class RunState(Enum):
    """Where a run stands. Members are only ever added."""

    WAITING = "waiting"
    """A parent is not done yet."""
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"
    """Cannot start: data or weights are not at hand, or a parent failed or is blocked."""

    PRUNED = "pruned"
    """A sweep's trial that was ended early: by a scheduler, or because its loss was no finite number any more."""

    HELD = "held"
    """Another process trains it. Its children keep waiting; it is looked at again once it is let go."""

    def is_finished(self) -> bool:
        """Whether nothing more will happen to it in this invocation."""
        return self in (RunState.DONE, RunState.FAILED, RunState.BLOCKED, RunState.PRUNED, RunState.HELD)


_ENDS = (RunState.DONE, RunState.FAILED, RunState.PRUNED, RunState.HELD)
_NEVER_DONE = (RunState.FAILED, RunState.BLOCKED, RunState.PRUNED)


class RunDag:
    """The states of a grid's runs and the rules that move them.

    Args:
        parents: run ids that must be done first, by run id; every id named must be a key.
        finished: runs that are DONE, PRUNED, HELD, or BLOCKED from the outset.

    Raises:
        ValueError: an unknown parent, or parents that form a circle.
    """

    def __init__(self, parents: Mapping[str, tuple[str, ...]], finished: Mapping[str, RunState]) -> None:
        self._parents = dict(parents)
        self._children: dict[str, list[str]] = {run_id: [] for run_id in parents}
        for run_id, needed in parents.items():
            for parent in needed:
                if parent not in parents:
                    raise ValueError(f"run {run_id} needs {parent}, which is not part of the grid")
                self._children[parent].append(run_id)
        self._check_circles()
        self.states = {run_id: finished.get(run_id, RunState.WAITING) for run_id in parents}
        for run_id in parents:
            if self.states[run_id] in _NEVER_DONE:
                self._block_descendants(run_id)
        for run_id in parents:
            self._wake(run_id)

    def add(self, run_id: str, parents: tuple[str, ...], state: RunState = RunState.WAITING) -> None:
        """A further run, whose parents are here already; it may be DONE, PRUNED or BLOCKED from the outset.

        Raises:
            ValueError: the run is here already, or a parent is not.
        """
        if run_id in self._parents:
            raise ValueError(f"run {run_id} is part of the grid already")
        if unknown := [parent for parent in parents if parent not in self._parents]:
            raise ValueError(f"run {run_id} needs {unknown[0]}, which is not part of the grid")
        self._parents[run_id], self._children[run_id], self.states[run_id] = parents, [], state
        for parent in parents:
            self._children[parent].append(run_id)
            if self.states[parent] in _NEVER_DONE:
                self._block_descendants(parent)
        self._wake(run_id)

    def ready(self) -> list[str]:
        """Runs that may start now, in the order of the grid."""
        return [run_id for run_id, state in self.states.items() if state is RunState.READY]

    def is_finished(self) -> bool:
        """Whether every run is."""
        return all(state.is_finished() for state in self.states.values())

    def start(self, run_id: str) -> None:
        """READY becomes RUNNING.

        Raises:
            ValueError: the run is not ready.
        """
        if self.states[run_id] is not RunState.READY:
            raise ValueError(f"run {run_id} is {self.states[run_id].value}, not ready")
        self.states[run_id] = RunState.RUNNING

    def finish(self, run_id: str, state: RunState) -> list[str]:
        """RUNNING becomes DONE, FAILED, PRUNED or HELD; children become ready or blocked, or keep waiting.

        Returns:
            The runs that are newly blocked.

        Raises:
            ValueError: the run is not running, or the state is none of these.
        """
        if self.states[run_id] is not RunState.RUNNING or state not in _ENDS:
            raise ValueError(f"run {run_id} cannot go from {self.states[run_id].value} to {state.value}")
        self.states[run_id] = state
        if state in _NEVER_DONE:
            return self._block_descendants(run_id)
        for child in self._children[run_id]:
            self._wake(child)
        return []

    def retry(self, run_id: str) -> None:
        """RUNNING becomes READY again.

        Raises:
            ValueError: the run is not running.
        """
        if self.states[run_id] is not RunState.RUNNING:
            raise ValueError(f"run {run_id} is {self.states[run_id].value}, not running")
        self.states[run_id] = RunState.READY

    def children(self, run_id: str) -> list[str]:
        """The runs that start from this one."""
        return list(self._children[run_id])

    def longest_path(self, cost: Mapping[str, float]) -> dict[str, float]:
        """For every run its own cost and that of its most costly chain of descendants that are not done."""
        paths: dict[str, float] = {}

        def path(run_id: str) -> float:
            if run_id not in paths:
                paths[run_id] = cost[run_id] + max((path(child) for child in self._children[run_id]), default=0.0)
            return paths[run_id]

        return {run_id: path(run_id) for run_id in self._parents}

    def _wake(self, run_id: str) -> None:
        if self.states[run_id] is RunState.WAITING and all(
            self.states[parent] is RunState.DONE for parent in self._parents[run_id]
        ):
            self.states[run_id] = RunState.READY

    def _block_descendants(self, run_id: str) -> list[str]:
        blocked = []
        for child in self._children[run_id]:
            if not self.states[child].is_finished():
                self.states[child] = RunState.BLOCKED
                blocked += [child, *self._block_descendants(child)]
        return blocked

    def _check_circles(self) -> None:
        seen: dict[str, bool] = {}

        def visit(run_id: str) -> None:
            if seen.get(run_id) is False:
                raise ValueError(f"run {run_id} is its own ancestor")
            if run_id not in seen:
                seen[run_id] = False
                for parent in self._parents[run_id]:
                    visit(parent)
                seen[run_id] = True

        for run_id in self._parents:
            visit(run_id)
