"""Killed, interrupted, failed: a plain rerun ends with the Parquet of an undisturbed run."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import run, start, wait_for
from stores import assert_same_results

from trainable import records
from trainable.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROW = ("--grid", "demo", "--only", "label=parent-vit", "--save-every", "0.2")


def arguments(demo: Any, results: Path) -> tuple[object, ...]:
    """The longest row of grid `demo`, with a checkpoint five times a second."""
    return (*ROW, "--data", demo.data, "--results", results)


def living(storage: Storage, known: set[str]) -> dict[str, Any] | None:
    """An attempt that is not in `known`, has trained for a while, and whose run keeps a checkpoint."""
    for record in records.read_attempts(storage):
        saved = storage.exists(f"runs/{record.run_id}/checkpoint/last/state.safetensors")
        log = storage.read(f"runs/{record.run_id}/log.txt").decode() if saved else ""
        if f"{record.attempt_id} epoch" in log and record.outcome is None and record.attempt_id not in known:
            path = f"attempts/{record.run_id}--{record.attempt_id}.json"
            return dict(json.loads(storage.read(path)))
    return None


def run_ids(storage: Storage) -> list[str]:
    return sorted(records.read_commits(storage))


def test_driver_killed_then_a_worker_killed(demo: Any, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "results"))
    driver = start("tuner.run", *arguments(demo, tmp_path / "results"))
    first = wait_for(lambda: living(storage, set()), what="a checkpoint of the first attempt")
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()

    again = start("tuner.run", *arguments(demo, tmp_path / "results"))
    second = wait_for(lambda: living(storage, {first["attempt_id"]}), what="the second attempt")
    os.kill(second["pid"], signal.SIGKILL)
    shown, _ = again.communicate(timeout=300)
    assert again.returncode == 0, shown
    assert "begun earlier will continue from their checkpoints" in shown and "grid demo: 1 DONE" in shown
    assert_same_results(demo.storage, storage, run_ids(storage))
    outcomes = [record.outcome for record in records.read_attempts(storage, [first["run_id"]])]
    assert outcomes.count(None) == 2 and outcomes[-1] == "done", "two killed attempts stay on record"
    log = storage.read(f"runs/{first['run_id']}/log.txt").decode()
    assert "attempt 2 resumed at step" in log and "attempt 3 resumed at step" in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_says_how_to_continue(demo: Any, tmp_path: Path, number: signal.Signals) -> None:
    """Also: an inherited OMP_NUM_THREADS does not reach the trials."""
    storage = Storage(str(tmp_path / "results"))
    driver = start(
        "tuner.run", *arguments(demo, tmp_path / "results"), env={"OMP_NUM_THREADS": "8", "MKL_NUM_THREADS": "8"}
    )
    attempt = wait_for(lambda: living(storage, set()), what="a checkpoint")
    environment = Path(f"/proc/{attempt['pid']}/environ").read_bytes().split(b"\0")
    assert b"OMP_NUM_THREADS=1" in environment and b"MKL_NUM_THREADS=1" in environment
    os.kill(driver.pid, number)
    shown, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, shown
    typed = shlex.join(["python", "-m", "tuner.run", *map(str, arguments(demo, tmp_path / "results"))])
    assert f"Continue with: {typed}" in shown and "Traceback" not in shown
    (record,) = records.read_attempts(storage)
    assert record.outcome == "stopped"

    done = run("tuner.run", *arguments(demo, tmp_path / "results"), timeout=300)
    assert done.returncode == 0, done.stdout
    assert_same_results(demo.storage, storage, run_ids(storage))


@pytest.fixture
def broken_file(root: Path, tmp_path: Path) -> Path:
    """The demo file with a parent that diverges."""
    from tuner.yaml_file import read_yaml

    file = read_yaml(root / "experiments.yaml")
    grid = file["grids"]["demo"]
    grid["parents"]["parent-vit"]["set"]["optim.lr"] = 1e30
    grid["matrix"] = {"model": ["small_vit"], "pretrained": [False, True], "mix": ["none"]}
    grid["rows"] = {label: row for label, row in grid["rows"].items() if label in ("vit-default", "vit-pre-default")}
    grid["parents"] = {"parent-vit": grid["parents"]["parent-vit"]}
    grid["overrides"] = [grid["overrides"][1]]
    path = tmp_path / "experiments.yaml"
    path.write_text(yaml.safe_dump({**file, "grids": {"demo": grid}}))
    return path


def test_a_failed_parent_blocks_its_child_only_and_is_tried_again(demo: Any, tmp_path: Path, broken_file: Path) -> None:
    results = tmp_path / "results"
    given = ("--grid", "demo", "--experiments", broken_file, "--data", demo.data, "--results", results)
    done = run("tuner.run", *given)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "grid demo: 1 DONE, 1 FAILED, 1 BLOCKED" in done.stdout
    assert "FAILED parent-vit: NonFiniteLoss: the loss was not a finite number at step" in done.stdout
    assert "BLOCKED vit-pre-default: its parent parent-vit is failed" in done.stdout
    table = run("analysis.tables", "--results", results, "--out", tmp_path / "out")
    assert "FAILED: NonFiniteLoss" in table.stdout and "vit-default" in table.stdout
    again = run("tuner.run", *given)
    assert again.returncode == 1 and "1 done, 2 to run" in again.stdout
    attempts = records.read_attempts(Storage(str(results)))
    assert [record.outcome for record in attempts].count("failed") == 2
