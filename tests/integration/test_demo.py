"""Grid `demo` end to end: YAML through Ray Tune to Parquet to the table."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import run
from stores import assert_same_results

from trainable import records
from trainable.storage import Storage
from tuner.grid import load_grid

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def trials(demo: Any) -> dict[str, dict[str, Any]]:
    """The trials' rows by label."""
    commits = records.read_commits(demo.storage)
    rows = records.read_table(demo.storage, "trials", commits.values()).to_pylist()
    (path,) = demo.storage.names("grids/demo")
    labels = {run["run_id"]: run["label"] for run in json.loads(demo.storage.read(f"grids/demo/{path}"))["runs"]}
    return {labels[row["run_id"]]: row for row in rows}


def test_all_fourteen_runs_end_done(demo: Any) -> None:
    assert demo.done.returncode == 0, demo.done.stdout + demo.done.stderr
    assert "grid demo: 14 DONE" in demo.done.stdout
    assert len(trials(demo)) == 14


def test_workers_are_reused_and_give_the_bits_of_a_fresh_process(demo: Any, tmp_path: Path) -> None:
    """Of each architecture a row that was trained in a process which had trained others before."""
    begun = [json.loads(demo.storage.read(f"attempts/{name}")) for name in demo.storage.names("attempts")]
    starts = sorted((one for one in begun if "pid" in one), key=lambda one: one["started_at"])
    first = {one["pid"]: one["run_id"] for one in reversed(starts)}
    assert len(first) == 2, "two cores, two processes"
    labels = {row["run_id"]: label for label, row in trials(demo).items()}
    reused = [labels[one["run_id"]] for one in starts if one["run_id"] not in first.values()]
    assert len(reused) == 12
    for prefix in ("resnet", "vit"):
        label = next(one for one in reversed(reused) if one.startswith(f"{prefix}-") and "-pre-" not in one)
        done = run("trainable.run", "--grid", "demo", "--label", label, "--data", demo.data, "--results", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    alone = Storage(str(tmp_path))
    fresh = sorted(records.read_commits(alone))
    assert len(fresh) == 2
    assert_same_results(alone, demo.storage, fresh)


def test_predictions_are_held_against_what_was_measured(demo: Any) -> None:
    """The manifest keeps what was predicted; the end says how far off it was."""
    (path,) = demo.storage.names("grids/demo")
    runs = json.loads(demo.storage.read(f"grids/demo/{path}"))["runs"]
    assert all(run["predicted"]["seconds"] > 0 and run["predicted"]["basis"] == "model" for run in runs)
    (line,) = [line for line in demo.done.stdout.splitlines() if "measured over predicted" in line]
    assert "(model, 14 runs): time " in line and ", memory " in line
    memory = float(line.split("memory ")[1].split()[0])
    assert 0.7 < memory < 1.4, "the memory model is calibrated on this very kind of run"
    done = run("tuner.run", "--grid", "demo", "--dry-run", "--json", "--data", demo.data, "--results", demo.storage.uri)
    assert {run["basis"] for run in json.loads(done.stdout)["runs"]} == {"measured"}


def test_progress_is_told_throughout(demo: Any) -> None:
    lines = demo.done.stdout.splitlines()
    assert sum(": started" in line for line in lines) == sum(": done in" in line for line in lines) == 14
    clocks = [re.match(r"\[ *(\d+):(\d\d)\] ", line) for line in lines]
    seconds = [60 * int(clock[1]) + int(clock[2]) for clock in clocks if clock]
    assert max(later - earlier for earlier, later in itertools.pairwise(seconds)) <= 30
    assert "(14 of 14 done, 100 % of the work)" in demo.done.stdout
    assert demo.done.stderr.strip() == ""


def test_parents_run_before_their_children(demo: Any, root: Path) -> None:
    attempts = {record.run_id: record for record in records.read_attempts(demo.storage)}
    commits = records.read_commits(demo.storage)
    children = 0
    for run_id, commit in commits.items():
        (row,) = records.read_table(demo.storage, "provenance", [commit]).to_pylist()
        init = json.loads(row["spec_json"])["init"]
        if init["kind"] == "parent":
            children += 1
            assert attempts[run_id].started_at > commits[init["source"]].committed_at
            report = json.loads(row["weights_report_json"])
            assert report["kept"] and report["new"] == report["dropped"]
    assert children == 6


def test_every_arm_learns_and_pretraining_shows(demo: Any) -> None:
    rows = trials(demo)
    top1 = {label: row["final_top1"] for label, row in rows.items()}
    assert min(top1.values()) > 0.85, top1
    for model in ("resnet", "vit"):
        arms = ("default", "mixup", "cutmix")
        scratch = np.mean([top1[f"{model}-{arm}"] for arm in arms])
        pretrained = np.mean([top1[f"{model}-pre-{arm}"] for arm in arms])
        assert pretrained > scratch, (model, scratch, pretrained)


def test_ids_are_the_pinned_ones(demo: Any, root: Path) -> None:
    golden = json.loads((root / "tests" / "golden_ids.json").read_text())["demo"]
    assert {label: row["run_id"] for label, row in trials(demo).items()} == golden


def test_trials_keep_to_their_cores(demo: Any) -> None:
    for commit in records.read_commits(demo.storage).values():
        (row,) = records.read_table(demo.storage, "provenance", [commit]).to_pylist()
        assert json.loads(row["numerics_json"])["threads"] == 1


def test_running_it_again_does_nothing(demo: Any) -> None:
    before = demo.storage.names("attempts")
    again = run("tuner.run", "--grid", "demo", "--data", demo.data, "--results", demo.storage.uri)
    assert again.returncode == 0 and "nothing to run" in again.stdout
    assert demo.storage.names("attempts") == before
    for name in demo.storage.names("grids/demo")[1:]:
        demo.storage.delete(f"grids/demo/{name}")


def test_the_table_prints_all_rows(demo: Any, tmp_path: Path) -> None:
    shown = run("analysis.tables", "--results", demo.storage.uri, "--out", tmp_path)
    assert shown.returncode == 0, shown.stderr
    for run_ in load_grid(Path(__file__).parents[2] / "experiments.yaml", "demo").runs:
        assert run_.label in shown.stdout
    assert "SHORT" not in shown.stdout and (tmp_path / "demo" / "T1.md").exists()


def test_a_stored_checkpoint_is_evaluated(demo: Any) -> None:
    row = trials(demo)["vit-pre-cutmix"]
    shown = run("trainable.evaluate", row["run_id"], "--results", demo.storage.uri, "--data", demo.data)
    assert shown.returncode == 0 and f"top1             {row['final_top1']:.6f}" in shown.stdout


def test_one_row_without_ray_gives_the_same_bits(demo: Any, tmp_path: Path) -> None:
    from stores import assert_same_results

    from trainable.storage import Storage

    given = ("--grid", "demo", "--label", "resnet-cutmix", "--data", demo.data, "--results", tmp_path / "own")
    done = run("trainable.run", *given)
    assert done.returncode == 0, done.stderr
    assert "epoch   15.00  step     135  test " in done.stdout and "results in" in done.stdout
    assert_same_results(demo.storage, Storage(str(tmp_path / "own")), [trials(demo)["resnet-cutmix"]["run_id"]])
