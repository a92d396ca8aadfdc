"""Runs what is left of a grid on Ray Tune: cluster, trials, signals.

Tune places processes, restarts those that die, and calls back; what a run is and how far it has come lies in the
results store. Every invocation builds a new Tuner over what is not done, and `Tuner.restore` is never used: it ignores
a larger grid and refuses a renamed trainable.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune

from trainable.spec import ExecSpec
from trainable.storage import Storage
from tuner.actor import RunActor, thread_environment
from tuner.dag import RunDag, RunState
from tuner.grid import Grid, PlannedRun
from tuner.ledger import Survey, survey
from tuner.progress import Board
from tuner.search import RunSearcher

MAX_PROCESS_DEATHS = 3
REPORT_S = 2.0
CONNECT_TIMEOUT_S = 10.0
OBJECT_STORE_BYTES = 128 * 1024**2  # nothing of ours goes through it; Ray would take a third of the memory


class ClusterError(Exception):
    """The cluster cannot run the grid; the message says what it has and what was asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What every trial is given."""

    cpus: int
    gpu_share: float | None
    """Share of one GPU, or a whole number of GPUs; None takes one GPU where the cluster has any."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """How an invocation ended."""

    states: dict[str, RunState]
    reasons: dict[str, str] = field(default_factory=dict)
    """Why runs failed or are blocked, by run id."""
    signal: int | None = None
    """The signal that ended it early."""


def connect(address: str | None, resources: Resources) -> str:
    """Starts a cluster of this machine alone, or joins the one at `address`.

    Returns:
        The dashboard's address, empty where there is none.

    Raises:
        ClusterError: no such cluster.
    """
    settings: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": thread_environment(resources.cpus)},
    }
    if address is None:
        settings |= {"address": "local", "include_dashboard": True, "dashboard_host": "127.0.0.1"}
        settings |= {"object_store_memory": OBJECT_STORE_BYTES}
    else:
        settings["address"] = address
        _check_reachable(address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        context = ray.init(**settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"--address {address}: cannot join ({str(error).splitlines()[0]}); start a cluster with `ray start "
            "--head`, or leave --address out to use this machine alone"
        ) from None
    return f"http://{context.dashboard_url}" if context.dashboard_url else ""


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes to reach a machine where nothing listens.

    Raises:
        ClusterError: nothing listens at host:port.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"--address {address}: nothing listens there ({error.strerror or error}); start a cluster with `ray start "
            "--head`, or leave --address out to use this machine alone"
        ) from None


def disconnect() -> None:
    """Leaves the cluster; one that `connect` started ends with it."""
    ray.shutdown()


def run_grid(
    grid: Grid,
    start: Survey,
    *,
    storage: Storage,
    results: str,
    exec_spec: ExecSpec,
    resources: Resources,
    cost: Mapping[str, float],
    board: Board,
) -> Outcome:
    """Trains every run of the grid that can be trained. The cluster must be connected.

    Raises:
        ClusterError: a trial asks for more than any machine of the cluster has.
    """
    share = _gpu_share(resources)
    slots = _slots(resources.cpus, share)
    runs = {run.run_id: run for run in grid.runs}
    executed = exec_spec.model_copy(
        update={
            "cpu_threads": resources.cpus,
            "gpu_fraction": share,
            "device": "cuda" if share else "cpu",  # a trial without a GPU would see them all
        }
    )

    def config(run_id: str) -> dict[str, Any]:
        return {
            "run_id": run_id,
            "spec": runs[run_id].spec.canonical(),
            "exec": executed.model_dump_json(),
            "results": results,
            "cpu_threads": resources.cpus,
            "report_s": REPORT_S,
        }

    outcome = Outcome(states=dict(start.states))
    current = start
    while True:
        dag = current.dag(grid)
        for run_id in outcome.reasons:  # failed earlier in this invocation: not again
            if not dag.states[run_id].is_finished():
                dag.start(run_id)
                dag.finish(run_id, RunState.FAILED)
        searcher = RunSearcher(dag, dag.longest_path(cost), config, lambda result: result.get("failure"))
        todo = sum(not state.is_finished() for state in dag.states.values())
        bundle = {"CPU": float(resources.cpus)} | ({"GPU": share} if share else {})
        stopped = _Signals()
        again = False
        if todo:
            again = _fit(searcher, _Watch(board, dag, searcher), stopped, todo, min(slots, todo), bundle)
        outcome.states = dict(dag.states)
        outcome.reasons |= searcher.reasons
        outcome.signal = stopped.received
        if not again or stopped.received is not None:
            break
        board.say("Ray ended the experiment because a machine ran low on memory; going on with what is left")
        current = survey(storage, grid)
    outcome.reasons |= _blocked(grid, outcome) | start.reasons
    return outcome


def _fit(
    searcher: RunSearcher, watch: _Watch, stopped: _Signals, todo: int, slots: int, bundle: dict[str, float]
) -> bool:
    """One Tune experiment. True when Ray ended it for a memory-pressure kill and it should be built anew."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots)
    scratch = Path(tempfile.mkdtemp(prefix="grid-tuner-"))  # Tune wants a place for state that we never read
    try:
        tune.Tuner(
            tune.with_resources(RunActor, tune.PlacementGroupFactory([bundle])),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=todo,
                max_concurrent_trials=slots,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="grid",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[watch, stopped],
                failure_config=tune.FailureConfig(max_failures=MAX_PROCESS_DEATHS),
            ),
        ).fit()
    except RuntimeError as error:
        if "low on memory" not in str(error):
            raise
        return True
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return False


