"""A driver that has nothing else to do waits for what others train."""

from __future__ import annotations

import threading

import pytest
from filelock import FileLock

from trainable.liveness import lock_path
from trainable.storage import Storage
from tuner import schedule


class Told:
    """A board that keeps what it is told."""

    def __init__(self, released: threading.Event) -> None:
        self.lines: list[str] = []
        self._released = released

    def say(self, message: str) -> None:
        self.lines.append(message)

    def refresh(self) -> None:
        self._released.set()


def test_it_says_so_once_and_goes_on_when_one_of_them_is_let_go(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "HELD_POLL_S", 0.05)
    paths = [lock_path(storage, run_id) for run_id in ("a" * 16, "b" * 16)]
    locked, looked = threading.Event(), threading.Event()

    def hold() -> None:
        for path in paths:
            path.parent.mkdir(parents=True)
        with FileLock(paths[0]):
            with FileLock(paths[1]):
                locked.set()
                assert looked.wait(10)
            assert released.wait(10)

    released = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(10)
    board = Told(looked)
    schedule._wait_for_release(storage, {"a" * 16: "Exp-1 (process 7)", "b" * 16: "Exp-2 (process 7)"}, board)  # type: ignore[arg-type]
    assert board.lines == ["waiting for what others train: Exp-1 (process 7), Exp-2 (process 7)"]
    released.set()
    holder.join()
    schedule._wait_for_release(storage, {"a" * 16: "Exp-1"}, board)  # type: ignore[arg-type]
    assert len(board.lines) == 1, "nothing is said where nothing is waited for"
