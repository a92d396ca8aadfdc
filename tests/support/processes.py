"""Real processes for tests: the project's commands, as a person would type them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


def command(module: str, *arguments: object) -> list[str]:
    """`python -m module arguments` with this interpreter."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def run(module: str, *arguments: object, timeout: float = 240, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end and captures what it prints."""
    return subprocess.run(
        command(module, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False, **settings
    )


def start(module: str, *arguments: object, **settings: Any) -> subprocess.Popen[str]:
    """Starts a command in a session of its own; its output goes to one pipe."""
    return subprocess.Popen(
        command(module, *arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **settings.pop("env", {})},
        **settings,
    )


def wait_for(condition: Callable[[], Any], timeout: float = 120, what: str = "the condition") -> Any:
    """Polls until the condition is true and returns its value."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout:.0f} s for {what}")
