"""The dashboard leaves this machine only when asked, and then what that exposes is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner.exposure import check_host, exposed
from tuner.options import UsageError
from tuner.run import main


def test_nothing_is_exposed_unasked() -> None:
    check_host("127.0.0.1")
    assert exposed("127.0.0.1") == ""


def test_what_is_exposed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    check_host("0.0.0.0")
    shown = exposed("0.0.0.0")
    assert "listens on all addresses of this machine, unencrypted" in shown
    assert "Whoever has the token" in shown and "runs any program as you" in shown
    assert "Metrics and Ray's own ports stay on 127.0.0.1" in shown and "ssh -L 8265:127.0.0.1:8265" in shown
    assert "listens on 192.0.2.1, unencrypted" in exposed("192.0.2.1")


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org", "::", "0", ""])
def test_addresses_of_other_machines_are_refused(host: str) -> None:
    with pytest.raises(UsageError, match=r"is no IPv4 address of this machine; give one, or 0\.0\.0\.0"):
        check_host(host)


def test_without_tokens_nothing_is_exposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    check_host("127.0.0.1")
    with pytest.raises(
        UsageError, match="RAY_AUTH_MODE is disabled, so whoever reaches the dashboard could run anything"
    ):
        check_host("0.0.0.0")


@pytest.mark.parametrize("more", [("--address", "auto"), ("--dry-run",)])
def test_it_is_of_a_cluster_started_here(
    more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--grid", "demo", "--dashboard-host", "0.0.0.0", "--results", str(tmp_path)]
    assert main([*given, *more]) == 2
    assert "--dashboard-host is of a cluster that this command starts" in capsys.readouterr().err
