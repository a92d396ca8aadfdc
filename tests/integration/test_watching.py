"""A grid is watched while it runs: gauges over HTTP, the dashboard in a browser, its ports, trackers, `--json`."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from dashboard import browser
from processes import run, start, wait_for
from prometheus_client.parser import text_string_to_metric_families
from tiny_grid import write_grid

from tuner.dag import RunState
from tuner.metrics import METRICS, PREFIX

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SECRETS = {name: f"sentinel-of-{name.lower()}" for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY")}
LONG = {"long": {"budget.epochs": 100_000, "evaluate.every_epochs": 20}, "bad": {"optim.lr": 1e30}}


class Watched:
    """A command that is running, with what it has printed."""

    def __init__(self, *arguments: object, **settings: Any) -> None:
        self.process = start("tuner.run", *arguments, **settings)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def find(self, pattern: str) -> re.Match[str] | None:
        """The first match among the lines so far."""
        assert self.process.poll() is None, "".join(self.lines)
        return re.search(pattern, "".join(self.lines))

    def interrupt(self) -> int:
        """Ctrl-C, and the exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def gauges(address: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Our gauges, by name: tags and value of every sample."""
    text = requests.get(address, timeout=10).text
    return {
        family.name: [(sample.labels, sample.value) for sample in family.samples]
        for family in text_string_to_metric_families(text)
        if family.name.startswith(f"{PREFIX}grid_")
    }


def listening(pid: int) -> dict[tuple[str, int], str]:
    """Addresses on which a process and those it started listen."""
    me = psutil.Process(pid)
    found = {}
    for process in [me, *me.children(recursive=True)]:
        try:
            connections = process.net_connections("inet")
        except psutil.Error:
            continue
        found |= {tuple(one.laddr): process.name() for one in connections if one.status == psutil.CONN_LISTEN}
    return found


def test_gauges_ports_and_dashboard_of_a_running_grid(data_path: Path, tmp_path: Path) -> None:
    file = write_grid(tmp_path / "tiny.yaml", LONG)
    given = ("--grid", "tiny", "--experiments", file, "--data", data_path, "--results", tmp_path / "results")
    grid = Watched(*given, env=SECRETS)
    try:
        said = wait_for(
            lambda: grid.find(
                r"Ray dashboard (http://127\.0\.0\.1:\d+) \(asks for the token in (\S+)\)\nmetrics (\S+)"
            ),
            what="the addresses",
        )
        dashboard, token_file, endpoint = said.groups()
        assert endpoint.startswith("http://127.0.0.1:")

        def complete() -> Any:
            found = gauges(endpoint)
            states = {tags["state"]: value for tags, value in found.get("ray_grid_runs", [])}
            ready = set(found) >= {PREFIX + name for name in METRICS if name != "grid_seconds_left"}
            return (found, states) if ready and states.get("failed") == 1 and states.get("running") == 1 else None

        found, states = wait_for(complete, what="all gauges of a running and a failed row")
        assert set(states) == {state.value for state in RunState} and sum(states.values()) == 2
        long = {name: value for name, samples in found.items() for tags, value in samples if tags.get("run") == "long"}
        assert long["ray_grid_run_epoch"] >= 20 and 0 < long["ray_grid_run_top1"] <= 1
        assert 0 < long["ray_grid_run_train_loss_nats"] < 10 and long["ray_grid_run_images_per_s"] > 10
        assert 5e7 < long["ray_grid_run_peak_memory_bytes"] < 1e10 and long["ray_grid_run_gpu_share"] == 0
        assert {tags["grid"] for samples in found.values() for tags, _ in samples} == {"tiny"}

        open_to_others = {place for place in listening(grid.process.pid) if not place[0].endswith("127.0.0.1")}
        assert listening(grid.process.pid) and not open_to_others
        assert requests.get(f"{dashboard}/api/v0/actors", timeout=10).status_code == 401
        lines = [" ".join(one.cmdline()) for one in psutil.Process(grid.process.pid).children(recursive=True)]
        sessions = {Path(found[0]) for found in (re.search(r"/\S+/session_[^/ ]+", line) for line in lines) if found}
        assert len(sessions) == 1 and not any("sentinel" in line for line in lines)
        look_at(dashboard, Path(token_file).expanduser().read_text().strip(), tmp_path)
    finally:
        code = grid.interrupt()
    assert code == 130, "".join(grid.lines)
    written = [path for home in (*sessions, tmp_path / "results") for path in home.rglob("*") if path.is_file()]
    assert any(path.name == "raylet.out" for path in written)
    assert not [path for path in written if b"sentinel" in path.read_bytes()]
    assert "sentinel" not in "".join(grid.lines)


def look_at(dashboard: str, token: str, folder: Path) -> None:
    """Opens the dashboard, gives the token, and finds the trial among the actors."""
    with browser(folder / "profile") as chrome:
        chrome.get(dashboard)
        field = wait_for(lambda: chrome.find_elements("css selector", "input[type=password]"), what="the token dialog")
        field[0].send_keys(token)
        next(one for one in chrome.find_elements("tag name", "button") if one.text.upper() == "SUBMIT").click()
        wait_for(lambda: not chrome.find_elements("css selector", "input[type=password]"), what="the token accepted")
        chrome.get(f"{dashboard}/#/actors")
        chrome.refresh()
        try:
            wait_for(
                lambda: {"long", "ALIVE"} <= set(chrome.find_element("tag name", "body").text.split()),
                timeout=40,
                what="the row's label beside its living process",
            )
        finally:
            chrome.save_screenshot(str(folder / "actors.png"))


def test_trackers_and_json(data_path: Path, tmp_path: Path) -> None:
    """Curves land below the results while they grow; standard output is one JSON object."""
    file = write_grid(tmp_path / "tiny.yaml", {"good": {"budget.epochs": 3}, "bad": {"optim.lr": 1e30}})
    results = tmp_path / "results"
    given = ("--grid", "tiny", "--experiments", file, "--data", data_path, "--results", results)
    done = run("tuner.run", *given, "--log", "tensorboard,wandb,mlflow", "--json", "--quiet")
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    good, bad = (next(one for one in answer["runs"] if one["label"] == label) for label in ("good", "bad"))
    assert (good["state"], good["reason"], answer["interrupted"]) == ("done", None, False)
    assert 0 < good["top1"] <= 1 and 0 < good["seconds"] < 100
    assert bad["state"] == "failed" and bad["reason"].startswith("NonFiniteLoss") and bad["top1"] is None
    assert "bad: FAILED in" in done.stderr and "started" not in done.stderr and "1 DONE, 1 FAILED" in done.stderr

    (events,) = (results / "loggers" / "tensorboard" / "tiny" / f"good-{good['run_id']}").glob("events.out.tfevents.*")
    scalars = read_events(events)
    assert [step for step, _ in scalars["ray/tune/test_top1"]] == [4, 8, 12]
    assert scalars["ray/tune/test_top1"][-1][1] == pytest.approx(good["top1"])
    assert [value for _, value in scalars["ray/tune/epoch"]] == [1, 2, 3]

    home = results / "loggers" / "mlflow"
    folders = {path.parent.parent for path in home.glob("*/*/params/run_id")}
    (mine,) = (folder for folder in folders if (folder / "params" / "run_id").read_text() == good["run_id"])
    lines = [line.split() for line in (mine / "metrics" / "test_top1").read_text().splitlines()]
    assert [int(line[2]) for line in lines] == [4, 8, 12] and float(lines[-1][1]) == pytest.approx(good["top1"])
    assert (mine / "params" / "optim.lr").read_text() == "0.001"

    (record,) = (results / "loggers" / "wandb").glob(f"offline-run-*-{good['run_id']}/run-{good['run_id']}.wandb")
    content = record.read_bytes()
    assert all(word in content for word in (b"test_top1", b"train_loss_nats", b"optim.lr", b"small_vit"))


def read_events(path: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by tag, from TensorBoard's record format: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, found, at = path.read_bytes(), dict[str, list[tuple[int, float]]](), 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 8], "little")
        event = Event.FromString(content[at + 12 : at + 12 + size])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        at += 16 + size
    return found


STARTER = """
import json, psutil, sys
from tuner.invocation import ray_environment
ray_environment(local=True)
from tuner import schedule
schedule.connect(None, threads=1, dashboard_host="0.0.0.0")
me = psutil.Process()
found = [one for process in [me, *me.children(recursive=True)] for one in process.net_connections("inet")]
print(json.dumps([tuple(one.laddr) for one in found if one.status == psutil.CONN_LISTEN]))
schedule.disconnect()
"""


def test_asked_for_the_dashboard_alone_is_exposed(root: Path) -> None:
    """And it asks for the token there too."""
    done = subprocess.run(
        [sys.executable, "-c", STARTER], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    ports = [tuple(place) for place in json.loads(done.stdout.splitlines()[-1])]
    assert len(ports) > 4 and len([host for host, _ in ports if not host.endswith("127.0.0.1")]) == 1
    assert [host for host, _ in ports if not host.endswith("127.0.0.1")] == ["0.0.0.0"]
