"""One attempt at a run against a results store: lock, record of the start, training, commit or record of the failure.

The Ray actor and the command for one row both go through here, so a run is recorded in the same way wherever it ran.
"""

from __future__ import annotations

import time
import traceback
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from datasets.store import open_dataset
from datasets.terminal import plain
from trainable import provenance, records
from trainable.checkpoint import RunFolder
from trainable.costs import CostRecord, shape_of, write_cost
from trainable.credentials import redacted
from trainable.dims import publish_dims
from trainable.liveness import Process, holder, is_held, lock_path, this_process
from trainable.loop import EpochRow
from trainable.opening import is_out_of_memory, open_run
from trainable.spec import ExecSpec, RunSpec
from trainable.storage import Storage, StorageError
from trainable.tables import AttemptInfo
from trainable.training import TrainingRun

LOCK_WAIT_S = 30.0
"""A lock whose owner may just have died is waited for: workers of a killed driver live for seconds."""
LOCK_POLL_S = 0.2


class RunLocked(Exception):
    """Another living process trains this run; the message says which."""


class RunFailed(Exception):
    """The attempt failed and its failure is recorded; the message is the cause in one line."""

    def __init__(self, message: str, *, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory
        """Whether more memory might have saved it."""


class Attempt:
    """Opens a run for training and sees it through.

    Args:
        spec: what to train.
        exec_spec: where and how.
        storage: the results root.
        place: what else to record of where this attempt runs, such as a cluster's node and the process that schedules
            (`driver`: host and pid); JSON values by name.

    Raises:
        RunLocked: another process holds this run.
        RunFailed: the run cannot be opened.
    """

    def __init__(
        self, spec: RunSpec, exec_spec: ExecSpec, storage: Storage, place: Mapping[str, Any] | None = None
    ) -> None:
        self.spec, self.storage = spec, storage
        self.folder = RunFolder(storage, spec.run_id)
        driver = (place or {}).get("driver")
        self._lock = self._acquire((driver["host"], driver["pid"]) if driver else this_process())
        try:
            before = records.read_attempts(storage, [spec.run_id])
            self.notes: list[str] = []
            """What a person should know of how this attempt began, as its log says it too."""
            self.already_done = spec.run_id in records.read_commits(storage, [spec.run_id], self.notes)
            self.info = AttemptInfo(
                attempt_id=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}",
                number=max([len(before), *(record.number for record in before)]) + 1,
                history=tuple(record.attempt_id for record in before),
                started_at=datetime.now(UTC),
            )
            self._began_s = time.monotonic()
            self._log: list[str] = self._read_log()
            self.run: TrainingRun | None = None
            if not self.already_done:
                self._start(exec_spec, place or {})
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
        """Saves and leaves the run for a later attempt. Does nothing once the run is committed or failed.

        Raises:
            RunFailed: it cannot be saved; the failure is recorded, and the former checkpoint is kept.
        """
        run = self.run
        if run is None or not self._lock.is_locked:
            return
        try:
            run.save()
            records.end_attempt(self.storage, self.run_id, self.info.attempt_id, "stopped", None)
            self.log(f"stopped at step {run.position.step:,}; a checkpoint is kept")
        except Exception as error:
            raise self._failed(error) from error
        finally:
            self._close()

    def log(self, text: str) -> None:
        """Adds a line to the run's `log.txt`."""
        self._log.append(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {self.info.attempt_id} {plain(text)}\n")
        self.storage.put(self.folder.path("log.txt"), "".join(self._log).encode())

    def _start(self, exec_spec: ExecSpec, place: Mapping[str, Any]) -> None:
        self.storage.put(self.folder.path("spec.json"), self.spec.model_dump_json(indent=1).encode())
        host, pid = this_process()
        owner = {"host": host, "pid": pid, "number": self.info.number, **place}
        records.start_attempt(self.storage, self.run_id, self.info.attempt_id, owner)
        try:
            stores = open_dataset(Path(exec_spec.data_path), self.spec.data.dataset)
            init = self.spec.init
            parent = RunFolder(self.storage, str(init.source)) if init.kind == "parent" else None
            self.run = open_run(self.spec, exec_spec, self.folder, stores, parent)
        except Exception as error:
            raise self._failed(error) from error
        begun = f"resumed at step {self.run.position.step:,}" if self.run.position.step else "started"
        self.notes += self.run.notes
        self.log("; ".join([f"attempt {self.info.number} {begun}", *self.notes]))

    def _commit(self, run: TrainingRun) -> None:
        """Once the commit record is written the run is done, whatever becomes of the rest."""
        publish_dims(self.storage, run.stores)
        records.commit_run(
            self.storage,
            run_id=self.run_id,
            attempt_id=self.info.attempt_id,
            dataset=self.spec.data.dataset,
            tables=run.finish(self.info),
        )
        with suppress(StorageError):
            if run.position.step:  # an evaluation alone says nothing of a step
                write_cost(self.storage, self._cost(run))
            records.end_attempt(self.storage, self.run_id, self.info.attempt_id, "done", None)
            self.log("; ".join(["done and committed", *filter(None, [run.loop.not_recorded])]))
        self._close()

    def _cost(self, run: TrainingRun) -> CostRecord:
        """What the run was measured to cost."""
        train_s = sum(row.get("train_s", 0.0) for row in run.position.rows if row["split"] == "train")
        evaluated = [row["num_images"] for row in run.position.rows if row["split"] != "train"]
        again = [best for best in run.position.best.values() if best["step"] != run.position.step]
        passes = sum(evaluated) + len(again) * len(run.rows.test.index)
        whole_s = time.monotonic() - self._began_s
        device = run.loop.device
        return CostRecord(
            shape=shape_of(self.spec),
            run_id=self.run_id,
            attempt_id=self.info.attempt_id,
            source="run",
            device="cuda" if device.type == "cuda" else "cpu",
            device_name=provenance.device_name(device),
            threads=run.exec_spec.cpu_threads,
            gpu_fraction=run.exec_spec.gpu_fraction,
            seconds_per_step=train_s / run.position.step,
            seconds_per_evaluated_image=run.position.evaluate_s / passes,
            setup_s=None if self.info.number > 1 else max(0.0, whole_s - train_s - run.position.evaluate_s),
            peak_memory_bytes=provenance.peak_memory_bytes(device),
        )

    def _failed(self, error: Exception) -> RunFailed:
        """Records a failure; the record is best effort, since the storage itself may be what failed."""
        message = redacted(f"{type(error).__name__}: {error}")
        try:
            trace = redacted("".join(traceback.format_exception(error)[-12:]))
            records.end_attempt(self.storage, self.run_id, self.info.attempt_id, "failed", message)
            self.log(f"failed: {message}\n{trace}")
        except Exception as second:
            message += f" (and the failure could not be recorded: {second})"
        self._close()
        return RunFailed(message, out_of_memory=is_out_of_memory(error))

    def _close(self) -> None:
        if self.run is not None:
            self.run.close()
        self.run = None
        self._release()

    def _acquire(self, asking: Process) -> FileLock:
        path = lock_path(self.storage, self.run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                return lock.acquire(blocking=False).lock
            except Timeout:
                open_ones = [one for one in records.read_attempts(self.storage, [self.run_id]) if not one.outcome]
            if time.monotonic() >= deadline or (open_ones and is_held(self.storage, open_ones[-1], asking)):
                who = holder(open_ones[-1]) if open_ones else "another process"
                raise RunLocked(f"run {self.run_id} is being trained by {who} ({path} is locked)")
            time.sleep(LOCK_POLL_S)

    def _release(self) -> None:
        self._lock.release()

    def _read_log(self) -> list[str]:
        path = self.folder.path("log.txt")
        return [self.storage.read(path).decode(errors="replace")] if self.storage.exists(path) else []


def _sentence(rows: list[EpochRow]) -> str:
    parts = [f"epoch {rows[0]['epoch']:g} step {rows[0]['step']:,}"]
    for row in rows:
        top1 = row["top1"] if row["top1"] is not None else row["top1_mixed"]
        parts.append(f"{row['split']} loss {row['loss_nats']:.4f} top-1 {top1:.4f}")
    return ", ".join(parts)
