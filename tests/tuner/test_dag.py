"""The state machine of a grid, without clock, disk or Ray."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.dag import RunDag, RunState

CHAIN = {"a": (), "b": ("a",), "c": ("b",), "x": ()}


def test_parents_first() -> None:
    dag = RunDag(CHAIN, {})
    assert dag.ready() == ["a", "x"]
    dag.start("a")
    assert dag.ready() == ["x"] and dag.finish("a", RunState.DONE) == []
    assert dag.ready() == ["b", "x"]


def test_a_failure_blocks_its_own_descendants_only() -> None:
    dag = RunDag(CHAIN, {})
    dag.start("a")
    assert dag.finish("a", RunState.FAILED) == ["b", "c"]
    assert dag.ready() == ["x"] and not dag.is_finished()
    dag.start("x")
    dag.finish("x", RunState.DONE)
    assert dag.is_finished()


def test_what_was_done_or_blocked_before_counts() -> None:
    dag = RunDag(CHAIN, {"a": RunState.DONE, "x": RunState.BLOCKED})
    assert dag.ready() == ["b"]
    blocked = RunDag(CHAIN, {"b": RunState.BLOCKED})
    assert blocked.states["c"] is RunState.BLOCKED and blocked.ready() == ["a", "x"]


def test_done_children_of_a_lost_parent_stay_done() -> None:
    dag = RunDag({"a": (), "b": ("a",)}, {"a": RunState.BLOCKED, "b": RunState.DONE})
    assert dag.states["b"] is RunState.DONE


def test_only_lawful_moves() -> None:
    dag = RunDag(CHAIN, {})
    with pytest.raises(ValueError, match="run b is waiting, not ready"):
        dag.start("b")
    with pytest.raises(ValueError, match="run a cannot go from ready to done"):
        dag.finish("a", RunState.DONE)
    dag.start("a")
    with pytest.raises(ValueError, match="run a cannot go from running to blocked"):
        dag.finish("a", RunState.BLOCKED)


def test_circles_and_strangers_are_refused() -> None:
    with pytest.raises(ValueError, match="is its own ancestor"):
        RunDag({"a": ("b",), "b": ("a",)}, {})
    with pytest.raises(ValueError, match="run a needs z, which is not part of the grid"):
        RunDag({"a": ("z",)}, {})


def test_longest_path_counts_the_descendants() -> None:
    paths = RunDag(CHAIN, {}).longest_path({"a": 1, "b": 5, "c": 2, "x": 7})
    assert paths == {"a": 8, "b": 7, "c": 2, "x": 7}


@given(data=st.data(), size=st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_any_order_of_events_ends_finished_with_parents_before_children(data: st.DataObject, size: int) -> None:
    parents = {
        str(i): tuple(str(j) for j in data.draw(st.sets(st.integers(0, i - 1), max_size=2)) if i) if i else ()
        for i in range(size)
    }
    dag = RunDag(parents, {})
    started: list[str] = []
    running: list[str] = []
    while not dag.is_finished():
        assert dag.ready() or running, "something can always happen until all is finished"
        if dag.ready() and (not running or data.draw(st.booleans())):
            run = data.draw(st.sampled_from(dag.ready()))
            assert all(dag.states[parent] is RunState.DONE for parent in parents[run])
            dag.start(run)
            started.append(run)
            running.append(run)
        else:
            run = running.pop(data.draw(st.integers(0, len(running) - 1)))
            dag.finish(run, data.draw(st.sampled_from([RunState.DONE, RunState.FAILED])))
    assert len(started) == len(set(started))
    for run, state in dag.states.items():
        broken = any(dag.states[parent] in (RunState.FAILED, RunState.BLOCKED) for parent in parents[run])
        assert (state is RunState.BLOCKED) == broken


def test_runs_may_join_on_the_way() -> None:
    dag = RunDag({"a": (), "b": ()}, {"b": RunState.BLOCKED})
    dag.add("c", ("a",))
    dag.add("d", ("b",))
    dag.add("e", (), RunState.DONE)
    dag.add("f", ("e",))
    assert [dag.states[one].value for one in "cdef"] == ["waiting", "blocked", "done", "ready"]
    dag.start("a")
    dag.finish("a", RunState.DONE)
    assert dag.ready() == ["c", "f"]
    with pytest.raises(ValueError, match="run a is part of the grid already"):
        dag.add("a", ())
    with pytest.raises(ValueError, match="run g needs z, which is not part of the grid"):
        dag.add("g", ("z",))


def test_a_pruned_run_is_finished_and_has_no_heirs() -> None:
    dag = RunDag(CHAIN, {})
    dag.start("a")
    assert dag.finish("a", RunState.PRUNED) == ["b", "c"] and dag.states["a"].is_finished()
    assert RunDag(CHAIN, {"a": RunState.PRUNED}).states["b"] is RunState.BLOCKED


def test_children_of_a_held_run_keep_waiting() -> None:
    dag = RunDag(CHAIN, {"x": RunState.HELD})
    dag.start("a")
    assert dag.finish("a", RunState.HELD) == []
    assert dag.states == {
        "a": RunState.HELD,
        "b": RunState.WAITING,
        "c": RunState.WAITING,
        "x": RunState.HELD,
    }
    assert dag.ready() == []
