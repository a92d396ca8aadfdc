"""A command that runs as the child of a Ray actor, for `tuner.remote`.

Importing this module must stay light: the server of Ray Client does it in a thread, and torch's MKL ends it there.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading

import ray

POLL_S = 1.0


class Command:
    """One command as a child of an actor's process."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        if ray.is_initialized():  # else `auto` might mean another cluster of this machine
            environment = {**environment, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        threading.Thread(target=self._read, daemon=True).start()

    def read(self) -> tuple[list[str], int | None]:
        """Lines since the last call, after a second at most; and the exit code once all were read."""
        lines: list[str] = []
        try:
            line = self._lines.get(timeout=POLL_S)
            while line is not None:
                lines.append(line)
                line = self._lines.get_nowait()
        except queue.Empty:
            return lines, None
        return lines, self._process.wait()

    def send_signal(self, number: int) -> None:
        """Passes a signal on."""
        self._process.send_signal(number)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)
