"""The searcher against a fake Tune: order, waiting, failures; no Ray process."""

from __future__ import annotations

import heapq
from typing import Any

from ray.tune.search import Searcher

from tuner.dag import RunDag, RunState
from tuner.search import RunSearcher


def searcher(
    parents: dict[str, tuple[str, ...]], cost: dict[str, float], **finished: RunState
) -> tuple[RunSearcher, RunDag]:
    dag = RunDag(parents, finished)
    return RunSearcher(dag, dag.longest_path(cost), lambda run_id: {"run_id": run_id}, lambda r: r.get("failure")), dag


def simulate(
    one: RunSearcher, cost: dict[str, float], slots: int, failing: tuple[str, ...] = ()
) -> list[tuple[float, str]]:
    """Tune with a fake clock: asks while there is room, and reports each trial when its time has come."""
    now, number = 0.0, 0
    running: list[tuple[float, str, str]] = []
    starts: list[tuple[float, str]] = []
    while True:
        finished = False
        while len(running) < slots:
            config = one.suggest(f"t{number}")
            if config is None or config == Searcher.FINISHED:
                finished = config == Searcher.FINISHED
                assert running or finished, "never None while nothing runs: Tune would poll for ten minutes"
                break
            assert isinstance(config, dict)
            starts.append((now, config["run_id"]))
            heapq.heappush(running, (now + cost[config["run_id"]], f"t{number}", config["run_id"]))
            number += 1
        if not running:
            assert finished
            return starts
        now, trial, run_id = heapq.heappop(running)
        failure = "broken" if run_id in failing else None
        one.on_trial_complete(trial, {"committed": failure is None, "failure": failure})


def test_longest_first_and_children_after_parents() -> None:
    parents = {"short": (), "long": (), "parent": (), "child": ("parent",)}
    cost = {"short": 1.0, "long": 6.0, "parent": 2.0, "child": 5.0}
    one, dag = searcher(parents, cost)
    starts = simulate(one, cost, slots=2)
    assert starts == [(0.0, "parent"), (0.0, "long"), (2.0, "child"), (6.0, "short")]
    assert all(state is RunState.DONE for state in dag.states.values())


def test_a_failed_parent_blocks_its_children_and_the_grid_goes_on() -> None:
    parents = {"parent": (), "child": ("parent",), "grandchild": ("child",), "other": ()}
    cost = dict.fromkeys(parents, 1.0)
    one, dag = searcher(parents, cost)
    assert [run_id for _, run_id in simulate(one, cost, 1, failing=("parent",))] == ["parent", "other"]
    assert one.reasons == {"parent": "broken"}
    assert {run_id: state.value for run_id, state in dag.states.items()} == {
        "parent": "failed",
        "child": "blocked",
        "grandchild": "blocked",
        "other": "done",
    }


def test_done_runs_are_not_handed_out() -> None:
    parents: dict[str, tuple[str, ...]] = {"a": (), "b": ("a",)}
    one, _ = searcher(parents, {"a": 1.0, "b": 1.0}, a=RunState.DONE)
    assert [run_id for _, run_id in simulate(one, {"a": 1.0, "b": 1.0}, 4)] == ["b"]


def test_a_process_that_died_too_often_is_a_failure() -> None:
    one, dag = searcher({"a": ()}, {"a": 1.0})
    one.suggest("t0")
    one.on_trial_complete("t0", None, error=True)
    assert dag.states["a"] is RunState.FAILED and "died too often" in one.reasons["a"]


def test_a_stopped_trial_ends_neither_done_nor_failed() -> None:
    one, dag = searcher({"a": ()}, {"a": 1.0})
    one.suggest("t0")
    one.on_trial_complete("t0", {"committed": False, "failure": None})
    assert dag.states["a"] is RunState.RUNNING and one.reasons == {}
    one.on_trial_complete("unknown", {})


def test_tune_may_pickle_it() -> None:
    import pickle

    one, _ = searcher({"a": ()}, {"a": 1.0})
    board: Any = pickle.dumps(one.__getstate__())
    assert board
