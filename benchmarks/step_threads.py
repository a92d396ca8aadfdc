"""What keeps a trial to its cores, looked at from within a real one, for `benchmarks.step --parts enforcement`.

A cluster of this machine is started as `tuner.run` starts it, from a shell that asks for a thread a core and more
(OMP_NUM_THREADS and its kin). In one of its processes a `RunActor` opens and trains a run; then that process does what
a model of one's own may do: products in numpy's and torch's BLAS, a numba kernel, OpenMP of a C library, a change of
torch's threads. Counted are the threads that had a share in the work, by the kernel's own CPU times, which no other
load disturbs. What keeps them is `tuner.shipping` (environment of every process that Ray starts), `tuner.actor` (the
same again, and a look at torch), `trainable.opening` (torch itself), and Ray's bundles, of which no more are placed
than a machine has cores.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.augment_c import find_compiler
from benchmarks.measuring import ROOT, barrier, report, run_together

SECONDS = 2.0
"""Of every kind of work."""
AT_WORK = 0.05
"""Share of the work's CPU time from which a thread counts as taking part; others look at a clock or wait."""
ROW = "resnet-default"
PLAIN = "--plain"
_OPENMP = """
#include <math.h>
double spin(long count) {
    double total = 0;
    #pragma omp parallel for reduction(+ : total)
    for (long k = 0; k < count; k++) total += sqrt((double)k);
    return total;
}
"""


def measure_enforcement(cores: int) -> dict[str, Any]:
    """Starts Ray, a trial of one thread in it, and the work; then the work in a process that nobody keeps to anything.

    Args:
        cores: of the machine; the shell asks for twice as many threads.
    """
    inherited = 2 * cores
    (found,), watched = run_together([["benchmarks.step_threads"]], threads=inherited)
    (plain,), _ = run_together([["benchmarks.step_threads", PLAIN]], threads=inherited)
    for name, one in found["work"].items():
        one["kept"] = one["threads_at_work"] <= found["threads"]
        one["threads_at_work_unkept"] = plain["work"][name]["threads_at_work"]
    return {"inherited": inherited, **found, "other_load": watched.other_load}


def main() -> None:
    """Drives a cluster of this machine with one trial."""
    from tuner.invocation import ray_environment

    ray_environment(local=True)
    import ray

    from datasets.prepare import prepare
    from tuner import schedule

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        prepare("digits", None, data)
        schedule.connect(None, threads=1)
        try:
            trial = ray.remote(num_cpus=1)(_Trial).remote(_config(data, Path(folder, "results")))
            ray.get(trial.train.remote())
            barrier()
            found = ray.get(trial.look.remote())
        finally:
            schedule.disconnect()
    report(found)


def _config(data: Path, results: Path) -> dict[str, Any]:
    """What `tuner.schedule` hands to a trial."""
    from trainable.liveness import this_process
    from trainable.spec import ExecSpec
    from tuner.facts import LocalFacts
    from tuner.grid import Selection, load_grid

    facts = LocalFacts(data, None, download=False)
    run = load_grid(ROOT / "experiments.yaml", "demo", Selection(only=(("label", ROW),)), facts).runs[0]
    settings = ExecSpec(
        device="cpu", data_path=str(data), weights_path=None, cpu_threads=1, gpu_fraction=0.0, save_every_s=1e9
    )
    return {
        "label": run.label,
        "spec": run.spec.canonical(),
        "exec": settings.model_dump_json(),
        "results": str(results),
        "cpu_threads": 1,
        "report_s": 1.0,
        "driver": dict(zip(("host", "pid"), this_process(), strict=True)),
    }


class _Trial:
    """A process of Ray's with a `RunActor` in it."""

    def __init__(self, config: dict[str, Any]) -> None:
        from tuner.actor import RunActor

        self._actor = RunActor(config)

    def train(self) -> None:
        """Opens the run and trains for a second."""
        result = self._actor.step()
        if result["failure"]:
            raise RuntimeError(result["failure"])

    def look(self) -> dict[str, Any]:
        """What the process is set to, and what it takes when it is asked to work."""
        return look(1)


def look(threads: int) -> dict[str, Any]:
    """Threads of every pool of this process, then cores that work of every kind takes."""
    import os

    import torch
    from threadpoolctl import threadpool_info

    from benchmarks.measuring import THREAD_VARIABLES

    found = {
        "threads": threads,
        "environment": {name: os.environ.get(name) for name in THREAD_VARIABLES},
        "torch_threads": torch.get_num_threads(),
        "work": {name: _watched(work) for name, work in _work().items()},
    }
    torch.set_num_threads(threads)
    pools = [
        {"library": f"{pool['internal_api']} ({Path(pool['filepath']).name})", "threads": pool["num_threads"]}
        for pool in threadpool_info()
    ]
    return {**found, "pools": pools}


def _watched(work: Callable[[], object]) -> dict[str, float]:
    """Repeats work for a while: threads that took part, and CPU seconds by the clock."""
    work()
    before, began = _thread_times(), time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        work()
    wall_s = time.perf_counter() - began
    spent = [seconds - before.get(thread, 0.0) for thread, seconds in _thread_times().items()]
    return {
        "threads_at_work": sum(seconds > AT_WORK * sum(spent) for seconds in spent),
        "cores": sum(spent) / wall_s,
    }


def _thread_times() -> dict[int, float]:
    """CPU seconds of every thread of this process."""
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process().threads()}


def _work() -> dict[str, Callable[[], object]]:
    """What a model of one's own may do, by what it uses."""
    import numba
    import numpy as np
    import torch

    matrix = np.random.default_rng(0).random((800, 800))
    tensor = torch.from_numpy(matrix)

    @numba.njit(parallel=True)  # type: ignore[untyped-decorator]
    def total(values: Any) -> Any:
        found = 0.0
        for row in numba.prange(len(values)):
            found += np.sqrt(values[row]).sum()
        return found

    def more_threads() -> object:
        torch.set_num_threads(2)
        return tensor @ tensor

    found: dict[str, Callable[[], object]] = {
        "numpy (BLAS)": lambda: matrix @ matrix,
        "torch (MKL, OpenMP)": lambda: tensor @ tensor,
        "numba, parallel": lambda: total(matrix),
    }
    if (compiler := find_compiler()) is not None and (spin := _openmp(compiler)) is not None:
        found["a C library (OpenMP)"] = lambda: spin(20_000_000)
    found["torch.set_num_threads(2) in the model"] = more_threads
    return found


def _openmp(compiler: str) -> Callable[[int], float] | None:
    """A C function that OpenMP shares out; None where the compiler cannot."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "spin.c"), Path(folder, "spin.so")
        source.write_text(_OPENMP)
        command = [compiler, "-O2", "-fopenmp", "-shared", "-fPIC", "-o", str(library), str(source), "-lm"]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        spin = ctypes.CDLL(str(library)).spin
    spin.restype, spin.argtypes = ctypes.c_double, [ctypes.c_long]
    return spin


if __name__ == "__main__":
    report(look(1)) if sys.argv[1:] == [PLAIN] else main()
