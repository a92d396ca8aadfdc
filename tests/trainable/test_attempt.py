"""Attempts: one process a run, every start and end recorded, failures kept with their reason."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from failing_s3 import failing_s3
from stores import assert_same_results
from toy import exec_spec, run_spec

from datasets.store import Dataset
from trainable import attempt as attempts
from trainable import records
from trainable import storage as storage_module
from trainable.attempt import Attempt, RunFailed, RunLocked
from trainable.spec import RunSpec
from trainable.storage import Storage, StorageError


@pytest.fixture
def spec(toy: Dataset) -> RunSpec:
    return run_spec({"data.content_sha256": toy.manifest.content_sha256})


def finish(attempt: Attempt) -> None:
    while not attempt.done:
        attempt.advance()


def test_a_run_is_done_once(storage: Storage, data_path: Path, spec: RunSpec) -> None:
    finish(Attempt(spec, exec_spec(data_path), storage))
    again = Attempt(spec, exec_spec(data_path), storage)
    assert again.already_done and again.done and again.advance() == [] and again.progress == 1.0
    assert len(records.read_attempts(storage)) == 1
    assert len(storage.names("commits")) == 1


def test_stopped_and_continued_it_gives_the_same_parquet(tmp_path: Path, data_path: Path, spec: RunSpec) -> None:
    whole, pieces = (Storage(str(tmp_path / name)) for name in ("whole", "pieces"))
    finish(Attempt(spec, exec_spec(data_path), whole))
    for _ in range(2):
        attempt = Attempt(spec, exec_spec(data_path), pieces)
        attempt.advance()
        attempt.stop()
        attempt.stop()
    finish(Attempt(spec, exec_spec(data_path), pieces))
    assert_same_results(whole, pieces)
    assert [record.outcome for record in records.read_attempts(pieces)] == ["stopped", "stopped", "done"]
    (trial,) = records.read_table(pieces, "trials", records.read_commits(pieces).values()).to_pylist()
    assert trial["attempt_number"] == 3
    log = pieces.read(f"runs/{spec.run_id}/log.txt").decode()
    assert "attempt 2 resumed at step 4" in log and "done and committed" in log


def test_a_failure_is_recorded_with_its_reason(storage: Storage, data_path: Path, toy: Dataset) -> None:
    spec = run_spec(
        {"data.content_sha256": toy.manifest.content_sha256, "optim.lr": 1e30, "model.name": "small_resnet"}
    )
    attempt = Attempt(spec, exec_spec(data_path), storage)
    with pytest.raises(RunFailed, match=r"NonFiniteLoss: the loss was not a finite number at step \d+"):
        finish(attempt)
    (record,) = records.read_attempts(storage)
    assert record.outcome == "failed" and record.error is not None and "lower optim.lr" in record.error
    assert "Traceback" in storage.read(f"runs/{spec.run_id}/log.txt").decode()
    assert records.read_commits(storage) == {}
    assert attempt.run is None
    Attempt(spec, exec_spec(data_path), storage).stop()  # the lock is free again


def test_a_run_that_cannot_open_fails_with_its_reason(storage: Storage, tmp_path: Path, spec: RunSpec) -> None:
    with pytest.raises(RunFailed, match=r"DataError: toy is not prepared in .*; run: python -m datasets\.prepare toy"):
        Attempt(spec, exec_spec(tmp_path), storage)
    assert records.read_attempts(storage)[0].outcome == "failed"


def test_a_held_run_is_refused_and_says_by_whom(
    storage: Storage, data_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Attempt(spec, exec_spec(data_path), storage)
    monkeypatch.setattr(attempts, "LOCK_WAIT_S", 0.5)
    with pytest.raises(RunLocked, match=rf"run {spec.run_id} is being trained by attempt {holder.info.attempt_id}"):
        Attempt(spec, exec_spec(data_path), storage)
    holder.stop()


def test_what_a_living_driver_holds_is_refused_at_once_and_a_dead_ones_is_waited_for(
    storage: Storage, data_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    living = {"driver": {"host": socket.gethostname(), "pid": os.getppid()}}
    holder = Attempt(spec, exec_spec(data_path), storage, living)
    began = time.monotonic()
    with pytest.raises(RunLocked, match=rf"scheduled by process {os.getppid()} on .* is locked"):
        Attempt(spec, exec_spec(data_path), storage)
    assert time.monotonic() - began < attempts.LOCK_WAIT_S / 2
    holder.stop()

    gone = subprocess.Popen(["true"])
    gone.wait()
    dying = Attempt(spec, exec_spec(data_path), storage, {"driver": {"host": socket.gethostname(), "pid": gone.pid}})
    waiting = threading.Thread(target=lambda: Attempt(spec, exec_spec(data_path), storage).stop())
    waiting.start()
    time.sleep(1.0)
    assert waiting.is_alive()
    dying.stop()
    waiting.join()
    assert [record.outcome for record in records.read_attempts(storage)] == ["stopped"] * 3


WORKER = """
import sys
import threading
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[4])
from toy import exec_spec
from trainable.attempt import Attempt
from trainable.spec import RunSpec
from trainable.storage import Storage
spec = RunSpec.model_validate_json(sys.argv[1])
settings = exec_spec(Path(sys.argv[2]), save_every_s=0.01, device=sys.argv[5])
attempt = Attempt(spec, settings, Storage(sys.argv[3]))
while not attempt.done:
    attempt.advance(0.0)
