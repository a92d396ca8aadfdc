"""What the orchestration costs: planning, overhead over plain loops, trivial runs beside bare Ray Tune, a rerun.

    OMP_NUM_THREADS=1 python -m benchmarks.schedule [--parts plan,overhead,rate] [--out DIR]

Every part compares within one run on one machine. Runs are of grid `demo` on the digits, one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measuring import ROOT, environment

PLANNED_SEEDS = 417
"""24 rows of grid `paper` each: 10,008 runs."""
ROW = "resnet-default"
WATCH_EVERY_S = 5.0


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """Expanding, hashing, surveying and planning 10,008 rows, in fresh processes."""
    return plan_rows(PLANNED_SEEDS, options.repeats)


def plan_rows(seeds: int, repeats: int) -> dict[str, Any]:
    """Expanding, hashing, surveying and planning the 24 rows of grid `paper` with so many seeds, in fresh processes."""
    command = ["-m", "benchmarks.schedule", "--inside", "plan", "--planned-seeds", str(seeds)]
    measured = [json.loads(_python(*command)) for _ in range(repeats)]
    keys = ("seconds", "peak_mb", "peak_mb_before")
    return {"runs": measured[0]["runs"], **{key: [one[key] for one in measured] for key in keys}}


def _plan_here(options: argparse.Namespace) -> None:
    """One planning in this process, after its libraries are loaded and one row's counts are known."""
    from trainable.storage import Storage
    from tuner.facts import LocalFacts
    from tuner.grid import Selection, load_grid
    from tuner.ledger import survey
    from tuner.plan import make_plan
    from tuner.resources import described

    nodes = described("nodes=8,cpus=128,gpus=8,gpu_memory_gib=80")
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)

        def once(seeds: tuple[int, ...]) -> int:
            facts = LocalFacts(Path(folder), None, download=False)
            grid = load_grid(ROOT / "experiments.yaml", "paper", Selection(seeds=seeds), facts)
            found = survey(storage, grid)
            make_plan(grid, found, storage, facts, nodes, cpus=1, gpu_share=None, device="auto")
            return len(grid.runs)

        once((0,))
        before = _peak_mb()
        began = time.perf_counter()
        runs = once(tuple(range(options.planned_seeds)))
        seconds = time.perf_counter() - began
    print(json.dumps({"runs": runs, "seconds": seconds, "peak_mb": _peak_mb(), "peak_mb_before": before}))


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """The same trainings through the grid's command and in plain loops, as many processes as cores."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        data = _prepare(home)
        seeds = ",".join(str(seed) for seed in range(options.runs))
        selection = ["--only", f"label={options.row}", "--seeds", seeds, "--epochs", str(options.epochs), *data]
        began = time.perf_counter()
        _python("-m", "tuner.run", "--grid", "demo", *selection, "--results", str(home / "grid"))
        grid_s = time.perf_counter() - began
        listed = _python(
            "-m", "tuner.run", "--grid", "demo", *selection, "--results", str(home / "none"), "--dry-run", "--json"
        )
        specs = [run["spec"] for run in json.loads(listed)["runs"]]
        lanes = len(os.sched_getaffinity(0))
        began = time.perf_counter()
        loops = []
        for lane in range(lanes):
            (home / f"lane{lane}.json").write_text(json.dumps(specs[lane::lanes]))
            command = ["-m", "benchmarks.schedule", "--inside", "loop", "--specs", str(home / f"lane{lane}.json")]
            loops.append(_start(*command, "--data", str(home / "data"), "--results", str(home / "loop")))
        if any(loop.wait() for loop in loops):
            raise RuntimeError("a plain loop failed")
        loop_s = time.perf_counter() - began
        run_s = loop_s * lanes / len(specs)
    return {
        "runs": len(specs),
        "lanes": lanes,
        "grid_s": grid_s,
        "plain_loop_s": loop_s,
        "seconds_per_run": run_s,
        "overhead": grid_s / loop_s - 1,
        "extra_s": grid_s - loop_s,
        "overhead_at_60_s_per_run": (grid_s - loop_s) * lanes / len(specs) / 60,
        "overhead_at_240_s_per_run": (grid_s - loop_s) * lanes / len(specs) / 240,
    }


def _loop_here(options: argparse.Namespace) -> None:
    """Trains the specs of a file one after another in this process."""
    from trainable.attempt import Attempt
    from trainable.spec import ExecSpec, RunSpec
    from trainable.storage import Storage

    settings = ExecSpec(
        device="cpu",
        data_path=options.data,
        weights_path=None,
        cpu_threads=1,
        gpu_fraction=0.0,
        save_every_s=60.0,
    )
    for values in json.loads(Path(options.specs).read_text()):
        spec = RunSpec.model_validate_json(json.dumps(values))
        attempt = Attempt(spec, settings, Storage(options.results))
        while not attempt.done:
            attempt.advance()


def rate(options: argparse.Namespace) -> dict[str, Any]:
    """Runs of one step each through the grid's command, beside trials of bare Ray Tune that do nothing."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        arguments = _trivial(options.trivial, home)
        began = time.perf_counter()
        driver = _watched(arguments, home / "results" / "commits")
        ours = options.trivial / (time.perf_counter() - began)
        finished: list[float] = []
        for _ in range(options.repeats):
            began = time.perf_counter()
            shown = _python(*arguments)
            finished.append(time.perf_counter() - began)
            if "nothing to run" not in shown:
                raise RuntimeError(f"a finished grid was not recognised:\n{shown}")
    bare = {}
    for name in ("fresh", "reused"):
        began = time.perf_counter()
        _python("-m", "benchmarks.schedule", "--inside", name, "--trivial", str(options.bare))
        bare[f"bare_tune_{name}_runs_per_s"] = options.bare / (time.perf_counter() - began)
    return {
        "runs": options.trivial,
        "runs_per_s": ours,
        "bare_runs": options.bare,
        **bare,
        "finished_s": finished,
        **driver,
    }


