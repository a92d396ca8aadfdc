"""Sweeps with real Ray on the digits: killed and run again, ended early with every decision logged, resumed by TPE."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from processes import run, start, wait_for

from trainable import records
from trainable.storage import Storage
from trainable.sweep_records import DecisionLog, read_scores
from tuner.pruning import Judge

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SWEEP = ("--grid", "lr_sweep", "--over", "demo", "--only", "label=vit-default", "--limit-eval", "100")


def log(storage: Storage) -> DecisionLog:
    """The log of the only variant in a store."""
    assert storage.local_root is not None
    (variant,) = (storage.local_root / "sweeps" / "lr_sweep").iterdir()
    return DecisionLog(storage, "lr_sweep", variant.name, write=False)


def test_a_killed_sweep_goes_on_and_trains_nothing_twice(data_path: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "results"))
    given = (*SWEEP, "--epochs", "6", "--trials", "3", "--data", data_path, "--results", tmp_path / "results")
    driver = start("tuner.run", *given, "--save-every", "0.2")
    wait_for(lambda: len(storage.names("commits")) >= 1, what="the first trial to be done")
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    done_before = set(records.read_commits(storage))

    again = run("tuner.run", *given, "--search", "tpe", "--trials", "4", timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stderr.strip() == ""
    commits = [name.split("--")[0] for name in storage.names("commits")]
    assert len(commits) == len(set(commits)), "nothing is done twice"
    attempts = [record.run_id for record in records.read_attempts(storage)]
    assert all(attempts.count(run_id) == 1 for run_id in done_before)
    decisions = log(storage)
    suggested = {run_id for one in decisions.of("suggest") for run_id in one["runs"].values()}
    (choice,) = decisions.of("choose")
    scores = read_scores(storage, suggested)
    best = max(scores.values(), key=lambda score: score.top1)
    assert len(scores) == 4 and f"({best.top1:.6f})" in choice["why"]
    (chosen,) = choice["runs"].values()
    assert chosen in commits and chosen not in suggested
    assert set(commits) <= suggested | {chosen}

    told = run("tuner.status", "--grid", "lr_sweep", "--results", tmp_path / "results", "--json")
    shown = {one["run_id"]: one for one in json.loads(told.stdout)["runs"]}
    assert set(commits) <= set(shown) and all(shown[run_id]["state"] == "done" for run_id in commits)
    assert all(shown[run_id]["top1"] == score.top1 for run_id, score in scores.items()), "the hold-out's"

    table = run("analysis.tables", "--results", tmp_path / "results", "--out", tmp_path / "out")
    assert table.returncode == 0, table.stderr
    assert "sweep lr_sweep" in table.stdout and table.stdout.count(" chosen ") >= 1


def test_asha_ends_trials_early_and_its_log_replays(data_path: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "results"))
    given = (*SWEEP, "--epochs", "8", "--scheduler", "asha", "--data", data_path, "--results", tmp_path / "results")
    done = run("tuner.run", *given, "--trials", "5", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rungs = log(storage).of("rung")
    stopped = {one["run_id"]: one for one in rungs if one["action"] == "stop"}
    assert stopped and Judge().replay(rungs) == rungs
    last = {record.run_id: record.outcome for record in records.read_attempts(storage)}
    commits = records.read_commits(storage)
    for run_id, decision in stopped.items():
        assert last[run_id] == "stopped" and run_id not in commits and decision["epoch"] < 8
        assert storage.exists(f"runs/{run_id}/checkpoint/last/state.safetensors")
    told = run("tuner.status", "--grid", "lr_sweep", "--results", tmp_path / "results", "--json")
    status = json.loads(told.stdout)
    assert status["counts"]["pruned"] == len(stopped) and status["counts"]["done"] == len(commits)
    assert {one["reason"] for one in status["runs"] if one["state"] == "pruned"} == {d["why"] for d in stopped.values()}
    assert f"{len(stopped)} PRUNED" in done.stdout and "below the cutoff" in done.stdout

    before = len(records.read_attempts(storage))
    again = run("tuner.run", *given, "--trials", "5")
    assert again.returncode == 0 and "nothing to run" in again.stdout
    assert len(records.read_attempts(storage)) == before, "pruned trials are not continued"
