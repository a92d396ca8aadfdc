"""Joining a cluster whose answers are slow or bad; the real ones are in tests/integration/test_clusters.py."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from tuner import schedule

SLOW = "Initialization failure from server:\nTraceback (most recent call last):\n  File\nRuntimeError: Proxy failed"


def test_a_clients_server_that_is_slow_to_start_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def init(**settings: Any) -> str:
        calls.append(settings)
        if len(calls) < schedule.JOIN_TRIES:
            raise ConnectionAbortedError(SLOW)
        return "joined"

    monkeypatch.setattr(ray, "init", init)
    assert schedule._init({"address": "ray://head:10001"}) == "joined"
    assert calls == [{"address": "ray://head:10001"}] * schedule.JOIN_TRIES


def test_one_that_never_starts_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**settings: Any) -> None:
        raise ConnectionAbortedError(SLOW)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(schedule, "_check_reachable", lambda address, given: None)
    why = r"--address ray://head:10001: cannot join \(RuntimeError: Proxy failed\); start a cluster with"
    with pytest.raises(schedule.ClusterError, match=why):
        schedule.connect("ray://head:10001", threads=1)


def test_auto_that_finds_no_ray_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(address: str, folder: str | None) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(schedule.services, "find_gcs_addresses", set)  # other tests may run a Ray of their own
    monkeypatch.setattr(schedule.services, "get_ray_address_from_environment", nowhere)
    with pytest.raises(
        schedule.ClusterError, match="--address auto: no Ray runs on this machine; start a cluster with"
    ):
        schedule.connect("auto", threads=1)


def test_auto_that_finds_a_dead_cluster_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray remembers the last cluster of a machine, also when it was killed; it would try for minutes."""
    monkeypatch.setattr(schedule.services, "find_gcs_addresses", set)
    monkeypatch.setattr(schedule.services, "get_ray_address_from_environment", lambda address, folder: "127.0.0.1:1")
    with pytest.raises(
        schedule.ClusterError, match=r"--address auto: nothing listens at 127\.0\.0\.1:1 \(Connection ref"
    ):
        schedule.connect("auto", threads=1)


@pytest.mark.parametrize(("last", "named"), [(None, True), ("10.0.0.3:1", True), ("127.0.0.1:1", False)])
def test_auto_takes_none_of_several_at_random(monkeypatch: pytest.MonkeyPatch, last: str | None, named: bool) -> None:
    """Ray takes the one that was started last where it knows which; of a person's own it may not."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(schedule.services, "find_gcs_addresses", lambda: {"127.0.0.1:1", "10.0.0.2:1"})
    monkeypatch.setattr(schedule.services, "find_bootstrap_address", lambda folder: last)
    why = r"several Rays run on this machine \(10\.0\.0\.2:1, 127\.0\.0\.1:1\); give the address of one"
    with pytest.raises(schedule.ClusterError, match=why if named else r"nothing listens at 127\.0\.0\.1:1"):
        schedule.connect("auto", threads=1)
