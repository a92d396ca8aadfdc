"""The simulated schedule: hand-made cases, and that no schedule beats the bound."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from tuner.dag import RunDag, RunState
from tuner.packing import Schedule, simulate
from tuner.resources import GIB, Bundle, Node

ONE = Bundle(cpus=1, share=0.0, memory_bytes=0)


def node(cpus: float, gpus: float = 0, memory_gib: float = 1000) -> Node:
    return Node(cpus=cpus, gpus=gpus, memory_bytes=memory_gib * GIB)


def plan(seconds: dict[str, float], nodes: list[Node], bundle: Bundle = ONE, **parents: tuple[str, ...]) -> Schedule:
    dag = RunDag({run: parents.get(run, ()) for run in seconds}, {})
    return simulate(dag, seconds, dict.fromkeys(seconds, bundle), nodes)


def test_two_cores_share_the_work() -> None:
    found = plan({"a": 6.0, "b": 4.0, "c": 3.0}, [node(2)])
    assert found.starts_s == {"a": 0.0, "b": 0.0, "c": 4.0}
    assert (found.makespan_s, found.lower_bound_s) == (7.0, 6.5)


def test_children_wait_for_their_parent_and_for_no_stranger() -> None:
    seconds = {"parent": 1.0, "child": 1.0, "stranger": 10.0}
    found = plan(seconds, [node(2)], child=("parent",))
    assert found.starts_s == {"stranger": 0.0, "parent": 0.0, "child": 1.0}
    assert found.makespan_s == found.lower_bound_s == 10.0


def test_shares_fill_cards_and_never_straddle_them() -> None:
    seconds = dict.fromkeys("abcdef", 1.0)
    assert plan(seconds, [node(64, gpus=2)], Bundle(cpus=1, share=0.4, memory_bytes=0)).makespan_s == 2.0
    assert plan(seconds, [node(64, gpus=2)], Bundle(cpus=1, share=0.3333, memory_bytes=0)).makespan_s == 1.0
    assert plan(seconds, [node(64, gpus=4)], Bundle(cpus=1, share=2.0, memory_bytes=0)).makespan_s == 3.0


def test_cards_bound_a_schedule_as_cores_do() -> None:
    found = plan(dict.fromkeys("abcd", 1.0), [node(64, gpus=1)], Bundle(cpus=1, share=0.5, memory_bytes=0))
    assert found.makespan_s == found.lower_bound_s == 2.0


def test_memory_limits_what_runs_at_once() -> None:
    bundle = Bundle(cpus=1, share=0.0, memory_bytes=3 * GIB)
    assert plan(dict.fromkeys("abcd", 1.0), [node(4, memory_gib=8)], bundle).makespan_s == 2.0


def test_a_large_run_does_not_hold_up_a_small_one_that_fits() -> None:
    dag = RunDag({"first": (), "large": (), "small": ()}, {})
    seconds = {"first": 5.0, "large": 4.0, "small": 1.0}
    whole, half = Bundle(cpus=1, share=1.0, memory_bytes=0), Bundle(cpus=1, share=0.5, memory_bytes=0)
    found = simulate(dag, seconds, {"first": half, "large": whole, "small": half}, [node(8, gpus=1)])
    assert found.starts_s == {"first": 0.0, "small": 0.0, "large": 5.0}


def test_done_runs_take_no_time() -> None:
    dag = RunDag({"a": (), "b": ("a",)}, {"a": RunState.DONE})
    found = simulate(dag, {"a": 100.0, "b": 2.0}, {"a": ONE, "b": ONE}, [node(1)])
    assert (found.makespan_s, found.lower_bound_s, found.starts_s) == (2.0, 2.0, {"b": 0.0})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_schedule_beats_the_bound_and_nothing_is_overbooked(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    names = [str(number) for number in range(count)]
    seconds = {name: data.draw(st.floats(0.1, 10)) for name in names}
    parents = {
        name: tuple(data.draw(st.lists(st.sampled_from(names[:i]), max_size=2, unique=True))) if i else ()
        for i, name in enumerate(names)
    }
    shares = st.sampled_from([0.0, 0.25, 0.3333, 0.5, 1.0, 2.0])
    bundles = {
        name: Bundle(cpus=data.draw(st.integers(1, 2)), share=data.draw(shares), memory_bytes=0) for name in names
    }
    machine = node(3, gpus=2)
    found = simulate(RunDag(parents, {}), seconds, bundles, [machine])
    assert set(found.starts_s) == set(names)
    assert found.makespan_s >= found.lower_bound_s - 1e-9
    ends = {name: found.starts_s[name] + seconds[name] for name in names}
    assert all(found.starts_s[name] >= ends[parent] - 1e-9 for name in names for parent in parents[name])
    for moment in found.starts_s.values():
        alive = [bundles[name] for name in names if found.starts_s[name] <= moment < ends[name]]
        assert sum(one.cpus for one in alive) <= 3 and sum(one.share for one in alive) <= 2 + 1e-6
