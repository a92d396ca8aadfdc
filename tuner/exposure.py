"""`--dashboard-host`: the dashboard of a cluster that `tuner.run` starts, reachable from other machines, and what that
opens to whom. Without it every port listens on the loopback address."""

from __future__ import annotations

import os
import socket
from ipaddress import AddressValueError, IPv4Address

from tuner.options import UsageError

LOOPBACK = "127.0.0.1"


def check_host(host: str) -> None:
    """Refuses an address on which the dashboard cannot or must not listen.

    Raises:
        UsageError: no IPv4 address of this machine, or Ray's tokens are switched off.
    """
    try:
        if IPv4Address(host).is_loopback:
            return
        socket.create_server((host, 0)).close()  # Ray itself would wait for ever
    except (AddressValueError, OSError):
        raise UsageError(
            f"--dashboard-host {host}: is no IPv4 address of this machine; give one, or 0.0.0.0 for all it has"
        ) from None
    if (mode := os.environ.get("RAY_AUTH_MODE", "token")) != "token":
        raise UsageError(
            f"--dashboard-host {host}: RAY_AUTH_MODE is {mode}, so whoever reaches the dashboard could run anything "
            "here; unset it, or leave --dashboard-host out"
        )


def exposed(host: str) -> str:
    """What an address opens to whom, in words; empty for the loopback address."""
    if IPv4Address(host).is_loopback:
        return ""
    where = "all addresses of this machine" if IPv4Address(host).is_unspecified else host
    return (
        f"--dashboard-host: the Ray dashboard listens on {where}, unencrypted. Whoever has the token, or reads it on "
        "the way, sees all logs and runs any program as you (job submission).\n"
        "  Metrics and Ray's own ports stay on 127.0.0.1. Without --dashboard-host the same is had through ssh: "
        "ssh -L 8265:127.0.0.1:8265 THIS_MACHINE"
    )
