"""Where a grid stands, read from its results store alone, while it runs here, elsewhere, or not at all.

    python -m tuner.status --grid paper --results s3://bucket/study

Exit code 0 when the question is answered (also by "nothing was run yet"), 2 for bad input or a damaged store.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from pyarrow import ArrowException
from rich.console import Console
from rich.table import Table

from datasets.terminal import Terminal, plain
from trainable import records
from trainable.credentials import redacted
from trainable.liveness import Reached, reached, signs_of_life
from trainable.manifests import Chosen, ManifestError, choose_manifests, grid_names
from trainable.records import AttemptRecord, Commit, RecordError
from trainable.storage import Storage, StorageError
from trainable.sweep_records import DecisionLog, pruned, read_scores

STATES = ("done", "running", "stopped", "pruned", "killed", "failed", "blocked", "not run")
_READERS = 16
"""Small files read at once: an object store answers each after many milliseconds."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """One row with one seed."""

    label: str
    seed: int
    run_id: str
    state: str
    """One of STATES."""
    certain: bool
    """Whether `running` and `killed` are known from a lock; else they are judged by `heard_at`."""
    reason: str | None
    """Why it is failed, blocked or pruned, or what it waits for."""
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    loss_nats: float | None = None
    """Of training, at the last evaluation that a checkpoint holds."""
    top1: float | None = None
    """Fraction: of the final evaluation once done (a sweep's trial: on the hold-out), before that of the last one that
    a checkpoint holds."""
    heard_at: datetime | None = None
    """Its last sign: the commit, the record of its end, its log or its checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridStatus:
    """A variant of a grid as the store holds it."""

    grid: str
    variant: str
    invoked_at: datetime
    """When the newest invocation began."""
    command: tuple[str, ...]
    """What was typed then."""
    runs: tuple[RunStatus, ...]
    """In the order of the grid."""
    other_variants: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Runs by state, every state of STATES."""
        return {state: sum(run.state == state for run in self.runs) for state in STATES}


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m tuner.status`."""
    cli = argparse.ArgumentParser(
        prog="python -m tuner.status", description="Where a grid stands, from its results store alone."
    )
    cli.add_argument("--grid", metavar="NAME", required=True)
    cli.add_argument("--variant", metavar="HASH", help="full, or the hash of a variant (default: full, else the only)")
    cli.add_argument("--results", default="results", metavar="URI", help="results root (default: results)")
    cli.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Runs the command; see the module's docstring for exit codes."""
    options = parser().parse_args(argv)
    console = Terminal(width=None if sys.stdout.isatty() else 160)
    now = datetime.now(UTC)
    try:
        storage = Storage(options.results)
        names = grid_names(storage)
        if options.grid not in names:
            _show_nothing(options, names, console)
            return 0
        status = read_status(storage, options.grid, options.variant, now)
    except (ManifestError, RecordError, StorageError) as error:
        print(plain(f"tuner.status: {redacted(str(error))}"), file=sys.stderr)
        return 2
    except (OSError, ArrowException) as error:
        print(
            plain(
                f"tuner.status: --results {options.results}: cannot be read ({redacted(str(error)).splitlines()[0]}); "
                "check the address and your right to read it"
            ),
            file=sys.stderr,
        )
        return 2
    if options.json:
        print(as_json(status))
    else:
        show(status, options.results, now, console)
    return 0


def read_status(storage: Storage, grid: str, variant: str | None, now: datetime) -> GridStatus:
    """Reads where every run of a grid's newest manifests stands; of checkpoints and tables only what is shown.

    Raises:
        ManifestError: no such grid or variant, or several to choose from.
        RecordError: the store is damaged.
    """
    chosen = choose_manifests(storage, grid, variant)
    commits = records.read_commits(storage, chosen.run_ids())
    sweep = _Sweep(storage, grid, chosen) if chosen.newest.get("sweep") else None
    if sweep:
        commits |= records.read_commits(storage, sweep.proposed.keys() - commits.keys())
        entries = sweep.entries(chosen.entries(commits))
    else:
        order = {row["label"]: number for number, row in enumerate(chosen.newest["rows"])}
        entries = [entry for entry in chosen.entries(commits) if entry["label"] in order]
        entries.sort(key=lambda entry: (order[entry["label"]], entry["seed"]))
    known = {entry["run_id"] for entry in entries}
    attempts = {record.run_id: record for record in records.read_attempts(storage, known)}
    top1 = _at_once(lambda commit: _final_top1(storage, commit), {key: commits[key] for key in known & commits.keys()})
    if sweep:
        top1 |= {run_id: score.top1 for run_id, score in read_scores(storage, sweep.trials & commits.keys()).items()}
    open_attempts = {key: attempts[key] for key in known & attempts.keys() - commits.keys()}
    ends = _at_once(lambda record: _of_attempt(storage, record, now), open_attempts)

    def status(entry: dict[str, Any]) -> RunStatus:
        run_id = entry["run_id"]
        plain = RunStatus(
            label=entry["label"],
            seed=entry["seed"],
            run_id=run_id,
            state="not run",
            certain=True,
            reason=None,
        )
        if run_id in commits:
            return replace(plain, state="done", top1=top1[run_id], heard_at=commits[run_id].committed_at)
        if sweep and run_id in sweep.pruned:
            at = {
                key: value for key, value in ends.get(run_id, {}).items() if key not in ("state", "certain", "reason")
            }
            return replace(plain, **at, state="pruned", reason=sweep.pruned[run_id]["why"])
        if run_id in ends:
            return replace(plain, **ends[run_id])
        if entry["state"] == "blocked":
            return replace(plain, state="blocked", reason=entry["reason"])
        return plain

    runs = [status(entry) for entry in entries]
    found = {run.run_id: run for run in runs}
    parents = {entry["run_id"]: entry["parents"] for entry in entries}
    return GridStatus(
        grid=grid,
        variant=chosen.newest["variant"],
        invoked_at=datetime.fromisoformat(chosen.newest["written_at"]),
        command=tuple(chosen.newest.get("command", ())),
        runs=tuple(_below_parents(run, parents, found) for run in runs),
        other_variants=chosen.other_variants,
    )


def show(status: GridStatus, results: str, now: datetime, console: Console) -> None:
    """The status for people: totals, a line a run, and what to type next."""
    counts = status.counts()
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    _say(console, f"grid {status.grid} ({status.variant}): {len(status.runs)} runs: {shown}")
    _say(console, f"last invoked {_ago(status.invoked_at, now)}; results in {results}")
    table = Table(box=None, pad_edge=False)
    for name in ("run", "state", "step", "epoch", "loss", "top-1 %", "last sign"):
        numeric = name in ("step", "epoch", "loss", "top-1 %")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    several = len({run.seed for run in status.runs}) > 1
    for run in status.runs:
        total = "" if run.total_steps is None else f" of {run.total_steps:,}"
        table.add_row(
            f"{run.label}/{run.seed}" if several else run.label,
            run.state if run.certain else f"{run.state}?",
            "" if run.step is None else f"{run.step:,}{total}",
            "" if run.epoch is None else f"{run.epoch:g}",
            "" if run.loss_nats is None else f"{run.loss_nats:.3f}",
            "" if run.top1 is None else f"{100 * run.top1:.2f}",
            "" if run.heard_at is None else _ago(run.heard_at, now),
        )
    console.print(table)
    for state in ("failed", "blocked", "pruned", "killed", "running"):
        _say_reasons(state, [run for run in status.runs if run.state == state and run.reason], several, console)
    if status.other_variants:
        _say(console, f"other variants: {', '.join(status.other_variants)} (--variant)")
    for line in _next(status, results):
        _say(console, line)


def as_json(status: GridStatus) -> str:
    """The status for programs: totals and a list of runs. Times are ISO 8601, accuracies fractions."""
    content = {
        "grid": status.grid,
        "variant": status.variant,
        "invoked_at": status.invoked_at.isoformat(),
        "command": list(status.command),
        "counts": status.counts(),
        "runs": [
            {**asdict(run), "heard_at": run.heard_at.isoformat() if run.heard_at else None} for run in status.runs
        ],
        "other_variants": list(status.other_variants),
    }
    return json.dumps(content, indent=1)


class _Sweep:
    """What a sweep's log adds to its manifests: runs that were proposed on the way, and those that were ended early."""

    def __init__(self, storage: Storage, grid: str, chosen: Chosen) -> None:
        decisions = DecisionLog(storage, grid, chosen.newest["variant"], write=False).decisions
        field = str(chosen.newest["sweep"]["field"]).rsplit(".", 1)[-1]
        self.proposed: dict[str, dict[str, Any]] = {}
        """Entries as a manifest has them, by run id, in the order of the log."""
        self.trials = {run_id for one in decisions if one["kind"] == "suggest" for run_id in one["runs"].values()}
        self.pruned = pruned(decisions)
        for one in decisions:
            if one["kind"] not in ("suggest", "choose"):
                continue
            name = f"{'chosen ' if one['kind'] == 'choose' else ''}{field}={_shown(one['value'])}"
            for seed, run_id in one["runs"].items():
                entry = {"label": f"{one['row']} {name}", "seed": int(seed), "run_id": run_id}
                self.proposed.setdefault(run_id, {**entry, "state": "waiting", "reason": None, "parents": []})

    def entries(self, recorded: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The runs that manifests name, in their order, and the others of the log after them."""
        known = {entry["run_id"] for entry in recorded}
        return [*recorded, *(entry for run_id, entry in self.proposed.items() if run_id not in known)]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _final_top1(storage: Storage, commit: Commit) -> float:
    return float(records.read_table(storage, "trials", [commit], ["final_top1"])["final_top1"][0].as_py())


def _of_attempt(storage: Storage, attempt: AttemptRecord, now: datetime) -> dict[str, Any]:
    """Fields of a `RunStatus` whose run is begun and not committed."""
    at = _progress(reached(storage, attempt.run_id))
    if attempt.outcome == "failed":
        return {**at, "state": "failed", "reason": attempt.error, "heard_at": attempt.ended_at}
    if attempt.outcome == "done":  # its commit lost a file since, or is being written
        return {**at, "state": "not run", "reason": "its files are gone; it will be trained again"}
    if attempt.outcome is not None:
        return {**at, "state": "stopped", "heard_at": attempt.ended_at}
    life = signs_of_life(storage, attempt, now)
    if not life.running and storage.exists(f"attempts/{attempt.run_id}--{attempt.attempt_id}.end.json"):
        # It ended between two looks, and its lock is free for that reason.
        return {**at, "state": "running", "certain": False, "reason": "just ended; look again", "heard_at": now}
    reason = None
    if not life.certain:
        where = f"on {attempt.host}" if attempt.host else "where it trained"
        reason = f"judged by its last sign; only a look at the processes {where} is certain"
    return {
        **at,
        "state": "running" if life.running else "killed",
        "certain": life.certain,
        "reason": reason,
        "heard_at": life.heard_at,
    }


def _progress(at: Reached | None) -> dict[str, Any]:
    return {} if at is None else asdict(at)


def _below_parents(run: RunStatus, parents: dict[str, list[str]], found: dict[str, RunStatus]) -> RunStatus:
    """A run that has not begun is blocked by a failed ancestor, and waits for parents that are not done."""
    if run.state != "not run":
        return run
    for parent in parents[run.run_id]:
        if parent not in found or found[parent].state == "done":
            continue
        above = _below_parents(found[parent], parents, found)
        if above.state in ("failed", "blocked"):
            return replace(run, state="blocked", reason=f"its parent {above.label} is {above.state}")
        return replace(run, reason=f"waits for its parent {above.label}")
    return run


def _at_once(read: Callable[[_Value], Any], items: dict[_Key, _Value]) -> dict[_Key, Any]:
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(items, pool.map(read, items.values()), strict=True))


def _next(status: GridStatus, results: str) -> list[str]:
    """What to type next."""
    counts = status.counts()
    where = f" --results {shlex.quote(results)}" if results != "results" else ""
    table = f"table     python -m analysis.tables --grid {status.grid}{where}"
    if counts["done"] + counts["pruned"] == len(status.runs):
        return [table]
    if counts["running"]:
        return [f"it is at work; the rows so far: {table.split(maxsplit=1)[1]}"]
    if status.command[:3] != ("python", "-m", "tuner.run"):  # a record that somebody changed is nothing to type
        return [table]
    return [f"continue  {shlex.join(status.command)}   (the command of the last time; it repeats nothing)", table]


def _show_nothing(options: argparse.Namespace, names: list[str], console: Console) -> None:
    if options.json:
        empty = {"grid": options.grid, "variant": None, "counts": dict.fromkeys(STATES, 0), "runs": []}
        print(json.dumps({**empty, "other_grids": names}, indent=1))
        return
    has = f"it has {', '.join(names)}" if names else "it is empty"
    where = f" --results {shlex.quote(options.results)}" if options.results != "results" else ""
    _say(console, f"grid {options.grid}: nothing was run yet in {options.results}; {has}")
    _say(console, f"start     python -m tuner.run --grid {options.grid}{where}")


def _say_reasons(state: str, runs: list[RunStatus], several: bool, console: Console) -> None:
    """Why, runs of the same reason together."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(run.reason or "", []).append(f"{run.label}/{run.seed}" if several else run.label)
    for reason, members in groups.items():
        _say(console, f"  {state.upper()} {_some(members)}: {reason}")


def _some(labels: Iterable[str], shown: int = 12) -> str:
    names = list(labels)
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _ago(then: datetime, now: datetime) -> str:
    """How long ago, in the largest unit; clocks of other machines may run ahead a little."""
    seconds = max(0, int((now - then).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
