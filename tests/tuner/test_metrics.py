"""The gauges, what they are called, and that Prometheus' and Grafana's files name exactly those."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuner import metrics
from tuner.dag import RunState
from tuner.metrics import METRICS, PREFIX, Gauges, addresses
from tuner.progress import Totals

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> Values:
    """What every gauge was set to last, by name and tags."""
    held: Values = {}

    class Recorded:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.keys = name, tag_keys

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert tuple(tags) == self.keys
            held[self.name, tuple(tags.values())] = value  # type: ignore[index]

    monkeypatch.setattr(metrics, "Gauge", Recorded)
    return held


def test_a_run_from_start_to_end(values: Any) -> None:
    gauges = Gauges("demo", {"1": "Exp-1"})
    gauges.started("1", 0.25)
    assert values == {("grid_run_gpu_share", ("demo", "Exp-1", "1")): 0.25}
    gauges.reported("1", [], 120.0, 1 << 30)
    rows = [
        {"split": "train", "epoch": 2.0, "loss_nats": 1.25, "top1": None},
        {"split": "test", "epoch": 2.0, "loss_nats": 1.5, "top1": 0.42},
        {"split": "val", "epoch": 2.0, "loss_nats": 1.6, "top1": 0.99},
    ]
    gauges.reported("1", rows, None, None)
    assert {name: value for (name, _), value in values.items()} == {
        "grid_run_gpu_share": 0.25,
        "grid_run_images_per_s": 120.0,
        "grid_run_peak_memory_bytes": float(1 << 30),
        "grid_run_epoch": 2.0,
        "grid_run_train_loss_nats": 1.25,
        "grid_run_top1": 0.42,
    }
    gauges.ended("1")
    assert values["grid_run_gpu_share", ("demo", "Exp-1", "1")] == 0.0
    assert values["grid_run_images_per_s", ("demo", "Exp-1", "1")] == 0.0


def test_all_that_was_said_is_repeated_for_ray_forgets(values: Any) -> None:
    gauges = Gauges("demo", {"1": "Exp-1", "2": "Exp-2"})
    gauges.started("1", 1.0)
    gauges.reported("2", [], 5.0, 7)
    gauges.ended("1")
    before = dict(values)
    values.clear()
    gauges.repeat()
    assert values == before and len(before) == 4


def test_every_state_is_set_each_time_zeros_included(values: Any) -> None:
    gauges = Gauges("demo", {})
    gauges.grid_is([RunState.RUNNING, RunState.WAITING], Totals(share_done=0.0, left_s=None))
    gauges.grid_is([RunState.DONE, RunState.DONE], Totals(share_done=1.0, left_s=0.0))
    states = {key[1][1]: value for key, value in values.items() if key[0] == "grid_runs"}
    assert states == {state.value: 0.0 for state in RunState} | {"done": 2.0}
    assert values["grid_work_done_share", ("demo",)] == 1.0 and values["grid_seconds_left", ("demo",)] == 0.0


def test_the_lines_say_where_and_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "endpoint", lambda: "http://127.0.0.1:9/metrics")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    assert addresses("http://127.0.0.1:8265") == (
        "Ray dashboard http://127.0.0.1:8265 (asks for the token in ~/.ray/auth_token)\n"
        "metrics http://127.0.0.1:9/metrics"
    )
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/run/token")
    assert "(asks for the token in /run/token)" in addresses("http://127.0.0.1:8265")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "asks" not in addresses("http://127.0.0.1:8265")
    monkeypatch.setattr(metrics, "endpoint", lambda: None)
    assert addresses("") == ""


def expressions(node: Any) -> list[str]:
    """Every query of a dashboard."""
    if isinstance(node, dict):
        own = [value for key, value in node.items() if key in ("expr", "query", "definition") and type(value) is str]
        return own + [one for value in node.values() for one in expressions(value)]
    return [one for value in node for one in expressions(value)] if isinstance(node, list) else []


def test_the_dashboard_shows_every_gauge_and_no_other(root: Path) -> None:
    dashboard = json.loads((root / "deploy" / "grafana" / "dashboard.json").read_text())
    shown = {name for panel in dashboard["panels"] for one in expressions(panel) for name in named(one)}
    assert shown == {PREFIX + name for name in METRICS}
    assert {name for one in expressions(dashboard["templating"]) for name in named(one)} <= shown
    for panel in dashboard["panels"]:
        (target,) = panel["targets"]
        (name,) = named(target["expr"])
        tags = METRICS[name.removeprefix(PREFIX)][1]
        used = re.findall(r"(\w+)=~", target["expr"]) + re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
        by = re.search(r"by \(([\w, ]+)\)", target["expr"])
        assert by and set(used) | set(by[1].split(", ")) <= set(tags), panel["title"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) == len(METRICS)


def named(expression: str) -> list[str]:
    return re.findall(r"\bray_\w+", expression)


def test_the_files_for_prometheus_and_grafana_fit_together(root: Path) -> None:
    deploy = root / "deploy"
    prometheus = yaml.safe_load((deploy / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
    (source,) = yaml.safe_load((deploy / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    dashboard = json.loads((deploy / "grafana" / "dashboard.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    (provider,) = yaml.safe_load((deploy / "grafana/provisioning/dashboards/grid.yml").read_text())["providers"]
    variable = provider["options"]["path"].strip("${}")
    assert f"{variable}=$PWD/deploy/grafana" in (root / "docs" / "watching.md").read_text()


def test_the_docs_name_every_gauge(root: Path) -> None:
    text = (root / "docs" / "watching.md").read_text()
    assert set(re.findall(r"`(ray_grid_\w+)`", text)) == {PREFIX + name for name in METRICS}


def test_of_many_ended_runs_the_last_keep_their_values(values: Any) -> None:
    ids = [str(number) for number in range(metrics.ENDED_SHOWN + 3)]
    gauges = Gauges("demo", dict.fromkeys(ids, "row"))
    for run_id in ids:
        gauges.started(run_id, 0.0)
        gauges.reported(run_id, [], 10.0, 1)
        gauges.ended(run_id)
        if run_id == "1":
            gauges.started(run_id, 0.0)  # it is tried again, and under way
    values.clear()
    gauges.repeat()
    assert {tags[2] for _, tags in values} == {"1", *ids[3:]}
