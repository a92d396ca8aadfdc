"""What a run that is not committed shows of itself: its lock, its last sign of life, how far its checkpoint is.

Read from the store alone, by whoever looks, on whatever machine; nothing here writes. Only a lock tells for certain
whether a process lives, and only where the lock can be seen: in a local store, or on the machine that trains.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import astuple, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from trainable.records import AttemptRecord
from trainable.storage import Storage

SILENT_S = 600.0
"""Ten of the default intervals between checkpoints: after so long without a sign a run is taken for killed."""
_HEADER_BYTES = 1 << 16
_HEADER_LIMIT = 100_000_000  # as of the safetensors format


@dataclass(frozen=True, kw_only=True, slots=True)
class Life:
    """Whether an attempt that recorded no end is still at work."""

    running: bool
    certain: bool
    """Whether a lock says so; else it is judged by `heard_at`."""
    heard_at: datetime
    """Its latest sign: its start, or when its log or a checkpoint was last written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """How far a run's last checkpoint is."""

    step: int
    total_steps: int | None
    """None in checkpoints of versions that did not say."""
    epoch: float | None
    """Of the last evaluation, as are the two below; None before the first."""
    loss_nats: float | None
    """Of training since the evaluation before."""
    top1: float | None
    """Fraction, on the test split."""


def lock_path(storage: Storage, run_id: str) -> Path:
    """The file that a run's process holds locked.

    Object stores have no locks: there it keeps to one machine, and whoever commits last is read; both attempts gave
    the same bits.
    """
    name = f"runs/{run_id}/lock"
    return storage.local_path(name) or Path.home() / ".cache" / "grid-tuner" / name


def signs_of_life(storage: Storage, attempt: AttemptRecord, now: datetime) -> Life:
    """Judges an attempt that recorded no end.

    A lock that is held is proof of life. A free one is proof of death on the machine that trained; elsewhere it is
    not, since a network file system may keep locks to each machine.
    """
    held = _is_locked(lock_path(storage, attempt.run_id))
    heard = [attempt.started_at]
    for name in ("log.txt", "checkpoint/last/state.safetensors"):
        written = storage.modified(f"runs/{attempt.run_id}/{name}")
        if written is not None:
            heard.append(written)
    heard_at = max(heard)
    if held:
        return Life(running=True, certain=True, heard_at=heard_at)
    if held is False and attempt.host == socket.gethostname():
        return Life(running=False, certain=True, heard_at=heard_at)
    return Life(running=(now - heard_at).total_seconds() < SILENT_S, certain=False, heard_at=heard_at)


Process = tuple[str, int]
"""Host name and process id."""


def this_process() -> Process:
    """The calling process."""
    return socket.gethostname(), os.getpid()


def is_held(storage: Storage, attempt: AttemptRecord, asking: Process) -> bool:
    """Whether the run of an attempt that recorded no end is held by somebody who will go on with it.

    Workers outlive a killed driver for seconds, and a worker of the one who asks may be dying: neither counts, where
    the driver is a process of this machine. What another machine schedules counts for as long as the lock is held.

    Args:
        storage: the results root.
        attempt: the run's last.
        asking: who wants to train the run: the driver, or a process that schedules itself.
    """
    if not _is_locked(lock_path(storage, attempt.run_id)):
        return False
    host, pid = attempt.driver or (attempt.host, attempt.pid)
    if host != socket.gethostname() or pid is None:
        return True
    return (host, pid) != asking and psutil.pid_exists(pid)


def is_released(storage: Storage, run_id: str) -> bool:
    """Whether no process that can be seen from here holds a run's lock."""
    return not _is_locked(lock_path(storage, run_id))


def holder(attempt: AttemptRecord) -> str:
    """Who trains, in words."""
    since = f"{attempt.started_at:%Y-%m-%d %H:%M} UTC"
    scheduled = f", scheduled by process {attempt.driver[1]} on {attempt.driver[0]}" if attempt.driver else ""
    return f"attempt {attempt.attempt_id} (process {attempt.pid} on {attempt.host}{scheduled}) since {since}"


def reached(storage: Storage, run_id: str) -> Reached | None:
    """Reads the header of the run's last checkpoint, none of its tensors.

    Returns:
        None where the run keeps no checkpoint, or none that can be read (its next attempt begins anew).
    """
    path = f"runs/{run_id}/checkpoint/last/state.safetensors"
    try:
        meta = _read_meta(storage, path)
        rows = meta["position"]["rows"]
        last = {row["split"]: row for row in rows if row["step"] == rows[-1]["step"]}
        found = Reached(
            step=meta["step"],
            total_steps=meta.get("total_steps"),
            epoch=rows[-1]["epoch"] if rows else None,
            loss_nats=last["train"]["loss_nats"] if "train" in last else None,
            top1=last["test"]["top1"] if rows else None,
        )
        return found if all(isinstance(value, int | float | None) for value in astuple(found)) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _read_meta(storage: Storage, path: str) -> dict[str, Any]:
    start = storage.read_start(path, _HEADER_BYTES)
    size = 8 + int.from_bytes(start[:8], "little")
    if size > _HEADER_LIMIT:
        raise ValueError(f"a header of {size:,} bytes")
    if size > len(start):
        start = storage.read_start(path, size)
    return dict(json.loads(json.loads(start[8:size])["__metadata__"]["meta"]))


def _is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock; None where there is no such file or it cannot be asked.

    Asks for a shared lock on a file opened for reading, so nothing is created or changed; an attempt that starts in
    this very instant tries again a moment later.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return None
