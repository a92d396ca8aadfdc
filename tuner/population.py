"""Population-based training of a row as generations of ordinary runs.

A population of members trains for a part of the row's epochs; then each member of the worst quarter takes over the
weights of one of the best quarter and a perturbed value (x 0.8 or x 1.25), all others go on from their own weights
with their own value. A member's generation is a run that starts from a run of the generation before, so lineage,
identity and resume are those of any other run. What is found is a schedule, one value a generation. The schedule of the
last generation's best member is then trained without the hold-out.

Optimiser moments, warm-up and the learning rate's schedule begin anew with each generation.
"""

from __future__ import annotations

from typing import Any

from trainable.sweep_records import Decision
from tuner.grid import PlannedRun
from tuner.row_search import Step, View, unjudged
from tuner.space import Value, fraction
from tuner.sweep import SweptRow, shown_value
from tuner.sweep_file import Sweep

FACTORS = (0.8, 1.25)
QUARTER = 4


class Population:
    """One row's population, for one seed.

    Args:
        sweep: size, number of generations, and how the first values are laid out.
        row: the row.
    """

    def __init__(self, sweep: Sweep, row: SweptRow) -> None:
        self.sweep, self.row = sweep, row
        self.verdict, self.found = "", False
        (self._seed,) = row.base
        self._values: list[list[Value]] = []
        """By generation and member."""
        self._sources: list[list[int]] = []
        """The member of the generation before whose weights were taken, by generation and member."""
        self._runs: list[list[PlannedRun]] = []

    def trials(self) -> list[PlannedRun]:
        """All runs of all generations so far."""
        return [run for generation in self._runs for run in generation]

    def remaining(self) -> int:
        """How many more runs it may propose at most."""
        if self.verdict:
            return 0
        return (self.sweep.generations - len(self._runs)) * self.sweep.trials + self.sweep.generations

    def step(self, view: View) -> Step:
        """The next generation once the last one is finished; after the last, the chosen schedule."""
        step = Step()
        if self.verdict:
            return step
        if not self._runs:
            space, sweep = self.row.space, self.sweep
            values = space.grid(sweep.trials) if sweep.search == "grid" else space.draw(sweep.trials, *self._at())
            self._breed(values, list(range(len(values))), step)
        elif view.settled(self._runs[-1]):
            if (problem := unjudged(self._runs[-1], view)) is not None:
                self.verdict = f"{self.row.label}: nothing chosen, {problem}"
            elif all(view.is_pruned(run) for run in self._runs[-1]):
                self.verdict = f"{self.row.label}: nothing chosen, every member diverged"
            elif len(self._runs) < self.sweep.generations:
                self._next(view, step)
            else:
                self._choose(view, step)
        return step

    def _at(self, *position: object) -> tuple[object, ...]:
        return (self.sweep.name, self.row.label, *position)

    def _ranking(self, view: View) -> list[int]:
        """Members of the last generation, best first; diverged ones last; ties to the first."""
        scores = [view.scores[run.run_id].top1 if not view.is_pruned(run) else -1.0 for run in self._runs[-1]]
        return sorted(range(len(scores)), key=lambda member: (-scores[member], member))

    def _next(self, view: View, step: Step) -> None:
        generation, ranking = len(self._runs), self._ranking(view)
        size = max(1, len(ranking) // QUARTER)
        best = [member for member in ranking[:size] if not view.is_pruned(self._runs[-1][member])]
        worst = {member for member in ranking[-size:] if member not in best}
        worst |= {member for member, run in enumerate(self._runs[-1]) if view.is_pruned(run)}
        values, sources = list(self._values[-1]), list(range(len(ranking)))
        for member in sorted(worst):
            source = best[int(fraction(*self._at("source", generation, member)) * len(best))]
            factor = FACTORS[int(fraction(*self._at("factor", generation, member)) * len(FACTORS))]
            before = self._values[-1][source]
            assert isinstance(before, float | int)
            values[member], sources[member] = self.row.space.rounded(before * factor), source
            step.decisions.append(
                {
                    "kind": "exploit",
                    "row": self.row.label,
                    "generation": generation,
                    "member": member,
                    "source": source,
                    "value": values[member],
                    "why": f"rank {ranking.index(member) + 1} of {len(ranking)} after generation {generation}: weights "
                    f"of member {source}, whose {shown_value(before)} times {factor:g}",
                }
            )
        self._breed(values, sources, step)

    def _breed(self, values: list[Value], sources: list[int], step: Step) -> None:
        generation = len(self._runs)
        runs = []
        for member, (value, source) in enumerate(zip(values, sources, strict=True)):
            parent = self._runs[-1][source] if self._runs else None
            name = f"generation {generation + 1}/{self.sweep.generations} member {member + 1} "
            runs.append(self.row.trial(self._seed, value, name, self._fields(parent, self.row.set)))
            step.decisions.append(self._suggestion(generation, member, value, runs[-1]))
        self._values.append(values)
        self._sources.append(sources)
        self._runs.append(runs)
        step.runs += {run.run_id: run for run in runs}.values()

    def _fields(self, parent: PlannedRun | None, given: Any) -> dict[str, Any]:
        """Fields of one generation: its share of the epochs, and the run that it goes on from."""
        epochs = given.get("budget.epochs", self.row.base[self._seed].spec.budget.epochs)
        fields: dict[str, Any] = {"budget.epochs": epochs // self.sweep.generations}
        if parent is not None:
            fields |= {"init.kind": "parent", "init.source": parent.run_id, "init.sha256": None}
            fields |= {"init.checkpoint": "last", "init.surgery": []}
        return fields

    def _suggestion(self, generation: int, member: int, value: Value, run: PlannedRun) -> Decision:
        return {
            "kind": "suggest",
            "row": self.row.label,
            "value": value,
            "runs": {str(self._seed): run.run_id},
            "search": "pbt",
            "generation": generation,
            "member": member,
            "why": f"member {member + 1} of {self.sweep.trials}, generation {generation + 1} of "
            f"{self.sweep.generations}",
        }

    def _choose(self, view: View, step: Step) -> None:
        best = self._ranking(view)[0]
        schedule: list[Value] = []
        member = best
        for generation in reversed(range(len(self._runs))):
            schedule.insert(0, self._values[generation][member])
            member = self._sources[generation][member]
        chain: list[PlannedRun] = []
        for generation, value in enumerate(schedule):
            name = f"{generation + 1}/{len(schedule)} "
            fields = self._fields(chain[-1] if chain else None, {})
            chain.append(self.row.chosen(self._seed, value, name, fields))
        top1 = view.scores[self._runs[-1][best].run_id].top1
        shown = ", ".join(map(shown_value, schedule))
        self.found = True
        self.verdict = f"{self.row.label}: schedule {shown}, top-1 {100 * top1:.2f} % on the hold-out"
        step.runs += chain
        step.decisions.append(
            {
                "kind": "choose",
                "row": self.row.label,
                "value": schedule,
                "runs": {str(self._seed): chain[-1].run_id},
                "chain": [run.run_id for run in chain],
                "member": best,
                "why": f"the schedule of member {best + 1}, the best of the last generation (top-1 {top1:.6f} on the "
                "hold-out)",
            }
        )
