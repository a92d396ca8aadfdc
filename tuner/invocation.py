"""One call of `python -m tuner.run`, from what the store holds to the exit code: plan, check, schedule, conclude."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from trainable.spec import ExecSpec
from trainable.storage import Storage
from tuner.dag import RunState
from tuner.exposure import check_host, exposed
from tuner.facts import LocalFacts
from tuner.grid import Grid, PlannedRun
from tuner.guard import ClusterGuard
from tuner.ledger import Survey, write_manifest
from tuner.loggers import check_loggers
from tuner.options import UsageError, share_of
from tuner.plan import Plan, make_plan, prediction_errors
from tuner.planner import SweepPlanner, announce_sweep
from tuner.report import end_as_json
from tuner.resources import Node, described, this_machine
from tuner.summary import announce, conclude, plan_as_json, print_errors, print_plan, shown_labels

if TYPE_CHECKING:
    from tuner.progress import Board

COMMAND_VARIABLE = "GRID_TUNER_COMMAND"
"""Environment variable with what a person typed, where that is not what runs (see `tuner.remote`)."""


class Unfit(Exception):
    """A row did not pass the preflight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Invocation:
    """What was asked, and what there is."""

    options: argparse.Namespace
    arguments: list[str]
    """As they were typed."""
    grid: Grid
    found: Survey
    storage: Storage
    facts: LocalFacts
    planner: SweepPlanner | None
    """Where a sweep was asked for."""

    def dry_run(self, console: Console) -> int:
        """Prints the plan.

        Raises:
            UsageError: the cluster cannot be asked.
            ResourceError: no machine can hold a trial.
        """
        plan = self._plan(self.grid, self._planned_machines())
        if self.options.json:
            print(plan_as_json(self.grid, self.found, plan, self.planner.describe() if self.planner else None))
        else:
            print_plan(self.grid, self.found, plan, console)
            announce_sweep(self.planner, console)
        return 0

    def run(self, console: Console) -> int:
        """Trains what is left. See `tuner.run` for exit codes.

        Raises:
            UsageError: the cluster cannot be used, or lacks what the grid needs.
            ResourceError: no machine can hold a trial.
        """
        loggers = check_loggers(self.options.log, self.storage) if self.options.log is not None else ()
        if not self.options.quiet:
            announce(self.grid, self.found, self.facts, self.storage, console)
            announce_sweep(self.planner, console)
        if not self._todo() and not (self.planner and self.planner.remaining()):
            self._write_manifest(self.found, {})
            if not self.options.quiet:
                console.print("nothing to run")
            return self._end(self.found.states, self.found.reasons, None, console)

        check_host(self.options.dashboard_host)
        if warning := exposed(self.options.dashboard_host):  # --quiet does not silence it
            console.print(warning, soft_wrap=True)
        ray_environment(local=self.options.address is None)
        from tuner import nodes, schedule  # Ray takes seconds to import: only where something is to be run
        from tuner.metrics import Gauges
        from tuner.progress import Board
        from tuner.sweeping import Sweeping

        began = datetime.now(UTC)
        labels = shown_labels(self.grid)
        equal = dict.fromkeys(labels, 1.0)
        title, quiet = f"grid {self.grid.name}", self.options.quiet
        try:
            with (
                ExitStack() as cluster,
                Board(title, labels, self.found.states, equal, console, quiet=quiet) as board,
            ):
                plan = self._prepare(board, console, cluster)
                self._write_manifest(self.found, plan.predicted())
                board.expect(plan.seconds)
                sweep = Sweeping(planner=self.planner, board=board, plan=plan, labels=labels) if self.planner else None
                outcome = schedule.run_grid(
                    self.grid,
                    self.found,
                    storage=self.storage,
                    results=absolute(self.options.results),
                    exec_spec=self._exec_spec(),
                    plan=plan,
                    board=board,
                    gauges=Gauges(self.grid.name, labels),
                    loggers=_loggers(loggers, self.grid.name, labels, self.storage),
                    sweep=sweep,
                )
        except (schedule.ClusterError, nodes.NodeError) as error:
            raise UsageError(str(error)) from None
        except Unfit:
            print("preflight: nothing was started. If a row is meant so, run without --preflight", file=sys.stderr)
            return 1
        if self.planner:  # runs were proposed on the way
            self._write_manifest(Survey(states=outcome.states, reasons=outcome.reasons, begun={}), plan.predicted())
        code = self._end(outcome.states, outcome.reasons, outcome.signal, console)
        if not self.options.quiet:
            print_errors(prediction_errors(self.storage, plan.predicted(), began), console)
        return code

    def _prepare(self, board: Board, console: Console, cluster: ExitStack) -> Plan:
        """Connects until `cluster` is left, asks the machines, and plans; probes where shares would rest on guesses or
        a preflight is wished.

        Raises:
            Unfit: a row did not pass the preflight.
        """
        from tuner import nodes, preflight, schedule
        from tuner.metrics import addresses

        board.say("starting Ray")
        cluster.callback(schedule.disconnect)
        dashboard = schedule.connect(
            self.options.address, threads=self.options.cpus_per_trial, dashboard_host=self.options.dashboard_host
        )
        board.say(addresses(dashboard))
        joined = self.options.address is not None
        if not joined:
            cluster.enter_context(ClusterGuard(command(self.arguments)))
        machines = nodes.machines(joined=joined)
        ahead = self.planner.prospect() if self.planner else self.grid
        todo = [run for run in ahead.runs if not self._is_finished(run) and not run.missing]
        plan = self._plan(ahead, machines)
        results, exec_spec = absolute(self.options.results), self._exec_spec()
        if joined:
            board.say("asking the machines of the cluster for code, data and results")
            nodes.check_nodes(
                [run.spec for run in todo],
                storage=self.storage,
                results=results,
                exec_spec=exec_spec,
                on_gpus=plan.resources.uses_gpus(),
            )
        rows = list({run.label: run for run in reversed(todo)}.values())[::-1]
        probed = rows if self.options.preflight else plan.to_probe(rows)
        if not probed:
            return plan
        checked = preflight.check_rows(
            probed,
            {run.run_id: plan.resources.probed(run.run_id, plan.costs) for run in probed},
            storage=self.storage,
            results=results,
            exec_spec=exec_spec,
            device=lambda share: schedule.device_of(self.options.device, share),
            say=board.say,
        )
        if self.options.preflight:
            preflight.print_checked(checked, console)
            if any(one.faults for one in checked):
                raise Unfit
        return self._plan(ahead, machines)

    def _plan(self, grid: Grid, machines: Sequence[Node]) -> Plan:
        return make_plan(
            grid,
            self.found,
            self.storage,
            self.facts,
            machines,
            cpus=self.options.cpus_per_trial,
            gpu_share=share_of(self.options),
            device=self.options.device,
        )

    def _planned_machines(self) -> tuple[Node, ...]:
        """The machines of a dry run: described, of a running cluster, or this one."""
        if self.options.on:
            return described(self.options.on)
        if self.options.address is None:
            return this_machine()
        ray_environment(local=False)
        from tuner import nodes, schedule

        try:
            schedule.connect(self.options.address, threads=self.options.cpus_per_trial)
            return nodes.machines(joined=True)
        except schedule.ClusterError as error:
            raise UsageError(str(error)) from None
        finally:
            schedule.disconnect()

    def _exec_spec(self) -> ExecSpec:
        """How trials are executed; each gets its own share of a card."""
        weights = self.options.weights
        return ExecSpec(
            device=self.options.device,
            data_path=str(self.options.data.absolute()),
            weights_path=str(weights.absolute()) if weights else None,
            cpu_threads=self.options.cpus_per_trial,
            gpu_fraction=0.0,
            save_every_s=self.options.save_every,
        )

    def _todo(self) -> bool:
        return any(not self._is_finished(run) for run in self.grid.runs)

    def _is_finished(self, run: PlannedRun) -> bool:
        state = self.found.states.get(run.run_id)
        return state is not None and state.is_finished()

    def _write_manifest(self, states: Survey, predicted: dict[str, dict[str, Any]]) -> None:
        typed = ["python", "-m", "tuner.run", *self.arguments]
        grid, swept = (self.planner.grid, self.planner.describe()) if self.planner else (self.grid, None)
        write_manifest(self.storage, grid, states, typed, predicted, swept)

    def _end(self, states: dict[str, RunState], reasons: dict[str, str], received: int | None, console: Console) -> int:
        grid = self.planner.grid if self.planner else self.grid
        conclude(grid, states, reasons, self.storage, console, self.planner.verdicts if self.planner else ())
        if self.options.json:
            print(end_as_json(grid, states, reasons, self.storage, interrupted=received is not None))
        if received is not None:
            again = command(self.arguments)
            print(f"interrupted; what was running keeps its checkpoints. Continue with: {again}", file=console.file)
            return 130
        settled = self.planner is None or self.planner.is_settled()
        return 0 if settled and all(state in (RunState.DONE, RunState.PRUNED) for state in states.values()) else 1


def _loggers(names: tuple[str, ...], grid: str, labels: dict[str, str], storage: Storage) -> list[Any]:
    if not names:
        return []
    from tuner.logger_callbacks import build_loggers

    return build_loggers(names, grid, labels, storage)


def absolute(results: str) -> str:
    """A results root as any working directory opens it."""
    return results if "://" in results else str(Path(results).absolute())


def command(arguments: list[str]) -> str:
    """What a person types to run this again."""
    if typed := os.environ.get(COMMAND_VARIABLE):
        return typed
    return shlex.join(["python", "-m", "tuner.run", *arguments])


def ray_environment(*, local: bool) -> None:
    """Settings that Ray reads at import or start; set for the driver and inherited by what it starts.

    Args:
        local: a cluster of this machine alone will be started.
    """
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU share must see no GPU
        "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",  # a submitted job that names a variable of ours is no conflict
        "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints boxes even when told to be silent
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    }
    if local:
        defaults["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # all ports on the loopback address
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # Whatever is wanted elsewhere: this process reads Parquet of strangers, and Ray's own Arrow types would unpickle.
    os.environ["RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA"] = "0"
