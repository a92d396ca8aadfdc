"""What the analysis costs: whole commands as processes of their own, over stores of made-up runs.

    OMP_NUM_THREADS=1 python -m benchmarks.analysis [--parts paper,many] [--stores DIR] [--out DIR]

`paper`: 24 rows with 5 seeds and 10,000 predictions with logits each. `many`: about 1,000 and 10,000 runs of 50 epochs,
before and after `analysis.compact`. A command's user and system seconds say what it needs of one core, its wall seconds
also what else the machine did meanwhile (see `load`). Building the stores takes longer than measuring; `--stores` keeps
them for the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measuring import ROOT, environment
from trainable.costs import cpu_name
from trainable.provenance import git_state

LIBRARIES = ("numpy", "scipy", "scikit-learn", "pyarrow", "matplotlib")
PAPER_SEEDS = 5
EPOCHS = 50
MANY_SEEDS = (42, 417)
"""Of the 24 rows: 1,008 and 10,008 runs."""
Measured = dict[str, list[float]]


def paper(options: argparse.Namespace, stores: Path) -> dict[str, Any]:
    """Every command on 120 runs with 10,000 predictions each."""
    results, runs = store_of(stores, PAPER_SEEDS, num_images=10_000)
    given = ["--grid", "paper", "--results", results]
    with tempfile.TemporaryDirectory() as folder:
        out, archive = ["--out", folder], f"{folder}/paper.tar"
        commands = {
            "tables": ["analysis.tables", *given, *out],
            "check": ["analysis.check", *given],
            "figures": ["analysis.figures", *given, *out],
            "report": ["analysis.report", *given, *out],
            "bundle": ["analysis.bundle", *given, "--out", archive],
            "verify": ["analysis.verify", archive],
        }
        measured = {name: measure(command, options.repeats) for name, command in commands.items()}
    return {"runs": runs, "images": 10_000, "epochs": EPOCHS, **measured}


def many(options: argparse.Namespace, stores: Path) -> dict[str, Any]:
    """T1 of about 1,000 and 10,000 runs of 50 epochs, from their own files and from a compaction."""
    found = [measure_tables(*store_of(stores, seeds, num_images=200), options.repeats) for seeds in MANY_SEEDS]
    return {"epochs": EPOCHS, **{f"{one['runs']}_runs": one for one in found}}


def measure_tables(results: str, runs: int, repeats: int) -> dict[str, Any]:
    """T1 of a store from its own files, its compaction, and T1 from that.

    Args:
        results: the store.
        runs: how many it has.
        repeats: of T1 from the compaction.
    """
    for file in sorted(Path(results, "compacted").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    with tempfile.TemporaryDirectory() as folder:
        t1 = ["analysis.tables", "--grid", "paper", "--results", results, "--out", folder, "--tables", "T1"]
        return {
            "runs": runs,
            "t1_of_files": measure(t1, 1),
            "compact": measure(["analysis.compact", "--results", results], 1),
            "t1_compacted": measure(t1, repeats),
        }


def store_of(stores: Path, seeds: int, *, num_images: int) -> tuple[str, int]:
    """A store of so many seeds, made unless it is there; its path and how many runs it has."""
    folder = stores / f"{seeds}-seeds-{num_images}-images"
    if not (folder / "grids" / "paper").is_dir():  # by another process: a child's peak is never below its parent's
        size = ["--seeds", str(seeds), "--images", str(num_images), "--epochs", str(EPOCHS)]
        measure(["benchmarks.made_store", str(folder), *size], 1)
    return str(folder), sum(1 for _ in (folder / "commits").iterdir())


def measure(command: list[str], repeats: int) -> Measured:
    """A command (module and arguments) in so many processes with one thread each, one after another.

    Raises:
        RuntimeError: it failed.
    """
    found: Measured = {"wall_s": [], "user_s": [], "system_s": [], "peak_mb": []}
    for _ in range(repeats):
        with tempfile.TemporaryFile("w+") as said:
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, env=environment(1), stdout=said, stderr=said
            )
            _, status, used = os.wait4(process.pid, 0)
            wall_s = time.perf_counter() - began
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                said.seek(0)
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said.read()}")
        one = {"wall_s": wall_s, "user_s": used.ru_utime, "system_s": used.ru_stime, "peak_mb": used.ru_maxrss / 1024}
        for name, value in one.items():
            found[name].append(round(value, 3))
    return found


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {"paper": paper, "many": many}


def main() -> None:
    """Runs the parts, prints medians and writes all that was measured."""
    cli = argparse.ArgumentParser(prog="python -m benchmarks.analysis", description=__doc__.splitlines()[0])
    cli.add_argument("--parts", default=",".join(PARTS), help=f"default: {','.join(PARTS)}")
    cli.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    cli.add_argument("--repeats", type=int, default=3, help="of a command that is not slow (default: 3)")
    cli.add_argument("--stores", type=Path, metavar="DIR", help="keep the stores there (default: a temporary folder)")
    options = cli.parse_args()
    result: dict[str, Any] = {
        "benchmark": "analysis",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": 1,
        "load": os.getloadavg()[0],
        "commit": git_state(),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in LIBRARIES}},
    }
    with ExitStack() as stack:
        stores = options.stores or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in options.parts.split(","):
            result[name] = PARTS[name](options, stores)
            print(name, json.dumps(_medians(result[name])), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"analysis-{datetime.now(UTC):%Y-%m-%dT%H%M}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")


def _medians(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _medians(one) for key, one in value.items()}
    return round(statistics.median(value), 3) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
