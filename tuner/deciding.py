"""`--until-decided CLAIM --max-gpu-hours H`: judging and running by turns until the claim is decided or they are spent.

Judging is the analysis': `python -m analysis.power --next CLAIM --json`, a program of its own, so that `tuner` imports
nothing of it. It says at which level a look may judge and which runs would decide most. This module counts the looks,
keeps the budget and runs what was chosen, as ordinary runs of the grid.

    looks/<grid>/<variant>--<number>.json     what one round found and chose; written before its runs begin

So the same command goes on after a kill: a round that was begun is finished before anything is judged again, and what
was judged before is not a new look.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from trainable.records import RecordError
from trainable.storage import Storage
from tuner.grid import Grid
from tuner.ledger import survey
from tuner.options import UsageError

SCHEMA_VERSION = 1


class Pick(BaseModel):
    """A run that was chosen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    seed: int
    hours: float


class Answer(BaseModel):
    """What `analysis.power --next` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    claim: str
    verdict: str
    state: str
    is_pilot: bool
    digest: str
    level: float
    most_looks: int
    lines: tuple[str, ...]
    picks: tuple[Pick, ...]
    hours: dict[str, float]
    run_hours: dict[str, float]


class Round(BaseModel):
    """The record of one round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    number: int
    claim: str
    is_pilot: bool
    digest: str
    picks: tuple[Pick, ...]
    decided_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Deciding:
    """What a decision needs of the world."""

    claim: str
    max_hours: float
    storage: Storage
    grid: str
    variant: str
    plan: Callable[[Collection[tuple[str, int]]], Grid]
    """The runs of these labels and seeds, with the parents that they need."""
    ask: Callable[[], Answer]
    """Judges what the store holds now."""
    train: Callable[[Grid], int]
    """Runs a grid; its exit code is `tuner.run`'s."""
    say: Callable[[str], None]

    def go_on(self, *, dry_run: bool = False) -> int:
        """Rounds until there is a reason to stop, which is said in one line.

        Args:
            dry_run: judge and choose once; record and run nothing.

        Returns:
            0: the claim is decided (or, of a dry run, there is something to run). 1: it is not, or a chosen run
            failed. Else what `train` ended with.

        Raises:
            RecordError: a record of the rounds is damaged.
            UsageError: the analysis cannot judge this grid, or another command is deciding on it.
        """
        while True:
            rounds = read_rounds(self.storage, self.grid, self.variant)
            mine = [one for one in rounds if one.claim == self.claim]
            if mine and not dry_run and (left := self._left(mine[-1])) is not None:
                self.say(f"{self.claim}: going on with round {mine[-1].number}, which was begun before")
                if (code := self.train(left)) != 0:
                    return code
                continue
            answer = self.ask()
            looks = {one.digest for one in rounds if not one.is_pilot}
            number = len(looks) if answer.is_pilot else len(looks | {answer.digest})
            if number > answer.most_looks:
                return self._stop(f"undecided: all {answer.most_looks} looks at this grid are used up")
            for line in self._told(answer, number):
                self.say(line)
            picks: tuple[Pick, ...] = ()
            spent = self._spent(mine, answer)
            budget = f"{spent:.3g} of {self.max_hours:g} device-hours are spent"
            why = ""
            if answer.state == "stuck":
                why = "undecided: the blocks that are open cannot be estimated, for the reasons above"
            elif answer.state == "open" and number == answer.most_looks:
                why = f"undecided: this was the last of {answer.most_looks} looks"
            elif answer.state == "open":
                picks, hours = self._within(answer, self.max_hours - spent)
                why = "" if picks else f"undecided: {budget}, and the next run would take about {hours:.3g}"
            if not dry_run:
                self._record(answer, rounds, picks)
            if answer.state == "settled":
                self.say(f"{self.claim}: {answer.verdict}, every block is decided. {NOMINAL}")
                return 0
            if why:
                return self._stop(why)
            chosen = ", ".join(f"{pick.label}/{pick.seed}" for pick in picks)
            self.say(f"  {budget}; next {len(picks)} run{'s' * (len(picks) > 1)}, about {hours:.3g}: {chosen}")
            if dry_run:
                return 0
            code = self.train(self.plan([(pick.label, pick.seed) for pick in picks]))
            if code != 0:
                return code

    def _left(self, last: Round) -> Grid | None:
        """A round's runs, where one of them is neither done nor failed nor blocked; else None."""
        if not last.picks:
            return None
        grid = self.plan([(pick.label, pick.seed) for pick in last.picks])
        found = survey(self.storage, grid)
        left = [
            run_id
            for run_id, state in found.states.items()
            if not state.is_finished() and not found.begun.get(run_id, "").startswith("failed")
        ]
        return grid if left else None

    def _told(self, answer: Answer, number: int) -> list[str]:
        if answer.is_pilot:
            return [f"{self.claim}: too few seeds to be judged, so this is no look"]
        head = (
            f"{self.claim}: look {number} of at most {answer.most_looks} at this grid, each at level {answer.level:g} "
            f"(the registered one divided by the looks): {answer.verdict}"
        )
        return [head, *(f"  {line}" for line in answer.lines)]

    def _spent(self, mine: Sequence[Round], answer: Answer) -> float:
        """Measured hours of all runs that earlier rounds chose, parents trained for them included."""
        known: set[str] = set()
        for one in mine:
            if one.picks:
                known |= {run.run_id for run in self.plan([(pick.label, pick.seed) for pick in one.picks]).runs}
        return sum(answer.run_hours.get(run_id, 0.0) for run_id in known)

    def _within(self, answer: Answer, hours: float) -> tuple[tuple[Pick, ...], float]:
        """The first picks that fit into the hours, with the parents that they need; and what they take, or the first
        would."""
        whole = self.plan([(pick.label, pick.seed) for pick in answer.picks])
        total = 0.0
        for num in range(1, len(answer.picks) + 1):
            wanted = subset(whole, [(pick.label, pick.seed) for pick in answer.picks[:num]])
            further = [run.label for run in wanted.runs if run.run_id not in answer.run_hours]
            cost = sum(answer.hours.get(label, 0.0) for label in further)
            if cost > hours:
                return answer.picks[: num - 1], total if num > 1 else cost
            total = cost
        return answer.picks, total

    def _record(self, answer: Answer, rounds: Sequence[Round], picks: tuple[Pick, ...]) -> None:
        """Once for what was judged and chosen."""
        last = rounds[-1] if rounds else None
        if last is not None and (last.digest, last.claim, last.picks) == (answer.digest, answer.claim, picks):
            return
        number = last.number + 1 if last else 1
        record = Round(
            schema_version=SCHEMA_VERSION,
            number=number,
            claim=answer.claim,
            is_pilot=answer.is_pilot,
            digest=answer.digest,
            picks=picks,
            decided_at=datetime.now(UTC),
        )
        path = f"looks/{self.grid}/{self.variant}--{number:04d}.json"
        try:
            self.storage.publish(path, record.model_dump_json(indent=1).encode())
        except FileExistsError:
            raise UsageError(f"--until-decided: another command is deciding on grid {self.grid} right now") from None

    def _stop(self, why: str) -> int:
        self.say(f"{self.claim}: {why}. {NOMINAL}")
        return 1


