"""What integration tests share: the whole grid `demo`, run once as a person would run it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import run

from trainable.storage import Storage


@dataclass(frozen=True)
class Demo:
    """An undisturbed run of grid `demo`."""

    storage: Storage
    data: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, data_path: Path) -> Demo:
    """Runs grid `demo` on this machine."""
    results = tmp_path_factory.mktemp("demo") / "results"
    done = run("tuner.run", "--grid", "demo", "--data", data_path, "--results", results, timeout=600)
    return Demo(Storage(str(results)), data_path, done)
