"""How many trials run at once, and how much of a GPU each asks for. The cluster is described, not started."""

from __future__ import annotations

from typing import Any

import pytest

from tuner import schedule
from tuner.schedule import ClusterError, Resources


def cluster(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float], dead: int = 0) -> None:
    described: list[dict[str, Any]] = [{"Alive": True, "Resources": node} for node in nodes]
    described += [{"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}] * dead
    monkeypatch.setattr(schedule.ray, "nodes", lambda: described)
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    monkeypatch.setattr(schedule.ray, "cluster_resources", lambda: total)


@pytest.mark.parametrize(
    ("share", "gpus", "slots"),
    [(0.25, 1, 4), (0.4, 2, 4), (0.6, 2, 2), (0.34, 1, 2), (1 / 3, 1, 3), (0.33, 1, 3), (1.0, 2, 2), (2.0, 3, 1)],
)
def test_fractions_never_straddle_cards(monkeypatch: pytest.MonkeyPatch, share: float, gpus: float, slots: int) -> None:
    """The numbers are those that Ray 2.60 places, seen with logical GPUs."""
    cluster(monkeypatch, {"CPU": 64.0, "GPU": gpus})
    assert schedule._slots(1, share) == slots


def test_cores_limit_too_and_machines_are_counted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, {"CPU": 3.0}, {"CPU": 5.0}, {"CPU": 1.0}, dead=1)
    assert schedule._slots(2, 0.0) == 1 + 2
    cluster(monkeypatch, {"CPU": 3.0, "GPU": 4.0}, {"CPU": 16.0})
    assert schedule._slots(1, 0.5) == 3


def test_what_no_machine_has_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, {"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0})
    with pytest.raises(ClusterError, match=r"a trial asks for 8 CPUs and 0 GPUs, which no machine of the cluster has"):
        schedule._slots(8, 0.0)
    with pytest.raises(ClusterError, match=r"\(2 CPUs and 0 GPUs; 4 CPUs and 1 GPUs\); lower --cpus-per-trial or"):
        schedule._slots(1, 2.0)


def test_the_share_is_a_whole_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, {"CPU": 2.0})
    assert schedule._gpu_share(Resources(cpus=1, gpu_share=None)) == 0.0
    with pytest.raises(ClusterError, match=r"--gpu-share 0.5: the cluster has no GPU; leave it out or set 0"):
        schedule._gpu_share(Resources(cpus=1, gpu_share=0.5))
    cluster(monkeypatch, {"CPU": 2.0, "GPU": 1.0})
    assert schedule._gpu_share(Resources(cpus=1, gpu_share=None)) == 1.0
    assert schedule._gpu_share(Resources(cpus=1, gpu_share=0.25)) == 0.25
