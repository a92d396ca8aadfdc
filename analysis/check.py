"""Whether a results store is what it says: every rule, the rows-by-seeds grid, attempts and health flags.

    python -m analysis.check [--grid paper]

Every number of every run is computed from its predictions again; a rule that is broken is shown with the run, the file,
the column and the first bad row.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from rich.console import Console

from analysis.audit import Audit, AuditedRun, audit_grid
from analysis.frame import Frame, Raw, show
from analysis.load import AnalysisError
from analysis.registration import RegistrationError
from analysis.rules import RULES
from analysis.stand_ins import SIGN, WORDS
from datasets.terminal import Terminal, plain
from trainable.credentials import redacted
from trainable.manifests import grid_names
from trainable.records import RecordError
from trainable.storage import Storage, StorageError

SHOWN = 5
"""Faults of one rule that are printed."""
UNHEALTHY = "†"
_UNHEALTHY_NOTE = "its learning curve fails a health rule of the preregistration; nothing is left out for it"
_WORDS = {"failed": "FAILED", "blocked": "BLOCKED", "not run": "-"}


def completeness_frame(audit: Audit) -> Frame:
    """The rows-by-seeds grid: what became of every run, attempts and health flags."""
    seeds = sorted({run.seed for run in audit.runs})
    runs = {(run.label, run.seed): run for run in audit.runs}
    rows, raw = [], []
    footnotes: list[str] = []
    for label in audit.labels:
        own = [runs[label, seed] for seed in seeds if (label, seed) in runs]
        done = sum(run.status == "done" for run in own)
        marks = [_mark(runs.get((label, seed))) for seed in seeds]
        remarks = _remarks(own)
        footnotes += [remark for remark in remarks if remark not in footnotes]
        notes = " ".join(f"[{footnotes.index(remark) + 1}]" for remark in remarks)
        rows.append((label, *marks, f"{done} of {len(own)}", _attempts(own), notes))
        line: Raw = {"run": label, **{f"seed {seed}": mark for seed, mark in zip(seeds, marks, strict=True)}}
        line |= {"num_done": done, "num_runs": len(own), "num_attempts": sum(len(run.attempts) for run in own)}
        raw.append({**line, "notes": "; ".join(remarks)})
    columns = ("run", *(f"seed {seed}" for seed in seeds), "done", "attempts", "notes")
    total = Counter(run.status for run in audit.runs)
    words = ", ".join(f"{total[status]:,} {status}" for status in total)
    return Frame(
        title=f"grid {audit.grid} ({audit.variant}): {words or 'no run was selected yet'}",
        notes=(
            *((f"{UNHEALTHY} {_UNHEALTHY_NOTE}",) if any(run.health for run in audit.runs) else ()),
            *((f"{SIGN} {WORDS}",) if any(run.stand_in is not None for run in audit.runs) else ()),
            *(f"[{number}] {remark}" for number, remark in enumerate(footnotes, 1)),
        ),
        columns=columns,
        left=len(columns),
        narrow=columns,
        rows=tuple(rows),
        raw=tuple(raw),
    )


def _mark(run: AuditedRun | None) -> str:
    if run is None:
        return ""
    signs = (f" {UNHEALTHY}" if run.health else "") + (f" {SIGN}" if run.stand_in is not None else "")
    return _WORDS.get(run.status, run.status) + signs


def _remarks(runs: list[AuditedRun]) -> list[str]:
    """Health rules that were failed and why runs could not be done, each once with its seeds."""
    seeds: dict[str, list[str]] = {}
    for run in runs:
        reasons = [f"health: {code}" for code in run.health]
        reasons += [f"{run.status.upper()}: {run.reason}"] if run.status in ("failed", "blocked") else []
        reasons += [f"{WORDS}: {run.stand_in}"] if run.stand_in is not None else []
        for reason in reasons:
            seeds.setdefault(reason, []).append(str(run.seed))
    return [f"{reason} (seed {', '.join(found)})" for reason, found in seeds.items()]


def _attempts(runs: list[AuditedRun]) -> str:
    """How many, and how many of them ended otherwise than well."""
    ends = Counter(end for run in runs for end in run.attempts)
    others = ", ".join(f"{ends[end]} {end}" for end in sorted(ends) if end != "done")
    return f"{ends.total()}{f' ({others})' if others else ''}"


def print_audit(audit: Audit, console: Console) -> None:
    """The grid, then PASS or FAIL by rule, each broken one with its first faults."""
    show(completeness_frame(audit), console)
    for rule, what in RULES.items():
        found = [fault for fault in audit.faults if fault.rule == rule]
        asked = audit.asked[rule]
        verdict = "FAIL" if found else "PASS" if asked else "----"
        _say(console, f"{verdict}  {rule:<12} {what}{'' if asked or found else ' (nothing to ask)'}")
        for fault in found[:SHOWN]:
            _say(console, f"      {fault}")
        if len(found) > SHOWN:
            _say(console, f"      and {len(found) - SHOWN:,} more")
    if random := [run for run in audit.runs if run.stand_in is not None]:
        _say(console, f"NOTE  {'stand-ins':<12} of {len(random):,} of {audit.num_done:,} runs the {WORDS} ({SIGN})")
    for line in audit.unknown:
        _say(console, f"not asked of {line}")
    faults = len(audit.faults)
    _say(console, f"{audit.num_done:,} runs, {faults:,} {'fault' if faults == 1 else 'faults'}")


def _say(console: Console, line: str) -> None:
    console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m analysis.check`."""
    cli = argparse.ArgumentParser(prog="python -m analysis.check", description="Ask every rule of a results store.")
    cli.add_argument("--grid", metavar="NAME", help="default: every grid in the store")
    cli.add_argument("--variant", help="full, or the hash of a shortened variant")
    cli.add_argument("--results", default="results", metavar="URI", help="results root (default: results)")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 1 where a rule is broken, or 2 when nothing could be asked."""
    options = parser().parse_args(argv)
    console = Terminal() if sys.stdout.isatty() else Terminal(width=240)
    try:
        storage = Storage(options.results)
        names = [options.grid] if options.grid else grid_names(storage)
        if not names:
            raise AnalysisError(f"--results {options.results}: holds no grid; run one: python -m tuner.run --grid demo")
        faults = 0
        for name in names:
            audit = audit_grid(storage, name, options.variant)
            print_audit(audit, console)
            faults += len(audit.faults)
    except (AnalysisError, RecordError, RegistrationError, StorageError) as error:
        print(plain(f"analysis.check: {redacted(str(error))}"), file=sys.stderr)
        return 2
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
