"""What every benchmark needs around its measurement: processes of its own, others' load, the head of a result, tables.

A piece of work is measured in a process of its own, with its threads set before any library is loaded. Where it is
ready it waits (`barrier`), and the clock runs from there to its `report`, so that imports, compilation and warm-up are
outside; several processes are let go together. A measurement is *clean* when everything else on the machine took less
than 15 % of a core meanwhile (`Watch`).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import psutil
from rich.table import Table

from datasets.terminal import Terminal
from trainable.costs import cpu_name
from trainable.provenance import git_state

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks/results")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
CLEAN_BELOW = 0.15
"""Cores that others may take of a clean measurement."""
_WAITING = "benchmark: waiting"
_REPORT = "benchmark: "
_WIDTH = 120
"""Columns of a table that is not written to a terminal."""


class Failed(RuntimeError):
    """A measured process ended without a report; the message is the last line that it wrote to stderr."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """What the machine did during a measurement."""

    wall_s: float
    cpu_s: float
    """Of the measured processes and what they started."""
    other_load: float | None
    """Cores that everything else took; None where Linux does not tell."""

    @property
    def clean(self) -> bool:
        """Whether others left the machine alone."""
        return self.other_load is not None and self.other_load < CLEAN_BELOW


class Watch:
    """Watches this process's children and the rest of the machine from now on."""

    def __init__(self) -> None:
        self._began, self._cpu_s, self._own_s, self._busy_s = time.perf_counter(), *_spent()

    def stop(self) -> Watched:
        """What was seen since."""
        wall_s = time.perf_counter() - self._began
        cpu_s, own_s, busy_s = _spent()
        other = None
        if busy_s is not None and self._busy_s is not None:
            other = max(0.0, (busy_s - self._busy_s) - (own_s - self._own_s)) / wall_s
        return Watched(wall_s=wall_s, cpu_s=cpu_s - self._cpu_s, other_load=other)


def _spent() -> tuple[float, float, float | None]:
    """CPU seconds so far: of the children, of them and this process, of the whole machine (stolen time included)."""
    times = psutil.Process().cpu_times()
    children = times.children_user + times.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            its = child.cpu_times()
        except psutil.Error:  # it ended: it is in its parent's sum
            continue
        children += its.user + its.system + its.children_user + its.children_system
    return children, children + times.user + times.system, _busy_s()


def _busy_s() -> float | None:
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _, _, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def environment(threads: int | None) -> dict[str, str]:
    """This process's environment with the threads of OpenMP, BLAS and numba; None leaves them to the libraries."""
    kept = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
    pinned = {} if threads is None else dict.fromkeys(THREAD_VARIABLES, str(threads))
    return {**kept, **pinned, "PYTHONPATH": str(ROOT)}


def keep_to_cores(count: int | None) -> int:
    """Keeps this process and its children to the first `count` of its cores (None: all); how many those are."""
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    return len(cores)


def barrier() -> None:
    """Waits until every process that is measured together with this one has come as far."""
    print(_WAITING, flush=True)
    sys.stdin.readline()


def report(result: Mapping[str, Any]) -> None:
    """Hands a measured process's result to the benchmark and waits, so that its CPU time can still be read."""
    print(_REPORT + json.dumps(result), flush=True)
    sys.stdin.readline()


def run_together(commands: Sequence[Sequence[str]], threads: int | None) -> tuple[list[dict[str, Any]], Watched]:
    """Runs `python -m COMMAND` processes that end with `report`, all at the same time.

    Args:
        commands: module and arguments of each.
        threads: see `environment`.

    Returns:
        What each reported, and the machine between their last barrier and the last report.

    Raises:
        Failed: one ended without a report; the others are killed.
    """
    with ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in commands]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=environment(threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=error,
                text=True,
            )
            for command, error in zip(commands, errors, strict=True)
        ]
        try:
            watch = Watch()
            while True:
                lines = [_said(process, error) for process, error in zip(processes, errors, strict=True)]
                watched = watch.stop()
                if all(line != _WAITING for line in lines):
                    return [json.loads(line.removeprefix(_REPORT)) for line in lines], watched
                watch = Watch()
                for process in processes:
                    _release(process)
        except BaseException:
            for process in processes:
                process.kill()
            raise
        finally:
            for process in processes:
                _end(process)


def _said(process: subprocess.Popen[str], error: IO[str]) -> str:
    """The next line that is meant for the benchmark; libraries may print others."""
    assert process.stdout is not None, "opened as a pipe"
    for line in process.stdout:
        if line.startswith(_REPORT):
            return line.strip()
    process.wait()
    error.seek(0)
    lines = [line.strip() for line in error.read().splitlines() if line.strip()]
    raise Failed(lines[-1] if lines else f"ended with exit code {process.returncode}")


def _release(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None, "opened as a pipe"
    process.stdin.write("\n")
    process.stdin.flush()


def _end(process: subprocess.Popen[str]) -> None:
    """Lets a process that waits after its report end, and kills one that does not."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()  # the end of its input releases it
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Median, lowest and highest of repeats, and the repeats themselves, to four digits."""
    rounded = [float(f"{value:.4g}") for value in values]
    return {
        "median": float(f"{statistics.median(rounded):.4g}"),
        "low": min(rounded),
        "high": max(rounded),
        "repeats": rounded,
    }


@cache
def instructions() -> tuple[str, ...]:
    """The processor's instruction sets that matter to training, as Linux names them."""
    wanted = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags")[1].split("\n")[0].split()
    except (OSError, IndexError):
        return ()
    return tuple(name for name in wanted if name in flags)


def head(benchmark: str, *, threads: int, libraries: Sequence[str]) -> dict[str, Any]:
    """What every result begins with: when, on what, with which code and libraries, under which load."""
    return {
        "benchmark": benchmark,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": cpu_name(),
        "instructions": list(instructions()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": threads,
        "load": os.getloadavg()[0],
        "commit": git_state(),
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in libraries}},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write(result: Mapping[str, Any], folder: Path) -> Path:
    """Writes a result as `<benchmark>-<minute>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['benchmark']}-{datetime.now(UTC):%Y-%m-%dT%H%M}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table; the first column is text, the others are numbers."""
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    terminal = Terminal() if sys.stdout.isatty() else Terminal(width=_WIDTH)
    terminal.print(table)


def short(value: float) -> str:
    """A rate to three digits, thousands as k and millions as M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
