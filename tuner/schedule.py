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
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray._private import services

from trainable.liveness import is_released, this_process
from trainable.spec import ExecSpec
from trainable.storage import Storage
from tuner.actor import RunActor
from tuner.dag import RunDag, RunState
from tuner.grid import Grid, PlannedRun
from tuner.ledger import Survey, survey
from tuner.metrics import REPEAT_EVERY_S, Gauges
from tuner.plan import Plan
from tuner.progress import Board
from tuner.resources import GIB
from tuner.search import DIED, RunSearcher
from tuner.shipping import keep_keys_home, leave_job_folder, runtime_env
from tuner.signals import interrupt_on_sigterm
from tuner.sweeping import Sweeping

MAX_PROCESS_DEATHS = 3
HELD_POLL_S = 1.0
MEMORY = "a machine ran low on memory while it trained alone; free some memory, or take a larger machine"
REPORT_S = 2.0
TOTALS_EVERY_S = 1.0
CONNECT_TIMEOUT_S = 10.0
JOIN_TRIES = 3
OBJECT_STORE_BYTES = 128 * 1024**2  # nothing of ours goes through it; Ray would take a third of the memory


class ClusterError(Exception):
    """The cluster cannot run the grid; the message says what it has and what was asked."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """How an invocation ended."""

    states: dict[str, RunState]
    reasons: dict[str, str] = field(default_factory=dict)
    """Why runs failed or are blocked, by run id."""
    signal: int | None = None
    """The signal that ended it early."""


def connect(
    address: str | None, *, threads: int, files: tuple[Path, ...] = (), dashboard_host: str = "127.0.0.1"
) -> str:
    """Starts a cluster of this machine alone, or joins the one at `address`.

    Args:
        address: auto, host:port or ray://host:port; None starts one.
        threads: cores of a trial.
        files: are sent to the cluster along with the code, see `shipping`.
        dashboard_host: where the dashboard of a started cluster listens, see `exposure`.

    Returns:
        The dashboard's address, empty where there is none.

    Raises:
        ClusterError: no such cluster.
    """
    settings: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if address is None:
        settings |= {"address": "local", "include_dashboard": True, "dashboard_host": dashboard_host}
        settings |= {"object_store_memory": OBJECT_STORE_BYTES}
    else:
        settings["address"] = _found(address)
        _check_reachable(settings["address"], address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it prints a traceback for every process that dies
    try:
        with runtime_env(threads, joined=address is not None, files=files) as environment:
            context = _init(settings | {"runtime_env": environment})
    except SystemExit:  # Ray's answer to SIGTERM while it starts
        raise KeyboardInterrupt from None
    except Exception as error:  # Ray raises bare ones, too
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        lines = lines[-1:] if "Traceback (most recent call last):" in lines else lines[:1]
        why = lines[0] if lines else type(error).__name__
        if address is None:
            raise ClusterError(
                f"Ray did not start on this machine ({why}); run the same command again, and look at its logs in "
                "/tmp/ray/session_latest/logs if that does not help"
            ) from None
        raise ClusterError(
            f"--address {address}: cannot join ({why}); start a cluster with `ray start --head`, or leave --address "
            "out to use this machine alone"
        ) from None
    leave_job_folder()
    keep_keys_home()
    interrupt_on_sigterm()
    return f"http://{context.dashboard_url}" if context.dashboard_url else ""


def _init(settings: Mapping[str, Any]) -> Any:
    """`ray.init`, again where the server of a client did not come up in Ray's 30 s: a busy machine may need more."""
    for _ in range(JOIN_TRIES - 1):
        with suppress(ConnectionAbortedError):
            return ray.init(**settings)
    return ray.init(**settings)


def _found(address: str) -> str:
    """The cluster that `auto` means: the one of RAY_ADDRESS, or the last that was started on this machine.

    Raises:
        ClusterError: there is none, or there are several and none is known to be the last; Ray would take any.
    """
    if address != "auto":
        return address
    running = services.find_gcs_addresses()
    if not os.environ.get("RAY_ADDRESS") and len(running) > 1 and services.find_bootstrap_address(None) not in running:
        raise ClusterError(
            f"--address auto: several Rays run on this machine ({', '.join(sorted(running))}); give the address of one"
        )
    try:
        return str(services.get_ray_address_from_environment("auto", None))
    except ConnectionError:
        raise ClusterError(
            "--address auto: no Ray runs on this machine; start a cluster with `ray start --head`, give its address, "
            "or leave --address out to use this machine alone"
        ) from None


