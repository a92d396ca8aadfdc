"""The command behind `ray://`, without a cluster; tests/integration/test_clusters.py sends one through a real one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.command import Command
from tuner.run import main


def test_lines_come_as_they_are_printed_and_the_code_comes_last() -> None:
    script = "import os, time; print('one', os.environ['TOLD'], flush=True); time.sleep(2); print('two'); raise SystemExit(3)"
    command = Command(["-c", script], {"TOLD": "yes"})
    assert command.read() == (["one yes\n"], None)
    lines: list[str] = []
    code = None
    while code is None:
        more, code = command.read()
        lines += more
    assert (lines, code) == (["two\n"], 3)


def test_a_signal_reaches_the_command() -> None:
    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); print('set', flush=True); "
        "time.sleep(60)"
    )
    command = Command(["-c", script], {})
    while command.read() != (["set\n"], None):
        pass
    command.send_signal(signal.SIGTERM)
    while (read := command.read())[1] is None:
        pass
    assert read == ([], 130)


def test_what_ray_client_imports_imports_no_torch(root: Path) -> None:
    code = "import sys, tuner.command; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert shown.stdout.strip() == "False"


def test_a_client_server_that_is_not_there(
    tmp_path: Path, data_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--grid", "demo", "--address", "ray://127.0.0.1:1", "--data", str(data_path)]
    assert main([*given, "--results", str(tmp_path / "results")]) == 2
    assert "--address ray://127.0.0.1:1: nothing listens there" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
