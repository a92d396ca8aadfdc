"""Ends the driver, with one line that says how to go on, when a process of its own cluster has died.

Without Ray's control store or node process nothing of a grid can go on, but the driver would wait for a minute and end
with lines of C++, or retry until its trials have died too often.
"""

from __future__ import annotations

import os
import sys
import threading

import psutil

PARTS = {"gcs_server": "control store (gcs_server)", "raylet": "node process with the object store (raylet)"}
LOOK_EVERY_S = 0.1


class ClusterGuard:
    """Watches the processes of a cluster that this process has started, from a thread of its own. Use as a context
    manager within the cluster's life.

    Args:
        command: what a person types to go on.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._parts = [process for process in psutil.Process().children() if process.name() in PARTS]
        self._names = {process.pid: PARTS[process.name()] for process in self._parts}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cluster guard", daemon=True)
        self._thread.start()

    def __enter__(self) -> ClusterGuard:
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            for part in self._parts:
                if not part.is_running() or part.status() == psutil.STATUS_ZOMBIE:
                    self._give_up(part.pid)

    def _give_up(self, pid: int) -> None:
        """The main thread may wait for the dead process within Ray: nothing less than this is sure to end it."""
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[?25h")  # the live table hides the cursor
            sys.stdout.flush()
        print(
            f"\nRay's {self._names[pid]} on this machine has died. What was recorded is safe, and what was running "
            f"keeps its checkpoints. Continue with: {self._command}",
            file=sys.stderr,
            flush=True,
        )
        _kill_children()
        os._exit(1)


def _kill_children() -> None:
    """Nothing of the dead cluster may go on training beside the next."""
    family = psutil.Process().children(recursive=True)
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
