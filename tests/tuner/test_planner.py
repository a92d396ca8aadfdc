"""What a sweep proposes, chooses, logs, and finds again after a kill; with made-up numbers, no Ray process."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from sweeping import begin, commit, drive, plan

from trainable import records
from trainable.storage import Storage
from trainable.sweep_records import DecisionLog, pruned
from tuner import tpe
from tuner.dag import RunState
from tuner.grid import PlannedRun, Selection, load_grid
from tuner.ledger import survey
from tuner.row_search import best_value
from tuner.space import Space

ROW = Selection(only=(("label", "vit-default"),))
TWO = Selection(only=(("label", "vit-default"), ("label", "vit-pre-default")))
SHORT = Selection(only=(("label", "vit-pre-default"),), fields={"budget.epochs": 8})


@pytest.fixture
def path(root: Path) -> Path:
    return root / "experiments.yaml"


def lr(run: PlannedRun) -> float:
    return run.spec.optim.lr


def peak(at: float) -> Any:
    """Top-1 that is highest at a learning rate."""
    return lambda run: 0.9 - 0.1 * abs(math.log10(lr(run) / at))


def is_trial(run: PlannedRun) -> bool:
    return run.spec.data.val_fraction > 0


def kinds(planner: Any) -> list[str]:
    return [decision["kind"] for decision in planner.log.decisions]


def test_all_values_then_the_chosen_row_without_the_hold_out(path: Path, storage: Storage) -> None:
    planner = plan(path, storage, selection=TWO)
    assert planner.remaining() == 2 and not planner.is_settled()
    started = drive(planner, storage, peak(1e-3))
    assert started[0].label == "parent-vit" or started[1].label == "parent-vit"
    trials = [run for run in started if is_trial(run)]
    assert sorted(map(lr, trials)) == sorted(2 * [1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2])
    rest = [run.label for run in started if not is_trial(run)]
    assert sorted(rest) == ["parent-vit", "vit-default chosen lr=0.001", "vit-pre-default chosen lr=0.001"]
    assert kinds(planner) == ["suggest"] * 10 + ["choose"] * 2
    assert planner.is_settled() and planner.remaining() == 0
    assert planner.verdicts[0] == "vit-default: lr=0.001 of 5 values, top-1 90.00 % on the hold-out"


def test_a_finished_sweep_does_nothing_more(path: Path, storage: Storage) -> None:
    drive(plan(path, storage, selection=ROW), storage, peak(1e-3))
    again = plan(path, storage, selection=ROW)
    folder = f"sweeps/lr_sweep/{again.grid.header.variant}"
    states = survey(storage, again.grid).states
    assert len(states) == 6 and set(states.values()) == {RunState.DONE} and again.remaining() == 0
    assert again.is_settled() and len(storage.names(folder)) == 2, "what was suggested, what was chosen"


def test_the_grids_own_run_is_the_chosen_one_where_its_own_value_wins(path: Path, storage: Storage) -> None:
    selection = Selection(only=(("label", "vit-mixup"),))
    own = next(run for run in load_grid(path, "demo").runs if run.label == "vit-mixup")
    commit(storage, own, 0.0, 0.5)
    planner = plan(path, storage, "alpha_sweep", selection)
    started = drive(planner, storage, lambda run: 0.9 - abs(math.log(run.spec.augment.mix_alpha or 1)) / 100)
    assert all(is_trial(run) for run in started) and len(started) == 5, "nothing is trained twice"
    (choice,) = planner.log.of("choose")
    assert choice["value"] == 1.0 and choice["runs"] == {"223": own.run_id}


def test_the_choice_never_reads_test_numbers(path: Path, tmp_path: Path) -> None:
    choices = []
    for number, test_top1 in enumerate((lambda run: 0.5, lr, lambda run: 1 - lr(run))):
        storage = Storage(str(tmp_path / str(number)))
        planner = plan(path, storage, selection=ROW)
        drive(planner, storage, peak(3.16e-4), test_top1=test_top1)
        choices.append(planner.log.of("choose"))
    assert choices[0][0]["value"] == 3.16e-4
    assert choices[0] == choices[1] == choices[2]


def test_ties_go_to_the_first_and_seeds_are_averaged() -> None:
    assert best_value({0.1: {1: 0.5}, 0.2: {1: 0.6}, 0.3: {1: 0.6}}) == 0.2
    assert best_value({0.1: {1: 0.5, 2: 0.9}, 0.2: {1: 0.8, 2: 0.4}}) == 0.1
    assert best_value({0.1: {1: 0.9}, 0.2: {1: 0.5, 2: 0.5}}) == 0.2, "a value that lost a seed does not win by that"
    assert best_value({0.1: {}}) is None and best_value({}) is None


def test_several_seeds_share_values_and_get_a_chosen_run_each(path: Path, storage: Storage) -> None:
    selection = Selection(only=ROW.only, seeds=(1, 2))
    planner = plan(path, storage, selection=selection, search="random", trials=3)
    started = drive(planner, storage, lambda run: 0.5 + lr(run) * (1 if run.spec.seed == 1 else -3))
    trials = [run for run in started if is_trial(run)]
    assert len(trials) == 6 and len(set(map(lr, trials))) == 3
    assert planner.log.of("choose")[0]["value"] == min(map(lr, trials)), "the mean over seeds falls with the rate"
    assert sorted(run.spec.seed for run in started if not is_trial(run)) == [1, 2]


def test_a_seed_more_is_logged_and_trains_only_itself(path: Path, storage: Storage) -> None:
    drive(plan(path, storage, selection=ROW, trials=3), storage, peak(1e-3))
    more = plan(path, storage, selection=Selection(only=ROW.only, seeds=(223, 224)), trials=3)
    started = drive(more, storage, peak(1e-3))
    assert [run.spec.seed for run in started] == [224] * 4
    assert [set(one["runs"]) for one in more.log.of("suggest")[3:]] == [{"223", "224"}] * 3


def test_widening_keeps_the_first_values_and_may_choose_anew(path: Path, storage: Storage) -> None:
    drive(plan(path, storage, selection=ROW, search="random", trials=4), storage, peak(1e-3))
    wide = plan(path, storage, selection=ROW, search="random", trials=8)
    started = drive(wide, storage, peak(1e-3))
    trials = [lr(run) for run in started if is_trial(run)]
    drawn = wide._opened.rows[0].space.draw(8, "lr_sweep", "vit-default")
    assert trials == drawn[4:], "the first four are not trained again"
    best = min(drawn, key=lambda value: abs(math.log10(value / 1e-3)))
    assert wide.log.of("choose")[-1]["value"] == best


def test_tpe_is_told_of_an_earlier_random_search_and_nears_the_best(path: Path, storage: Storage) -> None:
    drive(plan(path, storage, selection=ROW, search="random", trials=5), storage, peak(1e-3))
    planner = plan(path, storage, selection=ROW, search="tpe", trials=14)
    assert planner.remaining() == 10
    started = drive(planner, storage, peak(1e-3))
    asked = [decision for decision in planner.log.of("suggest") if decision["search"] == "tpe"]
    assert len(asked) == 9 and len(asked[0]["told"]) == 5 and asked[1]["told"][-1]["state"] == "running"
    assert len({lr(run) for run in started if is_trial(run)}) == 9, "no value twice"
    (random, chosen) = (one["value"] for one in planner.log.of("choose"))
    assert abs(math.log10(chosen / 1e-3)) < abs(math.log10(random / 1e-3)) / 2


def test_tpe_is_not_asked_for_a_row_whose_parent_is_still_running(path: Path, storage: Storage) -> None:
    planner = plan(path, storage, selection=TWO, search="tpe", trials=6)
    states = survey(storage, planner.grid).states
    (parent,) = states
    assert planner.more({**states, parent: RunState.RUNNING}, idle=True)[0].label.startswith("vit-default")
    states |= {run.run_id: RunState.RUNNING for run in planner.grid.runs}
    rows = [planner.more({**states, **_running(planner)}, idle=True)[0].label.split()[0] for _ in range(5)]
    assert rows == ["vit-default"] * 5 and planner.more({**states, **_running(planner)}, idle=True) == []
    states |= {**_running(planner), parent: RunState.DONE}
    assert planner.more(states, idle=True)[0].label.startswith("vit-pre-default")


def _running(planner: Any) -> dict[str, RunState]:
    return {run.run_id: RunState.RUNNING for run in planner.grid.runs}


def test_tpe_answers_are_functions_of_what_the_log_says_they_were_told(path: Path, storage: Storage) -> None:
    planner = plan(path, storage, selection=ROW, search="tpe", trials=8)
    drive(planner, storage, peak(3e-4), slots=3)
    logged = DecisionLog(storage, "lr_sweep", planner.grid.header.variant, write=False).of("suggest")
    assert len(logged) == 8
    for decision in logged:
        told = [tpe.Told(**trial) for trial in decision["told"]]
        space = Space(low=1e-4, high=1e-2, log=True)
        assert tpe.ask(space, told, "lr_sweep", decision["row"], decision["number"]) == decision["value"]


def test_tpe_knows_pruned_trials_and_gives_up_where_nothing_is_left() -> None:
    told = [tpe.Told(value=value, state="complete", top1=0.5, epoch=None) for value in (1, 2, 3)]
    told += [
        tpe.Told(value=4, state="pruned", top1=0.1, epoch=2.0),
        tpe.Told(value=9, state="running", top1=None, epoch=None),
    ]
    assert tpe.ask(Space(low=1, high=4, integer=True), told, "x") is None
    assert tpe.ask(Space(low=1, high=6, integer=True), told, "x") in (5, 6)


def test_tpe_is_told_how_far_a_pruned_trial_came(path: Path, storage: Storage) -> None:
    given: dict[str, Any] = {"selection": ROW, "search": "tpe", "scheduler": "asha", "trials": 4}
    begun = drive(plan(path, storage, **given), storage, peak(3e-4), most=2)
    planner = plan(path, storage, **given)
    stop = {"kind": "rung", "action": "stop", "run_id": begun[0].run_id, "epoch": 2.0, "val_top1": 0.3, "why": "low"}
    planner.log.add([stop])
    planner = plan(path, storage, **given)
    assert drive(planner, storage, peak(3e-4))[0] == begun[1]
    told = planner.log.of("suggest")[-1]["told"]
    assert told[0] == {"value": lr(begun[0]), "state": "pruned", "top1": 0.3, "epoch": 2.0}
    assert planner.is_settled()


@pytest.mark.parametrize(("search", "scheduler"), [("grid", "none"), ("tpe", "none"), ("random", "pbt")])
def test_an_interrupted_sweep_finishes_what_it_began_and_trains_nothing_twice(
    path: Path, tmp_path: Path, search: str, scheduler: str
) -> None:
    given: dict[str, Any] = {"selection": SHORT, "search": search, "scheduler": scheduler, "trials": 6}
    whole = Storage(str(tmp_path / "whole"))
    undisturbed = drive(plan(path, whole, **given), whole, peak(1e-3), slots=1)
    storage = Storage(str(tmp_path / "cut"))
    first = drive(plan(path, storage, **given), storage, peak(1e-3), slots=1, most=4)
    planner = plan(path, storage, **given)
    second = drive(planner, storage, peak(1e-3), slots=1)
    assert second[0] == first[-1], "the begun run comes first"
    assert [*first, *second[1:]] == undisturbed
    variant = planner.grid.header.variant
    one, other = (DecisionLog(store, "lr_sweep", variant, write=False).decisions for store in (storage, whole))
    assert one == other and len(one) > 6


def test_ties_do_not_hang_on_what_was_begun_first(path: Path, tmp_path: Path) -> None:
    choices = []
    for begun in ([], [4, 2]):
        storage = Storage(str(tmp_path / str(len(begun))))
        planner = plan(path, storage, selection=ROW)
        for number in begun:
            begin(storage, planner.grid.runs[number])
        planner = plan(path, storage, selection=ROW)
        drive(planner, storage, lambda run: 0.8)
        choices.append(planner.log.of("choose"))
    assert choices[0] == choices[1] and choices[0][0]["value"] == 1e-4


def test_a_diverged_trial_is_a_result_and_not_tried_again(path: Path, storage: Storage) -> None:
    planner = plan(path, storage, selection=ROW)
    drive(planner, storage, lambda run: None if lr(run) > 1e-3 else peak(1e-2)(run))
    assert len(planner.pruned) == 2 and planner.log.of("choose")[0]["value"] == 1e-3 and planner.is_settled()
    again = plan(path, storage, selection=ROW)
    assert drive(again, storage, peak(1e-2)) == []
    free = plan(path, storage, selection=ROW, scheduler="none")
    assert set(free.pruned) == set(planner.pruned), "diverging is no scheduler's doing"


def test_nothing_is_chosen_where_everything_diverged(path: Path, storage: Storage) -> None:
    planner = plan(path, storage, selection=ROW)
    drive(planner, storage, lambda run: None)
    assert planner.verdicts == ["vit-default: nothing chosen, every trial was pruned or diverged"]
    assert not planner.is_settled() and planner.remaining() == 0


def test_nothing_is_chosen_while_a_trial_has_failed(path: Path, storage: Storage) -> None:
    planner = plan(path, storage, selection=ROW)
    drive(planner, storage, lambda run: None if lr(run) == 1e-2 else 0.5, failure="OSError: disk full")
    assert planner.verdicts == [
        "vit-default: nothing chosen, vit-default lr=0.01 is failed; mend that and run the sweep again"
    ]
    again = plan(path, storage, selection=ROW)
    started = drive(again, storage, lambda run: 0.9)
    assert [lr(run) for run in started] == [1e-2, 1e-2] and again.is_settled(), "the failed trial, then the chosen row"


def test_a_row_without_data_is_blocked_and_asks_no_sampler(path: Path, storage: Storage, tmp_path: Path) -> None:
    from tuner.facts import LocalFacts
    from tuner.planner import SweepPlanner
    from tuner.sweep import open_sweep
    from tuner.sweep_file import Choices

    facts = LocalFacts(tmp_path / "none", None, download=False)
    opened = open_sweep(path, "lr_sweep", Choices(over="demo", search="tpe"), ROW, facts)
    planner = SweepPlanner(opened, storage, write=True)
    assert drive(planner, storage, peak(1e-3)) == []
    assert len(planner.log.of("suggest")) == 1 and "lr=" in planner.verdicts[0] and "is blocked" in planner.verdicts[0]


def test_a_dry_run_writes_nothing(path: Path, storage: Storage) -> None:
    from tuner.facts import PinnedFacts
    from tuner.planner import SweepPlanner
    from tuner.sweep import open_sweep
    from tuner.sweep_file import Choices

    opened = open_sweep(path, "lr_sweep", Choices(over="demo"), ROW, PinnedFacts())
    planner = SweepPlanner(opened, storage, write=False)
    assert len(planner.grid.runs) == 5 and not Path(storage.uri).exists()


def test_another_hold_out_is_another_sweep_and_begun_values_of_another_search_count(
    path: Path, storage: Storage
) -> None:
    drive(plan(path, storage, selection=ROW, search="random", trials=6), storage, peak(1e-3), slots=1, most=2)
    planner = plan(path, storage, selection=ROW)
    values = [lr(run) for run in planner.grid.runs]
    drawn = planner._opened.rows[0].space.draw(6, "lr_sweep", "vit-default")
    assert values == [*drawn[:2], *planner._opened.rows[0].space.grid(5)], "of six random values two were begun"
    other = Selection(only=ROW.only, fields={"data.val_fraction": 0.2})
    assert len(plan(path, storage, selection=other).grid.runs) == 5


class TestPopulation:
    def test_lineage_identity_and_schedule(self, path: Path, storage: Storage) -> None:
        planner = plan(path, storage, selection=SHORT, scheduler="pbt", trials=8)
        started = drive(planner, storage, peak(3e-3), slots=3)
        (base,) = (run for run in load_grid(path, "demo", SHORT).runs if run.label == "vit-pre-default")
        members = [run for run in started if is_trial(run)]
        by_id = {run.run_id: run for run in started}
        generations = [members[8 * g : 8 * g + 8] for g in range(4)]
        assert len(members) == 32 and all(run.spec.budget.epochs == 2 for run in members)
        assert all(run.spec.init == base.spec.init for run in generations[0])
        for before, after in itertools.pairwise(generations):
            for run in after:
                assert run.parents == (run.spec.init.source,) and by_id[run.parents[0]] in before
                assert run.spec.init.surgery == () and run.spec.init.checkpoint == "last"
        exploits = planner.log.of("exploit")
        assert len(exploits) == 3 * 2, "the worst quarter of eight, three times"
        scores = {run.run_id: peak(3e-3)(run) for run in members}
        first = sorted(generations[0], key=lambda run: -scores[run.run_id])
        for one in exploits[:2]:
            source = generations[0][one["source"]]
            assert source in first[:2] and generations[0][one["member"]] in first[-2:]
            assert one["value"] in [float(f"{lr(source) * factor:.3g}") for factor in (0.8, 1.25)]

    def test_the_schedule_of_the_best_line_is_trained_without_the_hold_out(self, path: Path, storage: Storage) -> None:
        planner = plan(path, storage, selection=SHORT, scheduler="pbt", trials=4)
        started = drive(planner, storage, peak(3e-3))
        chain = [run for run in started if "chosen" in run.label]
        (choice,) = planner.log.of("choose")
        assert [lr(run) for run in chain] == choice["value"] and [run.run_id for run in chain] == choice["chain"]
        best = max((run for run in started if "generation 4/4" in run.label), key=peak(3e-3))
        line, by_id = [best], {run.run_id: run for run in started}
        while is_trial(by_id[line[0].parents[0]]):
            line.insert(0, by_id[line[0].parents[0]])
        assert [lr(run) for run in line] == choice["value"] and len(line) == 4
        assert not any(is_trial(run) for run in chain) and choice["runs"] == {"223": chain[-1].run_id}
        assert all(run.parents == (before.run_id,) for before, run in itertools.pairwise(chain))

    def test_members_that_diverged_take_over_others(self, path: Path, storage: Storage) -> None:
        planner = plan(path, storage, selection=SHORT, scheduler="pbt", trials=4)
        drive(
            planner,
            storage,
            lambda run: None if lr(run) > 4e-4 and "generation 1/4" in run.label else peak(1e-4)(run),
        )
        first = [one for one in planner.log.of("exploit") if one["generation"] == 1]
        assert {one["source"] for one in first} == {0} and [one["member"] for one in first] == [1, 2, 3]
        assert planner.is_settled()

    def test_a_population_that_diverged_ends_the_search(self, path: Path, storage: Storage) -> None:
        planner = plan(path, storage, selection=SHORT, scheduler="pbt", trials=4)
        drive(planner, storage, lambda run: None if is_trial(run) else 0.5)
        assert planner.verdicts == ["vit-pre-default: nothing chosen, every member diverged"]


def test_pruned_trials_stay_pruned_unless_the_scheduler_is_none(path: Path, storage: Storage) -> None:
    planner = plan(path, storage, selection=ROW, scheduler="asha")
    run = planner.grid.runs[1]
    decision = {
        "kind": "rung",
        "row": "vit-default",
        "run_id": run.run_id,
        "action": "stop",
        "why": "below 0.5",
        "epoch": 1.0,
        "val_top1": 0.2,
    }
    planner.log.add([decision])
    assert plan(path, storage, selection=ROW, scheduler="median").pruned == {run.run_id: "below 0.5"}
    again = plan(path, storage, selection=ROW, scheduler="asha")
    assert survey(storage, again.grid, again.pruned).states[run.run_id] is RunState.PRUNED
    assert run not in drive(again, storage, peak(1e-3))
    free = plan(path, storage, selection=ROW)
    assert drive(free, storage, peak(1e-3)) == [run]
    assert run.run_id in records.read_commits(storage) and set(pruned(free.log.decisions)) == {run.run_id}
