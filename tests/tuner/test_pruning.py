"""Early ends of trials: Ray's own schedulers, one a group, every decision in the log, the log replayed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from sweeping import plan

from trainable.storage import Storage
from trainable.sweep_records import DecisionLog
from tuner.grid import PlannedRun, Selection
from tuner.planner import SweepPlanner
from tuner.pruning import Judge, PruningScheduler

TWO = Selection(only=(("label", "vit-default"), ("label", "vit-pre-default")), fields={"budget.epochs": 9})
CURVES = [0.50, 0.60, 0.40, 0.70, 0.30]
"""Top-1 per epoch of the five trials of a row, at the same pace."""


def report(scheduler: PruningScheduler, run: PlannedRun, epoch: float, top1: float, **more: Any) -> str:
    rows = [{"split": "test", "epoch": epoch, "top1": 1 - top1}, {"split": "val", "epoch": epoch, "top1": top1}]
    trial = SimpleNamespace(trial_id="t", config={"run_id": run.run_id})
    return scheduler.on_trial_result(None, trial, {"rows": rows, **more})


def train(planner: SweepPlanner, scheduler: PruningScheduler, row: str, rise: float = 0.01) -> dict[str, float]:
    """Trains a row's trials side by side; the epoch at which each ended."""
    trials = [run for run in planner.grid.runs if run.label.startswith(f"{row} lr")]
    ended = {run.label: 0.0 for run in trials if run.run_id in planner.pruned}
    for epoch in range(1, 10):
        for run, top1 in zip(trials, CURVES, strict=True):
            if (
                run.label not in ended
                and report(scheduler, run, float(epoch), top1 + rise * epoch) == TrialScheduler.STOP
            ):
                ended[run.label] = epoch
    return ended


@pytest.mark.parametrize("name", ["asha", "median"])
def test_decisions_are_logged_and_the_log_replays_to_the_same(root: Path, storage: Storage, name: str) -> None:
    planner = plan(root / "experiments.yaml", storage, selection=TWO, scheduler=name)
    ended = train(planner, PruningScheduler(planner), "vit-default")
    assert ended and "vit-default lr=0.00316" not in ended, "the best one goes on"
    assert "vit-default lr=0.01" in ended, "the worst one does not"
    logged = DecisionLog(storage, "lr_sweep", planner.grid.header.variant, write=False).of("rung")
    assert logged == planner.log.of("rung") and Judge().replay(logged) == logged
    stops = [one for one in logged if one["action"] == "stop"]
    assert len(stops) == len(ended) == len(planner.pruned)
    assert all("below the" in one["why"] for one in stops)
    assert {one["run_id"]: one["why"] for one in stops} == planner.pruned
    assert planner.ended_early(stops[0]["run_id"], None) == stops[0]["why"]
    last = [one for one in logged if one["epoch"] == 9.0]
    assert last and all(one["action"] == "finish" for one in last), "a trial that trained to the end is never stopped"


def test_a_replay_notices_a_changed_log(root: Path, storage: Storage) -> None:
    planner = plan(root / "experiments.yaml", storage, selection=TWO, scheduler="asha")
    train(planner, PruningScheduler(planner), "vit-default")
    logged = planner.log.of("rung")
    changed = [{**one, "val_top1": 1 - one["val_top1"]} for one in logged]
    assert Judge().replay(changed) != changed


def test_rows_are_not_compared_with_each_other(root: Path, storage: Storage) -> None:
    planner = plan(root / "experiments.yaml", storage, selection=TWO, scheduler="asha")
    scheduler = PruningScheduler(planner)
    alone = train(planner, scheduler, "vit-default")
    other = train(planner, scheduler, "vit-pre-default", rise=-0.01)
    assert {label.split()[-1] for label in alone} == {label.split()[-1] for label in other}
    assert {one["group"] for one in planner.log.of("rung")} == {"vit-default seed 223", "vit-pre-default seed 223"}


def test_a_driver_that_was_killed_goes_on_with_the_same_schedulers(root: Path, tmp_path: Path) -> None:
    whole, cut = (Storage(str(tmp_path / name)) for name in ("whole", "cut"))
    planner = plan(root / "experiments.yaml", whole, selection=TWO, scheduler="asha")
    train(planner, PruningScheduler(planner), "vit-default")
    first = plan(root / "experiments.yaml", cut, selection=TWO, scheduler="asha")
    scheduler = PruningScheduler(first)
    trials = [run for run in first.grid.runs if run.label.startswith("vit-default lr")]
    for run, top1 in list(zip(trials, CURVES, strict=True))[:3]:
        report(scheduler, run, 1.0, top1 + 0.01)
    second = plan(root / "experiments.yaml", cut, selection=TWO, scheduler="asha")
    before = len(second.log.decisions)
    scheduler = PruningScheduler(second)
    assert report(scheduler, trials[0], 1.0, 0.99) == TrialScheduler.CONTINUE, "an evaluation made again is not judged"
    assert len(second.log.decisions) == before
    train(second, scheduler, "vit-default")
    assert second.log.of("rung") == planner.log.of("rung")


def test_only_evaluations_of_trials_are_judged(root: Path, storage: Storage) -> None:
    planner = plan(root / "experiments.yaml", storage, selection=TWO, scheduler="asha")
    scheduler = PruningScheduler(planner)
    parent = next(run for run in planner.grid.runs if run.label == "parent-vit")
    trial = planner.grid.runs[1]
    assert report(scheduler, parent, 1.0, 0.0) == TrialScheduler.CONTINUE
    config = SimpleNamespace(config={"run_id": trial.run_id})
    assert scheduler.on_trial_result(None, config, {"rows": []}) == TrialScheduler.CONTINUE
    assert planner.log.of("rung") == []


@pytest.mark.parametrize("name", ["asha", "median"])
def test_nobody_is_stopped_within_the_grace_period(name: str) -> None:
    judge = Judge()
    same = {"scheduler": name, "group": "row", "max_epochs": 20, "grace_epochs": 5}

    def actions(epoch: float) -> list[str]:
        members = [{**same, "run_id": str(n), "epoch": epoch, "val_top1": 0.9 - n / 10} for n in range(6)]
        return [decision["action"] for one in members if (decision := judge.judge(one)) is not None]

    assert actions(4.0) == ([] if name == "asha" else ["continue"] * 6), "between rungs nothing is decided"
    assert "stop" in actions(5.0)
