"""What a result was made with: code, libraries, machine, and the fingerprint under which bits repeat.

torch is imported where a device is asked about: a planner that only records the code need not wait for it.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import platform
import resource
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainable.costs import cpu_name

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
GIT_VARIABLE = "GRID_TUNER_GIT"
"""Names the commit where the code lies without its `.git`: 40 hex digits, and `-dirty` after changes."""
_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "numba", "pyarrow", "ray", "scikit-learn", "safetensors")
_NUMERIC_LIBRARIES = ("torch", "timm", "numpy", "numba")


def numerics(device: torch.device, threads: int) -> dict[str, Any]:
    """The fingerprint: equal fingerprints give equal bits. A resume under another one is allowed, and marked."""
    import torch

    versions = {name: _version(name) for name in _NUMERIC_LIBRARIES}
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "device": device.type,
        "instructions": kind,
        "threads": threads,
        "versions": versions,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """In which parts two fingerprints of `numerics` differ: the old and the new value, by name."""
    old, new = ({**parts, **parts["versions"], "versions": None} for parts in (before, now))
    keys = sorted(old.keys() | new.keys())
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}


def describe(device: torch.device) -> dict[str, Any]:
    """The `code_` and `host_` columns of the provenance table."""
    state = git_state()
    return {
        "code_git_sha": state.removesuffix("-dirty") if state else None,
        "code_git_dirty": state.endswith("-dirty") if state else None,
        "code_tree_sha256": tree_sha256(),
        "host_name_sha256": hashlib.sha256(socket.gethostname().encode()).hexdigest(),
        "host_device": device_name(device),
        "host_platform": platform.platform(),
        "host_versions_json": json.dumps(
            {"python": platform.python_version(), **{library: _version(library) for library in _LIBRARIES}}
        ),
    }


@cache
def tree_sha256() -> str:
    """SHA-256 over the source files of the two packages that make a run's numbers."""
    digest = hashlib.sha256()
    for package in ("datasets", "trainable"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def git_state() -> str | None:
    """Commit of this code, with `-dirty` after it where files were changed; None where nobody knows.

    A copy of the code that was sent to another machine is told by the environment variable `GRID_TUNER_GIT`, which
    the output of `git describe --always --abbrev=40 --dirty --exclude '*'` fits.
    """
    if told := os.environ.get(GIT_VARIABLE):
        return told
    try:
        sha = _run_git("rev-parse", "HEAD")
        return sha + ("-dirty" if _run_git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _run_git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has held since `reset_peak_memory`: reserved on the card where there is one, else
    resident in RAM."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Begins a new measurement, in a process that has trained before. Outside of Linux the old peak of RAM stays."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5): resets VmHWM to what is resident now


def device_name(device: torch.device) -> str:
    """The card's or the processor's name."""
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return cpu_name()
