"""Rounds of judging and running: looks are counted, the budget is kept, a killed round is finished. No Ray, no analysis:
a fake judge says what the runs that are there would have it say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
from published_store import commit_answers, from_correct

from trainable import records
from trainable.records import RecordError
from trainable.storage import Storage
from tuner.deciding import Answer, Deciding, Pick, read_rounds, subset
from tuner.grid import Grid, Selection, load_grid
from tuner.options import UsageError
from tuner.run import main

ROWS = ("resnet-pre-default", "vit-pre-cutmix")
HOURS = {"vit-default": 1.0, "resnet-pre-default": 1.0, "vit-pre-cutmix": 2.0, "parent-resnet": 0.5, "parent-vit": 0.5}


class World:
    """A store, a judge who is satisfied with `enough` seeds of both rows, and a trainer who commits empty-handed."""

    def __init__(self, storage: Storage, grid: Grid, *, enough: int, most_looks: int = 8, pilot: int = 0) -> None:
        self.storage, self.grid = storage, grid
        self.enough, self.most_looks, self.pilot = enough, most_looks, pilot
        self.trained: list[str] = []
        self.said: list[str] = []
        self.kill_after: int | None = None
        self.failing: set[str] = set()

    def plan(self, pairs: Collection[tuple[str, int]]) -> Grid:
        return subset(self.grid, pairs)

    def ask(self) -> Answer:
        grid = self.grid
        done = records.read_commits(self.storage, [run.run_id for run in grid.runs])
        counts = {row: sum(run.label == row and run.run_id in done for run in grid.runs) for row in ROWS}
        least = min(counts.values())
        open_ = least < self.enough
        return Answer(
            claim="H1",
            verdict="INCONCLUSIVE" if open_ else "SUPPORTED",
            state="open" if open_ else "settled",
            is_pilot=least < self.pilot,
            digest=f"{len(done)}",
            level=0.05 / self.most_looks,
            most_looks=self.most_looks,
            lines=(f"least {least}",),
            picks=tuple(Pick(label=row, seed=counts[row] + 1, hours=HOURS[row]) for row in ROWS) if open_ else (),
            hours=HOURS,
            run_hours={run.run_id: HOURS[run.label] for run in grid.runs if run.run_id in done},
        )

    def train(self, grid: Grid) -> int:
        answers = {"final": from_correct(np.arange(20) < 10, 5, np.random.default_rng(0))}
        code = 0
        for run in reversed(grid.runs):  # parents first
            if run.run_id in records.read_commits(self.storage, [run.run_id]):
                continue
            if self.kill_after == len(self.trained):
                raise KeyboardInterrupt
            if run.label in self.failing:
                records.start_attempt(self.storage, run.run_id, "f", {"number": 1})
                records.end_attempt(self.storage, run.run_id, "f", "failed", "broken")
                code = 1
                continue
            commit_answers(self.storage, run.spec, answers)
            self.storage.put(f"runs/{run.run_id}/checkpoint/last/state.safetensors", b"")
            self.trained.append(f"{run.label}/{run.spec.seed}")
        return code

    def deciding(self, max_hours: float = 1e9) -> Deciding:
        return Deciding(
            claim="H1", max_hours=max_hours, storage=self.storage, grid="demo", variant="full", plan=self.plan,
            ask=self.ask, train=self.train, say=self.said.append,
        )  # fmt: skip

    def rounds(self) -> list[tuple[bool, list[str]]]:
        found = read_rounds(self.storage, "demo", "full")
        return [(one.is_pilot, [f"{pick.label}/{pick.seed}" for pick in one.picks]) for one in found]


@pytest.fixture(scope="module")
def grid(root: Path) -> Grid:
    return load_grid(root / "experiments.yaml", "demo", Selection(seeds=tuple(range(1, 13))))


@pytest.fixture
def world(tmp_path: Path, grid: Grid) -> Callable[..., World]:
    def make(**settings: int) -> World:
        return World(Storage(str(tmp_path / "results")), grid, **settings)

    return make


def test_seeds_are_added_until_every_block_is_decided(world: Callable[..., World]) -> None:
    one = world(enough=2)
    assert one.deciding().go_on() == 0
    assert {run for run in one.trained if "parent" not in run} == {f"{row}/{seed}" for seed in (1, 2) for row in ROWS}
    assert sorted(run for run in one.trained if "parent" in run) == [
        f"parent-{model}/{seed}" for model in ("resnet", "vit") for seed in (1, 2)
    ], "every seed has its own parent"
    assert one.said[-1].startswith(
        "H1: SUPPORTED, every block is decided. Tables print verdicts at the registered level"
    )
    assert "H1: look 3 of at most 8 at this grid, each at level 0.00625 " in "\n".join(one.said)
    before = len(one.trained)
    assert one.deciding().go_on() == 0 and len(one.trained) == before, "a decided claim is not judged on more looks"
    assert len(one.rounds()) == 3


def test_the_budget_counts_what_was_measured_parents_included(world: Callable[..., World]) -> None:
    """A round takes 1 + 2 + two parents of 0.5: 4 hours; of the second, only the cheaper row fits into 6."""
    one = world(enough=9)
    assert one.deciding(max_hours=6).go_on() == 1
    assert [picks for _, picks in one.rounds()] == [
        ["resnet-pre-default/1", "vit-pre-cutmix/1"],
        ["resnet-pre-default/2"],
        [],
    ]
    assert one.said[-1].startswith(
        "H1: undecided: 5.5 of 6 device-hours are spent, and the next run would take about 1.5."
    )
    rounds = len(one.rounds())
    assert one.deciding(max_hours=6).go_on() == 1 and len(one.rounds()) == rounds
    assert one.deciding(max_hours=8).go_on() == 1 and len(one.rounds()) == rounds + 2, "more hours, more runs"


def test_looks_are_counted_across_commands_and_end(world: Callable[..., World]) -> None:
    one = world(enough=9, most_looks=3)
    assert one.deciding(max_hours=5).go_on() == 1
    assert one.deciding().go_on() == 1
    assert one.said[-1].startswith("H1: undecided: this was the last of 3 looks")
    assert len([run for run in one.trained if "parent" not in run]) == 4, "two looks chose, the third only judged"
    one.train(one.plan([("vit-default", 1)]))
    said = len(one.said)
    assert one.deciding().go_on() == 1
    assert one.said[said:] == [one.said[-1]] and "all 3 looks at this grid are used up" in one.said[-1], (
        "nothing is shown"
    )


def test_a_pilot_is_no_look(world: Callable[..., World]) -> None:
    one = world(enough=3, pilot=2, most_looks=2)
    assert one.deciding().go_on() == 0
    assert [is_pilot for is_pilot, _ in one.rounds()] == [True, True, False, False]
    assert "too few seeds to be judged, so this is no look" in one.said[0] and "least 0" not in one.said[1]


def test_a_killed_round_is_finished_before_anything_is_judged(world: Callable[..., World]) -> None:
    one = world(enough=1)
    one.kill_after = 2
    with pytest.raises(KeyboardInterrupt):
        one.deciding().go_on()
    one.kill_after = None
    asked = len(one.said)
    assert one.deciding().go_on() == 0
    assert one.said[asked] == "H1: going on with round 1, which was begun before"
    assert len(one.rounds()) == 2 and len(one.trained) == len(set(one.trained)) == 4


def test_a_failed_run_ends_the_command_and_is_not_tried_again(world: Callable[..., World]) -> None:
    one = world(enough=1)
    one.failing = {"vit-pre-cutmix"}
    assert one.deciding().go_on() == 1
    one.failing = set()
    assert one.deciding().go_on() == 0
    assert one.said.count("H1: going on with round 1, which was begun before") == 0
    assert len(one.rounds()) == 3


def test_a_dry_run_leaves_nothing(world: Callable[..., World]) -> None:
    one = world(enough=2)
    assert one.deciding().go_on(dry_run=True) == 0
    assert not one.rounds() and not one.trained and "next 2 runs, about 4: resnet-pre-default/1" in one.said[-1]


def test_a_damaged_record_of_a_look_is_an_error(world: Callable[..., World]) -> None:
    one = world(enough=2)
    one.deciding(max_hours=1).go_on()
    (name,) = one.storage.names("looks/demo")
    one.storage.put(f"looks/demo/{name}", b"{}")
    with pytest.raises(RecordError, match="not a whole record of a look, and looks must be counted; put it back"):
        one.deciding().go_on()


def test_two_commands_do_not_share_a_look(world: Callable[..., World]) -> None:
    one = world(enough=2)
    slow = dataclasses.replace(one.deciding(), ask=lambda: (one.deciding(max_hours=1).go_on(), one.ask())[1])
    with pytest.raises(UsageError, match="another command is deciding on grid demo right now"):
        slow.go_on()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--until-decided", "H1"], "--until-decided and --max-gpu-hours go together"),
        (["--max-gpu-hours", "1"], "--until-decided and --max-gpu-hours go together"),
        (["--until-decided", "H1", "--max-gpu-hours", "0"], "--max-gpu-hours 0: must be more than 0"),
        (["--until-decided", "H1", "--max-gpu-hours", "1", "--seeds", "4"], "--seeds: --until-decided itself says"),
        (
            ["--until-decided", "H1", "--max-gpu-hours", "1", "--address", "ray://head:10001"],
            "--until-decided judges here what the runs gave; give --address auto",
        ),
        (["--until-decided", "H1", "--max-gpu-hours", "1"], "has no such grid"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: list[str], message: str, tmp_path: Path, data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--grid", "demo", "--data", str(data_path), "--results", str(tmp_path / "results")]
    assert main([*common, *options]) == 2
    assert message in capsys.readouterr().err
    assert not json.dumps(str(list(tmp_path.iterdir()))).count("looks")