def _watched(arguments: list[str], commits: Path) -> dict[str, Any]:
    """Runs a grid's command to its end and watches the driver: by runs done, its memory and its open files."""
    with (commits.parents[1] / "shown.txt").open("w") as log:
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment(1), stdout=log, stderr=log)
        driver = psutil.Process(process.pid)
        watched: dict[str, list[float]] = {"driver_runs_done": [], "driver_mb": [], "driver_open_files": []}
        while process.poll() is None:
            with suppress(psutil.Error, FileNotFoundError):
                seen = sum(1 for _ in commits.iterdir()), driver.memory_info().rss / 2**20, driver.num_fds()
                for values, value in zip(watched.values(), seen, strict=True):
                    values.append(value)
            time.sleep(WATCH_EVERY_S)
    if process.returncode:
        raise RuntimeError(f"the grid ended with {process.returncode}:\n{Path(log.name).read_text()}")
    return watched


def _trivial(count: int, home: Path) -> list[str]:
    seeds = ",".join(str(seed) for seed in range(count))
    short = ["--only", f"label={ROW}", "--seeds", seeds, "--epochs", "1", "--limit-train", "20"]
    where = [*_prepare(home), "--results", str(home / "results")]
    return ["-m", "tuner.run", "--grid", "demo", *short, "--limit-eval", "20", *where]


def _tune_here(options: argparse.Namespace) -> None:
    """Bare Ray Tune: trials that report once and end, as many at once as cores."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    import ray
    from ray import tune

    class Nothing(tune.Trainable):
        def step(self) -> dict[str, Any]:
            return {"done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def load_checkpoint(self, checkpoint: Any) -> None:
            return None

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            Nothing,
            param_space={"run": tune.grid_search(list(range(options.trivial)))},
            tune_config=tune.TuneConfig(reuse_actors=options.inside == "reused"),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
    ray.shutdown()


def _prepare(home: Path) -> list[str]:
    _python("-m", "datasets.prepare", "digits", "--data", str(home / "data"))
    return ["--data", str(home / "data")]


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment(1))


def _python(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"plan": plan, "overhead": overhead, "rate": rate}


def main() -> None:
    """Runs the parts, prints and writes them."""
    cli = argparse.ArgumentParser(prog="python -m benchmarks.schedule", description=__doc__.splitlines()[0])
    cli.add_argument("--parts", default=",".join(PARTS), help=f"default: {','.join(PARTS)}")
    cli.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    cli.add_argument("--repeats", type=int, default=3, help="of the quick measurements (default: 3)")
    cli.add_argument("--row", default=ROW, help=f"row of the overhead part (default: {ROW})")
    cli.add_argument("--runs", type=int, default=24, help="of the overhead part (default: 24)")
    cli.add_argument("--epochs", type=int, default=200, help="of the overhead part: how long a run is (default: 200)")
    cli.add_argument("--trivial", type=int, default=1000, help="runs of the rate part (default: 1000)")
    cli.add_argument("--bare", type=int, default=100, help="trials of bare Tune (default: 100)")
    cli.add_argument("--planned-seeds", type=int, help=argparse.SUPPRESS)
    for inside in ("--inside", "--specs", "--data", "--results"):
        cli.add_argument(inside, help=argparse.SUPPRESS)
    options = cli.parse_args()
    if options.inside:
        inner = {"plan": _plan_here, "loop": _loop_here, "fresh": _tune_here, "reused": _tune_here}
        inner[options.inside](options)
        return
    from trainable.costs import cpu_name

    result: dict[str, Any] = {
        "benchmark": "schedule",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": 1,
        "load": os.getloadavg()[0],
    }
    for name in options.parts.split(","):
        result[name] = PARTS[name](options)
        print(name, json.dumps(_rounded(result[name])), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"schedule-{datetime.now(UTC):%Y-%m-%dT%H%M}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Lists as their medians."""
    medians = {key: statistics.median(value) if isinstance(value, list) else value for key, value in values.items()}
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in medians.items()}


if __name__ == "__main__":
    main()