"""


CARD = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CARD)])
def test_killed_at_random_moments_it_ends_with_the_same_parquet(
    device: str, tmp_path: Path, data_path: Path, toy: Dataset, root: Path
) -> None:
    """SIGKILL in the middle of anything: a step, an evaluation, a checkpoint, a Parquet file."""
    spec = run_spec(
        {
            "data.content_sha256": toy.manifest.content_sha256,
            "budget.epochs": 25,
            "augment.mix": "cutmix",
            "augment.mix_alpha": 1.0,
        }
    )
    whole, killed = (Storage(str(tmp_path / name)) for name in ("whole", "killed"))
    finish(Attempt(spec, exec_spec(data_path, device=device), whole))
    arguments = [
        sys.executable,
        "-c",
        WORKER,
        spec.canonical(),
        str(data_path),
        killed.uri,
        str(root / "tests/support"),
        device,
    ]
    kills = 0
    for wait_s in (0.05, 0.4, 0.9, 0.2, 0.6, 1e9):
        process = subprocess.Popen(arguments, cwd=root)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:  # wait_s counts from the attempt's own start
            begun = [record for record in records.read_attempts(killed) if record.outcome is None]
            if len(begun) > kills:
                break
            time.sleep(0.01)
        time.sleep(min(wait_s, 0.0 if wait_s == 1e9 else wait_s))
        if wait_s == 1e9:
            assert process.wait(timeout=120) == 0
            break
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 3
    assert_same_results(whole, killed)
    assert [record.outcome for record in records.read_attempts(killed)].count(None) == kills


def test_the_attempt_names_its_process(storage: Storage, data_path: Path, spec: RunSpec) -> None:
    attempt = Attempt(spec, exec_spec(data_path), storage)
    (name,) = storage.names("attempts")
    assert json.loads(storage.read(f"attempts/{name}"))["pid"] == os.getpid()
    attempt.stop()


def test_the_lock_file_of_a_dead_process_elsewhere_holds_nothing_up(
    storage: Storage, data_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine is gone: the file stays, and nobody holds it."""
    records.start_attempt(storage, spec.run_id, "a", {"host": "gone", "pid": 1, "number": 1})
    assert storage.local_root is not None
    lock = storage.local_root / "runs" / spec.run_id / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    monkeypatch.setattr(attempts, "LOCK_WAIT_S", 0.0)
    finish(Attempt(spec, exec_spec(data_path), storage))
    assert [record.outcome for record in records.read_attempts(storage)] == [None, "done"]


def test_a_commit_counts_although_what_follows_it_cannot_be_written(
    storage: Storage, data_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Attempt(spec, exec_spec(data_path), storage)
    publish = Storage.publish

    def full(self: Storage, path: str, content: bytes) -> None:
        if path.startswith(("costs/", "attempts/")):
            raise StorageError("no room")
        publish(self, path, content)

    monkeypatch.setattr(Storage, "publish", full)
    finish(attempt)
    assert attempt.done and storage.names("dims/classes") and storage.names("dims/samples")
    assert Attempt(spec, exec_spec(data_path), storage).already_done
    assert [record.outcome for record in records.read_attempts(storage)] == [None]


def test_a_run_goes_on_where_every_request_fails_three_times(
    s3_uri: str, data_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(storage_module, "PAUSES_S", (0.001,) * 7)
    whole = Storage(str(tmp_path / "whole"))
    finish(Attempt(spec, exec_spec(data_path), whole))
    with failing_s3(s3_uri, 3) as proxy:
        store = proxy.storage("three")
        finish(Attempt(spec, exec_spec(data_path), store))
        assert set(proxy.failed.values()) == {3} and len(proxy.failed) > 15
        assert_same_results(whole, store)


def test_storage_that_stops_working_ends_the_attempt_with_one_message(
    s3_uri: str, data_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(storage_module, "PAUSES_S", (0.001,) * 7)
    whole = Storage(str(tmp_path / "whole"))
    finish(Attempt(spec, exec_spec(data_path), whole))
    with failing_s3(s3_uri, 0) as proxy:
        store = proxy.storage("stops")
        attempt = Attempt(spec, exec_spec(data_path, save_every_s=1e-9), store)
        attempt.advance()
        proxy.failures = -1
        with pytest.raises(RunFailed, match=r"StorageError: s3://\S+ cannot be written .* could not be recorded"):
            finish(attempt)
        proxy.failures = 0
        finish(Attempt(spec, exec_spec(data_path), store))
        assert_same_results(whole, store)
