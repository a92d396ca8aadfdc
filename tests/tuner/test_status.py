"""Where a grid stands, from the store alone: every state, little reading, and never a lie about what lives."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from processes import start, wait_for
from toy import exec_spec

from trainable import liveness, records
from trainable.attempt import Attempt, RunFailed
from trainable.storage import Storage
from tuner import status
from tuner.facts import LocalFacts
from tuner.grid import Grid, Selection, load_grid
from tuner.ledger import survey, write_manifest
from tuner.status import STATES, GridStatus, RunStatus, main, read_status

COMMAND = ["python", "-m", "tuner.run", "--grid", "demo"]


@pytest.fixture(scope="module")
def grid(root: Path, data_path: Path) -> Grid:
    """Two children of one parent, and a row from scratch."""
    only = (("label", "vit-pre-cutmix"), ("label", "vit-pre-mixup"), ("label", "resnet-default"))
    fields = {"budget.epochs": 2, "data.limit_train": 20, "data.limit_eval": 20}
    facts = LocalFacts(data_path, None, download=False)
    return load_grid(root / "experiments.yaml", "demo", Selection(only=only, fields=fields), facts)


def invoke(storage: Storage, grid: Grid) -> None:
    write_manifest(storage, grid, survey(storage, grid), COMMAND, {})


def begin(storage: Storage, grid: Grid, label: str, data_path: Path, save_every_s: float = 1e9) -> Attempt:
    (spec,) = (run.spec for run in grid.runs if run.label == label)
    return Attempt(spec, exec_spec(data_path, save_every_s=save_every_s), storage)


def finish(attempt: Attempt) -> None:
    while not attempt.done:
        attempt.advance()


def look(storage: Storage, later_s: float = 0.0) -> dict[str, RunStatus]:
    now = datetime.now(UTC) + timedelta(seconds=later_s)
    return {run.label: run for run in read_status(storage, "demo", None, now).runs}


def test_nothing_run_yet_is_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = str(tmp_path / "none")
    assert main(["--grid", "paper", "--results", results]) == 0
    shown = capsys.readouterr().out
    assert f"grid paper: nothing was run yet in {results}; it is empty" in shown
    assert f"python -m tuner.run --grid paper --results {results}" in shown
    assert main(["--grid", "paper", "--results", results, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["runs"] == [] and answer["counts"] == dict.fromkeys(STATES, 0)
    assert not (tmp_path / "none").exists(), "looking leaves nothing behind"


def test_another_grid_is_named(storage: Storage, grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
    invoke(storage, grid)
    assert main(["--grid", "paper", "--results", storage.uri]) == 0
    assert "it has demo" in capsys.readouterr().out


def test_from_the_first_invocation_to_the_last_commit(
    storage: Storage, grid: Grid, data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    invoke(storage, grid)
    seen = look(storage)
    assert {run.state for run in seen.values()} == {"not run"}
    assert seen["vit-pre-cutmix"].reason == "waits for its parent parent-vit"

    parent = begin(storage, grid, "parent-vit", data_path)
    try:
        parent.advance()
        assert parent.run is not None
        parent.run.save()
        seen = look(storage, later_s=1e6)
        at = seen["parent-vit"]
        assert (at.state, at.certain, at.reason) == ("running", True, None), "its lock is held, however silent it is"
        last = parent.run.position.rows[-1]
        assert (at.step, at.total_steps) == (parent.run.position.step, parent.run.loop.total)
        assert (at.epoch, at.top1) == (last["epoch"], last["top1"])
        assert at.loss_nats == parent.run.position.rows[0]["loss_nats"]
    finally:
        parent.stop()
    assert look(storage)["parent-vit"].state == "stopped"

    for label in ("parent-vit", "resnet-default", "vit-pre-mixup", "vit-pre-cutmix"):
        finish(begin(storage, grid, label, data_path))
    seen = look(storage)
    assert {run.state for run in seen.values()} == {"done"}
    trials = records.read_table(storage, "trials", records.read_commits(storage).values()).to_pylist()
    assert {run.run_id: run.top1 for run in seen.values()} == {row["run_id"]: row["final_top1"] for row in trials}
    assert list(seen) == [row.label for row in grid.rows if row.label in seen]
    assert main(["--grid", "demo", "--results", storage.uri]) == 0
    shown = capsys.readouterr().out
    assert "4 runs: 4 done" in shown and f"python -m analysis.tables --grid demo --results {storage.uri}" in shown


def test_a_failed_parent_blocks_its_children_and_says_why(
    storage: Storage, grid: Grid, data_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    invoke(storage, grid)
    attempt = begin(storage, grid, "parent-vit", data_path)
    assert attempt.run is not None
    monkeypatch.setattr(attempt.run, "advance", lambda seconds: 1 / 0)
    with pytest.raises(RunFailed):
        attempt.advance()
    seen = look(storage)
    assert (seen["parent-vit"].state, seen["parent-vit"].reason) == ("failed", "ZeroDivisionError: division by zero")
    assert seen["vit-pre-cutmix"].reason == "its parent parent-vit is failed"
    assert main(["--grid", "demo", "--results", storage.uri]) == 0
    shown = capsys.readouterr().out
    assert "4 runs: 1 failed, 2 blocked, 1 not run" in shown
    assert "FAILED parent-vit: ZeroDivisionError: division by zero" in shown
    assert "BLOCKED vit-pre-mixup, vit-pre-cutmix: its parent parent-vit is failed" in shown
    assert "continue  python -m tuner.run --grid demo " in shown


def test_missing_data_are_said(root: Path, storage: Storage, tmp_path: Path) -> None:
    facts = LocalFacts(tmp_path / "none", None, download=False)
    invoke(storage, load_grid(root / "experiments.yaml", "demo", None, facts))
    seen = look(storage)
    assert len(seen) == 14 and {run.state for run in seen.values()} == {"blocked"}
    assert "python -m datasets.prepare digits" in str(seen["vit-default"].reason)


def test_a_free_lock_is_proof_of_death_on_the_machine_that_trained_only(
    storage: Storage, grid: Grid, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke(storage, grid)
    attempt = begin(storage, grid, "parent-vit", data_path)
    assert attempt.run is not None
    attempt.run.close()
    attempt._lock.release()
    at = look(storage)["parent-vit"]
    assert (at.state, at.certain, at.reason) == ("killed", True, None)

    here = socket.gethostname()
    monkeypatch.setattr(liveness.socket, "gethostname", lambda: "elsewhere")
    at = look(storage)["parent-vit"]
    assert (at.state, at.certain) == ("running", False)
    assert at.reason == f"judged by its last sign; only a look at the processes on {here} is certain"
    at = look(storage, later_s=liveness.SILENT_S + 60)["parent-vit"]
    assert (at.state, at.certain) == ("killed", False)


def test_one_that_ends_between_two_looks_is_not_called_killed(
    storage: Storage, grid: Grid, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke(storage, grid)
    attempt = begin(storage, grid, "parent-vit", data_path)
    early = records.read_attempts(storage)
    attempt.stop()
    monkeypatch.setattr(records, "read_attempts", lambda storage, run_ids: early)
    at = look(storage)["parent-vit"]
    assert (at.state, at.certain, at.reason) == ("running", False, "just ended; look again")


def test_an_object_store_is_judged_by_the_last_sign(
    s3_uri: str, grid: Grid, data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(s3_uri.format(name="status"))
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    invoke(storage, grid)
    attempt = begin(storage, grid, "parent-vit", data_path)
    try:
        attempt.advance()
        assert attempt.run is not None
        attempt.run.save()
        assert look(storage, later_s=1e6)["parent-vit"].certain, "the lock lies on this machine"
        monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
        at = look(storage)["parent-vit"]
        assert (at.state, at.certain, at.epoch) == ("running", False, 2.0)
        at = look(storage, later_s=liveness.SILENT_S + 60)["parent-vit"]
        assert (at.state, at.certain) == ("killed", False)
    finally:
        monkeypatch.setenv("HOME", str(tmp_path / "here"))
        attempt.stop()


def test_a_damaged_store_is_said_in_words(
    storage: Storage, grid: Grid, data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged commit is none, a damaged attempt is one all the same, and of a grid one whole manifest is enough."""
    invoke(storage, grid)
    finish(begin(storage, grid, "parent-vit", data_path))
    for folder in ("attempts", "commits"):
        for name in storage.names(folder):
            storage.put(f"{folder}/{name}", storage.read(f"{folder}/{name}")[:40])
    assert look(storage)["parent-vit"].state == "stopped"
    path = f"grids/demo/{storage.names('grids/demo')[0]}"
    storage.put(path, storage.read(path)[:40])
    assert main(["--grid", "demo", "--results", storage.uri]) == 2
    assert "not a manifest of this project; run the grid again" in capsys.readouterr().err
    invoke(storage, grid)
    assert main(["--grid", "demo", "--results", storage.uri]) == 0