def _trial_name(trial: Any) -> str:
    return str(trial.config["run_id"])


class _DriverOnly(tune.Callback):
    """A callback that stays in this process. Tune pickles callbacks for `Tuner.restore`, which is never used here."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Watch(_DriverOnly):
    """Tells the board what Tune sees."""

    def __init__(self, board: Board, dag: RunDag, searcher: RunSearcher) -> None:
        self._board, self._dag, self._searcher = board, dag, searcher

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._board.started(trial.config["run_id"])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        self._board.reported(trial.config["run_id"], result["progress"], result["rows"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        if result.get("failure"):
            self._ended(trial, result["failure"])
        elif result.get("committed"):
            self._board.ended(trial.config["run_id"], RunState.DONE)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial, "its process died too often")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._board.refresh()

    def _ended(self, trial: Any, reason: str) -> None:
        self._board.ended(trial.config["run_id"], RunState.FAILED, reason)


class _Signals(_DriverOnly):
    """Notes SIGINT, and turns SIGTERM (on which Ray would die at once) into Tune's clean stop.

    Tune installs its own SIGINT handler inside `fit`, after which `setup` runs; a second signal ends the program.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def setup(self, **info: Any) -> None:
        clean_stop = signal.getsignal(signal.SIGINT)

        def handle(number: int, frame: FrameType | None) -> None:
            self.received = number
            if callable(clean_stop):
                clean_stop(number, frame)

        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGTERM, handle)


def _gpu_share(resources: Resources) -> float:
    gpus = ray.cluster_resources().get("GPU", 0.0)
    if resources.gpu_share is None:
        return 1.0 if gpus else 0.0
    if resources.gpu_share and not gpus:
        raise ClusterError(f"--gpu-share {resources.gpu_share:g}: the cluster has no GPU; leave it out or set 0")
    return resources.gpu_share


def _slots(cpus: int, share: float) -> int:
    """Trials that run at once, node by node: fractions never straddle cards."""
    slots, seen = 0, []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        has = node["Resources"]
        seen.append(f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs")
        room = int(has.get("CPU", 0) // cpus)
        if share:
            per_card = int(1 / share + 1e-9) if share <= 1 else 0
            cards = has.get("GPU", 0)
            room = min(room, int(cards * per_card) if share <= 1 else int(cards // share))
        slots += room
    if not slots:
        raise ClusterError(
            f"a trial asks for {cpus} CPUs and {share:g} GPUs, which no machine of the cluster has ("
            f"{'; '.join(seen)}); lower --cpus-per-trial or --gpu-share"
        )
    return slots


def _blocked(grid: Grid, outcome: Outcome) -> dict[str, str]:
    labels = {run.run_id: run.label for run in grid.runs}

    def why(run: PlannedRun) -> str:
        parent = next(parent for parent in run.parents if outcome.states[parent] is not RunState.DONE)
        return f"its parent {labels[parent]} is {outcome.states[parent].value}"

    return {
        run.run_id: why(run)
        for run in grid.runs
        if outcome.states[run.run_id] is RunState.BLOCKED
        and run.parents
        and not run.missing
        and any(outcome.states[parent] is not RunState.DONE for parent in run.parents)
    }
