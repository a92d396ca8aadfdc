"""Drives a sweep without Ray: a fake Tune with one unit of time a run, and runs that are committed with made-up numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from ray.tune.search import Searcher
from rich.console import Console

from trainable import records
from trainable.schemas import SCHEMAS
from trainable.storage import Storage
from tuner.facts import LocalFacts, PinnedFacts
from tuner.grid import PlannedRun, Selection
from tuner.ledger import survey
from tuner.plan import make_plan
from tuner.planner import SweepPlanner
from tuner.progress import Board
from tuner.resources import Node
from tuner.search import RunSearcher
from tuner.sweep import open_sweep
from tuner.sweep_file import Choices
from tuner.sweeping import Sweeping

HELD_OUT = 1000


def plan(
    path: Path, storage: Storage, sweep: str = "lr_sweep", selection: Selection | None = None, **choices: Any
) -> SweepPlanner:
    """A planner over grid `demo`."""
    opened = open_sweep(path, sweep, Choices(over="demo", **choices), selection or Selection(), PinnedFacts())
    return SweepPlanner(opened, storage, write=True)


def commit(storage: Storage, run: PlannedRun, val_top1: float, test_top1: float) -> None:
    """Commits a run whose tables hold nothing but its last evaluation and the one before."""
    row = {"step": 1, "epoch": 1.0, "num_images": HELD_OUT}
    rows = [
        {**row, "eval_index": index, "split": split, "top1": top1}
        for index, factor in enumerate((0.5, 1.0))
        for split, top1 in (("test", factor * test_top1), ("val", factor * val_top1))
        if split == "test" or run.spec.data.val_fraction
    ]
    keys = {"run_id": run.run_id, "attempt_id": "1"}
    columns = {field.name: [{**keys, **one}.get(field.name) for one in rows] for field in SCHEMAS["epochs"]}
    tables = {name: schema.empty_table() for name, schema in SCHEMAS.items()}
    tables["epochs"] = pa.table(columns, schema=SCHEMAS["epochs"])
    storage.put(f"runs/{run.run_id}/checkpoint/last/state.safetensors", b"")
    records.commit_run(storage, run_id=run.run_id, attempt_id="1", dataset="digits", tables=tables)


def drive(
    planner: SweepPlanner,
    storage: Storage,
    top1: Callable[[PlannedRun], float | None],
    *,
    slots: int = 2,
    most: int | None = None,
    failure: str = "NonFiniteLoss: the loss was not a finite number at step 3",
    test_top1: Callable[[PlannedRun], float] = lambda run: 0.5,
) -> list[PlannedRun]:
    """Runs a sweep to its end, or until `most` runs were started; the last ones started are then left unfinished.

    Args:
        top1: of a run on the hold-out; None for one that fails with `failure`.
        test_top1: of a run on the test split.

    Returns:
        The runs in the order of their starts.
    """
    found = survey(storage, planner.grid, planner.pruned)
    dag = found.dag(planner.grid)
    runs = {run.run_id: run for run in planner.grid.runs}
    labels = {run_id: run.label for run_id, run in runs.items()}
    board = Board("test", labels, found.states, dict.fromkeys(runs, 1.0), Console(quiet=True))
    priority = dict.fromkeys(runs, 1.0)
    facts = LocalFacts(Path("none"), None, download=False)
    node = (Node(cpus=float(slots), gpus=0.0, memory_bytes=1e12),)
    ahead = make_plan(planner.prospect(), found, storage, facts, node, cpus=1, gpu_share=None, device="cpu")
    sweeping = Sweeping(planner=planner, board=board, plan=ahead, labels=labels)
    hooks = sweeping.hooks(dag, runs, priority)
    searcher = RunSearcher(dag, priority, lambda run_id: {"run_id": run_id}, lambda r: r.get("failure"), **hooks)
    running: list[tuple[str, PlannedRun]] = []
    started: list[PlannedRun] = []
    while True:
        finished = False
        while len(running) < slots:
            config = searcher.suggest(f"t{len(started)}")
            if config is None or config == Searcher.FINISHED:
                finished = config == Searcher.FINISHED
                assert running or finished, "never None while nothing runs: Tune would poll for ten minutes"
                break
            assert isinstance(config, dict)
            run = runs[config["run_id"]]
            running.append((f"t{len(started)}", run))
            started.append(run)
            begin(storage, run)
            if most is not None and len(started) == most:
                return started
        if not running:
            assert finished
            return started
        trial, run = running.pop(0)
        value = top1(run)
        if value is not None:
            commit(storage, run, value, test_top1(run))
        searcher.on_trial_complete(trial, {"committed": value is not None, "failure": None if value else failure})


def begin(storage: Storage, run: PlannedRun) -> None:
    """Leaves the record of an attempt."""
    number = len(records.read_attempts(storage, [run.run_id])) + 1
    records.start_attempt(storage, run.run_id, str(number), {})