def test_a_damaged_checkpoint_is_no_progress(storage: Storage, grid: Grid, data_path: Path) -> None:
    invoke(storage, grid)
    attempt = begin(storage, grid, "parent-vit", data_path)
    attempt.stop()
    path = f"runs/{attempt.run_id}/checkpoint/last/state.safetensors"
    assert look(storage)["parent-vit"].step == 0
    for content in (b"", b"\xff" * 20, storage.read(path)[:100]):
        storage.put(path, content)
        assert look(storage)["parent-vit"].step is None


def test_a_newer_store_is_refused(storage: Storage, grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
    invoke(storage, grid)
    path = f"grids/demo/{storage.names('grids/demo')[0]}"
    storage.put(path, json.dumps({**json.loads(storage.read(path)), "schema_version": 99}).encode())
    assert main(["--grid", "demo", "--results", storage.uri]) == 2
    assert "schema version 99, this version reads up to 1; update this project" in capsys.readouterr().err


def test_variants_are_chosen_as_in_the_tables(
    root: Path, data_path: Path, storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = LocalFacts(data_path, None, download=False)

    def shortened(epochs: int) -> str:
        short = load_grid(root / "experiments.yaml", "demo", Selection(fields={"budget.epochs": epochs}), facts)
        invoke(storage, short)
        return short.header.variant

    one, two = shortened(1), shortened(2)
    assert main(["--grid", "demo", "--results", storage.uri]) == 2
    assert "grid demo: choose one of its 2 variants: --variant" in capsys.readouterr().err
    assert main(["--grid", "demo", "--results", storage.uri, "--variant", two, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["variant"], answer["other_variants"], len(answer["runs"])) == (two, [one], 14)
    invoke(storage, load_grid(root / "experiments.yaml", "demo", None, facts))
    assert main(["--grid", "demo", "--results", storage.uri]) == 0
    assert "grid demo (full): 14 runs: 14 not run" in capsys.readouterr().out


def test_an_unreachable_store_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    uri = "s3://results/x?scheme=http&endpoint_override=127.0.0.1:1&connect_timeout=1&request_timeout=1"
    assert main(["--grid", "demo", "--results", uri]) == 2
    assert "cannot be " in capsys.readouterr().err


def test_a_thousand_runs_are_read_quickly_and_checkpoints_by_their_header(
    storage: Storage, grid: Grid, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third done, a third begun, a third not run; the rows are copies of one real run."""
    attempt = begin(storage, grid, "resnet-default", data_path)
    attempt.stop()
    checkpoint = storage.read(f"runs/{attempt.run_id}/checkpoint/last/state.safetensors")
    again = begin(storage, grid, "resnet-default", data_path)
    finish(again)
    (commit,) = records.read_commits(storage).values()
    (run,) = (run for run in grid.runs if run.label == "resnet-default")
    ids = [f"{number:016x}" for number in range(1000)]
    folder = storage.local_root
    assert folder is not None

    def own(path: str, run_id: str) -> str:
        return f"{path.rpartition('/')[0]}/{run_id}--a.parquet"

    many = replace(
        grid,
        rows=tuple(replace(grid.rows[0], label=run_id) for run_id in ids),
        runs=tuple(replace(run, run_id=run_id, label=run_id) for run_id in ids),
    )
    monkeypatch.setattr("trainable.storage.sync_file", lambda file: None)
    monkeypatch.setattr("trainable.storage.sync_folder", lambda folder: None)
    for number, run_id in enumerate(ids):
        if number % 3 == 0:
            files = [record.model_copy(update={"path": own(record.path, run_id)}) for record in commit.files]
            copied = commit.model_copy(update={"run_id": run_id, "attempt_id": "a", "files": tuple(files)})
            for record in commit.files:
                (folder / own(record.path, run_id)).symlink_to(folder / record.path)
            storage.publish(f"commits/{run_id}--a.json", copied.model_dump_json().encode())
        elif number % 3 == 1:
            records.start_attempt(storage, run_id, "a", {"host": "elsewhere", "pid": 1})
            storage.put(f"runs/{run_id}/checkpoint/last/state.safetensors", checkpoint)
    invoke(storage, many)

    whole: list[str] = []
    read = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, path, **how: (whole.append(path), read(self, path, **how))[1])
    began = time.process_time()
    found = read_status(storage, "demo", None, datetime.now(UTC))
    took = time.process_time() - began
    assert found.counts() == {**dict.fromkeys(STATES, 0), "done": 334, "running": 333, "not run": 333}
    assert not [path for path in whole if path.endswith("safetensors")]
    assert took < 10, f"{took:.1f} s"


def test_hundreds_of_reasons_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    plain: dict[str, Any] = {"seed": 1, "state": "failed", "certain": True, "reason": "OSError: full"}
    runs = tuple(RunStatus(label=f"row-{number}", run_id=f"{number}", **plain) for number in range(300))
    now = datetime.now(UTC)
    found = GridStatus(grid="g", variant="full", invoked_at=now, command=("python",), runs=runs, other_variants=())
    status.show(found, "results", now, status.Console(width=160))
    assert "row-11 and 288 more: OSError: full" in capsys.readouterr().out


@pytest.mark.slow
def test_a_real_run_in_progress_and_one_that_is_killed(
    root: Path, storage: Storage, data_path: Path, tmp_path: Path
) -> None:
    """Another process trains; it is watched from here, then killed."""
    facts = LocalFacts(data_path, None, download=False)
    invoke(storage, load_grid(root / "experiments.yaml", "demo", None, facts))
    given = ("--grid", "demo", "--label", "parent-vit", "--save-every", "0.2")
    process = start("trainable.run", *given, "--data", data_path, "--results", storage.uri)

    def trained() -> RunStatus | None:
        at = look(storage)["parent-vit"]
        return at if at.epoch else None

    at = wait_for(trained, what="an evaluation in a checkpoint")
    assert (at.state, at.certain) == ("running", True) and 0 < at.step < at.total_steps
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    at = look(storage)["parent-vit"]
    assert (at.state, at.certain, at.reason) == ("killed", True, None)
    assert at.epoch and at.top1 is not None