def _check_reachable(address: str, given: str) -> None:
    """Ray itself tries for minutes to reach a machine where nothing listens.

    Args:
        address: host:port, with ray:// or without.
        given: as the person gave it.

    Raises:
        ClusterError: nothing listens at host:port.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        where = "there" if given == address else f"at {address}"
        raise ClusterError(
            f"--address {given}: nothing listens {where} ({error.strerror or error}); start a cluster with `ray start "
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
    plan: Plan,
    board: Board,
    gauges: Gauges,
    loggers: Sequence[tune.Callback] = (),
    sweep: Sweeping | None = None,
) -> Outcome:
    """Trains every run of the grid that can be trained. The cluster must be connected.

    Args:
        grid: its runs.
        start: where they stand.
        storage: the results root.
        results: its path or URI as the trials are to open it.
        exec_spec: where data and weights lie; device and threads of a trial. Its share of a card is the plan's.
        plan: what every run is given, and the order.
        board: is told what happens.
        gauges: are set to it.
        loggers: further Tune callbacks, see `logger_callbacks`.
        sweep: proposes further runs on the way, and may end its trials early.
    """
    resources = plan.resources
    runs = {run.run_id: run for run in grid.runs}
    outcome = Outcome(states=dict(start.states))
    current = start
    slots = resources.slots()

    def config(run_id: str) -> dict[str, Any]:
        bundle = resources.bundle(run_id)
        executed = {"gpu_fraction": bundle.share, "device": device_of(exec_spec.device, bundle.share)}
        return {
            "run_id": run_id,
            "label": runs[run_id].label,
            "spec": runs[run_id].spec.canonical(),
            "exec": exec_spec.model_copy(update=executed).model_dump_json(),
            "results": results,
            "cpu_threads": bundle.cpus,
            "bundle": bundle.as_ray(),
            "report_s": REPORT_S,
            "driver": dict(zip(("host", "pid"), this_process(), strict=True)),
        }

    def more_memory(run_id: str) -> bool:
        bundle = resources.more_memory(run_id)
        if bundle is not None:
            asked = f"{bundle.share:g} of a GPU" if bundle.share else f"{bundle.memory_bytes / GIB:.1f} GiB"
            board.say(f"{runs[run_id].label}: out of memory; it is tried again with {asked}")
        return bundle is not None

    while True:
        dag = current.dag(grid)
        for run_id in outcome.reasons:  # failed earlier in this invocation: not again
            if not dag.states[run_id].is_finished():
                dag.start(run_id)
                dag.finish(run_id, RunState.FAILED)
        paths = dag.longest_path(plan.seconds)
        hooks = sweep.hooks(dag, runs, paths) if sweep else {}
        searcher = RunSearcher(dag, paths, config, lambda result: result.get("failure"), more_memory, **hooks)
        todo = sum(not state.is_finished() for state in dag.states.values())
        todo += sweep.planner.remaining() if sweep else 0
        stopped = _Signals()
        killed = None
        if dag.ready() or (sweep and sweep.planner.remaining()):
            callbacks = [_Watch(board, gauges, dag, searcher), *loggers, stopped]
            reuse = exec_spec.device == "cpu" or not resources.uses_gpus()  # a process keeps what it reserved on a card
            killed = _fit(searcher, sweep.scheduler() if sweep else None, callbacks, min(todo, slots), reuse=reuse)
        grid = sweep.planner.grid if sweep else grid
        outcome.states = dict(dag.states)
        outcome.reasons |= searcher.reasons
        outcome.signal = stopped.received
        held = [run_id for run_id, state in dag.states.items() if state is RunState.HELD]
        if stopped.received is not None or not (killed or held):
            break
        if killed:
            fewer = min(slots, todo) - 1
            if not fewer:
                alone = [run_id for run_id, state in dag.states.items() if state is RunState.RUNNING]
                outcome.reasons |= dict.fromkeys(alone, MEMORY)
            slots = max(1, fewer)
            board.say(f"a machine ran low on memory and Ray ended a trial; going on with {slots} at a time")
        else:
            who = outcome.reasons | current.reasons
            _wait_for_release(storage, {run_id: f"{runs[run_id].label} ({who[run_id]})" for run_id in held}, board)
        current = survey(storage, grid, sweep.planner.pruned if sweep else None)
        outcome.reasons = {run_id: why for run_id, why in outcome.reasons.items() if run_id not in held}
        for run_id in held:
            if current.states[run_id] is RunState.DONE:
                board.ended(run_id, RunState.DONE)
    outcome.reasons = start.reasons | outcome.reasons | _blocked(grid, outcome)
    return outcome


def device_of(wanted: str, share: float) -> str:
    """Where a trial trains: one without a share of a GPU would see them all, and must not take any."""
    return wanted if wanted != "auto" else "cuda" if share else "cpu"


def _wait_for_release(storage: Storage, held: Mapping[str, str], board: Board) -> None:
    """Waits until some run is held no more: it is done, or its process has ended.

    Args:
        storage: the results root.
        held: what to call the runs, by run id.
        board: is told, and kept up to date.
    """
    told = False
    while not any(is_released(storage, run_id) for run_id in held):
        if not told:
            board.say(f"waiting for what others train: {', '.join(held.values())}")
            told = True
        time.sleep(HELD_POLL_S)
        board.refresh()


def _fit(searcher: RunSearcher, scheduler: Any, callbacks: list[tune.Callback], slots: int, *, reuse: bool) -> bool:
    """One Tune experiment with at most `slots` trials at a time; with `reuse`, they follow each other in one process.
    True when Ray ended it because a machine ran low on memory, and it should be built anew."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots)
    scratch = Path(tempfile.mkdtemp(prefix="grid-tuner-"))  # Tune wants a place for state that we never read
    try:
        tune.Tuner(
            tune.with_resources(RunActor, lambda config: tune.PlacementGroupFactory([config["bundle"]])),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,  # the searcher says when it is finished
                max_concurrent_trials=slots,
                reuse_actors=reuse,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="grid",
                storage_path=str(scratch),
                verbose=0,
                callbacks=callbacks,
                failure_config=tune.FailureConfig(max_failures=MAX_PROCESS_DEATHS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # would need a shared storage_path
            ),
        ).fit()
    except RuntimeError as error:
        if "low on memory" not in str(error):
            raise
        return True
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        interrupt_on_sigterm()
    return False


