"""The driver ends with one line when a process of its cluster dies, and not when the cluster is ended on purpose."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from processes import wait_for

DRIVER = """
import subprocess, sys, time
from tuner.guard import ClusterGuard
part = subprocess.Popen([sys.argv[1], "60"])
trial = subprocess.Popen(["sleep", "61"])
with ClusterGuard("python -m tuner.run --grid paper"):
    print(part.pid, trial.pid, flush=True)
    if sys.argv[2] == "dies":
        time.sleep(60)
part.kill(), part.wait()
trial.kill(), trial.wait()
"""


@pytest.mark.parametrize(
    ("name", "part"), [("raylet", "node process with the object store"), ("gcs_server", "control")]
)
def test_a_dead_part_ends_the_driver_and_what_it_started(tmp_path: Path, name: str, part: str) -> None:
    shutil.copy(str(shutil.which("sleep")), tmp_path / name)
    command = [sys.executable, "-c", DRIVER, str(tmp_path / name), "dies"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    dying, trial = map(int, driver.stdout.readline().split())
    os.kill(dying, 9)
    _, told = driver.communicate(timeout=20)
    assert driver.returncode == 1
    assert told.strip().startswith(f"Ray's {part}") and f"({name}) on this machine has died." in told
    assert told.strip().endswith("Continue with: python -m tuner.run --grid paper")
    wait_for(lambda: not psutil.pid_exists(trial), timeout=5, what="the end of the trial")


def test_an_end_on_purpose_is_quiet(tmp_path: Path) -> None:
    shutil.copy(str(shutil.which("sleep")), tmp_path / "raylet")
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "raylet"), "lives"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")