NOMINAL = "Tables print verdicts at the registered level, as if this had been the only look"


def subset(grid: Grid, pairs: Collection[tuple[str, int]]) -> Grid:
    """A grid with the runs of these labels and seeds alone, and the parents that they need."""
    runs = {run.run_id: run for run in grid.runs}
    wanted = [run.run_id for run in grid.runs if (run.label, run.spec.seed) in pairs]
    for run_id in wanted:  # grows by the parents
        wanted += [parent for parent in runs[run_id].parents if parent not in wanted]
    return replace(grid, runs=tuple(run for run in grid.runs if run.run_id in wanted))


def judged(grid: str, variant: str, results: str, claim: str) -> Answer:
    """Asks the analysis.

    Raises:
        UsageError: it cannot judge this grid; the message is its own.
    """
    options = ["--grid", grid, "--variant", variant, "--results", results, "--next", claim, "--json"]
    asked = subprocess.run(
        [sys.executable, "-m", "analysis.power", *options], capture_output=True, text=True, check=False
    )
    if asked.returncode != 0:
        why = asked.stderr.strip().removeprefix("analysis.power: ") or f"exit code {asked.returncode}"
        raise UsageError(
            f"--until-decided {claim}: {why}. It adds seeds to a grid that was run: python -m tuner.run --grid {grid}"
        )
    return Answer.model_validate_json(asked.stdout)


def read_rounds(storage: Storage, grid: str, variant: str) -> list[Round]:
    """The rounds of all claims of a grid's variant, in their order.

    Raises:
        RecordError: one is damaged or newer: looks that cannot be counted cannot be taken.
    """
    found = []
    for name in storage.names(f"looks/{grid}"):
        path = f"looks/{grid}/{name}"
        if not name.startswith(f"{variant}--"):
            continue
        try:
            record = Round.model_validate_json(storage.read(path, at_most=1 << 20))
        except ValidationError:
            raise RecordError(
                f"{storage.folder(path)}: not a whole record of a look, and looks must be counted; put it back"
            ) from None
        if record.schema_version > SCHEMA_VERSION:
            raise RecordError(f"{storage.folder(path)}: of a newer version; update this one")
        found.append(record)
    return sorted(found, key=lambda one: one.number)
