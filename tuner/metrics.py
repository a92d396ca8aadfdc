"""Prometheus gauges of a grid, set by the process that schedules it and served by Ray beside its own.

Every Ray node has a metrics endpoint; what is set here appears on the scheduling node's, under Ray's prefix `ray_`. Ray
drops a gauge that was not set for two of its export intervals (20 s) and keeps it until then, so all values are set
again and again as long as the grid runs, every state of runs each time, and a run that has ended gives its GPU share
back.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray
from ray.util.metrics import Gauge

from tuner.dag import RunState
from tuner.progress import Totals

PREFIX = "ray_"
"""What Ray puts before every name."""
REPEAT_EVERY_S = 5.0
"""Half of Ray's export interval."""
RUN_TAGS = ("grid", "run", "run_id")
GRID_TAGS = ("grid",)
ENDED_SHOWN = 50
"""So many ended runs keep their gauges: with a thousand, the driver grew by 0.2 MB a run."""
STATE_TAGS = ("grid", "state")
METRICS = {
    "grid_run_epoch": ("Epoch of the run's last evaluation", RUN_TAGS),
    "grid_run_train_loss_nats": ("Mean training loss since the evaluation before, nats", RUN_TAGS),
    "grid_run_top1": ("Top-1 accuracy on the test split at the last evaluation, fraction", RUN_TAGS),
    "grid_run_images_per_s": ("Training images a second since the last evaluation", RUN_TAGS),
    "grid_run_peak_memory_bytes": ("Most memory the run's process has held: of its GPU, else of RAM", RUN_TAGS),
    "grid_run_gpu_share": ("GPUs the run occupies now; 0 on the CPU and once it has ended", RUN_TAGS),
    "grid_runs": ("Runs of the grid by state", STATE_TAGS),
    "grid_work_done_share": ("Share of this invocation's work that is done, in [0, 1]", GRID_TAGS),
    "grid_seconds_left": ("Seconds left at the rate so far; absent until there is one", GRID_TAGS),
}
"""Every gauge by name without Ray's prefix: what it says, and its tags."""


class Gauges:
    """The gauges of one grid. The cluster must be connected.

    Args:
        grid: the grid's name.
        labels: by run id.
    """

    def __init__(self, grid: str, labels: Mapping[str, str]) -> None:
        self._grid, self._labels = grid, labels
        self._last: dict[tuple[str, str], tuple[float, dict[str, str]]] = {}
        self._ended: deque[str] = deque()
        self._gauges = {name: Gauge(name, description=text, tag_keys=tags) for name, (text, tags) in METRICS.items()}

    def started(self, run_id: str, gpu_share: float) -> None:
        """A run's process is being started."""
        if run_id in self._ended:
            self._ended.remove(run_id)
        self._set_run("grid_run_gpu_share", run_id, gpu_share)

    def reported(
        self,
        run_id: str,
        rows: Sequence[Mapping[str, Any]],
        images_per_s: float | None,
        peak_memory_bytes: int | None,
    ) -> None:
        """A run says how fast it is, with the rows of an evaluation if it made one."""
        self._set_run("grid_run_images_per_s", run_id, images_per_s)
        self._set_run("grid_run_peak_memory_bytes", run_id, peak_memory_bytes)
        for row in rows:
            self._set_run("grid_run_epoch", run_id, row["epoch"])
            if row["split"] == "train":
                self._set_run("grid_run_train_loss_nats", run_id, row["loss_nats"])
            elif row["split"] == "test":
                self._set_run("grid_run_top1", run_id, row["top1"])

    def ended(self, run_id: str) -> None:
        """A run is over, however it ended. Its last values stay for a while, until others have ended after it."""
        self._set_run("grid_run_gpu_share", run_id, 0.0)
        self._set_run("grid_run_images_per_s", run_id, 0.0)
        self._ended.append(run_id)
        if len(self._ended) > ENDED_SHOWN:
            gone = self._ended.popleft()
            for key in [key for key in self._last if key[1] == gone]:
                del self._last[key]

    def grid_is(self, states: Iterable[RunState], totals: Totals) -> None:
        """Where the whole grid stands."""
        now = list(states)
        for state in RunState:
            number = sum(one is state for one in now)
            self._gauges["grid_runs"].set(number, {"grid": self._grid, "state": state.value})
        self._gauges["grid_work_done_share"].set(totals.share_done, {"grid": self._grid})
        if totals.left_s is not None:
            self._gauges["grid_seconds_left"].set(totals.left_s, {"grid": self._grid})

    def repeat(self) -> None:
        """Sets the last values again, of all runs under way and those that ended last; to be called every
        `REPEAT_EVERY_S`."""
        for (name, _), (value, tags) in self._last.items():
            self._gauges[name].set(value, tags)

    def _set_run(self, name: str, run_id: str, value: float | None) -> None:
        if value is not None:
            tags = {"grid": self._grid, "run": self._labels[run_id], "run_id": run_id}
            self._last[name, run_id] = (float(value), tags)
            self._gauges[name].set(float(value), tags)


def addresses(dashboard: str) -> str:
    """Where to watch, a line each, and what the dashboard asks for; empty where Ray serves nothing.

    Args:
        dashboard: its address, empty where there is none.
    """
    parts = []
    if dashboard:
        token = os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
        asks = f" (asks for the token in {token})" if os.environ.get("RAY_AUTH_MODE") == "token" else ""
        parts.append(f"Ray dashboard {dashboard}{asks}")
    if (served := endpoint()) is not None:
        parts.append(f"metrics {served}")
    return "\n".join(parts)


def endpoint() -> str | None:
    """Address of the metrics endpoint of the node that this process runs on; None where Ray serves none."""
    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == here and node["Alive"] and node.get("MetricsExportPort"):
            return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return None
