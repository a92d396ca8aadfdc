"""How long a grid takes on given machines: its trials placed, longest path first, on a simulated clock."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuner.dag import RunDag, RunState
from tuner.resources import Bundle, Node


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A simulated run of a grid."""

    makespan_s: float
    lower_bound_s: float
    """No schedule can be shorter: the longest chain of descendants, or all work spread evenly over all machines."""
    starts_s: dict[str, float]
    """By run id."""


def simulate(
    dag: RunDag, seconds: Mapping[str, float], bundles: Mapping[str, Bundle], nodes: Sequence[Node]
) -> Schedule:
    """Places what is left of a grid.

    Args:
        dag: where the grid stands; it is walked to its end, so give one that is not needed any more.
        seconds: duration of every run, by run id.
        bundles: what every run asks for, by run id. Each must fit some machine.
        nodes: the machines, empty at the beginning.
    """
    paths = dag.longest_path(seconds)
    todo = [run_id for run_id, state in dag.states.items() if not state.is_finished()]
    free = [_Free(node) for node in nodes]
    waiting: dict[Bundle, list[tuple[float, int, str]]] = {}
    order = {run_id: number for number, run_id in enumerate(todo)}

    def queue(run_id: str) -> None:
        heapq.heappush(waiting.setdefault(bundles[run_id], []), (-paths[run_id], order[run_id], run_id))

    for run_id in dag.ready():
        queue(run_id)
    running: list[tuple[float, int, str, _Free, int]] = []
    starts: dict[str, float] = {}
    now = 0.0
    while True:
        blocked: set[Bundle] = set()
        while heads := [(heap[0], bundle) for bundle, heap in waiting.items() if heap and bundle not in blocked]:
            (_, number, run_id), bundle = min(heads)[0], min(heads)[1]
            placed = next(((one, card) for one in free if (card := one.take(bundle)) is not None), None)
            if placed is None:
                blocked.add(bundle)
                continue
            heapq.heappop(waiting[bundle])
            dag.start(run_id)
            starts[run_id] = now
            heapq.heappush(running, (now + seconds[run_id], number, run_id, *placed))
        if not running:
            break
        now, _, run_id, one, card = heapq.heappop(running)
        one.give(bundles[run_id], card)
        dag.finish(run_id, RunState.DONE)
        for child in dag.children(run_id):
            if dag.states[child] is RunState.READY:
                queue(child)
    return Schedule(makespan_s=now, lower_bound_s=_bound(todo, paths, seconds, bundles, nodes), starts_s=starts)


def _bound(
    todo: Sequence[str],
    paths: Mapping[str, float],
    seconds: Mapping[str, float],
    bundles: Mapping[str, Bundle],
    nodes: Sequence[Node],
) -> float:
    cpus = sum(node.cpus for node in nodes)
    gpus = sum(node.gpus for node in nodes)
    chain = max((paths[run_id] for run_id in todo), default=0.0)
    cpu_work = sum(seconds[run_id] * bundles[run_id].cpus for run_id in todo) / cpus
    gpu_work = sum(seconds[run_id] * bundles[run_id].share for run_id in todo) / gpus if gpus else 0.0
    return max(chain, cpu_work, gpu_work)


class _Free:
    """What is free on one machine."""

    def __init__(self, node: Node) -> None:
        self._cpus, self._memory = node.cpus, node.memory_bytes
        self._cards = [1.0] * int(node.gpus)

    def take(self, bundle: Bundle) -> int | None:
        """Takes what a trial asks for. Returns the card's number (0 where none is asked for); None: does not fit."""
        if bundle.cpus > self._cpus or bundle.memory_bytes > self._memory:
            return None
        card = 0
        if bundle.share > 1:
            whole = [number for number, rest in enumerate(self._cards) if rest > 1 - 1e-9]
            if len(whole) < bundle.share:
                return None
            for number in whole[: int(bundle.share)]:
                self._cards[number] = 0.0
        elif bundle.share:
            fitting = [number for number, rest in enumerate(self._cards) if rest >= bundle.share - 1e-9]
            if not fitting:
                return None
            card = min(fitting, key=lambda number: self._cards[number])
            self._cards[card] -= bundle.share
        self._cpus -= bundle.cpus
        self._memory -= bundle.memory_bytes
        return card

    def give(self, bundle: Bundle, card: int) -> None:
        """Gives it back."""
        if bundle.share > 1:
            taken = [number for number, rest in enumerate(self._cards) if rest == 0.0]
            for number in taken[: int(bundle.share)]:
                self._cards[number] = 1.0
        elif bundle.share:
            self._cards[card] += bundle.share
        self._cpus += bundle.cpus
        self._memory += bundle.memory_bytes
