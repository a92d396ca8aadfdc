"""One attempt at a run against a results store: lock, record of the start, training, commit or record of the failure.

The Ray actor and the command for one row both go through here, so a run is recorded in the same way wherever it ran.
"""

from __future__ import annotations

import os
import socket
import traceback
import uuid
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from datasets.store import open_dataset
from trainable import records
from trainable.checkpoint import RunFolder
from trainable.dims import publish_dims
from trainable.loop import EpochRow
from trainable.opening import open_run
from trainable.spec import ExecSpec, RunSpec
from trainable.storage import Storage
from trainable.tables import AttemptInfo
from trainable.training import TrainingRun

LOCK_WAIT_S = 30.0
"""A lock whose owner may just have died is waited for: workers of a killed driver live for seconds."""


class RunLocked(Exception):
    """Another living process trains this run; the message says which."""


class RunFailed(Exception):
    """The attempt failed and its failure is recorded; the message is the cause in one line."""


class Attempt:
    """Opens a run for training and sees it through.

    Args:
        spec: what to train.
        exec_spec: where and how.
        storage: the results root.

    Raises:
        RunLocked: another process holds this run.
        RunFailed: the run cannot be opened.
    """

    def __init__(self, spec: RunSpec, exec_spec: ExecSpec, storage: Storage) -> None:
        self.spec, self.storage = spec, storage
        self.folder = RunFolder(storage, spec.run_id)
        self._lock = self._acquire()
        try:
            before = records.read_attempts(storage, [spec.run_id])
            self.already_done = spec.run_id in records.read_commits(storage, [spec.run_id])
            self.info = AttemptInfo(
                attempt_id=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}",
                number=len(before) + 1,
                history=tuple(record.attempt_id for record in before),
                started_at=datetime.now(UTC),
            )
            self._log: list[str] = self._read_log()
            self.run: TrainingRun | None = None
            if not self.already_done:
                self._start(exec_spec)
        except BaseException:
            self._release()
            raise

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.spec.run_id

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return 1.0 if self.run is None else self.run.progress

    def advance(self, seconds: float = float("inf")) -> list[EpochRow]:
        """Trains on; when the run is done, commits it. See `TrainingRun.advance`.

        Raises:
            RunFailed: the failure is recorded.
        """
        if self.run is None:
            return []
        try:
            rows = self.run.advance(seconds)
            if rows:
                self.log(_sentence(rows))
            if self.run.done:
                self._commit(self.run)
            return rows
        except Exception as error:
            raise self._failed(error) from error

    @property
    def done(self) -> bool:
        """Whether the run is committed."""
        return self.run is None

    def stop(self) -> None:
        """Saves and leaves the run for a later attempt. Does nothing once the run is committed or failed."""
        run = self.run
        if run is None or not self._lock.is_locked:
            return
        try:
            run.save()
            records.end_attempt(self.storage, self.run_id, self.info.attempt_id, "stopped", None)
            self.log(f"stopped at step {run.position.step:,}; a checkpoint is kept")
        finally:
            self._close()

    def log(self, text: str) -> None:
        """Adds a line to the run's `log.txt`."""
        self._log.append(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {self.info.attempt_id} {text}\n")
        self.storage.put(self.folder.path("log.txt"), "".join(self._log).encode())

    def _start(self, exec_spec: ExecSpec) -> None:
        self.storage.put(self.folder.path("spec.json"), self.spec.model_dump_json(indent=1).encode())
        owner = {"host": socket.gethostname(), "pid": os.getpid()}
        records.start_attempt(self.storage, self.run_id, self.info.attempt_id, owner)
        try:
            stores = open_dataset(Path(exec_spec.data_path), self.spec.data.dataset)
            init = self.spec.init
            parent = RunFolder(self.storage, str(init.source)) if init.kind == "parent" else None
            self.run = open_run(self.spec, exec_spec, self.folder, stores, parent)
        except Exception as error:
            raise self._failed(error) from error
        begun = f"resumed at step {self.run.position.step:,}" if self.run.position.step else "started"
        self.log("; ".join([f"attempt {self.info.number} {begun}", *self.run.notes]))

    def _commit(self, run: TrainingRun) -> None:
        records.commit_run(
            self.storage,
            run_id=self.run_id,
            attempt_id=self.info.attempt_id,
            dataset=self.spec.data.dataset,
            tables=run.finish(self.info),
        )
        publish_dims(self.storage, run.stores)
        records.end_attempt(self.storage, self.run_id, self.info.attempt_id, "done", None)
        self.log("done and committed")
        self._close()

    def _failed(self, error: Exception) -> RunFailed:
        """Records a failure; the record is best effort, since the storage itself may be what failed."""
        message = f"{type(error).__name__}: {error}"
        try:
            trace = "".join(traceback.format_exception(error)[-12:])
            records.end_attempt(self.storage, self.run_id, self.info.attempt_id, "failed", message)
            self.log(f"failed: {message}\n{trace}")
        except Exception as second:
            message += f" (and the failure could not be recorded: {second})"
        self._close()
        return RunFailed(message)

    def _close(self) -> None:
        if self.run is not None:
            self.run.close()
        self.run = None
        self._release()

    def _acquire(self) -> FileLock:
        root = self.storage.local_root
        # Object stores have no locks. There, whoever commits last is read; both attempts gave the same bits.
        base = root if root is not None else Path.home() / ".cache" / "grid-tuner"
        path = base / self.folder.path("lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=LOCK_WAIT_S, poll_interval=0.2)
        except Timeout:
            living = [record for record in records.read_attempts(self.storage, [self.run_id]) if not record.outcome]
            who = f"attempt {living[-1].attempt_id}" if living else "another process"
            raise RunLocked(
                f"run {self.run_id} is being trained by {who} ({path} is locked); wait for it, or stop it first"
            ) from None
        return lock

    def _release(self) -> None:
        self._lock.release()

    def _read_log(self) -> list[str]:
        path = self.folder.path("log.txt")
        return [self.storage.read(path).decode()] if self.storage.exists(path) else []


def _sentence(rows: list[EpochRow]) -> str:
    parts = [f"epoch {rows[0]['epoch']:g} step {rows[0]['step']:,}"]
    for row in rows:
        top1 = row["top1"] if row["top1"] is not None else row["top1_mixed"]
        parts.append(f"{row['split']} loss {row['loss_nats']:.4f} top-1 {top1:.4f}")
    return ", ".join(parts)
