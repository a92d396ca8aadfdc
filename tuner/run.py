"""The command that runs a grid or a sweep: load, survey, plan, schedule, summarise.

    python -m tuner.run --grid paper

Running it again is the resume: finished runs are skipped, killed ones continue from their checkpoints.
Exit code 0 when every row is done, 1 when some failed or are blocked, 2 for bad input, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from rich.console import Console

from datasets.terminal import Terminal, plain
from trainable.credentials import redacted
from trainable.records import RecordError
from trainable.storage import Storage, StorageError
from tuner.facts import LocalFacts
from tuner.grid import Grid, load_grid
from tuner.grid_file import GridError
from tuner.invocation import Invocation, absolute, command, ray_environment
from tuner.ledger import survey
from tuner.loggers import LoggerError
from tuner.options import UsageError, check_options, choices_of, experiment_file, name_of, parser, selection_of
from tuner.planner import open_planner
from tuner.resources import ResourceError
from tuner.signals import sigterm_as_interrupt
from tuner.summary import print_list
from tuner.sweep import sweep_names


def main(argv: list[str] | None = None) -> int:
    """Runs the command; see the module's docstring for exit codes."""
    arguments = sys.argv[1:] if argv is None else argv
    with sigterm_as_interrupt():
        return _main(arguments)


def _main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    console = _console(sys.stderr if options.json and not options.dry_run else sys.stdout)
    try:
        check_options(options)
        path = experiment_file(options.experiments)
        if options.list:
            print_list(path, console)
            return 0
        if (options.address or "").startswith("ray://") and not options.dry_run:
            return _run_in_cluster(options, arguments, path)
        if options.until_decided is not None:
            return _until_decided(options, arguments, path, console)
        invocation = _look(options, arguments, path)
        return invocation.dry_run(console) if options.dry_run else invocation.run(console)
    except (GridError, StorageError, RecordError, ResourceError, UsageError, LoggerError) as error:
        print(plain(f"tuner.run: {redacted(str(error))}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; continue with: {command(arguments)}", file=sys.stderr)
        return 130


def _look(options: argparse.Namespace, arguments: list[str], path: Path) -> Invocation:
    """What was asked, beside what the store already holds."""
    facts = LocalFacts(options.data, options.weights, download=not options.dry_run)
    storage = Storage(options.results)
    name, selection = name_of(options, path), selection_of(options)
    write = not options.dry_run
    planner = open_planner(path, name, choices_of(options), selection, facts, storage, write=write)
    grid = planner.grid if planner else load_grid(path, name, selection, facts)
    return Invocation(
        options=options,
        arguments=arguments,
        grid=grid,
        found=survey(storage, grid, planner.pruned if planner else None),
        storage=storage,
        facts=facts,
        planner=planner,
    )


def _until_decided(options: argparse.Namespace, arguments: list[str], path: Path, console: Console) -> int:
    """Adds seeds to a grid that was run, until a claim about it is decided."""
    from tuner.deciding import Deciding, judged, subset

    if options.grid in {name for name, _ in sweep_names(path)}:
        raise UsageError(f"--until-decided: {options.grid} is a sweep, and no claim is registered for one; give a grid")
    facts = LocalFacts(options.data, options.weights, download=not options.dry_run)
    storage = Storage(options.results)
    name, selection = name_of(options, path), selection_of(options)
    header = load_grid(path, name, selection, facts).header

    def plan(pairs: Collection[tuple[str, int]]) -> Grid:
        seeds = tuple(sorted({seed for _, seed in pairs}))
        return subset(load_grid(path, name, replace(selection, seeds=seeds), facts), pairs)

    def train(grid: Grid) -> int:
        found = survey(storage, grid)
        return Invocation(
            options=options, arguments=arguments, grid=grid, found=found, storage=storage, facts=facts, planner=None
        ).run(console)

    return Deciding(
        claim=options.until_decided,
        max_hours=options.max_gpu_hours,
        storage=storage,
        grid=name,
        variant=header.variant,
        plan=plan,
        ask=lambda: judged(name, header.variant, options.results, options.until_decided),
        train=train,
        say=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
    ).go_on(dry_run=options.dry_run)


def _run_in_cluster(options: argparse.Namespace, arguments: list[str], path: Path) -> int:
    """Sends the command to the cluster; paths are said absolutely, for it runs in another folder."""
    if options.json:
        raise UsageError(
            f"--json: over --address {options.address} both output streams arrive as one; leave --json out and ask "
            "python -m tuner.status --json"
        )
    if not path.is_file():
        raise UsageError(f"--experiments {path}: no such file")
    ray_environment(local=False)
    from tuner.remote import run_in_cluster
    from tuner.schedule import ClusterError

    places = [*arguments, "--data", str(options.data.absolute()), "--results", absolute(options.results)]
    if options.weights is not None:
        places += ["--weights", str(options.weights.absolute())]
    try:
        return run_in_cluster(options.address, command(arguments), places, path)
    except ClusterError as error:
        raise UsageError(str(error)) from None


def _console(stream: TextIO) -> Console:
    return Terminal(file=stream, width=None if stream.isatty() else 160)


if __name__ == "__main__":
    sys.exit(main())
