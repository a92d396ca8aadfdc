"""What a result was made with: code, libraries, machine, and the fingerprint under which bits repeat."""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import socket
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "numba", "pyarrow", "ray", "scikit-learn", "safetensors")
_NUMERIC_LIBRARIES = ("torch", "timm", "numpy", "numba")


def numerics(device: torch.device, threads: int) -> dict[str, Any]:
    """The fingerprint: equal fingerprints give equal bits. A resume under another one is allowed, and marked."""
    versions = {name: _version(name) for name in _NUMERIC_LIBRARIES}
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "device": device.type,
        "instructions": kind,
        "threads": threads,
        "versions": versions,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def describe(device: torch.device) -> dict[str, Any]:
    """The `code_` and `host_` columns of the provenance table."""
    sha, dirty = _git()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "code_git_sha": sha,
        "code_git_dirty": dirty,
        "code_tree_sha256": tree_sha256(),
        "host_name_sha256": hashlib.sha256(socket.gethostname().encode()).hexdigest(),
        "host_device": name,
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
def _git() -> tuple[str | None, bool | None]:
    """Commit of the checkout and whether it has changes; None where this is no checkout."""
    try:
        sha = _run_git("rev-parse", "HEAD")
        return sha, bool(_run_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _run_git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has held so far: on the card where there is one, else resident in RAM."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
