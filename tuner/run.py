"""The command that runs a grid: load, survey, plan, schedule, summarise.

    python -m tuner.run --grid paper

Running it again is the resume: finished runs are skipped, killed ones continue from their checkpoints.
Exit code 0 when every row is done, 1 when some failed or are blocked, 2 for bad input, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from trainable.records import RecordError
from trainable.spec import ExecSpec, RunSpec
from trainable.storage import Storage, StorageError
from tuner.cost import Cost, predict_cost
from tuner.dag import RunState
from tuner.facts import LocalFacts
from tuner.grid import Grid, Selection, list_grids, load_grid
from tuner.grid_file import GridError
from tuner.ledger import Survey, survey, write_manifest
from tuner.summary import announce, conclude, plan_as_json, print_list, print_plan, shown_labels

DEFAULT_FILE = "experiments.yaml"


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m tuner.run`. An experiment's knob belongs into the YAML, not here."""
    cli = argparse.ArgumentParser(prog="python -m tuner.run", description="Run a grid of trainings on Ray Tune.")
    cli.add_argument("--grid", metavar="NAME", help="grid of the experiment file")
    cli.add_argument("--list", action="store_true", help="list the grids and stop")
    cli.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    cli.add_argument("--json", action="store_true", help="with --dry-run: the plan as one JSON object")
    cli.add_argument("--experiments", type=Path, default=None, metavar="FILE", help=f"default: {DEFAULT_FILE}")
    rows = cli.add_argument_group("which rows")
    rows.add_argument("--only", metavar="AXIS=VALUE,...", help="e.g. dataset=cifar100,mix=cutmix; an axis may repeat")
    rows.add_argument("--seeds", metavar="N,N,...", help="seeds instead of the file's; each repeats the grid")
    rows.add_argument("--epochs", type=int, metavar="N", help="shorten every row (under run ids of its own)")
    rows.add_argument("--limit-train", type=int, metavar="N", help="train on a stratified subset of N images")
    rows.add_argument("--limit-eval", type=int, metavar="N", help="evaluate on a stratified subset of N images")
    where = cli.add_argument_group("where")
    where.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="prepared data (default: data)")
    where.add_argument("--results", default="results", metavar="URI", help="results root (default: results)")
    where.add_argument("--weights", type=Path, metavar="DIR", help="local files of pretrained weights")
    where.add_argument("--address", metavar="ADDRESS", help="a running Ray cluster (auto, or host:port)")
    where.add_argument("--cpus-per-trial", type=int, default=1, metavar="N", help="cores and threads (default: 1)")
    where.add_argument(
        "--gpu-share", type=float, metavar="SHARE", help="of a GPU per trial (default: 1 if there is one)"
    )
    where.add_argument(
        "--save-every", type=float, default=60.0, metavar="S", help="seconds between checkpoints (default: 60)"
    )
    return cli


class UsageError(Exception):
    """The command line cannot be used; the message names the option and the mend."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; see the module's docstring for exit codes."""
    arguments = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        _check_numbers(options)
        path = experiment_file(options.experiments)
        if options.list:
            print_list(path, console)
            return 0
        facts = LocalFacts(options.data, options.weights, download=not options.dry_run)
        grid = load_grid(path, _name(options, path), _selection(options), facts)
        storage = Storage(options.results)
        found = survey(storage, grid)
        costs = {run.run_id: _cost(run.spec, facts) for run in grid.runs}
        if options.dry_run:
            ranks = _ranks(grid, found, costs)
            if options.json:
                print(plan_as_json(grid, found, costs, ranks))
            else:
                print_plan(grid, found, costs, ranks, console)
            return 0
        return _run(options, arguments, grid, found, storage, costs, facts, console)
    except (GridError, StorageError, RecordError, UsageError) as error:
        print(f"tuner.run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; continue with: {_command(arguments)}", file=sys.stderr)
        return 130


def experiment_file(given: Path | None) -> Path:
    """The file asked for, else experiments.yaml of the working directory, else of this checkout."""
    if given is not None:
        return given
    here = Path(DEFAULT_FILE)
    return here if here.exists() else Path(__file__).resolve().parent.parent / DEFAULT_FILE


