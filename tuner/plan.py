"""How what is left of a grid will be run on given machines: costs, bundles, order, and how long it will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trainable.costs import peak_memory, read_costs, shape_of
from trainable.records import AttemptRecord, read_attempts
from trainable.storage import Storage
from tuner.cost import START_S, Cost, Device, Predictor
from tuner.dag import RunDag, RunState
from tuner.facts import LocalFacts
from tuner.grid import Grid, PlannedRun
from tuner.ledger import Survey
from tuner.packing import Schedule, simulate
from tuner.resources import Node, ResourceError, Resources, shares_to_try

UNKNOWN_S = 60.0
"""Taken for a run of which nothing is known, where nothing is known of any other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A grid on machines."""

    device: Device
    nodes: tuple[Node, ...]
    costs: dict[str, Cost | None]
    """By run id; None where nothing is known of the data."""
    resources: Resources
    seconds: dict[str, float]
    """Predicted duration of every run in its share, by run id. Unknown ones count as the longest known."""
    schedule: Schedule
    """Of the runs that are not done, those included whose data or weights are missing now."""

    def order(self) -> dict[str, int]:
        """Position in the order of starting, by run id, of the runs that are to be run."""
        starts = self.schedule.starts_s
        return {run_id: number for number, run_id in enumerate(starts, 1)}

    def gpu_hours(self) -> float:
        """Hours of whole cards that the runs to come will hold."""
        return self._sum(lambda run_id: self.resources.bundle(run_id).share)

    def core_hours(self) -> float:
        """Hours of cores that the runs to come will hold."""
        return self._sum(lambda run_id: self.resources.bundle(run_id).cpus)

    def predicted(self) -> dict[str, dict[str, Any]]:
        """What a manifest keeps of it, by run id: the prediction that later measurements are held against."""
        return {
            run_id: {
                "seconds": cost.seconds_at(self.resources.bundle(run_id).share),
                "memory_bytes": cost.memory_bytes,
                "gpu_share": self.resources.bundle(run_id).share,
                "basis": cost.basis,
            }
            for run_id, cost in self.costs.items()
            if cost is not None and run_id in self.schedule.starts_s
        }

    def add(self, run_id: str, like: str, parts: float) -> None:
        """A further run, which takes what a known one does, for so many times as long."""
        self.costs[run_id], self.seconds[run_id] = self.costs[like], parts * self.seconds[like]
        self.resources.add(run_id, like)

    def to_probe(self, rows: Sequence[PlannedRun]) -> list[PlannedRun]:
        """One run of every shape whose share of a card would rest on a guess."""
        if not self.resources.from_memory:
            return []
        unknown = [run for run in rows if (cost := self.costs[run.run_id]) is None or cost.basis != "measured"]
        return list({shape_of(run.spec): run for run in unknown}.values())

    def _sum(self, amount: Any) -> float:
        return float(sum(self.seconds[run_id] * amount(run_id) for run_id in self.schedule.starts_s) / 3600)


def make_plan(
    grid: Grid,
    found: Survey,
    storage: Storage,
    facts: LocalFacts,
    nodes: Sequence[Node],
    *,
    cpus: int,
    gpu_share: float | None,
    device: str,
) -> Plan:
    """Plans what is left of a grid. Where shares of a card follow from memory, several least shares are simulated and
    the one that ends soonest is kept: sharing fills gaps between kernels, and more cards want fewer runs each.

    Args:
        grid: its runs.
        found: where they stand.
        storage: has the measured costs.
        facts: has the manifests of the data.
        nodes: the machines.
        cpus: cores of a trial.
        gpu_share: of a card for all; None derives each run's.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ResourceError: no machine can hold a trial, or the device cannot be had.
    """
    target = _target(nodes, cpus, device)
    if gpu_share is None and target.kind == "cpu":
        gpu_share = 0.0  # cards are left to those that use them
    if device == "cuda" and gpu_share == 0:
        raise ResourceError("--device cuda: a trial has no share of a GPU; raise --gpu-share, or choose --device cpu")
    shapes = {shape_of(run.spec) for run in _one_a_row(grid)}
    predictor = Predictor(target, read_costs(storage, shapes))
    data = {run.spec.data.dataset for run in grid.runs}
    known = {name: (facts.manifest(name), facts.num_test(name)) for name in data}
    costs = predictor.predict({run.run_id: (run.spec, *known[run.spec.data.dataset]) for run in grid.runs})
    left = sum(not state.is_finished() for state in _unfinished(grid, found).states.values())
    cards = int(sum(node.gpus for node in nodes))

    def with_shares(at_least: float) -> Plan:
        resources = Resources(nodes, cpus=cpus, gpu_share=gpu_share, costs=costs, at_least=at_least)
        seconds = durations(costs, resources)
        bundles = {run_id: resources.bundle(run_id) for run_id in costs}
        return Plan(
            device=target,
            nodes=tuple(nodes),
            costs=costs,
            resources=resources,
            seconds=seconds,
            schedule=simulate(_unfinished(grid, found), seconds, bundles, nodes),
        )

    plan = with_shares(0.0)
    if not plan.resources.from_memory:
        return plan
    others = [with_shares(at_least) for at_least in shares_to_try(left, cards)]
    return min([*others, plan], key=lambda one: one.schedule.makespan_s)  # of equal ones, the fewest runs a card


def _unfinished(grid: Grid, found: Survey) -> RunDag:
    """Everything that is not done, as if the data and weights that are missing now were there."""
    done = {run_id: state for run_id, state in found.states.items() if state is RunState.DONE}
    return RunDag({run.run_id: run.parents for run in grid.runs}, done)


def durations(costs: Mapping[str, Cost | None], resources: Resources) -> dict[str, float]:
    """Seconds of every run in its share, the start of its process included where it has one of its own."""
    known = {
        run_id: cost.seconds_at(share) + (START_S if share else 0.0)
        for run_id, cost in costs.items()
        for share in [resources.bundle(run_id).share]
        if cost
    }
    longest = max(known.values(), default=UNKNOWN_S)
    return {run_id: known.get(run_id, longest) for run_id in costs}


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionError:
    """One finished run beside its prediction; both as measured over predicted."""

    run_id: str
    basis: str
    seconds: float
    memory: float | None


def prediction_errors(
    storage: Storage, predicted: Mapping[str, Mapping[str, Any]], since: datetime
) -> list[PredictionError]:
    """Holds predictions against the runs that one undisturbed attempt began and finished since then."""
    attempts: dict[str, list[AttemptRecord]] = {}
    for record in read_attempts(storage, predicted):
        attempts.setdefault(record.run_id, []).append(record)
    whole = {
        run_id: found[0]
        for run_id, found in attempts.items()
        if len(found) == 1 and found[0].outcome == "done" and found[0].started_at >= since
    }
    peaks = peak_memory(storage, [record.attempt_id for record in whole.values()])
    errors = []
    for run_id, record in whole.items():
        assert record.ended_at is not None
        peak = peaks.get(record.attempt_id)
        errors.append(
            PredictionError(
                run_id=run_id,
                basis=predicted[run_id]["basis"],
                seconds=(record.ended_at - record.started_at).total_seconds() / predicted[run_id]["seconds"],
                memory=peak / predicted[run_id]["memory_bytes"] if peak is not None else None,
            )
        )
    return errors


def _one_a_row(grid: Grid) -> list[PlannedRun]:
    """One run of every row: seeds do not change what a run costs."""
    return list({run.label: run for run in grid.runs}.values())


def _target(nodes: Sequence[Node], cpus: int, device: str) -> Device:
    cards = [node for node in nodes if node.gpus]
    if device == "cuda" and not cards:
        raise ResourceError("--device cuda: the cluster has no GPU; choose --device cpu, or join one with --address")
    if device == "cuda" or (device == "auto" and cards):
        names = {node.gpu_name for node in cards}
        name = names.pop() if len(names) == 1 else None
        return Device(kind="cuda", name=name, threads=cpus, gpu_flops=min(node.gpu_flops for node in cards))
    processors = {node.cpu_name for node in nodes}
    return Device(kind="cpu", name=processors.pop() if len(processors) == 1 else None, threads=cpus)
