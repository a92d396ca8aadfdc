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


def test_an_out_of_memory_is_tried_again_with_more_until_there_is_no_more() -> None:
    """Three trials of one run: its share, twice that, and then it has failed. Its child waits, a stranger goes on."""
    dag = RunDag({"a": (), "child": ("a",), "other": ()}, {})
    asked: list[str] = []

    def more(run_id: str) -> bool:
        asked.append(run_id)
        return len(asked) < 2

    one = RunSearcher(
        dag, {"a": 2.0, "child": 1.0, "other": 1.0}, lambda i: {"run_id": i}, lambda r: r.get("failure"), more
    )
    for trial in ("t0", "t1"):
        config = one.suggest(trial)
        assert isinstance(config, dict) and config["run_id"] == "a"
        one.on_trial_complete(trial, {"failure": "OutOfMemoryError", "out_of_memory": True})
    assert asked == ["a", "a"] and dag.states["a"] is RunState.FAILED and dag.states["child"] is RunState.BLOCKED
    config = one.suggest("t2")
    assert isinstance(config, dict) and config["run_id"] == "other"
    one.on_trial_complete("t2", {"failure": "NonFiniteLoss", "out_of_memory": False})
    assert asked == ["a", "a"] and dag.states["other"] is RunState.FAILED, "another failure is final"


def test_tune_may_pickle_it() -> None:
    import pickle

    one, _ = searcher({"a": ()}, {"a": 1.0})
    board: Any = pickle.dumps(one.__getstate__())
    assert board


def test_a_process_that_dies_too_often_is_started_again_while_its_run_gets_on() -> None:
    one, dag = searcher({"a": ()}, {"a": 1.0})
    for trial, progress in (("t0", 0.2), ("t1", 0.5)):
        assert one.suggest(trial) == {"run_id": "a"}
        one.on_trial_result(trial, {"progress": progress})
        one.on_trial_complete(trial, error=True)
        assert dag.states["a"] is RunState.READY
    one.suggest("t2")
    one.on_trial_result("t2", {"progress": 0.5})
    one.on_trial_complete("t2", error=True)
    assert dag.states["a"] is RunState.FAILED
    assert one.reasons["a"].startswith("its process died too often without getting on")


def test_a_run_that_another_process_trains_is_held_and_its_child_waits() -> None:
    one, dag = searcher({"a": (), "b": ("a",)}, {"a": 1.0, "b": 1.0})
    one.suggest("t0")
    one.on_trial_complete("t0", {"committed": False, "failure": "trained by attempt 7", "held": True})
    assert dag.states == {"a": RunState.HELD, "b": RunState.WAITING} and one.reasons == {"a": "trained by attempt 7"}
    assert one.suggest("t1") == Searcher.FINISHED
