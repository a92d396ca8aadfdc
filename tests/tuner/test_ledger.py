"""What a results store already has of a grid: done, begun, blocked."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from rich.console import Console
from toy import exec_spec

from trainable.attempt import Attempt
from trainable.storage import Storage
from tuner.dag import RunState
from tuner.facts import LocalFacts
from tuner.grid import Grid, Selection, load_grid
from tuner.ledger import survey, write_manifest
from tuner.summary import announce


@pytest.fixture(scope="module")
def demo(root: Path, data_path: Path) -> Grid:
    """One parent and its child, a few steps long."""
    selection = Selection(
        only=(("label", "vit-pre-cutmix"),), fields={"budget.epochs": 1, "data.limit_train": 20, "data.limit_eval": 20}
    )
    return load_grid(root / "experiments.yaml", "demo", selection, LocalFacts(data_path, None, download=False))


def train(grid: Grid, label: str, storage: Storage, data_path: Path) -> str:
    run = next(run for run in grid.runs if run.label == label)
    attempt = Attempt(run.spec, exec_spec(data_path), storage)
    while not attempt.done:
        attempt.advance()
    return run.run_id


def states(grid: Grid, storage: Storage) -> dict[str, str]:
    found = survey(storage, grid)
    return {run.label: found.states[run.run_id].value for run in grid.runs}


def test_an_empty_store(demo: Grid, storage: Storage) -> None:
    assert states(demo, storage) == {"vit-pre-cutmix": "waiting", "parent-vit": "ready"}


def test_done_parents_make_children_ready(demo: Grid, storage: Storage, data_path: Path) -> None:
    train(demo, "parent-vit", storage, data_path)
    assert states(demo, storage) == {"vit-pre-cutmix": "ready", "parent-vit": "done"}
    train(demo, "vit-pre-cutmix", storage, data_path)
    assert states(demo, storage) == {"vit-pre-cutmix": "done", "parent-vit": "done"}
    assert survey(storage, demo).begun == {}


def test_a_weightless_parent_blocks_with_the_mend(demo: Grid, storage: Storage, data_path: Path) -> None:
    parent = train(demo, "parent-vit", storage, data_path)
    storage.delete(f"runs/{parent}/checkpoint/last/state.safetensors")
    found = survey(storage, demo)
    child = next(run.run_id for run in demo.runs if run.run_id != parent)
    assert found.states[child] is RunState.BLOCKED
    assert "its parent parent-vit is done, but" in found.reasons[child] and "trained again" in found.reasons[child]


def test_missing_data_blocks_with_the_command(root: Path, tmp_path: Path, storage: Storage) -> None:
    facts = LocalFacts(tmp_path / "none", None, download=False)
    grid = load_grid(root / "experiments.yaml", "demo", Selection(only=(("label", "vit-pre-cutmix"),)), facts)
    found = survey(storage, grid)
    assert set(found.states.values()) == {RunState.BLOCKED}
    assert all("run: python -m datasets.prepare digits --data" in reason for reason in found.reasons.values())


def test_begun_runs_say_how_they_ended(demo: Grid, storage: Storage, data_path: Path) -> None:
    run = next(run for run in demo.runs if run.label == "parent-vit")
    attempt = Attempt(run.spec, exec_spec(data_path), storage)
    assert survey(storage, demo).begun == {run.run_id: "killed"}, "as good as killed until it ends"
    attempt.stop()
    assert survey(storage, demo).begun == {run.run_id: "stopped"}


def test_a_damaged_commit_is_said_and_trained_again(demo: Grid, storage: Storage, data_path: Path) -> None:
    run_id = train(demo, "parent-vit", storage, data_path)
    (name,) = storage.names("commits")
    storage.put(f"commits/{name}", b"")
    found = survey(storage, demo)
    assert found.states[run_id] is RunState.READY
    output = io.StringIO()
    facts = LocalFacts(data_path, None, download=False)
    announce(demo, found, facts, storage, Console(file=output, width=400))
    assert (
        f"commits/{name}: not a whole commit record; it does not count: the run is trained again" in output.getvalue()
    )


def test_the_manifest_names_all_rows_and_the_selected_runs(demo: Grid, storage: Storage) -> None:
    path = write_manifest(storage, demo, survey(storage, demo), ["python", "-m", "tuner.run"], {"x": {}})
    manifest = json.loads(storage.read(path))
    assert path.startswith(f"grids/demo/{demo.header.variant}--")
    assert len(manifest["rows"]) == 14 and [run["label"] for run in manifest["runs"]] == [
        "vit-pre-cutmix",
        "parent-vit",
    ]
    assert manifest["overrides"]["budget.epochs"] == 1 and manifest["runs"][0]["state"] == "waiting"
    write_manifest(storage, demo, survey(storage, demo), [], {})
    assert len(storage.names("grids/demo")) == 2, "every invocation is kept"


def test_what_another_driver_trains_is_held_and_what_a_dead_one_left_is_not(
    demo: Grid, storage: Storage, data_path: Path
) -> None:
    parent = next(run for run in demo.runs if run.label == "parent-vit")
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = socket.gethostname()
    for driver, state in (
        ({"host": host, "pid": os.getppid()}, "held"),
        ({"host": host, "pid": dead.pid}, "ready"),
        ({"host": host, "pid": os.getpid()}, "ready"),  # a worker of our own that is dying
        ({"host": "elsewhere", "pid": 1}, "held"),
    ):
        attempt = Attempt(parent.spec, exec_spec(data_path), storage, {"driver": driver})
        assert states(demo, storage) == {"vit-pre-cutmix": "waiting", "parent-vit": state}
        if state == "held":
            why = survey(storage, demo).reasons[parent.run_id]
            assert why.startswith(f"trained by attempt {attempt.info.attempt_id} (process {os.getpid()} on {host}, ")
            assert f"scheduled by process {driver['pid']} on {driver['host']}) since 20" in why
        attempt.stop()
    assert states(demo, storage) == {"vit-pre-cutmix": "waiting", "parent-vit": "ready"}