def _trial_name(trial: Any) -> str:
    return f"{trial.config['run_id']}-{trial.trial_id}"  # a run that was out of memory comes again


class _DriverOnly(tune.Callback):
    """A callback that stays in this process. Tune pickles callbacks for `Tuner.restore`, which is never used here."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Watch(_DriverOnly):
    """Tells the board and the gauges what Tune sees."""

    def __init__(self, board: Board, gauges: Gauges, dag: RunDag, searcher: RunSearcher) -> None:
        self._board, self._gauges, self._dag, self._searcher = board, gauges, dag, searcher
        self._told = self._repeated = 0.0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._board.started(trial.config["run_id"])
        share = trial.placement_group_factory.required_resources.get("GPU", 0.0)
        self._gauges.started(trial.config["run_id"], share)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        run_id, rows, speed = trial.config["run_id"], result["rows"], result.get("images_per_s")
        self._board.reported(run_id, result["progress"], rows, speed)
        self._gauges.reported(run_id, rows, speed, result.get("peak_memory_bytes"))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result, run_id = trial.last_result or {}, trial.config["run_id"]
        if self._dag.states[run_id] is RunState.PRUNED:
            self._ended(trial, RunState.PRUNED, self._searcher.reasons[run_id])
        elif result.get("held"):
            self._ended(trial, RunState.HELD, result["failure"])
        elif result.get("failure"):
            if self._dag.states[run_id] is RunState.FAILED:  # and not to be tried again
                self._ended(trial, RunState.FAILED, result["failure"])
        elif result.get("committed"):
            self._ended(trial, RunState.DONE)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._board.say(f"{trial.config['label']}: its process died; it goes on from its last checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self._dag.states[trial.config["run_id"]] is RunState.FAILED:  # and not to be started again
            self._ended(trial, RunState.FAILED, DIED)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._board.refresh()
        if time.monotonic() - self._told >= TOTALS_EVERY_S:
            self._tell_totals()
        if time.monotonic() - self._repeated >= REPEAT_EVERY_S:
            self._repeated = time.monotonic()
            self._gauges.repeat()

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._tell_totals()

    def _ended(self, trial: Any, state: RunState, reason: str | None = None) -> None:
        self._board.ended(trial.config["run_id"], state, reason)
        self._gauges.ended(trial.config["run_id"])

    def _tell_totals(self) -> None:
        self._told = time.monotonic()
        for run_id, state in self._dag.states.items():
            if state is RunState.BLOCKED:
                self._board.ended(run_id, state, "a run that it starts from failed")
        self._gauges.grid_is(self._dag.states.values(), self._board.totals())


class _Signals(_DriverOnly):
    """Notes SIGINT, and turns SIGTERM (on which Ray would die at once) into Tune's clean stop.

    Tune installs its own SIGINT handler inside `fit`, after which `setup` runs; a second signal ends the program.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def setup(self, **info: Any) -> None:
        clean_stop = signal.getsignal(signal.SIGINT)

        def handle(number: int, frame: FrameType | None) -> None:
            if self.received is not None:
                raise KeyboardInterrupt
            self.received = number
            if callable(clean_stop):
                clean_stop(number, frame)

        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGTERM, handle)


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