def _run(
    options: argparse.Namespace,
    arguments: list[str],
    grid: Grid,
    found: Survey,
    storage: Storage,
    costs: dict[str, Cost | None],
    facts: LocalFacts,
    console: Console,
) -> int:
    write_manifest(storage, grid, found, ["python", "-m", "tuner.run", *arguments])
    announce(grid, found, facts, storage, console)
    if all(state.is_finished() for state in found.states.values()):
        console.print("nothing to run")
        return _end(grid, found.states, found.reasons, None, arguments, storage, console)

    _ray_environment()
    from tuner import schedule  # Ray takes seconds to import: only where something is to be run
    from tuner.progress import Board

    resources = schedule.Resources(cpus=options.cpus_per_trial, gpu_share=options.gpu_share)
    exec_spec = ExecSpec(
        device="auto",
        data_path=str(options.data.absolute()),
        weights_path=str(options.weights.absolute()) if options.weights else None,
        cpu_threads=options.cpus_per_trial,
        gpu_fraction=0.0,
        save_every_s=options.save_every,
    )
    cost = _relative(costs)
    try:
        with Board(f"grid {grid.name}", shown_labels(grid), found.states, cost, console) as board:
            board.say("starting Ray")
            dashboard = schedule.connect(options.address, resources)
            board.say(f"Ray dashboard {dashboard}" if dashboard else "")
            outcome = schedule.run_grid(
                grid,
                found,
                storage=storage,
                results=options.results if "://" in options.results else str(Path(options.results).absolute()),
                exec_spec=exec_spec,
                resources=resources,
                cost=cost,
                board=board,
            )
    except schedule.ClusterError as error:
        raise UsageError(str(error)) from None
    finally:
        schedule.disconnect()
    return _end(grid, outcome.states, outcome.reasons, outcome.signal, arguments, storage, console)


def _end(
    grid: Grid,
    states: dict[str, RunState],
    reasons: dict[str, str],
    received: int | None,
    arguments: list[str],
    storage: Storage,
    console: Console,
) -> int:
    conclude(grid, states, reasons, storage, console)
    if received is not None:
        print(f"interrupted; what was running keeps its checkpoints. Continue with: {_command(arguments)}")
        return 130
    return 0 if all(state is RunState.DONE for state in states.values()) else 1


def _ray_environment() -> None:
    """Settings that Ray reads at import or start; set for the driver and inherited by what it starts."""
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU share must see no GPU
        "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints boxes even when told to be silent
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _name(options: argparse.Namespace, path: Path) -> str:
    if options.json and not options.dry_run:
        raise UsageError("--json goes with --dry-run")
    if options.grid is None:
        names = ", ".join(name for name, _, _ in list_grids(path))
        raise UsageError(f"--grid NAME is missing; {path} has {names}")
    return str(options.grid)


def _selection(options: argparse.Namespace) -> Selection:
    fields: dict[str, Any] = {}
    for option, field in (
        ("epochs", "budget.epochs"),
        ("limit_train", "data.limit_train"),
        ("limit_eval", "data.limit_eval"),
    ):
        if (value := getattr(options, option)) is not None:
            fields[field] = value
    return Selection(seeds=_seeds(options.seeds), only=_only(options.only), fields=fields)


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--seeds {text}: give whole numbers with commas, such as 223,224,225") from None
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"--seeds {text}: a seed is there twice, and would be the same run")
    return seeds


def _only(text: str | None) -> tuple[tuple[str, str], ...]:
    pairs = []
    for part in (text or "").split(",") if text is not None else []:
        axis, equals, value = part.partition("=")
        if not equals or not axis or not value:
            raise UsageError(f"--only {text}: give axis=value pairs with commas, such as dataset=cifar100,mix=cutmix")
        pairs.append((axis.strip(), value.strip()))
    return tuple(pairs)


def _check_numbers(options: argparse.Namespace) -> None:
    for name in ("epochs", "limit_train", "limit_eval", "cpus_per_trial"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if not options.save_every > 0:
        raise UsageError(f"--save-every {options.save_every:g}: must be more than 0 seconds")
    share = options.gpu_share
    if share is not None and not (0 <= share <= 1 or (share > 1 and share.is_integer())):
        raise UsageError(f"--gpu-share {share:g}: give a fraction up to 1 or a whole number; Ray never starts others")


def _cost(spec: RunSpec, facts: LocalFacts) -> Cost | None:
    return predict_cost(spec, facts.manifest(spec.data.dataset), facts.num_test(spec.data.dataset))


def _relative(costs: dict[str, Cost | None]) -> dict[str, float]:
    """Cost by run id; runs of unknown data count as the most costly known."""
    known = [cost.flops for cost in costs.values() if cost is not None]
    return {run_id: cost.flops if cost else max(known, default=1.0) for run_id, cost in costs.items()}


def _ranks(grid: Grid, found: Survey, costs: dict[str, Cost | None]) -> dict[str, int]:
    """Position in the order of starting, by run id, of the runs that are to be run."""
    paths = found.dag(grid).longest_path(_relative(costs))
    todo = sorted(
        (run_id for run_id, state in found.states.items() if not state.is_finished()), key=lambda i: -paths[i]
    )
    return {run_id: number for number, run_id in enumerate(todo, 1)}


def _command(arguments: list[str]) -> str:
    return shlex.join(["python", "-m", "tuner.run", *arguments])


if __name__ == "__main__":
    sys.exit(main())
